// The CUDA caching allocator with its default settings. The numbers in comments are the rules of
// docs/allocators.md.
#include <deque>

#include "allocators/caching_blocks.h"
#include "allocators/walk.h"
#include "core/events.h"

namespace workbench {
namespace {

using caching::Block;
using caching::FreeBlocks;
using caching::PoolKind;
using caching::Recycled;
using caching::Segment;

constexpr Bytes kLargestSmall = kMiB;
constexpr Bytes kSmallSegment = 2 * kMiB;
constexpr Bytes kMidSize = 10 * kMiB;
constexpr Bytes kLargeSegment = 20 * kMiB;
constexpr Bytes kSegmentUnit = 2 * kMiB;
constexpr Bytes kSmallestBlock = 512;

// Rule 1.
Bytes round_request(Bytes size) { return round_up(size, kSmallestBlock); }

// Rule 2.
PoolKind pool_for(Bytes size) {
  return size <= kLargestSmall ? PoolKind::kSmall : PoolKind::kLarge;
}

// Rule 3.
Bytes segment_size(Bytes size) {
  if (size <= kLargestSmall) return kSmallSegment;
  if (size < kMidSize) return kLargeSegment;
  return round_up(size, kSegmentUnit);
}

// Rule 6.
bool should_split(PoolKind pool, Bytes remainder) {
  return pool == PoolKind::kSmall ? remainder >= kSmallestBlock : remainder > kLargestSmall;
}

class Caching final : public Replayed<Caching> {
 public:
  using Replayed::Replayed;

  ~Caching() override {
    for (const Segment* segment = first_segment_; segment != nullptr; segment = segment->after) {
      backend_.release(segment->address, segment->size);
    }
  }

  Allocation allocate(Bytes requested, StreamId stream, ThreadId) override {
    if (requested == 0) return Allocation::nothing();
    cause_ = Cause::kServedFromCache;
    if (requested >= kEiB) return Allocation::refused();
    if (pending_count_ > 0) process_events();
    const Bytes size = round_request(requested);
    const PoolKind pool = pool_for(size);
    Block* block = free_in(pool).find(stream, size);
    if (block != nullptr) {
      ++statistics_.hits;
      take_from_free(*block);
    } else {
      ++statistics_.misses;
      block = new_segment_or_flush(size, stream, pool);
      if (block == nullptr) {
        ++statistics_.ooms;
        return Allocation::refused();
      }
    }
    if (should_split(pool, block->size - size)) {
      split(*block, size);
      if (cause_ == Cause::kServedFromCache) cause_ = Cause::kSplit;
    }
    block->allocated = true;
    block->requested = requested;
    statistics_.requested += requested;
    statistics_.allocated += block->size;
    statistics_.active += block->size;
    ++statistics_.n_alloc;
    ++statistics_.n_active;
    return {block->address, block};
  }

  // Rule 9.
  void free(void* handle, ThreadId) override {
    Block& block = *static_cast<Block*>(handle);
    cause_ = Cause::kServedFromCache;
    block.allocated = false;
    statistics_.allocated -= block.size;
    --statistics_.n_alloc;
    if (block.used_streams.empty()) {
      become_free(block);
    } else {
      cause_ = Cause::kEventProcessing;
      wait_for_streams(block);
    }
  }

  void record_stream(void* handle, StreamId stream) override {
    Block& block = *static_cast<Block*>(handle);
    cause_ = Cause::kServedFromCache;
    std::vector<StreamId>& streams = block.used_streams;
    if (stream != block.segment->stream &&
        std::find(streams.begin(), streams.end(), stream) == streams.end()) {
      streams.push_back(stream);
    }
  }

  void empty_cache() override {
    cause_ = Cause::kDriverCall;
    release_cached();
  }

  Location locate(const void* handle) const override {
    const Block& block = *static_cast<const Block*>(handle);
    return {block.segment->number, block.address - block.segment->address};
  }

  void visit(const std::function<void(const BlockView&)>& visitor) const override {
    for (const Segment* segment = first_segment_; segment != nullptr; segment = segment->after) {
      for (const Block* block = segment->first; block != nullptr; block = block->after) {
        const BlockState state = block->allocated   ? BlockState::kActiveAllocated
                                 : block->is_free() ? BlockState::kInactive
                                                    : BlockState::kActivePendingFree;
        visitor({segment->number, segment->address, segment->size, segment->stream,
                 segment->pool == PoolKind::kSmall ? "small" : "large",
                 block->address - segment->address, block->size,
                 block->is_free() ? 0 : block->requested, state, block});
      }
    }
  }

  Bytes largest_free() const override {
    return std::max(free_large_.largest(), free_small_.largest());
  }

 private:
  struct Pending {
    CudaEvent event;
    Block* block;
  };

  FreeBlocks& free_in(PoolKind pool) {
    return pool == PoolKind::kSmall ? free_small_ : free_large_;
  }

  void add_to_free(Block& block) {
    free_in(block.segment->pool).add(block);
    if (block.is_split()) count_inactive_split(block.size, 1);
  }

  void take_from_free(Block& block) {
    free_in(block.segment->pool).remove(block);
    if (block.is_split()) count_inactive_split(block.size, -1);
  }

  void count_inactive_split(Bytes size, std::int64_t sign) {
    statistics_.inactive_split += sign * size;
    statistics_.n_inactive_split += sign;
  }

