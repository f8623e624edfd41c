#include "allocators/host_pinned.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <utility>

#include "core/errors.h"

namespace workbench {
namespace {

// Blocks in the reserve segment start at multiples of this.
constexpr Bytes kReservePage = 4 * kKiB;

template <class List, std::size_t... kIndex>
std::array<List, sizeof...(kIndex)> make_lists(bool several_threads,
                                               std::index_sequence<kIndex...>) {
  return {((void)kIndex, List(several_threads))...};
}

}  // namespace

HostPinned::HostPinned(Backend& backend, const Settings& settings)
    : Replayed(backend),
      settings_(settings, backend.is_hardware()),
      memory_(settings_.registers ? Memory::kRegistered : Memory::kPinned),
      round_limit_(std::min(settings_.max_round, settings_.max_cached)),
      lists_(make_lists<FreeList>(backend.several_threads(), std::make_index_sequence<kLists>())),
      blocks_lock_(backend.several_threads()),
      events_lock_(backend.several_threads()),
      reserve_(backend.several_threads()) {}

HostPinned::~HostPinned() {
  for (const Block& block : blocks_) {
    if (block.exists && !block.in_reserve) {
      backend_.release(block.address, block.size, memory_);
    }
  }
  if (reserve_.segment != kNoReserve) {
    backend_.release(reserve_.address, settings_.reserve, memory_);
  }
}

Allocation HostPinned::allocate(Bytes requested, StreamId stream, ThreadId) {
  if (requested == 0) return Allocation::nothing();
  cause_ = Cause::kServedFromCache;
  if (!settings_.background_events) process_events();
  if (requested >= kEiB) [[unlikely]] {
    count_refused();
    return Allocation::refused();
  }
  const auto list =
      static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(requested - 1)));
  const Bytes size = requested <= round_limit_ ? Bytes{1} << list : requested;
  Block* block = take_cached(list, size, requested, stream);
  if (block == nullptr) [[unlikely]]
    block = take_fresh(list, size, requested, stream);
  return block == nullptr ? Allocation::refused() : Allocation{block->address, block};
}

void HostPinned::free(void* handle, ThreadId) {
  Block& block = *static_cast<Block*>(handle);
  cause_ = Cause::kServedFromCache;
  bool waits = false;
  {
    const std::lock_guard lock(block.lock);
    block.allocated = false;
    waits = !block.streams.empty();
    if (waits) {
      block.pending_events += static_cast<std::uint32_t>(block.streams.size());
      // The older releases record CUDA events under the block's lock, the newer ones do not.
      if (settings_.best_fit) wait_for_streams(block);
    }
  }
  if (!waits) {
    become_free(block, false);
  } else if (!settings_.best_fit) {
    wait_for_streams(block);
  }
}

void HostPinned::record_stream(void* handle, StreamId stream) {
  Block& block = *static_cast<Block*>(handle);
  cause_ = Cause::kServedFromCache;
  {
    const std::lock_guard lock(block.lock);
    add_stream(block, stream);
  }
}

void HostPinned::add_stream(Block& block, StreamId stream) {
  std::vector<StreamId>& streams = block.streams;
  if (std::find(streams.begin(), streams.end(), stream) == streams.end()) {
    streams.push_back(stream);
  }
}

bool HostPinned::record_event(std::uint64_t pointer, const void* handle, StreamId stream) {
  Block* found = nullptr;
  {
    const std::lock_guard lock(blocks_lock_);
    for (Block& block : blocks_) {
      if (!block.exists) continue;
      if (&block == handle) {
        found = &block;
        break;
      }
      if (block.address == pointer) found = &block;
    }
  }
  if (found == nullptr) return false;
  const std::lock_guard lock(found->lock);
  if (!found->allocated) {
    throw EngineError("record_event of a block of host-pinned that is free");
  }
  add_stream(*found, stream);
  return true;
}

void HostPinned::empty_cache() {
  cause_ = Cause::kDriverCall;
  process_events();
  if (settings_.best_fit) {
    const std::lock_guard blocks(blocks_lock_);
    const std::lock_guard all(lock_of(0));
    for (std::size_t list = 0; list < kLists; ++list) release_cached(list);
    filled_ = 0;
  } else {
    for (std::size_t list = 0; list < kLists; ++list) {
      const std::lock_guard blocks(blocks_lock_);
      const std::lock_guard one(lock_of(list));
      release_cached(list);
    }
  }
}

bool HostPinned::delays_free(const void* handle) const {
  return !static_cast<const Block*>(handle)->streams.empty();
}

