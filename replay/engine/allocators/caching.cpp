// The CUDA caching allocator. The numbers in comments are the rules of docs/allocators.md.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "allocators/caching_blocks.h"
#include "allocators/caching_settings.h"
#include "allocators/recycled.h"
#include "allocators/walk.h"
#include "core/errors.h"
#include "core/events.h"

namespace workbench {
namespace {

using caching::Block;
using caching::CachingSettings;
using caching::Counter;
using caching::kNoLimit;
using caching::Lane;
using caching::PendingQueue;
using caching::Pool;
using caching::PoolCounters;
using caching::Segment;
using caching::SharedCounters;
using caching::UnmappedTree;

constexpr Bytes kLargestSmall = kMiB;
constexpr Bytes kSmallSegment = 2 * kMiB;
constexpr Bytes kMidSize = 10 * kMiB;
constexpr Bytes kSegmentUnit = 2 * kMiB;
constexpr Bytes kSmallestBlock = 512;

class Caching final : public Replayed<Caching> {
 public:
  Caching(Backend& backend, const Settings& settings)
      : Replayed(backend),
        settings_(settings),
        limit_(share_of_total(settings_.memory_fraction)),
        pools_{{{false, settings_.expandable_segments ? kSmallestBlock : kLargestSmall + 1},
                {true, kSmallestBlock}}} {}

  ~Caching() override {
    for (const Segment* segment = first_segment_; segment != nullptr; segment = segment->after) {
      if (segment->expandable) {
        if (segment->mapped > 0) give_back_mapped(*segment);
        backend_.unreserve(segment->address, segment->size);
      } else {
        backend_.release(segment->address, segment->size);
      }
    }
  }

  Allocation allocate(Bytes requested, StreamId stream, ThreadId) override {
    if (requested == 0) return Allocation::nothing();
    cause_ = Cause::kServedFromCache;
    if (requested >= kEiB) [[unlikely]]
      return Allocation::refused();
    if (pending_count_ > 0) process_events();
    const Bytes size = round_request(requested);
    Pool& pool = pools_[size <= kLargestSmall ? 1 : 0];  // rule 2
    Lane& lane = lane_of(pool, stream);
    Block* block = best_fit(lane, size);
    if (block != nullptr) [[likely]] {
      ++hits_;
      lane.free.remove(*block);
    } else {
      ++misses_;
      block = fresh_block(lane, size);
      if (block == nullptr) return Allocation::refused();
    }
    const bool was_split = block->is_split() && !block->segment->expandable;
    if (should_split(pool, size, block->size - size)) {
      Block& rest = split(*block, size);
      count_split(pool, *block, rest, was_split);
      if (cause_ == Cause::kServedFromCache) cause_ = Cause::kSplit;
    } else if (was_split) {
      remove(pool, &PoolCounters::inactive_split, 1);
      remove(pool, &PoolCounters::inactive_split_bytes, block->size);
    }
    block->allocated = true;
    block->requested = requested;
    add(pool, &PoolCounters::allocation, 1);
    add(pool, &PoolCounters::allocated_bytes, block->size);
    add(pool, &PoolCounters::active, 1);
    add(pool, &PoolCounters::active_bytes, block->size);
    add(pool, &PoolCounters::requested_bytes, requested);
    if (block->size >= settings_.max_split) shared_.oversize_allocations.add(1);
    return {block->address, block};
  }

  // Rule 11.
  void free(void* handle, ThreadId) override {
    Block& block = *static_cast<Block*>(handle);
    cause_ = Cause::kServedFromCache;
    block.allocated = false;
    remove(*block.segment->lane->pool, &PoolCounters::allocation, 1);
    remove(*block.segment->lane->pool, &PoolCounters::allocated_bytes, block.size);
    if (block.size >= settings_.max_split) shared_.oversize_allocations.remove(1);
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
    if (stream != block.segment->lane->stream &&
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
        if (!block->mapped) continue;
        const BlockState state = block->allocated   ? BlockState::kActiveAllocated
                                 : block->is_free() ? BlockState::kInactive
                                                    : BlockState::kActivePendingFree;
        visitor({segment->number, segment->address, segment->mapped, segment->lane->stream,
                 segment->lane->pool->is_small ? "small" : "large", segment->expandable,
                 block->address - segment->address, block->size,
                 block->is_free() ? 0 : block->requested, state, block});
      }
    }
  }

