// The measured passes: each call by the time-stamp counter, and whole passes by the clock.
#include <chrono>

#include "core/clock.h"
#include "core/errors.h"
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

// The pass before a steady one. False, and written into the result, where it did not come to its
// end.
template <class Result>
bool warms_up(Run& run, const Checkpoint& checkpoint, Result& result) {
  try {
    result.out_of_memory = !replay_all(run, checkpoint);
  } catch (const PlanMismatchError&) {
    result.mismatched = true;
  }
  run.end_program();
  return !result.out_of_memory && !result.mismatched;
}

}  // namespace

TimedResult Replay::timed(State state, bool digest, const Checkpoint& checkpoint) const {
  TimedResult result;
  result.ticks.resize(events_.count());
  result.causes.resize(events_.count());
  Run run(events_, completed_streams_, step_starts_, options_, /*counts=*/false);
  if (state == State::kSteady && !warms_up(run, checkpoint, result)) return result;
  DecisionDigest decisions(run.allocator(), run.backend());
  Timed timed(result.ticks.data(), result.causes.data(), digest ? &decisions : nullptr);
  const auto start = SteadyClock::now();
  try {
    result.out_of_memory =
        !run.in_chunks(kChunk, checkpoint, [&](std::size_t begin, std::size_t end) {
          return run.allocator().replay_timed(run.program(), timed, begin, end);
        });
  } catch (const PlanMismatchError&) {
    result.mismatched = true;
  }
  result.nanoseconds = nanoseconds_since(start);
  if (digest) result.digest = decisions.hex();
  return result;
}

ThroughputResult Replay::throughput(State state, std::size_t repeat,
                                    const Checkpoint& checkpoint) const {
  ThroughputResult result;
  const auto pass = [&](Run& run) {
    const auto start = SteadyClock::now();
    try {
      result.out_of_memory |= !replay_all(run, checkpoint);
    } catch (const PlanMismatchError&) {
      result.mismatched = true;
    }
    result.nanoseconds.push_back(nanoseconds_since(start));
    checkpoint(events_.count());
  };
  if (state == State::kCold) {
    for (std::size_t i = 0; i < repeat; ++i) {
      Run run(events_, completed_streams_, step_starts_, options_, /*counts=*/false);
      pass(run);
    }
    return result;
  }
  Run run(events_, completed_streams_, step_starts_, options_, /*counts=*/false);
  if (!warms_up(run, checkpoint, result)) return result;
  for (std::size_t i = 0; i < repeat; ++i) {
    pass(run);
    run.end_program();
  }
  return result;
}

}  // namespace workbench
