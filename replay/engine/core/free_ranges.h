// The free ranges of an arena, by offset and by size; any number of them may be of one size.
#pragma once

#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "core/units.h"

namespace workbench {

class FreeRanges {
 public:
  // Offset of the smallest range with room for `size` bytes, the lowest of equals; their front is
  // taken. Nothing where none has room.
  std::optional<Bytes> take_best(Bytes size) {
    const auto best = by_size_.lower_bound({size, 0});
    if (best == by_size_.end()) return std::nullopt;
    const Bytes offset = best->second;
    take(offset, size);
    return offset;
  }

  // Takes bytes that are free.
  void take(Bytes offset, Bytes size) {
    const auto range = std::prev(by_offset_.upper_bound(offset));
    const auto [start, length] = *range;
    remove(range);
    if (start < offset) insert(start, offset - start);
    if (offset + size < start + length) insert(offset + size, start + length - offset - size);
  }

  // Gives bytes back; they merge with both neighbours.
  void give(Bytes offset, Bytes size) {
    auto next = by_offset_.lower_bound(offset);
    if (next != by_offset_.end() && next->first == offset + size) {
      size += next->second;
      next = remove(next);
    }
    if (next != by_offset_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == offset) {
        offset = before->first;
        size += before->second;
        remove(before);
      }
    }
    insert(offset, size);
  }

  Bytes largest() const { return by_size_.empty() ? 0 : by_size_.rbegin()->first; }

 private:
  using ByOffset = std::map<Bytes, Bytes>;

  void insert(Bytes offset, Bytes size) {
    by_offset_.emplace(offset, size);
    by_size_.emplace(size, offset);
  }

  ByOffset::iterator remove(ByOffset::iterator range) {
    by_size_.erase({range->second, range->first});
    return by_offset_.erase(range);
  }

  ByOffset by_offset_;  // offset → size
  std::set<std::pair<Bytes, Bytes>> by_size_;
};

}  // namespace workbench