// From the oldest on, up to the first that has not completed.
void HostPinned::process_events() {
  for (;;) {
    Pending oldest;
    {
      const std::lock_guard lock(events_lock_);
      if (events_.empty()) return;
      oldest = events_.front();
      events_.pop_front();
    }
    // Not under the lock, as in the original, where this is a call of CUDA.
    if (!backend_.completed(oldest.event)) {
      const std::lock_guard lock(events_lock_);
      events_.push_front(oldest);
      return;
    }
    raise_cause(Cause::kEventProcessing);
    complete(*oldest.block);
  }
}

void HostPinned::complete(Block& block) {
  bool is_last = false;
  {
    const std::lock_guard lock(block.lock);
    is_last = --block.pending_events == 0;
  }
  if (is_last) become_free(block, true);
}

HostPinned::Block* HostPinned::take_cached(std::size_t index, Bytes size, Bytes requested,
                                           StreamId stream) {
  const std::lock_guard lock(lock_of(index));
  Block* block = nullptr;
  if (settings_.best_fit) {
    block = take_best(index);
    if (block == nullptr) return nullptr;
  } else {
    std::vector<Block*>& blocks = lists_[index].blocks;
    if (blocks.empty()) [[unlikely]]
      return nullptr;
    block = blocks.back();
    if (block->size >= size) [[likely]] {
      blocks.pop_back();
    } else {
      // Blocks that were not rounded: the last one in that is large enough.
      const auto found = std::find_if(blocks.rbegin(), blocks.rend(),
                                      [size](const Block* other) { return other->size >= size; });
      if (found == blocks.rend()) return nullptr;
      block = *found;
      blocks.erase(std::next(found).base());
    }
  }
  FreeList& list = lists_[block->list];
  ++list.hits;
  hand_out(list, *block, requested, stream);
  return block;
}

namespace {

// For heaps with the block that was pinned first on top.
constexpr auto kPinnedLater = [](const auto* a, const auto* b) { return a->segment > b->segment; };

}  // namespace

// Blocks are powers of two: the smallest with room is in the first list that has any.
HostPinned::Block* HostPinned::take_best(std::size_t index) {
  const std::uint64_t larger = filled_ >> index << index;
  if (larger == 0) return nullptr;
  const auto first = static_cast<std::size_t>(std::countr_zero(larger));
  std::vector<Block*>& blocks = lists_[first].blocks;
  std::pop_heap(blocks.begin(), blocks.end(), kPinnedLater);
  Block* const block = blocks.back();
  blocks.pop_back();
  if (blocks.empty()) filled_ ^= std::uint64_t{1} << first;
  return block;
}

HostPinned::Block* HostPinned::take_fresh(std::size_t index, Bytes size, Bytes requested,
                                          StreamId stream) {
  Place place;
  if (!find_place(size, place)) {
    count_refused();
    return nullptr;
  }
  const std::lock_guard lock(blocks_lock_);
  if (unused_.empty()) {
    blocks_.emplace_back(backend_.several_threads());
    unused_.reserve(blocks_.size());  // giving back never allocates
    unused_.push_back(&blocks_.back());
  }
  Block& block = *unused_.back();
  unused_.pop_back();
  block.address = place.address;
  block.size = size;
  block.held = place.in_reserve ? round_up(size, kReservePage) : size;
  block.list = static_cast<std::uint32_t>(index);
  block.exists = true;
  block.in_reserve = place.in_reserve;
  block.segment = place.in_reserve ? place.segment : next_segment_++;
  block.offset = place.offset;
  used_lists_ |= std::uint64_t{1} << index;
  if (place.in_reserve) {
    reserve_in_blocks_ += block.held;
  } else {
    ++statistics_.misses;
    ++statistics_.device_allocs;
    ++statistics_.n_segment;
    statistics_.reserved += size;
    write_journal(Action::kSegmentAlloc, block.address, size, stream);
  }
  FreeList& list = lists_[index];
  const std::lock_guard one(lock_of(index));
  if (place.in_reserve) ++list.hits;
  hand_out(list, block, requested, stream);
  return &block;
}

bool HostPinned::find_place(Bytes size, Place& place) {
  if (settings_.reserve > 0) {
    const std::lock_guard lock(reserve_.lock);
    if (reserve_.segment == kNoReserve && !take_reserve()) return false;
    const Bytes held = round_up(size, kReservePage);
    if (held <= settings_.reserve - reserve_.next) {
      const auto offset = static_cast<std::uint64_t>(reserve_.next);
      place = {reserve_.address + offset, reserve_.segment, offset, true};
      reserve_.next += held;
      raise_cause(Cause::kSplit);
      return true;
    }
  }
  place.address = backend_.allocate(size, memory_);
  raise_cause(backend_cause());
  return place.address != 0;
}

