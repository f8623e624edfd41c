// What an allocator counts, under PyTorch's words (docs/allocators.md), and why a call took long.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/units.h"

namespace workbench {

struct Statistics {
  // Bytes.
  Bytes requested = 0;  // falls when a block is free for real
  Bytes allocated = 0;  // falls when the program frees
  Bytes active = 0;     // allocated, and freed but still in use by a stream
  Bytes reserved = 0;
  Bytes inactive_split = 0;
  Bytes stranded = 0;  // free, in segments that are partly in use
  // Numbers of blocks and segments.
  std::int64_t n_alloc = 0;
  std::int64_t n_active = 0;
  std::int64_t n_segment = 0;
  std::int64_t n_inactive_split = 0;
  // Running totals.
  std::int64_t retries = 0;
  std::int64_t ooms = 0;
  std::int64_t device_allocs = 0;
  std::int64_t device_frees = 0;
  std::int64_t hits = 0;                    // allocations served without asking the backend
  std::int64_t misses = 0;                  // allocations that asked it
  std::int64_t ignored_record_streams = 0;  // by an allocator that cannot be told of them
};

// Which numbers an allocator tells. What it does not tell is "not reported", never 0. What the
// program asked for and how often is known without it.
struct Reported {
  bool requested = true;
  bool allocated = true;
  bool active = true;
  bool reserved = true;
  bool segments = true;
  bool largest_free = true;
  bool hits = true;
  bool misses = true;
  bool retries = true;
  bool device_calls = true;         // made through the backend
  bool device_memory_calls = true;  // device_allocs, device_frees
  bool stranded = true;
  bool blocks = true;  // whether `visit` shows them; and counts of blocks
};

// What decided how long a call took: the most expensive thing it did.
enum class Cause : std::uint8_t {
  kServedFromCache,  // of a free: put into the cache
  kSplit,
  kEventProcessing,
  kLockWait,
  kDriverCall,
  kPageFault,
  kGarbageCollection,
  kRetryAfterFlush,
};

inline constexpr std::array<std::string_view, 8> kCauseNames = {
    "served from cache", "split",      "event processing",   "lock wait",
    "driver call",       "page fault", "garbage collection", "retry after flush",
};

}  // namespace workbench
