// The measured passes: each call by the time-stamp counter, and whole passes by the clock.
#include <chrono>

#include "core/clock.h"
#include "core/errors.h"
#include "core/last_words.h"
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

// A pass, and how long it took.
struct Pass {
  bool came_to_end = false;  // false where memory ran out, and after a plan mismatch
  bool mismatched = false;
  double nanoseconds = 0;  // 0 after a plan mismatch
};

// `by_one` and `by_thread` make the calls of one thread and of one among several.
template <class ByOne, class ByThread>
Pass pass_of(Run& run, const Checkpoint& checkpoint, ByOne&& by_one, ByThread&& by_thread) {
  LastWords::say("timed pass");
  try {
    if (run.threaded()) {
      const Run::Threaded end = run.in_threads(checkpoint, by_thread);
      run.backend().check();
      return {.came_to_end = end.came_to_end, .nanoseconds = end.nanoseconds};
    }
    const auto start = SteadyClock::now();
    const bool came_to_end = run.in_chunks(kChunk, checkpoint, by_one);
    const double nanoseconds = nanoseconds_since(start);
    run.backend().check();
    return {.came_to_end = came_to_end, .nanoseconds = nanoseconds};
  } catch (const PlanMismatchError&) {
    return {.mismatched = true};
  }
}

// One pass without a clock.
Pass replay_all(Run& run, const Checkpoint& checkpoint) {
  return pass_of(
      run, checkpoint,
      [&](std::size_t begin, std::size_t end) {
        return run.allocator().replay(run.program(), begin, end);
      },
      [&](ThreadedProgram& threaded, std::size_t number) {
        run.allocator().replay_thread(threaded, number);
      });
}

template <class Result>
void note(const Pass& pass, Result& result) {
  result.mismatched |= pass.mismatched;
  result.out_of_memory |= !pass.came_to_end && !pass.mismatched;
}

// The pass before a steady one. False, and written into the result, where it did not come to its
// end.
template <class Result>
bool warms_up(Run& run, const Checkpoint& checkpoint, Result& result) {
  const Pass pass = replay_all(run, checkpoint);
  note(pass, result);
  run.end_program();
  return pass.came_to_end;
}

}  // namespace

TimedResult Replay::timed(State state, bool digest, const Checkpoint& checkpoint) const {
  TimedResult result;
  result.ticks.resize(events_.count());
  result.causes.resize(events_.count());
  Run run(events_, completed_streams_, step_starts_, options_, threads_.get(), /*counts=*/false);
  if (state == State::kSteady && !warms_up(run, checkpoint, result)) return result;
  // What several threads decide depends on their race.
  const bool digested = digest && !run.threaded();
  DecisionDigest decisions(run.allocator(), run.backend());
  Timed timed(result.ticks.data(), result.causes.data(), digested ? &decisions : nullptr);
  const Pass pass = pass_of(
      run, checkpoint,
      [&](std::size_t begin, std::size_t end) {
        return run.allocator().replay_timed(run.program(), timed, begin, end);
      },
      [&](ThreadedProgram& threaded, std::size_t number) {
        run.allocator().replay_thread_timed(threaded, timed, number);
      });
  note(pass, result);
  result.nanoseconds = pass.nanoseconds;
  if (digested) result.digest = decisions.hex();
  return result;
}

ThroughputResult Replay::throughput(State state, std::size_t repeat,
                                    const Checkpoint& checkpoint) const {
  ThroughputResult result;
  const auto pass = [&](Run& run) {
    const Pass made = replay_all(run, checkpoint);
    note(made, result);
    result.nanoseconds.push_back(made.nanoseconds);
    checkpoint(events_.count());
  };
  if (state == State::kCold) {
    for (std::size_t i = 0; i < repeat; ++i) {
      Run run(events_, completed_streams_, step_starts_, options_, threads_.get(),
              /*counts=*/false);
      pass(run);
    }
    return result;
  }
  Run run(events_, completed_streams_, step_starts_, options_, threads_.get(), /*counts=*/false);
  if (!warms_up(run, checkpoint, result)) return result;
  for (std::size_t i = 0; i < repeat; ++i) {
    pass(run);
    run.end_program();
  }
  return result;
}

}  // namespace workbench
