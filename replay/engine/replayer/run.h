// A backend, an allocator and a program: what a pass over the events needs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <vector>

#include "allocators/allocator.h"
#include "allocators/walk.h"
#include "backends/backend.h"
#include "core/events.h"
#include "core/last_words.h"
#include "core/lock.h"
#include "core/thread_events.h"
#include "replayer/replay.h"
#include "replayer/threads.h"

namespace workbench {

class Run {
 public:
  // `counts`: whether statistics will be asked for.
  Run(const Events& events, const CompletedStreams& completed_streams,
      const std::vector<std::size_t>& step_starts, const CellOptions& options,
      const ThreadEvents* threads, bool counts)
      : step_starts_(step_starts),
        threads_(threads),
        planned_thread_(options.plan == nullptr ? kNoThread : options.plan->thread),
        backend_(backend_registry().get(options.backend).create(options.backend_options)),
        is_library_(allocator_registry().get(options.allocator).needs_library),
        allocator_(
            make_allocator(options.allocator, options.settings, *backend_, options.plan, counts)),
        program_(threads_ == nullptr ? events : threads_->events(), completed_streams, *backend_,
                 options.continue_after_oom, allocator_->works_in_background(),
                 allocator_->takes_lanes()),
        lock_(threads_ != nullptr && !allocator_registry().get(options.allocator).locks_itself) {
    allocator_->prepare(program_.events);
  }

  ~Run() {
    if (allocator_ == nullptr) return;
    // A library that did something wrong is not asked for more: what comes of that would hide it.
    if (is_library_ && std::uncaught_exceptions() > 0) return;
    try {
      end_program();
    } catch (...) {
      // A library that throws must not end the process: why the pass ended is on its way.
    }
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Ends the program and the allocator; bytes of the backend's that are still taken.
  Bytes close() {
    end_program();
    allocator_.reset();
    return backend_->used();
  }

  Backend& backend() { return *backend_; }
  Allocator& allocator() { return *allocator_; }
  Program& program() { return program_; }
  // Whether the recorded threads replay, each its own events.
  bool threaded() const { return threads_ != nullptr; }

  // Frees what the program left; all its work is complete.
  void end_program() {
    allocator_->program_ends();
    LastWords::say("end");
    for (void*& handle : program_.handles) {
      if (handle != nullptr) allocator_->free(handle, 0);
      handle = nullptr;
    }
    backend_->synchronize(kAllStreams);
    program_.completed_seen = 0;
  }

  // Begins the program and has `pass(begin, end)` walk its events in chunks of `chunk`, calling
  // `checkpoint` between them; chunks end at steps too, where those are to be told. False where it
  // stopped because memory ran out.
  template <class Pass>
  bool in_chunks(std::size_t chunk, const Checkpoint& checkpoint, Pass&& pass) {
    const Events& events = program_.events;
    const std::size_t count = events.count();
    auto step = step_starts_.begin();
    std::size_t next_checkpoint = chunk;
    allocator_->program_begins();
    for (std::size_t begin = 0, end = 0; begin < count; begin = end) {
      if (step != step_starts_.end() && *step == begin) {
        allocator_->step_begins(events.step[begin]);
        ++step;
      }
      end = std::min(count, next_checkpoint);
      if (step != step_starts_.end()) end = std::min(end, *step);
      if (!pass(begin, end)) return false;
      if (end == next_checkpoint) {
        next_checkpoint += chunk;
        if (end < count) checkpoint(end);
      }
    }
    return true;
  }

  struct Threaded {
    bool came_to_end;  // false where it stopped because memory ran out
    double nanoseconds;
  };

  // Begins the program and has `pass(threaded program, number)` walk the events of each thread, all
  // at once.
  template <class Pass>
  Threaded in_threads(const Checkpoint& checkpoint, Pass&& pass) {
    ThreadedProgram threaded(program_, *threads_, lock_);
    const auto& parts = threads_->parts();
    if (!step_starts_.empty()) {
      const auto planned = std::find_if(parts.begin(), parts.end(), [&](const auto& part) {
        return part.thread == planned_thread_;
      });
      threaded.tells_steps = static_cast<std::size_t>(planned - parts.begin());
    }
    allocator_->program_begins();
    const double nanoseconds = run_threads({
        .threads = parts.size(),
        .work = [&](std::size_t number) { pass(threaded, number); },
        .stop = [&] { threaded.meetings.stop(); },
        .checkpoint =
            [&] {
              std::size_t done = 0;
              for (const auto& part : threaded.done) done += part.events.load();
              checkpoint(done);
            },
    });
    return {!threaded.meetings.stopping(), nanoseconds};
  }

 private:
  static constexpr ThreadId kNoThread = -1;

  const std::vector<std::size_t>& step_starts_;
  const ThreadEvents* const threads_;
  const ThreadId planned_thread_;
  const std::unique_ptr<Backend> backend_;
  const bool is_library_;
  std::unique_ptr<Allocator> allocator_;
  Program program_;
  Lock lock_;
};

}  // namespace workbench
