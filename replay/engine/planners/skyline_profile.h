// What the skyline planner keeps while it works: the profile of heights over time, and the buffers
// that have no place yet.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <queue>
#include <vector>

#include "core/units.h"

namespace workbench::skyline {

inline constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// Heights over ticks, as levels: runs of ticks of one height, each named by its first tick.
// Neighbours differ in height.
class Profile {
 public:
  explicit Profile(std::uint32_t ticks)
      : ticks_(ticks),
        leaves_(std::bit_ceil(std::max(ticks, 1U))),
        end_(ticks),
        before_(ticks, kNone),
        height_(ticks),
        highest_(2 * leaves_, kNoLevel) {
    add(0, ticks, 0, kNone);
  }

  std::uint32_t ticks() const { return ticks_; }
  Bytes height(std::uint32_t level) const { return height_[level]; }
  std::uint32_t end(std::uint32_t level) const { return end_[level]; }
  // kNone at the edges.
  std::uint32_t before(std::uint32_t level) const { return before_[level]; }
  std::uint32_t after(std::uint32_t level) const {
    return end_[level] == ticks_ ? kNone : end_[level];
  }

  // The lowest level, the first of equals.
  std::uint32_t lowest() {
    while (!is_current(queue_.top())) queue_.pop();
    return queue_.top().level;
  }

  // A level becomes two; the new one begins at `tick`.
  void split(std::uint32_t level, std::uint32_t tick) {
    const std::uint32_t end = end_[level];
    end_[level] = tick;
    add(tick, end, height_[level], level);
    if (end < ticks_) before_[end] = tick;
  }

  void raise(std::uint32_t level, Bytes height) {
    height_[level] = height;
    set(level, height);
    queue_.push({height, level});
  }

  // Whether `level` is as high as the one before it.
  bool can_join(std::uint32_t level) const {
    return level != kNone && before_[level] != kNone && height_[before_[level]] == height_[level];
  }

  // It becomes a part of the one before it.
  void join(std::uint32_t level) {
    end_[before_[level]] = end_[level];
    if (end_[level] < ticks_) before_[end_[level]] = before_[level];
    set(level, kNoLevel);
  }

  // The highest of the levels that begin in first … last − 1; kNone where none does.
  std::uint32_t highest_between(std::uint32_t first, std::uint32_t last) const {
    std::uint32_t best = 1;
    Bytes top = kNoLevel;
    std::uint32_t low = first + leaves_;
    std::uint32_t high = last + leaves_;
    for (; low < high; low /= 2, high /= 2) {
      if (low & 1) consider(low++, best, top);
      if (high & 1) consider(--high, best, top);
    }
    if (top == kNoLevel) return kNone;
    while (best < leaves_) best = highest_[2 * best] == top ? 2 * best : 2 * best + 1;
    return best - leaves_;
  }

 private:
  static constexpr Bytes kNoLevel = -1;

  struct Low {
    Bytes height;
    std::uint32_t level;
    bool operator<(const Low& other) const {  // the lowest on top
      return height != other.height ? height > other.height : level > other.level;
    }
  };

  bool is_current(const Low& low) const { return highest_[low.level + leaves_] == low.height; }

  void consider(std::uint32_t node, std::uint32_t& best, Bytes& top) const {
    if (highest_[node] > top) {
      best = node;
      top = highest_[node];
    }
  }

  void add(std::uint32_t level, std::uint32_t end, Bytes height, std::uint32_t before) {
    end_[level] = end;
    before_[level] = before;
    raise(level, height);
  }

  void set(std::uint32_t level, Bytes height) {
    std::uint32_t node = level + leaves_;
    highest_[node] = height;
    for (node /= 2; node > 0; node /= 2) {
      const Bytes top = std::max(highest_[2 * node], highest_[2 * node + 1]);
      if (highest_[node] == top) break;
      highest_[node] = top;
    }
  }

  const std::uint32_t ticks_;
  const std::uint32_t leaves_;
  // By level.
  std::vector<std::uint32_t> end_;
  std::vector<std::uint32_t> before_;
  std::vector<Bytes> height_;
  std::vector<Bytes> highest_;  // by node of a tree over ticks; kNoLevel where no level begins
  std::priority_queue<Low> queue_;
};

// The buffers that fit into one level and have no place, in order of their begins: a tree that
// finds the first in rank of some of them, and those that end late.
class Waiting {
 public:
  explicit Waiting(std::uint32_t count)
      : leaves_(std::bit_ceil(std::max(count, 1U))), nodes_(2 * leaves_) {}

  void add(std::uint32_t place, std::uint32_t rank, std::uint32_t end) { set(place, {rank, end}); }
  void remove(std::uint32_t place) { set(place, {}); }

  // The least rank of places first … last − 1; kNone where none waits.
  std::uint32_t first_rank(std::uint32_t first, std::uint32_t last) const {
    std::uint32_t rank = kNone;
    std::uint32_t low = first + leaves_;
    std::uint32_t high = last + leaves_;
    for (; low < high; low /= 2, high /= 2) {
      if (low & 1) rank = std::min(rank, nodes_[low++].rank);
      if (high & 1) rank = std::min(rank, nodes_[--high].rank);
    }
    return rank;
  }

  // Of places first … last − 1, the first that ends after `tick`; kNone where none does.
  std::uint32_t first_past(std::uint32_t first, std::uint32_t last, std::uint32_t tick) const {
    std::uint32_t node = first + leaves_;
    const std::uint32_t stop = last + leaves_;
    if (node >= stop) return kNone;
    std::uint32_t width = 1;
    // Up and to the right, until a subtree holds one, then down into it.
    while (nodes_[node].end <= tick) {
      while (node & 1) {
        node /= 2;
        width *= 2;
      }
      if (node == 0) return kNone;
      ++node;
      if (std::uint64_t{node} * width >= stop) return kNone;
    }
    while (node < leaves_) {
      node *= 2;
      if (nodes_[node].end <= tick) ++node;
    }
    return node < stop ? node - leaves_ : kNone;
  }

 private:
  struct Node {
    std::uint32_t rank = kNone;
    std::uint32_t end = 0;
  };

  void set(std::uint32_t place, Node value) {
    std::uint32_t node = place + leaves_;
    nodes_[node] = value;
    for (node /= 2; node > 0; node /= 2) {
      const Node& left = nodes_[2 * node];
      const Node& right = nodes_[2 * node + 1];
      const Node merged = {std::min(left.rank, right.rank), std::max(left.end, right.end)};
      if (merged.rank == nodes_[node].rank && merged.end == nodes_[node].end) break;
      nodes_[node] = merged;
    }
  }

  const std::uint32_t leaves_;
  std::vector<Node> nodes_;
};

}  // namespace workbench::skyline
