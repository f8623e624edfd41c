// The CUDA caching allocator. The numbers in comments are the rules of docs/allocators.md.
#pragma once

#include <array>
#include <bit>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "allocators/caching_blocks.h"
#include "allocators/caching_settings.h"
#include "allocators/recycled.h"
#include "allocators/stream_order.h"
#include "allocators/walk.h"

namespace workbench::caching {

inline constexpr Bytes kLargestSmall = kMiB;
inline constexpr Bytes kSmallSegment = 2 * kMiB;
inline constexpr Bytes kMidSize = 10 * kMiB;
inline constexpr Bytes kSegmentUnit = 2 * kMiB;
inline constexpr Bytes kSmallestBlock = 512;

class Caching final : public Replayed<Caching> {
 public:
  Caching(Backend& backend, const Settings& settings);
  ~Caching() override;

  Allocation allocate(Bytes requested, StreamId stream, ThreadId) override;
  void free(void* handle, ThreadId) override;
  void record_stream(void* handle, StreamId stream) override;
  void empty_cache() override;
  void set_fraction(std::int64_t millionths) override;
  void prepare(const Events& events) override;
  bool takes_lanes() const override { return true; }

  // caching_private.cpp: private pools and captures, rules 15 and 16.
  void pool_begin(PoolId number) override;
  void pool_end(PoolId number) override;
  void pool_release(PoolId number) override;
  void capture_begin(StreamId stream) override;
  void capture_end(StreamId) override;
  void event_record(std::size_t event, StreamId stream) override;
  void event_wait(std::size_t event, StreamId stream) override;
  void program_begins() override;
  void program_ends() override;

  bool delays_free(const void* handle) const override;

  // caching_report.cpp: what it says of itself.
  Location locate(const void* handle) const override;
  void visit(const std::function<void(const BlockView&)>& visitor) const override;
  Bytes largest_free() const override;
  Statistics statistics() const override;
  std::vector<std::pair<std::string, std::int64_t>> torch_statistics() const override;
  std::vector<std::string> warnings() const override;

 private:
  friend class HistoryCheck;  // history_check.h: does what a record says was done

