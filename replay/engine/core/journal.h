// What an allocator did, entry by entry, in the words of PyTorch's memory snapshots.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "core/units.h"

namespace workbench {

enum class Action : std::uint8_t {
  kAlloc,
  kFreeRequested,
  kFreeCompleted,
  kSegmentAlloc,
  kSegmentFree,
  kSegmentMap,
  kSegmentUnmap,
  kOom,
};

inline constexpr std::array<std::string_view, 8> kActionNames = {
    "alloc",        "free_requested", "free_completed", "segment_alloc",
    "segment_free", "segment_map",    "segment_unmap",  "oom",
};

// Takes memory from the device, gives it back, is asked for by the program.
constexpr bool takes(Action action) {
  return action == Action::kSegmentAlloc || action == Action::kSegmentMap;
}
constexpr bool releases(Action action) {
  return action == Action::kSegmentFree || action == Action::kSegmentUnmap;
}
constexpr bool requests(Action action) {
  return action == Action::kAlloc || action == Action::kOom;
}

struct JournalEntry {
  Action action;
  std::uint64_t address;  // of an oom: the device's free bytes
  Bytes size;             // requested, of allocations; of segments, or pieces of one, all of it
  StreamId stream;        // the block's own
  PoolId pool;            // likewise
  std::int64_t event;     // during which event of the trace
};

class Journal {
 public:
  void begin_event(std::size_t event) { event_ = static_cast<std::int64_t>(event); }
  void add(Action action, std::uint64_t address, Bytes size, StreamId stream, PoolId pool) {
    entries_.push_back({action, address, size, stream, pool, event_});
  }
  const std::vector<JournalEntry>& entries() const { return entries_; }
  std::vector<JournalEntry> take() { return std::move(entries_); }

 private:
  std::vector<JournalEntry> entries_;
  std::int64_t event_ = 0;
};

}  // namespace workbench
