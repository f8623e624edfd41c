#include "clock.h"

#include <time.h>

#include <limits>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace workbench {
namespace {

std::uint64_t Nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t Ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#elif defined(__aarch64__)
  std::uint64_t ticks = 0;
  asm volatile("mrs %0, cntvct_el0" : "=r"(ticks));
  return ticks;
#else
  return Nanoseconds();
#endif
}

}  // namespace

spool::ClockPair ReadClock() {
  spool::ClockPair best{};
  std::uint64_t shortest = std::numeric_limits<std::uint64_t>::max();
  for (int i = 0; i < 8; ++i) {
    const std::uint64_t before = Nanoseconds();
    const std::uint64_t ticks = Ticks();
    const std::uint64_t after = Nanoseconds();
    if (after - before < shortest) {
      shortest = after - before;
      best = {ticks, before + (after - before) / 2};
    }
  }
  return best;
}

}  // namespace workbench
