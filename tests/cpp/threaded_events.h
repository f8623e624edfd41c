// Events of several threads, for tests.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "core/events.h"

namespace threaded {

using namespace workbench;

// Columns that an Events can view; `add` appends an event.
class Program {
 public:
  void add(ThreadId thread, Op op, std::int64_t id = -1, Bytes size = 0, StreamId stream = 0) {
    thread_.push_back(thread);
    op_.push_back(static_cast<std::uint8_t>(op));
    id_.push_back(id);
    size_.push_back(size);
    stream_.push_back(stream);
  }

  // Valid until the next add().
  Events events() {
    slot_.resize(op_.size());
    const std::int32_t slots = assign_slots(op_, id_, slot_);
    return {op_, slot_, size_, stream_, thread_, slots};
  }

 private:
  std::vector<std::uint8_t> op_;
  std::vector<std::int64_t> id_;
  std::vector<std::int32_t> slot_;
  std::vector<Bytes> size_;
  std::vector<StreamId> stream_;
  std::vector<ThreadId> thread_;
};

struct Traffic {
  int threads = 4;
  int rounds = 300;         // of one event of each thread
  Bytes largest = 100'000;  // of a block
  bool hands_over = false;  // whether threads free, and use on streams, the blocks of others
};

// Each thread makes the same events with ids of its own; at its end it frees what it has and
// empties the cache, so that the last to end leaves nothing behind.
inline Program random_program(const Traffic& traffic) {
  Program program;
  const auto threads = static_cast<std::size_t>(traffic.threads);
  std::vector<std::vector<std::int64_t>> live(threads);
  std::mt19937 random(5);
  std::int64_t next = 0;
  for (int round = 0; round < traffic.rounds; ++round) {
    const auto choice = random() % 100;
    const auto size = static_cast<Bytes>(1 + random() % static_cast<unsigned>(traffic.largest));
    const auto place = random();
    const auto stream = static_cast<StreamId>(random() % 3);
    for (std::size_t thread = 0; thread < threads; ++thread) {
      const auto caller = static_cast<ThreadId>(thread);
      // Whose block it is.
      auto& owned = live[traffic.hands_over ? (thread + place) % threads : thread];
      if (choice < 50 || owned.empty()) {
        live[thread].push_back(next);
        program.add(caller, Op::kAlloc, next++, size, stream);
      } else if (choice < 88) {
        const std::size_t index = place % owned.size();
        program.add(caller, Op::kFree, owned[index]);
        owned.erase(owned.begin() + static_cast<std::ptrdiff_t>(index));
      } else if (choice < 95) {
        program.add(caller, Op::kRecordStream, owned[place % owned.size()], 0, stream);
      } else if (choice < 98) {
        program.add(caller, Op::kSynchronize, -1, 0, stream);
      } else {
        program.add(caller, Op::kEmptyCache);
      }
    }
  }
  for (std::size_t thread = 0; thread < threads; ++thread) {
    const auto caller = static_cast<ThreadId>(thread);
    for (const std::int64_t id : live[thread]) program.add(caller, Op::kFree, id);
    program.add(caller, Op::kSynchronize, -1, 0, kAllStreams);
    program.add(caller, Op::kEmptyCache);
  }
  return program;
}

}  // namespace threaded