  // Rule 1.
  Bytes round_request(Bytes size) const {
    if (settings_.rounds_up()) [[unlikely]] {
      const Bytes divisions = settings_.divisions_of(size);
      if (divisions > 1 && size / divisions >= kSmallestBlock &&
          size > kSmallestBlock * divisions) {
        return round_to(size, divisions);
      }
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

  Lane& lane_of(Pool& pool, std::int32_t number) {
    const auto index = static_cast<std::size_t>(number);
    Lane* const lane = index < pool.lanes.size() ? pool.lanes[index] : nullptr;
    return lane != nullptr ? *lane : add_lane(pool, number);
  }

  Lane& add_lane(Pool& pool, std::int32_t number);
  // Rule 5.
  Block* best_fit(Lane& lane, Bytes size);
  // A block in no tree becomes the program's, without what rule 6 splits off.
  void hand_out(Block& block, Bytes size, Bytes requested);
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
  Block& split(Block& block, Bytes size);
  void count_split(Pool& pool, const Block& block, const Block& rest, bool was_split);
  // For real: merges with its free neighbours.
  void become_free(Block& freed);

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

  // One CUDA event on each stream that used the block.
  void wait_for_streams(Block& block);
  // Rule 4, before an allocation in a lane.
  void process_events(std::int32_t lane);
  void synchronize_events();
  void complete_first(PendingQueue& queue);
  // For one of its CUDA events, or for the end of captures.
  void end_wait(Block& block);

  PrivatePool& private_pool(PoolId number);
  bool capturing() const { return captures_ > 0; }
  void end_capture();
  void note_used_in_capture(const Block& block, StreamId stream);
  // Once the streams that used the block are done.
  void free_later(Block& block);
  // The block's free waits for the end of all captures.
  void defer(Block& block);
  void end_deferral(Block& block);
  void end_deferrals();
  // Of blocks of a stream that is captured and has waited for all others that used them.
  void end_safe_deferrals(StreamId stream);
  bool is_captured(StreamId stream) const { return captured_streams_.contains(stream); }
  PoolStream told(std::int32_t lane) const {
    return told_lanes_.empty() ? PoolStream{lane, kDefaultPool}
                               : told_lanes_.at(static_cast<std::size_t>(lane));
  }

  // caching_segments.cpp: what it takes from the device and gives back.
  // Rule 7. In no tree; null, and counted, where memory ran out.
  Block* fresh_block(Lane& lane, Bytes size);
  // Null where it is refused.
  Block* new_segment(Lane& lane, Bytes size);
  // With one block, in no tree.
  Segment& add_segment(Lane& lane, std::uint64_t address, Bytes size, bool expandable);
  // Its one block is in no tree.
  void remove_segment(Segment& segment);
  void release_segment(Block& block);
  // Rule 8.
  void collect_garbage();
  // Rule 9. Whether enough was released for another try.
  bool release_available(Lane& lane, Bytes size);
  // Rule 10.
  void release_cached();
  void release_free(Lane& lane);

  // caching_expandable.cpp
  // Rule 12: a run of free blocks of an expandable segment, made one block with memory.
  Block* grow_segment(Lane& lane, Bytes size);
  // The first block of a run with room for `size`.
  Block* find_run(Lane& lane, Bytes size);
  // Gives memory to the first pages of an unmapped block that hold `size` bytes, and merges them
  // with the free neighbours that have some. The block that results, among the free ones; null,
  // and nothing done, where the device refuses.
  Block* map_pages(Block& unmapped, Bytes size);
  // Takes the memory of the whole pages inside a free block, and the segment with its last.
  void unmap_pages(Block& free_block);
  // The program's blocks have been freed, those that wait for events included.
  void give_back_mapped(const Segment& segment);

  Bytes page_of(const Lane& lane) const {
    return lane.pool->is_small ? kSmallSegment : settings_.large_segment;
  }

  double age(const Block& block) const {
    return static_cast<double>(block.segment->lane->pool->look_ups - block.free_since);
  }

  // Bytes, truncated.
  Bytes share_of_device(double share) const {
    const Bytes total = backend_.total();
    return share >= 1 ? total : static_cast<Bytes>(share * static_cast<double>(total));
  }

  void limit_to(double fraction) {
    fraction_ = fraction;
    limit_ = share_of_device(fraction);
    collects_garbage_ = settings_.garbage_collection_threshold > 0 && fraction < 1;
  }

  Bytes reserved() const { return all_.reserved_bytes.current; }

  // Counts in the pool, and in all of them; a net change is one or the other.
  void add(Pool& pool, Counter PoolCounters::* what, std::int64_t amount) {
    (pool.counters.*what).add(amount);
    (all_.*what).raise(amount);
  }

  void remove(Pool& pool, Counter PoolCounters::* what, std::int64_t amount) {
    (pool.counters.*what).remove(amount);
    (all_.*what).remove(amount);
  }

  void add_reserved(Lane& lane, Bytes bytes) {
    add(*lane.pool, &PoolCounters::reserved_bytes, bytes);
    if (lane.private_pool != nullptr) {
      lane.private_pool->reserved[0].add(bytes);
      lane.private_pool->reserved[lane.pool->is_small ? 2 : 1].add(bytes);
    }
  }

  void remove_reserved(Lane& lane, Bytes bytes) {
    remove(*lane.pool, &PoolCounters::reserved_bytes, bytes);
    if (lane.private_pool != nullptr) {
      lane.private_pool->reserved[0].remove(bytes);
      lane.private_pool->reserved[lane.pool->is_small ? 2 : 1].remove(bytes);
    }
  }

  void change(Pool& pool, Counter PoolCounters::* what, std::int64_t amount) {
    if (amount > 0) {
      add(pool, what, amount);
    } else {
      remove(pool, what, -amount);
    }
  }

  const CachingSettings settings_;
  // Of the device, as set or as the program last said: rules 7 and 8.
  double fraction_ = 1;
  Bytes limit_ = 0;  // of reserved memory
  bool collects_garbage_ = false;
  bool rejected_ = false;  // the last try for a segment, by throw_on_cudamalloc_oom
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
  std::vector<PendingQueue> pending_;         // by stream
  std::vector<std::size_t> pending_streams_;  // those that are not empty, ascending
  bool events_due_ = false;  // whether blocks wait for CUDA events or for the end of captures

  std::vector<PoolStream> told_lanes_;  // by number; empty: numbers are streams
  std::map<PoolId, PrivatePool> private_pools_;
  std::int64_t captures_ = 0;  // under way
  std::vector<Deferred> deferred_;
  // The streams recorded during captures on blocks that the program has.
  std::unordered_map<const Block*, std::vector<StreamId>> used_in_capture_;
  // What is captured, where blocks are reused meanwhile.
  std::set<StreamId> captured_streams_;
  std::set<std::size_t> captured_events_;
  StreamOrder captured_order_;
  std::uint64_t captured_position_ = 0;
};

}  // namespace workbench::caching
