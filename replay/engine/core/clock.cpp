#include "core/clock.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace workbench {
namespace {

using SteadyClock = std::chrono::steady_clock;

double nanoseconds(SteadyClock::duration duration) {
  return std::chrono::duration<double, std::nano>(duration).count();
}

ClockCosts measure() {
  const auto start = SteadyClock::now();
  const std::uint64_t first = ticks_before();
  constexpr int kPairs = 1000;
  std::vector<std::uint64_t> pairs;
  SteadyClock::duration elapsed{};
  do {
    const auto block_start = SteadyClock::now();
    std::uint64_t sum = 0;
    for (int i = 0; i < kPairs; ++i) {
      const std::uint64_t before = ticks_before();
      sum += ticks_after() - before;
    }
    pairs.push_back(static_cast<std::uint64_t>(nanoseconds(SteadyClock::now() - block_start)) +
                    (sum == 0 ? 1 : 0));
    elapsed = SteadyClock::now() - start;
  } while (elapsed < std::chrono::milliseconds(20));
  const std::uint64_t last = ticks_after();
  elapsed = SteadyClock::now() - start;
  // The median block, so that being switched away from does not count.
  std::nth_element(pairs.begin(), pairs.begin() + static_cast<std::ptrdiff_t>(pairs.size() / 2),
                   pairs.end());
  return {nanoseconds(elapsed) / static_cast<double>(last - first),
          static_cast<double>(pairs[pairs.size() / 2]) / kPairs};
}

}  // namespace

const ClockCosts& clock_costs() {
  static const ClockCosts costs = measure();
  return costs;
}

}  // namespace workbench
