// The loops over a trace's events. They are compiled once for each allocator, with its calls in it:
// a call through a table costs more than the loop, and would be counted as the allocator's time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "allocators/allocator.h"
#include "allocators/meetings.h"
#include "backends/backend.h"
#include "core/clock.h"
#include "core/digest.h"
#include "core/events.h"
#include "core/lock.h"
#include "core/thread_events.h"

namespace workbench {

// The program whose events are replayed: where it is, and what lives.
struct Program {
  Program(const Events& events_view, const CompletedStreams& streams, Backend& memory,
          bool goes_on_after_oom, bool works_in_background, bool takes_lanes)
      : events(events_view),
        completed_streams(streams),
        backend(memory),
        continue_after_oom(goes_on_after_oom),
        background(works_in_background),
        tells_streams(!streams.empty() || memory.counts_events() || background),
        handles(static_cast<std::size_t>(events.slot_count)),
        freed_at(tells_streams ? handles.size() : 0),
        own_streams(takes_lanes ? std::vector<StreamId>() : streams_of_lanes(events)) {}

  const Events& events;
  const CompletedStreams& completed_streams;
  Backend& backend;
  const bool continue_after_oom;
  const bool background;  // whether the allocator works between its calls
  // Whether the loop has to tell the streams which event it is at and when blocks were freed.
  const bool tells_streams;
  std::vector<void*> handles;           // by slot; null where nothing lives
  std::vector<std::uint64_t> freed_at;  // by slot: the last CUDA event at its free
  // By event, where there are lanes and the allocator takes none; else empty.
  const std::vector<StreamId> own_streams;
  std::size_t completed_seen = 0;  // free_completed events so far

  // The streams that the block of the free_completed event `i` had been recorded on.
  std::span<const StreamId> completed_by(std::size_t i) {
    if (backend.several_threads()) return completed_streams.of(completed_streams.number_of(i));
    return completed_streams.of(completed_seen++);
  }
};

// Adds each decision to a digest: which block an allocation got, and the driver calls so far.
class DecisionDigest {
 public:
  DecisionDigest(const Allocator& allocator, const Backend& backend)
      : allocator_(allocator), backend_(backend) {}

  void called() {
    const DriverCalls& calls = backend_.driver_calls();
    digest_.add(static_cast<std::uint64_t>(calls.alloc + calls.map + calls.refused) << 32 ^
                static_cast<std::uint64_t>(calls.free + calls.unmap));
  }
  void allocated(const Allocation& allocation) {
    const Location location = allocator_.locate(allocation.handle);
    digest_.add(location.segment);
    digest_.add(location.offset);
  }
  std::string hex() const { return digest_.hex(); }

 private:
  const Allocator& allocator_;
  const Backend& backend_;
  Digest digest_;
};

// An observer that does nothing: what the others derive from, and what throughput passes use.
struct Unobserved {
  // Makes the allocator's call of event `event`.
  template <class Call>
  void call(std::size_t, const Allocator&, Call&& make) {
    make();
  }
  // Tells the allocator something that is no call of the program.
  template <class Call>
  void tell(Call&& make) {
    make();
  }
  void allocated(std::size_t, const Allocation&) {}
  void freeing(std::size_t, const void*) {}
  void refused(std::size_t) {}
  void after(std::size_t) {}
};

// Times each call by the time-stamp counter.
struct Timed : Unobserved {
  Timed(std::uint32_t* ticks_column, std::uint8_t* cause_column, DecisionDigest* decisions)
      : ticks(ticks_column), causes(cause_column), digest(decisions) {}

  template <class Call>
  void call(std::size_t event, const Allocator& allocator, Call&& make) {
    const std::uint64_t before = ticks_before();
    make();
    const std::uint64_t duration = ticks_after() - before;
    ticks[event] = static_cast<std::uint32_t>(
        std::clamp<std::uint64_t>(duration, 1, std::numeric_limits<std::uint32_t>::max()));
    causes[event] = static_cast<std::uint8_t>(allocator.cause());
    if (digest != nullptr) digest->called();
  }
  void allocated(std::size_t, const Allocation& allocation) {
    if (digest != nullptr) digest->allocated(allocation);
  }

