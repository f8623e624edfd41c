// The measured passes: each call by the time-stamp counter, and whole passes by the clock.
#include <chrono>

#include "core/clock.h"
#include "replayer/replay.h"
#include "replayer/run.h"

namespace workbench {
namespace {

// Long: a checkpoint takes Python's lock, and should not fall into a short measurement.
constexpr std::size_t kChunk = 1 << 20;

using SteadyClock = std::chrono::steady_clock;

double nanoseconds_since(SteadyClock::time_point start) {
  return std::chrono::duration<double, std::nano>(SteadyClock::now() - start).count();
}

// One pass without a clock; false where memory ran out.
bool replay_all(Run& run, const Checkpoint& checkpoint) {
  return run.in_chunks(kChunk, checkpoint, [&](std::size_t begin, std::size_t end) {
    return run.allocator().replay(run.program(), begin, end);
  });
}

bool warm_up(Run& run, const Checkpoint& checkpoint) {
  const bool whole = replay_all(run, checkpoint);
  run.end_program();
  return whole;
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
  DecisionDigest decisions(run.allocator(), run.backend());
  Timed timed(result.ticks.data(), result.causes.data(), digest ? &decisions : nullptr);
  const auto start = SteadyClock::now();
  result.out_of_memory =
      !run.in_chunks(kChunk, checkpoint, [&](std::size_t begin, std::size_t end) {
        return run.allocator().replay_timed(run.program(), timed, begin, end);
      });
  result.nanoseconds = nanoseconds_since(start);
  if (digest) result.digest = decisions.hex();
  return result;
}

ThroughputResult Replay::throughput(State state, std::size_t repeat,
                                    const Checkpoint& checkpoint) const {
  ThroughputResult result;
  const auto pass = [&](Run& run) {
    const auto start = SteadyClock::now();
    result.out_of_memory |= !replay_all(run, checkpoint);
    result.nanoseconds.push_back(nanoseconds_since(start));
    checkpoint(events_.count());
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
