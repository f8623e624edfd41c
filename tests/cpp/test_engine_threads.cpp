// Several threads replay: how the events are split, who waits for whom, and how it ends.
#include <algorithm>
#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/errors.h"
#include "core/thread_events.h"
#include "replayer/replay.h"
#include "replayer/threads.h"
#include "threaded_events.h"

namespace {

using namespace workbench;
using threaded::Program;

const Checkpoint kNone = [](std::size_t) {};

CellOptions options(Order order, std::string allocator = "direct") {
  return {.allocator = std::move(allocator),
          .settings = "",
          .backend = "simulated",
          .backend_options = {},
          .order = order};
}

TEST(events_are_split_by_thread_and_meet_where_a_block_passes_over) {
  Program program;
  program.add(7, Op::kAlloc, 0, 100);
  program.add(3, Op::kAlloc, 1, 100);
  program.add(3, Op::kFree, 1);
  program.add(3, Op::kRecordStream, 0, 0, 1);
  program.add(3, Op::kFree, 0);
  program.add(7, Op::kAlloc, 2, 100);
  const Events events = program.events();

  const ThreadEvents handoff(events, Order::kHandoff);
  CHECK(handoff.parts().size() == 2);
  CHECK(handoff.parts()[0].thread == 7 && handoff.parts()[0].events.size() == 2);
  CHECK(handoff.parts()[1].thread == 3 && handoff.parts()[1].events.size() == 4);
  // Each allocation has a slot of its own, though the trace's slots are used again.
  CHECK(handoff.events().slot[0] == 0 && handoff.events().slot[5] == 1);
  CHECK(handoff.events().slot[1] == 2 && handoff.events().slot[4] == 0);
  // Thread 3 waits for the allocation of block 0, once.
  CHECK(handoff.meetings() == 1);
  CHECK(handoff.links()[0].next == 3 && handoff.links()[3].meeting == 0);
  CHECK(handoff.links()[4].meeting == ThreadEvents::kNone);

  // Where nobody waits, its free may come before the record_stream has happened.
  const ThreadEvents free(events, Order::kFree);
  CHECK(free.meetings() == 2);
  CHECK(free.links()[3].next == 4);
  CHECK(free.links()[1].next == ThreadEvents::kNone);
}

TEST(a_free_of_what_nobody_allocated_does_nothing) {
  const std::vector<std::uint8_t> op = {static_cast<std::uint8_t>(Op::kFree),
                                        static_cast<std::uint8_t>(Op::kAlloc)};
  const std::vector<std::int32_t> slot = {0, 0};
  const std::vector<Bytes> size = {0, 10};
  const std::vector<StreamId> stream = {0, 0};
  const std::vector<ThreadId> thread = {0, 1};
  for (const Order order : {Order::kHandoff, Order::kFree}) {
    const Replay replay({op, slot, size, stream, thread, 1}, options(order));
    const MemoryResult result = replay.memory({}, kNone);
    CHECK(result.driver_calls.alloc == 1 && result.driver_calls.free == 0);
  }
}

TEST(every_call_is_made_once_and_is_timed_in_its_place) {
  Program program = threaded::random_program({.hands_over = true});
  const Events events = program.events();
  for (const Order order : {Order::kHandoff, Order::kFree}) {
    for (const char* allocator : {"direct", "caching", "cpu-caching"}) {
      const Replay replay(events, options(order, allocator));
      for (const State state : {State::kCold, State::kSteady}) {
        const TimedResult timed = replay.timed(state, true, kNone);
        CHECK(!timed.out_of_memory && timed.nanoseconds > 0);
        CHECK(timed.digest.empty());
        for (std::size_t i = 0; i < events.count(); ++i) {
          const Op op = events.op_at(i);
          CHECK((timed.ticks[i] > 0) == (op != Op::kSynchronize));
        }
      }
      CHECK(replay.throughput(State::kSteady, 3, kNone).nanoseconds.size() == 3);
    }
  }
}

TEST(the_memory_pass_samples_each_event_as_it_happens) {
  Program program = threaded::random_program({.hands_over = true});
  const Events events = program.events();
  for (const Order order : {Order::kHandoff, Order::kFree}) {
    const MemoryResult result =
        Replay(events, options(order, "caching")).memory({.buckets = 1 << 20}, kNone);
    CHECK(result.timeline.size() == events.count());
    CHECK(result.timeline.back().last_event == static_cast<std::int64_t>(events.count()) - 1);
    std::int64_t highest = 0;
    for (const Bucket& bucket : result.timeline) {
      highest = std::max(highest, bucket.highest.values[Sample::kReserved]);
    }
    CHECK(highest == result.peaks[Sample::kReserved] && highest > 0);
    CHECK(result.finals.values[Sample::kReserved] == 0);
    CHECK(result.digest.empty());
  }
}

TEST(a_trace_of_one_thread_is_the_same_in_every_order) {
  Program program = threaded::random_program({.threads = 1});
  const Events events = program.events();
  std::map<std::string, int> digests;
  for (const Order order : {Order::kGlobal, Order::kHandoff, Order::kFree}) {
    const Replay replay(events, options(order, "caching"));
    const MemoryResult memory = replay.memory({.blocks_at = 5}, kNone);
    ++digests[memory.digest];
    ++digests[replay.timed(State::kCold, true, kNone).digest];
    CHECK(memory.blocks.has_value());
  }
  CHECK(digests.size() == 1 && !digests.contains(""));
}

TEST(many_more_threads_than_cores_come_to_their_end) {
  Program program = threaded::random_program({.threads = 80, .rounds = 40, .hands_over = true});
  const Events events = program.events();
  for (const Order order : {Order::kHandoff, Order::kFree}) {
    for (const char* allocator : {"direct", "caching"}) {
      CHECK(!Replay(events, options(order, allocator))
                 .timed(State::kCold, true, kNone)
                 .out_of_memory);
    }
  }
}

// Thread 1 has its block refused early on, and thread 0 waits to free it.
Program program_that_runs_out() {
  Program program;
  for (std::int64_t id = 0; id < 100; ++id) program.add(0, Op::kAlloc, id, 512);
  program.add(1, Op::kAlloc, 1000, 1 << 20);
  program.add(1, Op::kAlloc, 1001, 512);
  program.add(0, Op::kFree, 1000);
  program.add(0, Op::kFree, 1001);
  for (std::int64_t id = 0; id < 100; ++id) program.add(1, Op::kFree, id);
  return program;
}

TEST(running_out_of_memory_ends_all_threads) {
  Program program = program_that_runs_out();
  const Events events = program.events();
  for (const Order order : {Order::kHandoff, Order::kFree}) {
    CellOptions limited = options(order);
    limited.backend_options.capacity = 512 << 10;
    for (int i = 0; i < 20; ++i) {
      const Replay replay(events, limited);
      const MemoryResult memory = replay.memory({}, kNone);
      CHECK(memory.oom.has_value() && memory.oom->event == 100 && memory.ooms == 1);
      CHECK(replay.timed(State::kCold, true, kNone).out_of_memory);
      CHECK(replay.timed(State::kSteady, true, kNone).out_of_memory);
      CHECK(replay.throughput(State::kCold, 2, kNone).out_of_memory);
    }
  }
}

TEST(a_refused_block_is_left_out_where_the_replay_goes_on) {
  Program program = program_that_runs_out();
  const Events events = program.events();
  for (const Order order : {Order::kHandoff, Order::kFree}) {
    CellOptions limited = options(order);
    limited.backend_options.capacity = 512 << 10;
    limited.continue_after_oom = true;
    const MemoryResult memory = Replay(events, limited).memory({}, kNone);
    CHECK(memory.ooms == 1);
    CHECK(memory.driver_calls.alloc == 101 && memory.driver_calls.free == 101);
    CHECK(memory.finals.values[Sample::kReserved] == 0);
  }
}

TEST(what_a_thread_or_a_checkpoint_throws_reaches_the_caller) {
  for (const bool at_checkpoint : {false, true}) {
    std::atomic<bool> stopped = false;
    const auto work = [&](std::size_t number) {
      if (number == 1 && !at_checkpoint) throw EngineError("broken");
      while (!stopped) std::this_thread::yield();
    };
    CHECK_THROWS(EngineError,
                 run_threads({.threads = 3,
                              .work = work,
                              .stop = [&] { stopped = true; },
                              .checkpoint = [] { throw EngineError("interrupted"); }}));
    CHECK(stopped);
  }
}

TEST(free_completed_names_the_same_streams_in_every_order) {
  Program program;
  for (std::int64_t id = 0; id < 50; ++id) {
    program.add(0, Op::kAlloc, id, 3 << 20);
    program.add(1, Op::kRecordStream, id, 0, 1);
    program.add(0, Op::kFree, id);
    program.add(1, Op::kFreeCompleted, id);
  }
  const Events events = program.events();
  for (const Order order : {Order::kHandoff, Order::kFree}) {
    const MemoryResult memory = Replay(events, options(order, "caching")).memory({}, kNone);
    CHECK(memory.finals.values[Sample::kAllocated] == 0);
    CHECK(memory.driver_calls.event_record == 50);
  }
}

TEST(blocks_at_an_event_and_the_journal_need_one_thread) {
  Program program = threaded::random_program({});
  const Events events = program.events();
  const Replay replay(events, options(Order::kHandoff));
  CHECK_THROWS(InputError, replay.memory({.blocks_at = 3}, kNone));
  CHECK_THROWS(InputError, replay.memory({.journal = true}, kNone));
  CHECK_THROWS(InputError, parse_order("sideways"));
}

}  // namespace

int main() { return check::run(); }