  Bytes largest_free() const override {
    Bytes largest = 0;
    for (const Pool& pool : pools_) {
      for (const Lane* const lane : pool.lanes) {
        const Block* const last = lane == nullptr ? nullptr : lane->free.last();
        if (last != nullptr) largest = std::max(largest, last->size);
      }
    }
    return largest;
  }

  Statistics statistics() const override {
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

  std::vector<std::pair<std::string, std::int64_t>> torch_statistics() const override {
    return caching::torch_statistics(all_, pools_[0].counters, pools_[1].counters, shared_,
                                     settings_.max_split == kNoLimit ? -1 : settings_.max_split);
  }

  std::vector<std::string> warnings() const override { return settings_.warnings; }

 private:
  // Bytes of a share of the device's memory, truncated.
  Bytes share_of_total(double share) const {
    const Bytes total = backend_.total();
    return share >= 1 ? total : static_cast<Bytes>(share * static_cast<double>(total));
  }

  // Rule 1.
  Bytes round_request(Bytes size) const {
    if (settings_.rounds_up()) [[unlikely]] {
      const Bytes divisions = settings_.divisions_of(size);
      if (divisions > 1 && size > kSmallestBlock * divisions) return round_to(size, divisions);
    }
    return (size + kSmallestBlock - 1) & -kSmallestBlock;
  }

  static Bytes round_to(Bytes size, Bytes divisions) {
    const auto bits = static_cast<std::uint64_t>(size);
    if (std::has_single_bit(bits)) return size;
    const auto floor = static_cast<Bytes>(std::bit_floor(bits));
    const Bytes step = floor / divisions;
    return step == 0 ? 2 * floor : round_up(size, step);
  }

  // Rule 3.
  Bytes segment_size(Bytes size) const {
    if (size <= kLargestSmall) return kSmallSegment;
    if (size < kMidSize) return settings_.large_segment;
    return round_up(size, kSegmentUnit);
  }

  Lane& lane_of(Pool& pool, StreamId stream) {
    const auto index = static_cast<std::size_t>(stream);
    Lane* const lane = index < pool.lanes.size() ? pool.lanes[index] : nullptr;
    return lane != nullptr ? *lane : add_lane(pool, stream);
  }

  __attribute__((noinline)) Lane& add_lane(Pool& pool, StreamId stream) {
    const auto index = static_cast<std::size_t>(stream);
    if (index >= pool.lanes.size()) pool.lanes.resize(index + 1);
    lanes_.push_back(std::make_unique<Lane>(Lane{&pool, stream, {}, nullptr}));
    pool.lanes[index] = lanes_.back().get();
    return *lanes_.back();
  }

  // Rule 5.
  Block* best_fit(Lane& lane, Bytes size) {
    if (settings_.collects_garbage()) ++lane.pool->look_ups;
    Block* block = lane.free.find(size);
    if (block == nullptr) return nullptr;
    if (settings_.expandable_segments) {
      for (Block* next = lane.free.next(*block); next != nullptr && next->room() < block->room();
           next = lane.free.next(*block)) {
        block = next;
      }
    }
    const bool refused = size < settings_.max_split
                             ? block->size >= settings_.max_split
                             : block->size - size >= settings_.max_non_split_rounding;
    return refused ? nullptr : block;
  }

  // Rule 6.
  bool should_split(const Pool& pool, Bytes size, Bytes remainder) const {
    const bool may = size < settings_.max_split || pool.smallest_rest == kSmallestBlock;
    return remainder >= pool.smallest_rest && may;
  }

  void add_to_free(Block& block) {
    Lane& lane = *block.segment->lane;
    block.free_since = lane.pool->look_ups;
    lane.free.add(block);
  }

  Block& new_block(std::uint64_t offset, Bytes size, Segment& segment) {
    Block& block = blocks_.take();
    block.address = segment.address + offset;
    block.position = segment.position + offset;
    block.size = size;
    block.segment = &segment;
    block.before = nullptr;
    block.after = nullptr;
    block.pending_events = 0;
    block.allocated = false;
    block.mapped = true;
    return block;
  }

  // Cuts off what is behind the first `size` bytes, as a block of the same kind in no tree.
  Block& cut(Block& block, Bytes size) {
    Block& rest =
        new_block(block.position - block.segment->position + static_cast<std::uint64_t>(size),
                  block.size - size, *block.segment);
    rest.mapped = block.mapped;
    rest.before = &block;
    rest.after = block.after;
    if (rest.after != nullptr) rest.after->before = &rest;
    block.after = &rest;
    block.size = size;
    return rest;
  }

  // The front of a block that is not among the free ones stays, the rest becomes free.
  Block& split(Block& block, Bytes size) {
    Block& rest = cut(block, size);
    add_to_free(rest);
    return rest;
  }

  void count_split(Pool& pool, const Block& block, const Block& rest, bool was_split) {
    if (block.segment->expandable) return;
    if (was_split) {
      remove(pool, &PoolCounters::inactive_split_bytes, block.size);
    } else {
      add(pool, &PoolCounters::inactive_split, 1);
      add(pool, &PoolCounters::inactive_split_bytes, rest.size);
    }
  }

  // For real: merges with its free neighbours.
  void become_free(Block& freed) {
    Segment& segment = *freed.segment;
    const Bytes size = freed.size;
    const Bytes requested = freed.requested;
    Bytes merged_bytes = 0;
    std::int64_t merged = 0;
    Block* block = &freed;
    if (can_merge(block->after)) {
      merged_bytes += block->after->size;
      ++merged;
      segment.lane->free.remove(*block->after);
      absorb_next(*block);
    }
    if (can_merge(block->before)) {
      merged_bytes += block->before->size;
      ++merged;
      block = block->before;
      segment.lane->free.remove(*block);
      absorb_next(*block);
    }
    add_to_free(*block);
    const bool counts_split = !segment.expandable;
    const bool is_split = block->is_split();
    remove(*segment.lane->pool, &PoolCounters::active, 1);
    remove(*segment.lane->pool, &PoolCounters::active_bytes, size);
    remove(*segment.lane->pool, &PoolCounters::requested_bytes, requested);
    if (counts_split) {
      change(*segment.lane->pool, &PoolCounters::inactive_split, (is_split ? 1 : 0) - merged);
      change(*segment.lane->pool, &PoolCounters::inactive_split_bytes,
             (is_split ? block->size : 0) - merged_bytes);
    }
  }

  // A free neighbour with memory, of a block with memory.
  static bool can_merge(const Block* neighbour) {
    return neighbour != nullptr && neighbour->mapped && neighbour->is_free();
  }

  void absorb_next(Block& block) {
    Block& next = *block.after;
    block.size += next.size;
    block.after = next.after;
    if (block.after != nullptr) block.after->before = &block;
    blocks_.give(next);
  }

  // Rule 7. In no tree; null, and counted, where memory ran out.
  Block* fresh_block(Lane& lane, Bytes size) {
    if (settings_.collects_garbage()) collect_garbage();
    if (settings_.throw_on_oom && reserved() + segment_size(size) > limit_) {
      ++shared_.rejections;
      return nullptr;
    }
    Block* block = new_segment(lane, size);
    if (cause_ != Cause::kGarbageCollection) cause_ = backend_cause();
    if (block != nullptr) return block;
    cause_ = Cause::kRetryAfterFlush;
    if (release_available(lane, size)) block = new_segment(lane, size);
    if (block == nullptr) {
      release_cached();
      ++shared_.retries;
      block = new_segment(lane, size);
    }
    if (block == nullptr) ++shared_.ooms;
    return block;
  }

  // Counts in the pool, and in all of them; a net change is one or the other.
  void add(Pool& pool, Counter PoolCounters::* what, std::int64_t amount) {
    (pool.counters.*what).add(amount);
    (all_.*what).raise(amount);
  }
  void remove(Pool& pool, Counter PoolCounters::* what, std::int64_t amount) {
    (pool.counters.*what).remove(amount);
    (all_.*what).remove(amount);
  }
  void change(Pool& pool, Counter PoolCounters::* what, std::int64_t amount) {
    if (amount > 0) {
      add(pool, what, amount);
    } else {
      remove(pool, what, -amount);
    }
  }

  Bytes reserved() const { return all_.reserved_bytes.current; }

  // Null where it is refused.
  Block* new_segment(Lane& lane, Bytes size) {
    const Bytes bytes = segment_size(size);
    if (settings_.memory_fraction < 1 && reserved() + bytes > limit_) return nullptr;
    if (settings_.expandable_segments) return grow_segment(lane, size);
    const std::uint64_t address = backend_.allocate(bytes);
    if (address == 0) return nullptr;
    Segment& segment = add_segment(lane, address, bytes);
    segment.mapped = bytes;
    add(*lane.pool, &PoolCounters::segment, 1);
    add(*lane.pool, &PoolCounters::reserved_bytes, bytes);
    if (bytes >= settings_.max_split) shared_.oversize_segments.add(1);
    ++shared_.device_allocs;
    return segment.first;
  }

  // With one block, in no tree.
  Segment& add_segment(Lane& lane, std::uint64_t address, Bytes size) {
    Segment& segment = segments_.take();
    segment = {.number = next_number_++,
               .address = address,
               .position = next_position_,
               .size = size,
               .mapped = 0,
               .lane = &lane,
               .first = nullptr,
               .before = last_segment_,
               .after = nullptr,
               .expandable = settings_.expandable_segments};
    next_position_ += static_cast<std::uint64_t>(size);
    (last_segment_ == nullptr ? first_segment_ : last_segment_->after) = &segment;
    last_segment_ = &segment;
    segment.first = &new_block(0, size, segment);
    return segment;
  }

  // Its one block is in no tree.
  void remove_segment(Segment& segment) {
    (segment.before == nullptr ? first_segment_ : segment.before->after) = segment.after;
    (segment.after == nullptr ? last_segment_ : segment.after->before) = segment.before;
    blocks_.give(*segment.first);
    segments_.give(segment);
  }

  void release_segment(Block& block) {
    Segment& segment = *block.segment;
    segment.lane->free.remove(block);
    backend_.release(segment.address, segment.size);
    remove(*segment.lane->pool, &PoolCounters::segment, 1);
    remove(*segment.lane->pool, &PoolCounters::reserved_bytes, segment.size);
    if (block.size >= settings_.max_split) shared_.oversize_segments.remove(1);
    ++shared_.device_frees;
    remove_segment(segment);
  }

  // Rule 8.
  void collect_garbage() {
    const auto threshold =
        static_cast<Bytes>(settings_.garbage_collection_threshold * static_cast<double>(limit_));
    if (reserved() <= threshold) return;
    const Bytes target = reserved() - threshold;
    std::vector<Block*> whole;
    double total_age = 0;
    for (Lane* const lane : pools_[0].lanes) {
      if (lane == nullptr) continue;
      for (Block* block = lane->free.first(); block != nullptr; block = lane->free.next(*block)) {
        if (block->is_split()) continue;
        whole.push_back(block);
        total_age += age(*block);
      }
    }
    Bytes released = 0;
    bool released_any = true;
    while (released < target && released_any && !whole.empty()) {
      const double mean = total_age / static_cast<double>(whole.size());
      released_any = false;
      std::erase_if(whole, [&](Block* block) {
        if (age(*block) < mean) return false;
        released_any = true;
        released += block->size;
        total_age -= age(*block);
        release_segment(*block);
        return true;
      });
    }
    if (released > 0) cause_ = Cause::kGarbageCollection;
  }

  double age(const Block& block) const {
    return static_cast<double>(block.segment->lane->pool->look_ups - block.free_since);
  }

  // Rule 9. Whether enough was released for another try.
  bool release_available(Lane& lane, Bytes size) {
    if (settings_.max_split == kNoLimit || settings_.expandable_segments) return false;
    const Bytes need = std::max(size, settings_.max_split);
    if (Block* const block = lane.free.find(need)) {
      release_segment(*block);
      return true;
    }
    Bytes released = 0;
    for (Block* block = lane.free.last();
         block != nullptr && block->size >= settings_.max_split && released < need;) {
      Block* const smaller = lane.free.previous(*block);
      released += block->size;
      release_segment(*block);
      block = smaller;
    }
    return released >= need;
  }

  // Rule 10.
  void release_cached() {
    synchronize_events();
    std::vector<Block*> chosen;
    for (Pool& pool : pools_) {
      for (Lane* const lane : pool.lanes) {
        if (lane == nullptr) continue;
        chosen.clear();
        for (Block* block = lane->free.first(); block != nullptr; block = lane->free.next(*block)) {
          if (block->segment->expandable || !block->is_split()) chosen.push_back(block);
        }
        for (Block* const block : chosen) {
          if (block->segment->expandable) {
            unmap_pages(*block);
          } else {
            release_segment(*block);
          }
        }
      }
    }
  }

  // Rule 12: a run of free blocks of an expandable segment, made one block with memory.
  Block* grow_segment(Lane& lane, Bytes size) {
    Block* block = find_run(lane, size);
    if (block == nullptr) return nullptr;
    if (!block->mapped) {
      block = map_pages(*block, std::min(block->size, size));
    }
    while (block != nullptr && block->size < size) {
      block = map_pages(*block->after, std::min(block->after->size, size - block->size));
    }
    if (block != nullptr) lane.free.remove(*block);
    return block;
  }

  // The first block of a run with room for `size`.
  Block* find_run(Lane& lane, Bytes size) {
    const auto room_from = [size](Block* block) {
      Bytes room = 0;
      for (; block != nullptr && block->is_free() && room < size; block = block->after) {
        room += block->size;
      }
      return room;
    };
    Block* block = lane.unmapped == nullptr ? nullptr : UnmappedTree::first(lane.unmapped);
    for (; block != nullptr; block = UnmappedTree::next(*block)) {
      Block* const start =
          block->before != nullptr && block->before->is_free() ? block->before : block;
      if (room_from(start) >= size) return start;
    }
    const Bytes page = page_of(lane);
    // Nine eighths of the device, in whole pages.
    const Bytes total = backend_.total();
    const Bytes range = round_up(total + total / 8 + (total % 8 == 0 ? 0 : 1), page);
    if (range < size) return nullptr;
    const std::uint64_t address = backend_.reserve(range);
    if (address == 0) return nullptr;
    Block& whole = *add_segment(lane, address, range).first;
    whole.mapped = false;
    UnmappedTree::add(lane.unmapped, whole);
    return &whole;
  }

  Bytes page_of(const Lane& lane) const {
    return lane.pool->is_small ? kSmallSegment : settings_.large_segment;
  }

  // Gives memory to the first pages of an unmapped block that hold `size` bytes, and merges them
  // with the free neighbours that have some. The block that results, among the free ones; null,
  // and nothing done, where the device refuses.
  Block* map_pages(Block& unmapped, Bytes size) {
    Segment& segment = *unmapped.segment;
    Lane& lane = *segment.lane;
    const Bytes bytes = round_up(size, page_of(lane));
    if (!backend_.map(unmapped.address, bytes)) return nullptr;
    UnmappedTree::remove(lane.unmapped, unmapped);
    if (bytes < unmapped.size) UnmappedTree::add(lane.unmapped, cut(unmapped, bytes));
    unmapped.mapped = true;
    Block* block = &unmapped;
    if (can_merge(block->before)) {
      block = block->before;
      lane.free.remove(*block);
      absorb_next(*block);
    }
    if (can_merge(block->after)) {
      lane.free.remove(*block->after);
      absorb_next(*block);
    }
    add_to_free(*block);
    segment.mapped += bytes;
    add(*lane.pool, &PoolCounters::reserved_bytes, bytes);
    ++shared_.device_allocs;
    return block;
  }

  // Takes the memory of the whole pages inside a free block, and the segment with its last.
  void unmap_pages(Block& free_block) {
    Segment& segment = *free_block.segment;
    Lane& lane = *segment.lane;
    const Bytes page = page_of(lane);
    const auto offset = static_cast<Bytes>(free_block.position - segment.position);
    const Bytes begin = round_up(offset, page);
    const Bytes end = (offset + free_block.size) / page * page;
    if (begin >= end) return;
    lane.free.remove(free_block);
    Block* block = &free_block;
    if (begin > offset) {
      block = &cut(free_block, begin - offset);
      add_to_free(free_block);
    }
    if (block->size > end - begin) add_to_free(cut(*block, end - begin));
    backend_.unmap(block->address, block->size);
    segment.mapped -= block->size;
    remove(*lane.pool, &PoolCounters::reserved_bytes, block->size);
    ++shared_.device_frees;
    block->mapped = false;
    if (block->after != nullptr && !block->after->mapped) {
      UnmappedTree::remove(lane.unmapped, *block->after);
      absorb_next(*block);
    }
    if (block->before != nullptr && !block->before->mapped) {
      block = block->before;
      UnmappedTree::remove(lane.unmapped, *block);
      absorb_next(*block);
    }
    if (block->is_split()) {
      UnmappedTree::add(lane.unmapped, *block);
    } else {
      backend_.unreserve(segment.address, segment.size);
      remove_segment(segment);
    }
  }

  // The program's blocks have been freed, those that wait for events included.
  void give_back_mapped(const Segment& segment) {
    const Block* block = segment.first;
    while (block != nullptr) {
      if (!block->mapped) {
        block = block->after;
        continue;
      }
      const std::uint64_t address = block->address;
      Bytes bytes = 0;
      for (; block != nullptr && block->mapped; block = block->after) bytes += block->size;
      backend_.unmap(address, bytes);
    }
  }

  // One CUDA event on each stream that used the block.
  void wait_for_streams(Block& block) {
    for (const StreamId stream : block.used_streams) {
      const auto index = static_cast<std::size_t>(stream);
      if (index >= pending_.size()) pending_.resize(index + 1);
      pending_[index].push({backend_.record_event(stream), &block});
      ++block.pending_events;
      ++pending_count_;
    }
    block.used_streams.clear();
  }

  // Rule 4.
  void process_events() {
    for (PendingQueue& queue : pending_) {
      while (!queue.empty() && backend_.completed(queue.front().event)) {
        complete_first(queue);
        cause_ = Cause::kEventProcessing;
      }
    }
  }

  void synchronize_events() {
    ++shared_.synchronizations;
    for (PendingQueue& queue : pending_) {
      while (!queue.empty()) {
        backend_.wait(queue.front().event);
        complete_first(queue);
      }
    }
  }

  void complete_first(PendingQueue& queue) {
    Block& block = *queue.front().block;
    queue.pop();
    --pending_count_;
    if (--block.pending_events == 0) become_free(block);
  }

  const CachingSettings settings_;
  const Bytes limit_;  // of reserved memory: rule 7
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::array<Pool, 2> pools_;  // large, small
  PoolCounters all_;
  SharedCounters shared_;
  std::int64_t hits_ = 0;
  std::int64_t misses_ = 0;
  Recycled<Block> blocks_;
  Recycled<Segment> segments_;
  Segment* first_segment_ = nullptr;
  Segment* last_segment_ = nullptr;
  std::uint64_t next_number_ = 0;
  std::uint64_t next_position_ = 0;
  std::vector<PendingQueue> pending_;  // by stream
  std::int64_t pending_count_ = 0;
};

const bool registered = allocator_registry().add({
    .name = "caching",
    .summary = "PyTorch's CUDA caching allocator (c10/cuda/CUDACachingAllocator)",
    .kind = AllocatorKind::kDevice,
    .create = [](Backend& backend,
                 const Settings& settings) { return std::make_unique<Caching>(backend, settings); },
    .settings = caching::caching_settings_help(),
});

}  // namespace
}  // namespace workbench