  std::uint32_t* const ticks;
  std::uint8_t* const causes;
  DecisionDigest* const digest;  // null where none is wanted
};

// Events that are neither an allocation nor a free.
template <class A, class Observer>
void walk_other(A& allocator, Program& program, Observer& observer, std::size_t i) {
  const Events& events = program.events;
  const auto value_at = [&] { return static_cast<std::size_t>(events.value[i]); };
  const auto pool_at = [&] { return static_cast<PoolId>(events.value[i]); };
  switch (events.op_at(i)) {
    case Op::kRecordStream: {
      if (events.slot[i] == kNoSlot) break;
      void* const handle = program.handles[static_cast<std::size_t>(events.slot[i])];
      if (handle == nullptr) break;
      observer.call(i, allocator, [&] { allocator.record_stream(handle, events.stream[i]); });
      break;
    }
    case Op::kEmptyCache:
      observer.call(i, allocator, [&] { allocator.empty_cache(); });
      break;
    case Op::kSynchronize:
      program.backend.synchronize(events.stream[i]);
      observer.tell([&] { allocator.synchronized(events.stream[i]); });
      break;
    case Op::kFreeCompleted:
      for (const StreamId stream : program.completed_by(i)) {
        program.backend.complete_recorded(
            stream, program.freed_at[static_cast<std::size_t>(events.slot[i])]);
      }
      break;
    // What follows is no call of the allocator's in the program, and so not timed.
    case Op::kEventRecord:
      if (!events.value.empty())
        observer.tell([&] { allocator.event_record(value_at(), events.stream[i]); });
      break;
    case Op::kEventWait:
      if (!events.value.empty())
        observer.tell([&] { allocator.event_wait(value_at(), events.stream[i]); });
      break;
    case Op::kCaptureBegin:
      observer.tell([&] { allocator.capture_begin(events.stream[i]); });
      break;
    case Op::kCaptureEnd:
      observer.tell([&] { allocator.capture_end(events.stream[i]); });
      break;
    case Op::kSetFraction:
      if (!events.value.empty()) observer.tell([&] { allocator.set_fraction(events.value[i]); });
      break;
    case Op::kPoolBegin:
      if (!events.value.empty()) observer.tell([&] { allocator.pool_begin(pool_at()); });
      break;
    case Op::kPoolEnd:
      if (!events.value.empty()) observer.tell([&] { allocator.pool_end(pool_at()); });
      break;
    case Op::kPoolRelease:
      if (!events.value.empty()) observer.tell([&] { allocator.pool_release(pool_at()); });
      break;
    default:
      break;
  }
}

// Everything the loops read: the allocator's stores must not make them read it again.
struct Columns {
  explicit Columns(Program& program)
      : op(program.events.op.data()),
        slot(program.events.slot.data()),
        size(program.events.size.data()),
        stream(program.own_streams.empty() ? program.events.stream.data()
                                           : program.own_streams.data()),
        thread(program.events.thread.data()),
        handles(program.handles.data()) {}

  const std::uint8_t* op;
  const std::int32_t* slot;
  const Bytes* size;
  const StreamId* stream;
  const ThreadId* thread;
  void** handles;
};

// Makes event `i`. False where memory ran out and the replay is to stop.
template <bool kTellsStreams, class A, class Observer>
[[gnu::always_inline]] inline bool make_event(A& allocator, Program& program, Observer& observer,
                                              const Columns& columns, const std::size_t i) {
  const Op kind = static_cast<Op>(columns.op[i]);
  // Only used for events that have a slot.
  const auto at = static_cast<std::size_t>(static_cast<std::uint32_t>(columns.slot[i]));
  if (kind == Op::kAlloc || kind == Op::kLive) {
    Allocation allocation;
    observer.call(i, allocator, [&] {
      allocation = allocator.allocate(columns.size[i], columns.stream[i], columns.thread[i]);
    });
    columns.handles[at] = allocation.handle;
    if (allocation.handle == nullptr) [[unlikely]] {
      // Nothing will be freed, and so nothing completed: the slot's last user was another.
      if constexpr (kTellsStreams) program.freed_at[at] = 0;
      if (allocation.is_refused()) {
        observer.refused(i);
        if (!program.continue_after_oom) {
          observer.after(i);
          return false;
        }
      }
    } else {
      observer.allocated(i, allocation);
    }
  } else if (kind == Op::kFree) {
    void* const handle = columns.handles[at];
    if (handle != nullptr) [[likely]] {
      observer.freeing(i, handle);
      observer.call(i, allocator, [&] { allocator.free(handle, columns.thread[i]); });
      columns.handles[at] = nullptr;
      if constexpr (kTellsStreams) {
        program.freed_at[at] = program.backend.sequence();
      }
    }
  } else {
    walk_other(allocator, program, observer, i);
  }
  observer.after(i);
  return true;
}

template <bool kTellsStreams, class A, class Observer>
bool walk_events(A& allocator, Program& program, Observer& observer, const std::size_t begin,
                 const std::size_t end) {
  const Columns columns(program);
  for (std::size_t i = begin; i < end; ++i) {
    if constexpr (kTellsStreams) {
      program.backend.set_now(static_cast<std::int64_t>(i));
      if (program.background) allocator.work_in_background();
    }
    if (!make_event<kTellsStreams>(allocator, program, observer, columns, i)) return false;
  }
  return true;
}

// Walks events begin … end − 1. False where it stopped because memory ran out.
template <class A, class Observer>
bool walk(A& allocator, Program& program, Observer& observer, std::size_t begin, std::size_t end) {
  return program.tells_streams ? walk_events<true>(allocator, program, observer, begin, end)
                               : walk_events<false>(allocator, program, observer, begin, end);
}

// The program as several threads replay it.
struct ThreadedProgram {
  ThreadedProgram(Program& all, const ThreadEvents& split, Lock& around_calls)
      : program(all),
        threads(split),
        lock(around_calls),
        meetings(split.meetings(), split.order()),
        done(split.parts().size()) {}