// With the first block that does not come from the cache.
bool HostPinned::take_reserve() {
  reserve_.address = backend_.allocate(settings_.reserve, memory_);
  raise_cause(backend_cause());
  if (reserve_.address == 0) return false;
  const std::lock_guard lock(blocks_lock_);
  reserve_.segment = next_segment_++;
  ++statistics_.device_allocs;
  ++statistics_.n_segment;
  statistics_.reserved += settings_.reserve;
  write_journal(Action::kSegmentAlloc, reserve_.address, settings_.reserve, 0);
  return true;
}

void HostPinned::hand_out(FreeList& list, Block& block, Bytes requested, StreamId stream) {
  block.allocated = true;
  block.requested = requested;
  block.stream = stream;
  ++list.n_alloc;
  list.requested += requested;
  list.allocated += block.held;
}

void HostPinned::wait_for_streams(Block& block) {
  cause_ = Cause::kEventProcessing;
  {
    FreeList& list = lists_[block.list];
    const std::lock_guard lock(lock_of(block.list));
    --list.n_alloc;
    ++list.n_pending;
    list.allocated -= block.held;
    list.pending += block.held;
  }
  thread_local std::vector<CudaEvent> recorded;
  recorded.clear();
  for (const StreamId stream : block.streams) recorded.push_back(backend_.record_event(stream));
  // Before the events are there: with the last of them the block may be another's.
  block.streams.clear();
  const std::lock_guard lock(events_lock_);
  for (const CudaEvent& event : recorded) events_.push_back({event, &block});
}

void HostPinned::become_free(Block& block, bool waited) {
  if (waited) write_journal(Action::kFreeCompleted, block.address, block.requested, block.stream);
  FreeList& list = lists_[block.list];
  if (block.size > settings_.max_cached) [[unlikely]] {
    const std::lock_guard blocks(blocks_lock_);
    const std::lock_guard lock(lock_of(block.list));
    count_freed(list, block, waited);
    destroy(block);
    raise_cause(Cause::kDriverCall);
    return;
  }
  const std::lock_guard lock(lock_of(block.list));
  count_freed(list, block, waited);
  list.blocks.push_back(&block);
  if (settings_.best_fit) {
    std::push_heap(list.blocks.begin(), list.blocks.end(), kPinnedLater);
    filled_ |= std::uint64_t{1} << block.list;
  }
}

void HostPinned::count_freed(FreeList& list, const Block& block, bool waited) {
  list.requested -= block.requested;
  if (waited) {
    --list.n_pending;
    list.pending -= block.held;
  } else {
    --list.n_alloc;
    list.allocated -= block.held;
  }
}

void HostPinned::destroy(Block& block) {
  if (block.in_reserve) {
    reserve_in_blocks_ -= block.held;  // lost: it never comes back, as in the original
  } else {
    backend_.release(block.address, block.size, memory_);
    ++statistics_.device_frees;
    --statistics_.n_segment;
    statistics_.reserved -= block.size;
    write_journal(Action::kSegmentFree, block.address, block.size, block.stream);
  }
  block.exists = false;
  unused_.push_back(&block);
}

void HostPinned::release_cached(std::size_t list) {
  for (Block* const block : lists_[list].blocks) destroy(*block);
  lists_[list].blocks.clear();
}

void HostPinned::count_refused() {
  const std::lock_guard lock(blocks_lock_);
  ++statistics_.misses;
  ++statistics_.ooms;
}

namespace {

const bool registered = allocator_registry().add({
    .name = "host-pinned",
    .summary = "PyTorch's caching pinned-host allocator (ATen/core/CachingHostAllocator)",
    .kind = AllocatorKind::kPinned,
    .create =
        [](Backend& backend, const Settings& settings) {
          return std::make_unique<HostPinned>(backend, settings);
        },
    .settings = host_pinned_settings_help(),
    .locks_itself = true,
    .also_tested_with = {"policy:best-fit", "pinned_max_round_threshold_mb:1",
                         "pinned_max_cached_size_mb:1",
                         "pinned_max_round_threshold_mb:1,pinned_max_cached_size_mb:3",
                         "pinned_reserve_segment_size_mb:16", "pinned_use_background_threads:True"},
    .flushes_when_refused = false,
});

}  // namespace
}  // namespace workbench
