// The parts of the caching allocator's state: pools, their lanes, segments, blocks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "allocators/caching_counters.h"
#include "allocators/free_blocks.h"
#include "backends/stream_progress.h"
#include "core/events.h"
#include "core/units.h"

namespace workbench::caching {

struct Block;
struct Lane;

// One device allocation, or one range of addresses that grows in place. Segments form a list in the
// order they were created.
struct Segment {
  std::uint64_t number;  // in order of creation, over both pools
  std::uint64_t address;
  std::uint64_t position;  // see Block
  Bytes size;
  Bytes mapped;  // bytes of it that have memory
  Lane* lane;
  Block* first;
  Segment* before;
  Segment* after;
  bool expandable;
};

// Two cache lines: what every call looks at, and what a free block needs besides.
struct alignas(64) Block {
  std::uint64_t address;
  // Segments follow each other in the order of their numbers: one number instead of two.
  std::uint64_t position;
  Bytes size;
  Bytes requested;
  Segment* segment;
  Block* before;  // neighbours in the segment
  Block* after;
  std::int32_t pending_events;  // CUDA events that must complete before it is free
  bool allocated;               // the program has it
  bool mapped;                  // false: addresses without memory, of an expandable segment

  TreeLinks<Block> links;              // its place among the free, or among the unmapped
  std::uint64_t free_since;            // look-ups of its pool so far when it became free
  std::vector<StreamId> used_streams;  // others than its own

  bool is_free() const { return !allocated && pending_events == 0; }
  bool is_split() const { return before != nullptr || after != nullptr; }
  // What it could hold in place: rule 5.
  Bytes room() const { return size + (after != nullptr && !after->mapped ? after->size : 0); }
};
static_assert(sizeof(Block) == 128);

struct ByPosition {
  bool operator()(const Block& a, const Block& b) const { return a.position < b.position; }
};
using UnmappedTree = BlockTree<Block, ByPosition>;

struct Pool {
  Pool(bool small, Bytes least_rest) : is_small(small), smallest_rest(least_rest) {}

  const bool is_small;
  const Bytes smallest_rest;   // what a split must leave: rule 6
  PoolCounters counters;       // with those of private pools
  std::uint64_t look_ups = 0;  // counted while garbage is collected, without private pools
  std::vector<Lane*> lanes;    // by number; null where nothing was asked for yet
};

// Rule 15. Whoever began to allocate in it uses it until they release it.
struct PrivatePool {
  PoolId number;
  std::int64_t uses;  // at 0 its cached segments may be given back
  bool was_there;     // before the program began, as far as that is told
  // Bytes of its segments: of both kinds of pool, then of the large and of the small one.
  std::array<Counter, 3> reserved = {};
};

// One stream's part of a pool, or of a private one's.
struct Lane {
  Pool* pool;
  StreamId stream;
  FreeBlocks<Block> free;
  Block* unmapped;            // root of an UnmappedTree
  PrivatePool* private_pool;  // null: it is of the default ones
  PoolId private_number() const {
    return private_pool == nullptr ? kDefaultPool : private_pool->number;
  }
};

// A free that waits for the end of all captures.
struct Deferred {
  Block* block;
  bool is_captured;  // all streams that use the block are; then how far each of the others was
  std::vector<std::pair<StreamId, std::uint64_t>> used_up_to;
};

// CUDA events of one stream, oldest first.
class PendingQueue {
 public:
  struct Entry {
    CudaEvent event;
    Block* block;
  };

  bool empty() const { return first_ == end_; }
  const Entry& front() const { return entries_[first_ & (entries_.size() - 1)]; }
  void pop() { ++first_; }
  void push(const Entry& entry) {
    if (end_ - first_ == entries_.size()) grow();
    entries_[end_++ & (entries_.size() - 1)] = entry;
  }

 private:
  void grow() {
    std::vector<Entry> larger(entries_.empty() ? 64 : 2 * entries_.size());
    for (std::size_t i = first_; i < end_; ++i) {
      larger[i & (larger.size() - 1)] = entries_[i & (entries_.size() - 1)];
    }
    entries_ = std::move(larger);
  }

  std::vector<Entry> entries_;  // a ring; its length is a power of two
  std::size_t first_ = 0;
  std::size_t end_ = 0;
};

}  // namespace workbench::caching
