// The files of a spool: made whole, mapped, and in RAM before a record is written. None of this
// needs a lock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "spool_format.h"

namespace workbench::spool {

struct Segment {
  std::byte* base;
  std::size_t bytes;
  Record* next;  // where the next owner goes on, while it has none
  std::uint64_t session;
  std::uint32_t thread;
  std::uint64_t thread_id;
  Segment* link;
};

// A new file of zeros in RAM, mapped; null, and *error an errno, where there is no room.
void* map_file(int in_folder, const char* name, std::size_t bytes, int* error);

// Null, and *reason set, where there is no room.
Segment* make_segment(int in_folder, std::uint64_t number, std::size_t bytes, StopReason* reason);
Record* end_of(const Segment* segment);
SegmentHeader* header_of(const Segment* segment);
// Says that nothing more will be written and unmaps it; the file stays.
void finish(Segment* segment);
// Unmaps it.
void drop(Segment* segment);

}  // namespace workbench::spool
