// What the caching allocator says of itself.
#include <algorithm>

#include "allocators/caching.h"

namespace workbench::caching {

Location Caching::locate(const void* handle) const {
  const Block& block = *static_cast<const Block*>(handle);
  return {block.segment->number, block.address - block.segment->address};
}

bool Caching::delays_free(const void* handle) const {
  return !static_cast<const Block*>(handle)->used_streams.empty();
}

void Caching::visit(const std::function<void(const BlockView&)>& visitor) const {
  for (const Segment* segment = first_segment_; segment != nullptr; segment = segment->after) {
    for (const Block* block = segment->first; block != nullptr; block = block->after) {
      if (!block->mapped) continue;
      const BlockState state = block->allocated   ? BlockState::kActiveAllocated
                               : block->is_free() ? BlockState::kInactive
                                                  : BlockState::kActivePendingFree;
      visitor({segment->number, segment->address, segment->mapped, segment->lane->stream,
               segment->lane->pool->is_small ? "small" : "large", segment->expandable,
               block->address - segment->address, block->size,
               block->is_free() ? 0 : block->requested, state, block,
               segment->lane->private_number()});
    }
  }
}

Bytes Caching::largest_free() const {
  Bytes largest = 0;
  for (const Pool& pool : pools_) {
    for (const Lane* const lane : pool.lanes) {
      const Block* const last = lane == nullptr ? nullptr : lane->free.last();
      if (last != nullptr) largest = std::max(largest, last->size);
    }
  }
  return largest;
}

Statistics Caching::statistics() const {
  return {
      .requested = all_.requested_bytes.current,
      .allocated = all_.allocated_bytes.current,
      .active = all_.active_bytes.current,
      .reserved = all_.reserved_bytes.current,
      .inactive_split = all_.inactive_split_bytes.current,
      .stranded = settings_.expandable_segments
                      ? all_.reserved_bytes.current - all_.active_bytes.current
                      : all_.inactive_split_bytes.current,
      .n_alloc = all_.allocation.current,
      .n_active = all_.active.current,
      .n_segment = all_.segment.current,
      .n_inactive_split = all_.inactive_split.current,
      .retries = shared_.retries,
      .ooms = shared_.ooms,
      .device_allocs = shared_.device_allocs,
      .device_frees = shared_.device_frees,
      .hits = hits_,
      .misses = misses_,
  };
}

std::vector<std::pair<std::string, std::int64_t>> Caching::torch_statistics() const {
  NamedNumbers numbers =
      caching::torch_statistics(all_, pools_[0].counters, pools_[1].counters, shared_,
                                settings_.max_split == kNoLimit ? -1 : settings_.max_split);
  for (const auto& [number, pool] : private_pools_) {
    if (pool.reserved[0].allocated == 0) continue;
    // PyTorch names a pool by a pair of numbers.
    const std::string name = "reserved_bytes_by_private_pools.0_" + std::to_string(number) + ".";
    add_counter(numbers, name + "all", pool.reserved[0]);
    add_counter(numbers, name + "large_pool", pool.reserved[1]);
    add_counter(numbers, name + "small_pool", pool.reserved[2]);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

std::vector<std::string> Caching::warnings() const { return settings_.warnings; }

}  // namespace workbench::caching
