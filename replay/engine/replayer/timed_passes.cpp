// The measured passes: each call by the time-stamp counter, and whole passes by the clock.
#include <algorithm>
#include <chrono>
#include <limits>

#include "core/clock.h"
#include "replayer/replay.h"
#include "replayer/run.h"

namespace workbench {
namespace {

// Long: a checkpoint takes Python's lock, and should not fall into a short measurement.
constexpr std::size_t kChunk = 1 << 20;

template <bool kDigest>
struct TimedObserver : Unobserved {
  TimedObserver(Run& run, TimedResult& result)
      : allocator(run.allocator()),
        ticks(result.ticks.data()),
        causes(result.causes.data()),
        digest(run) {}

  template <class Call>
  void call(std::size_t event, Call&& make) {
    const std::uint64_t before = ticks_before();
    make();
    const std::uint64_t duration = ticks_after() - before;
    ticks[event] = static_cast<std::uint32_t>(
        std::clamp<std::uint64_t>(duration, 1, std::numeric_limits<std::uint32_t>::max()));
    causes[event] = static_cast<std::uint8_t>(allocator.cause());
    if constexpr (kDigest) digest.called();
  }
  void allocated(std::size_t, const Allocation& allocation) {
    if constexpr (kDigest) digest.allocated(allocation);
  }

  const Allocator& allocator;
  std::uint32_t* const ticks;
  std::uint8_t* const causes;
  DecisionDigest digest;
};

using SteadyClock = std::chrono::steady_clock;

double nanoseconds_since(SteadyClock::time_point start) {
  return std::chrono::duration<double, std::nano>(SteadyClock::now() - start).count();
}

bool warm_up(Run& run, const Checkpoint& checkpoint) {
  Unobserved nothing;
  const bool whole = run.walk(nothing, kChunk, checkpoint);
  run.end_program();
  return whole;
}

template <bool kDigest>
void walk_timed(Run& run, TimedResult& result, const Checkpoint& checkpoint) {
  TimedObserver<kDigest> observer(run, result);
  const auto start = SteadyClock::now();
  result.out_of_memory = !run.walk(observer, kChunk, checkpoint);
  result.nanoseconds = nanoseconds_since(start);
  if constexpr (kDigest) result.digest = observer.digest.hex();
}

}  // namespace

TimedResult Replay::timed(State state, bool digest, const Checkpoint& checkpoint) const {
  TimedResult result;
  result.ticks.resize(events_.count());
  result.causes.resize(events_.count());
  Run run(events_, completed_streams_, options_);
  if (state == State::kSteady && !warm_up(run, checkpoint)) {
    result.out_of_memory = true;
    return result;
  }
  if (digest) {
    walk_timed<true>(run, result, checkpoint);
  } else {
    walk_timed<false>(run, result, checkpoint);
  }
  return result;
}

ThroughputResult Replay::throughput(State state, std::size_t repeat,
                                    const Checkpoint& checkpoint) const {
  ThroughputResult result;
  const auto pass = [&](Run& run) {
    Unobserved nothing;
    const auto start = SteadyClock::now();
    result.out_of_memory |= !run.walk(nothing, kChunk, checkpoint);
    result.nanoseconds.push_back(nanoseconds_since(start));
  };
  if (state == State::kCold) {
    for (std::size_t i = 0; i < repeat; ++i) {
      Run run(events_, completed_streams_, options_);
      pass(run);
    }
    return result;
  }
  Run run(events_, completed_streams_, options_);
  if (!warm_up(run, checkpoint)) {
    result.out_of_memory = true;
    return result;
  }
  for (std::size_t i = 0; i < repeat; ++i) {
    pass(run);
    run.end_program();
  }
  return result;
}

}  // namespace workbench
