// The parts of the caching allocator's state: segments, their blocks, and the free ones in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <set>
#include <tuple>
#include <vector>

#include "core/units.h"

namespace workbench::caching {

enum class PoolKind : std::uint8_t { kLarge, kSmall };

struct Block;

// One device allocation. Segments form a list in the order they were created.
struct Segment {
  std::uint64_t number;  // in order of creation, over both pools
  std::uint64_t address;
  Bytes size;
  StreamId stream;
  PoolKind pool;
  Block* first;
  Segment* before;
  Segment* after;
};

struct BlockOrder {
  using is_transparent = void;
  // By size, number of the segment, address.
  bool operator()(const Block* a, const Block* b) const;
  bool operator()(const Block* a, Bytes size) const;
};

using FreeSet = std::set<Block*, BlockOrder>;

struct Block {
  std::uint64_t address;
  Bytes size;
  Bytes requested;
  Segment* segment;
  Block* before;  // neighbours in the segment
  Block* after;
  FreeSet::iterator place;             // among the free blocks, while it is free
  std::int32_t pending_events;         // CUDA events that must complete before it is free
  bool allocated;                      // the program has it
  std::vector<StreamId> used_streams;  // others than its own

  bool is_free() const { return !allocated && pending_events == 0; }
  bool is_split() const { return before != nullptr || after != nullptr; }
};

inline bool BlockOrder::operator()(const Block* a, const Block* b) const {
  return std::tie(a->size, a->segment->number, a->address) <
         std::tie(b->size, b->segment->number, b->address);
}

inline bool BlockOrder::operator()(const Block* a, Bytes size) const { return a->size < size; }

// The free blocks of one pool: for each stream, in best-fit order.
class FreeBlocks {
 public:
  // The first block of at least `size`; null where there is none.
  Block* find(StreamId stream, Bytes size) const {
    const auto index = static_cast<std::size_t>(stream);
    if (index >= streams_.size()) return nullptr;
    const auto found = streams_[index].lower_bound(size);
    return found == streams_[index].end() ? nullptr : *found;
  }

  void add(Block& block) {
    const auto index = static_cast<std::size_t>(block.segment->stream);
    if (index >= streams_.size()) streams_.resize(index + 1);
    block.place = streams_[index].insert(&block).first;
  }

  void remove(Block& block) {
    streams_[static_cast<std::size_t>(block.segment->stream)].erase(block.place);
  }

  Bytes largest() const {
    Bytes size = 0;
    for (const FreeSet& blocks : streams_) {
      if (!blocks.empty()) size = std::max(size, (*blocks.rbegin())->size);
    }
    return size;
  }

  // The blocks that are whole segments.
  std::vector<Block*> whole_segments() const {
    std::vector<Block*> whole;
    for (const FreeSet& blocks : streams_) {
      std::copy_if(blocks.begin(), blocks.end(), std::back_inserter(whole),
                   [](const Block* block) { return !block->is_split(); });
    }
    return whole;
  }

 private:
  std::deque<FreeSet> streams_;  // a deque: places in a set must survive its growth
};

// Objects that come and go in large numbers, never returned to the system.
template <class T>
class Recycled {
 public:
  // As the last user left it.
  T& take() {
    if (unused_.empty()) return storage_.emplace_back();
    T* const object = unused_.back();
    unused_.pop_back();
    return *object;
  }
  void give(T& object) { unused_.push_back(&object); }

 private:
  std::deque<T> storage_;
  std::vector<T*> unused_;
};

}  // namespace workbench::caching