  Program& program;  // of threads.events()
  const ThreadEvents& threads;
  Lock& lock;  // around each call, where the allocator takes no locks of its own
  Meetings meetings;
  // The number of the thread that tells the allocator of steps; none, where it is past the last.
  std::size_t tells_steps = threads.parts().size();
  struct alignas(64) Done {
    std::atomic<std::size_t> events = 0;
  };
  std::vector<Done> done;  // by thread, now and then
};

// Observers of one thread among several. Around a whole event:
struct UnobservedThread : Unobserved {
  explicit UnobservedThread(Lock& around_calls) : lock(around_calls) {}

  template <class Make>
  bool event(Make&& make) {
    return make();
  }
  template <class Call>
  void tell(Call&& make) {
    const std::lock_guard guard(lock);
    make();
  }
  template <class Call>
  void call(std::size_t, const Allocator&, Call&& make) {
    const std::lock_guard guard(lock);
    make();
  }

  Lock& lock;
};

struct TimedThread : Timed {
  TimedThread(const Timed& timed, Lock& around_calls) : Timed(timed), lock(around_calls) {}

  template <class Make>
  bool event(Make&& make) {
    return make();
  }
  template <class Call>
  void tell(Call&& make) {
    const std::lock_guard guard(lock);
    make();
  }
  // What waiting for the lock takes is part of the call.
  template <class Call>
  void call(std::size_t event, const Allocator& allocator, Call&& make) {
    Lock::take_waited();
    Timed::call(event, allocator, [&] {
      const std::lock_guard guard(lock);
      make();
    });
    if (Lock::take_waited()) {
      causes[event] = std::max(causes[event], static_cast<std::uint8_t>(Cause::kLockWait));
    }
  }

  Lock& lock;
};

// Makes the events of thread number `number`, and those that other threads leave to it.
template <bool kTellsStreams, class A, class Observer>
void walk_thread(A& allocator, ThreadedProgram& threaded, Observer& observer, std::size_t number) {
  Program& program = threaded.program;
  Meetings& meetings = threaded.meetings;
  const Columns columns(program);
  const ThreadEvents::Link* const links = threaded.threads.links();
  const std::vector<ThreadEvents::Index>& mine = threaded.threads.parts()[number].events;
  const std::int32_t* const step =
      threaded.tells_steps == number ? program.events.step.data() : nullptr;
  for (std::size_t place = 0; place < mine.size(); ++place) {
    if (meetings.stopping()) return;
    if (place % 1024 == 0) threaded.done[number].events.store(place, std::memory_order_relaxed);
    std::size_t i = mine[place];
    if (step != nullptr && (place == 0 || step[i] != step[mine[place - 1]])) {
      observer.event([&] {
        observer.tell([&] { allocator.step_begins(step[i]); });
        return true;
      });
    }
    if (links[i].meeting != ThreadEvents::kNone && !meetings.come(links[i].meeting)) continue;
    for (bool again = true; again;) {
      const bool goes_on = observer.event([&] {
        if constexpr (kTellsStreams) {
          program.backend.next_event();
          if (program.background) observer.tell([&] { allocator.work_in_background(); });
        }
        return make_event<kTellsStreams>(allocator, program, observer, columns, i);
      });
      const ThreadEvents::Index next = links[i].next;
      again = next != ThreadEvents::kNone && meetings.done(links[next].meeting);
      i = next;
      if (!goes_on) {
        meetings.stop();
        return;
      }
    }
  }
}

template <class A, class Observer>
void walk(A& allocator, ThreadedProgram& threaded, Observer& observer, std::size_t number) {
  if (threaded.program.tells_streams) {
    walk_thread<true>(allocator, threaded, observer, number);
  } else {
    walk_thread<false>(allocator, threaded, observer, number);
  }
}

// Base of an allocator `Self`, a final class: gives it the loops of the measured passes.
template <class Self>
class Replayed : public Allocator {
 public:
  using Allocator::Allocator;

  bool replay(Program& program, std::size_t begin, std::size_t end) final {
    Unobserved nothing;
    return walk(static_cast<Self&>(*this), program, nothing, begin, end);
  }
  bool replay_timed(Program& program, Timed& timed, std::size_t begin, std::size_t end) final {
    return walk(static_cast<Self&>(*this), program, timed, begin, end);
  }
  void replay_thread(ThreadedProgram& threaded, std::size_t number) final {
    UnobservedThread nothing(threaded.lock);
    walk(static_cast<Self&>(*this), threaded, nothing, number);
  }
  void replay_thread_timed(ThreadedProgram& threaded, Timed& timed, std::size_t number) final {
    TimedThread observer(timed, threaded.lock);
    walk(static_cast<Self&>(*this), threaded, observer, number);
  }
};

}  // namespace workbench
