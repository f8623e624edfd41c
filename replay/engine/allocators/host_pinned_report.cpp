// What host-pinned says of itself.
#include <algorithm>
#include <bit>
#include <mutex>
#include <tuple>

#include "allocators/host_pinned.h"

namespace workbench {

Location HostPinned::locate(const void* handle) const {
  const Block& block = *static_cast<const Block*>(handle);
  return {block.segment, block.offset};
}

void HostPinned::visit(const std::function<void(const BlockView&)>& visitor) const {
  std::vector<const Block*> blocks;
  const std::lock_guard lock(blocks_lock_);
  for (const Block& block : blocks_) {
    if (block.exists) blocks.push_back(&block);
  }
  std::sort(blocks.begin(), blocks.end(), [](const Block* a, const Block* b) {
    return std::tie(a->segment, a->offset) < std::tie(b->segment, b->offset);
  });
  // Of the reserve segment: what blocks left that were given up, and what is at its end.
  Bytes shown = 0;
  const auto show_rest = [&](Bytes end) {
    if (end > shown) {
      visitor({reserve_.segment, reserve_.address, settings_.reserve, 0, "reserve", false,
               static_cast<std::uint64_t>(shown), end - shown, 0, BlockState::kInactive, nullptr});
    }
    shown = end;
  };
  const auto show = [&](const Block& block) {
    const BlockState state = block.allocated            ? BlockState::kActiveAllocated
                             : block.pending_events > 0 ? BlockState::kActivePendingFree
                                                        : BlockState::kInactive;
    visitor({block.segment, block.address - block.offset,
             block.in_reserve ? settings_.reserve : block.held, block.stream,
             block.in_reserve ? "reserve" : "", false, block.offset, block.held,
             state == BlockState::kInactive ? 0 : block.requested, state, &block});
  };
  auto next = blocks.begin();
  if (reserve_.segment != kNoReserve) {
    for (; next != blocks.end() && (*next)->segment < reserve_.segment; ++next) show(**next);
    for (; next != blocks.end() && (*next)->in_reserve; ++next) {
      show_rest(static_cast<Bytes>((*next)->offset));
      show(**next);
      shown += (*next)->held;
    }
    show_rest(reserve_.next);
    show_rest(settings_.reserve);
  }
  for (; next != blocks.end(); ++next) show(**next);
}

Bytes HostPinned::largest_free() const {
  Bytes largest = reserve_.segment == kNoReserve ? 0 : settings_.reserve - reserve_.next;
  std::uint64_t left = used_lists_;
  while (left != 0) {
    const auto index = static_cast<std::size_t>(std::bit_width(left)) - 1;
    left ^= std::uint64_t{1} << index;
    const Bytes most = Bytes{1} << index;
    const std::lock_guard lock(lock_of(index));
    for (const Block* block : lists_[index].blocks) {
      largest = std::max(largest, block->held);
      if (block->held == most) break;
    }
    // Outside the reserve segment no block of a smaller list is larger.
    if (settings_.reserve == 0 && largest > 0) break;
  }
  return largest;
}

Statistics HostPinned::statistics() const {
  Statistics now;
  std::uint64_t left = 0;
  {
    const std::lock_guard lock(blocks_lock_);
    now = statistics_;
    left = used_lists_;
    if (reserve_.segment != kNoReserve) now.stranded = settings_.reserve - reserve_in_blocks_;
  }
  for (; left != 0; left &= left - 1) {
    const auto index = static_cast<std::size_t>(std::countr_zero(left));
    const std::lock_guard lock(lock_of(index));
    const FreeList& list = lists_[index];
    now.hits += list.hits;
    now.n_alloc += list.n_alloc;
    now.n_active += list.n_alloc + list.n_pending;
    now.requested += list.requested;
    now.allocated += list.allocated;
    now.active += list.allocated + list.pending;
  }
  return now;
}

}  // namespace workbench
