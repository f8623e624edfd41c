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
  std::int64_t hits = 0;    // allocations served without asking the backend
  std::int64_t misses = 0;  // allocations that asked it
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