  Block& new_block(std::uint64_t address, Bytes size, Segment& segment) {
    Block& block = blocks_.take();
    block.address = address;
    block.size = size;
    block.segment = &segment;
    block.before = nullptr;
    block.after = nullptr;
    block.pending_events = 0;
    block.allocated = false;
    return block;
  }

  // The front of a block that is not among the free ones stays, the rest becomes free.
  void split(Block& block, Bytes size) {
    Block& rest = new_block(block.address + static_cast<std::uint64_t>(size), block.size - size,
                            *block.segment);
    rest.before = &block;
    rest.after = block.after;
    if (rest.after != nullptr) rest.after->before = &rest;
    block.after = &rest;
    block.size = size;
    add_to_free(rest);
  }

  // For real: merges with its free neighbours.
  void become_free(Block& freed) {
    statistics_.active -= freed.size;
    statistics_.requested -= freed.requested;
    --statistics_.n_active;
    Block* block = &freed;
    if (block->after != nullptr && block->after->is_free()) {
      take_from_free(*block->after);
      absorb_next(*block);
    }
    if (block->before != nullptr && block->before->is_free()) {
      block = block->before;
      take_from_free(*block);
      absorb_next(*block);
    }
    add_to_free(*block);
  }

  void absorb_next(Block& block) {
    Block& next = *block.after;
    block.size += next.size;
    block.after = next.after;
    if (block.after != nullptr) block.after->before = &block;
    blocks_.give(next);
  }

  // Rule 7.
  Block* new_segment_or_flush(Bytes size, StreamId stream, PoolKind pool) {
    Block* block = new_segment(size, stream, pool);
    cause_ = backend_cause();
    if (block == nullptr) {
      release_cached();
      ++statistics_.retries;
      block = new_segment(size, stream, pool);
      cause_ = Cause::kRetryAfterFlush;
    }
    return block;
  }

  Block* new_segment(Bytes size, StreamId stream, PoolKind pool) {
    const Bytes bytes = segment_size(size);
    const std::uint64_t address = backend_.allocate(bytes);
    if (address == 0) return nullptr;
    Segment& segment = segments_.take();
    Block& block = new_block(address, bytes, segment);
    segment = {.number = next_number_++,
               .address = address,
               .size = bytes,
               .stream = stream,
               .pool = pool,
               .first = &block,
               .before = last_segment_,
               .after = nullptr};
    (last_segment_ == nullptr ? first_segment_ : last_segment_->after) = &segment;
    last_segment_ = &segment;
    statistics_.reserved += bytes;
    ++statistics_.n_segment;
    ++statistics_.device_allocs;
    return &block;
  }

  // Rule 8.
  void release_cached() {
    synchronize_events();
    for (const PoolKind pool : {PoolKind::kLarge, PoolKind::kSmall}) {
      for (Block* const block : free_in(pool).whole_segments()) release_segment(*block);
    }
  }

  void release_segment(Block& block) {
    take_from_free(block);
    Segment& segment = *block.segment;
    backend_.release(segment.address, segment.size);
    statistics_.reserved -= segment.size;
    --statistics_.n_segment;
    ++statistics_.device_frees;
    (segment.before == nullptr ? first_segment_ : segment.before->after) = segment.after;
    (segment.after == nullptr ? last_segment_ : segment.after->before) = segment.before;
    blocks_.give(block);
    segments_.give(segment);
  }

  // One CUDA event on each stream that used the block.
  void wait_for_streams(Block& block) {
    for (const StreamId stream : block.used_streams) {
      const auto index = static_cast<std::size_t>(stream);
      if (index >= pending_.size()) pending_.resize(index + 1);
      pending_[index].push_back({backend_.record_event(stream), &block});
      ++block.pending_events;
      ++pending_count_;
    }
    block.used_streams.clear();
  }

  // Rule 4.
  void process_events() {
    for (std::deque<Pending>& queue : pending_) {
      while (!queue.empty() && backend_.completed(queue.front().event)) {
        complete_first(queue);
        cause_ = Cause::kEventProcessing;
      }
    }
  }

  void synchronize_events() {
    for (std::deque<Pending>& queue : pending_) {
      while (!queue.empty()) {
        backend_.wait(queue.front().event);
        complete_first(queue);
      }
    }
  }

  void complete_first(std::deque<Pending>& queue) {
    Block& block = *queue.front().block;
    queue.pop_front();
    --pending_count_;
    if (--block.pending_events == 0) become_free(block);
  }

  FreeBlocks free_large_;
  FreeBlocks free_small_;
  Recycled<Block> blocks_;
  Recycled<Segment> segments_;
  Segment* first_segment_ = nullptr;
  Segment* last_segment_ = nullptr;
  std::uint64_t next_number_ = 0;
  std::vector<std::deque<Pending>> pending_;  // by stream, oldest first
  std::int64_t pending_count_ = 0;
};

const bool registered = allocator_registry().add({
    .name = "caching",
    .summary = "PyTorch's CUDA caching allocator (c10/cuda/CUDACachingAllocator)",
    .kind = AllocatorKind::kDevice,
    .create = [](Backend& backend, const Settings&) { return std::make_unique<Caching>(backend); },
});

}  // namespace
}  // namespace workbench
