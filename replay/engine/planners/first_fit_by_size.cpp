// The largest first, each at the lowest offset that is free over its whole lifetime.
//
// A segment tree over ticks keeps, at each node, the bytes taken during all of its ticks (`whole`)
// and those taken during any (`any`), as ranges that are merged where they touch. What is in a
// buffer's way is then in about 2 log n nodes, and packed memory is few ranges.
#include <algorithm>
#include <bit>
#include <numeric>

#include "planners/planner.h"
#include "planners/ranks.h"

namespace workbench {
namespace {

constexpr const char* kName = "first-fit-by-size";

struct Range {
  Bytes begin;
  Bytes end;
};

// Ranges that neither overlap nor touch, in order.
class TakenRanges {
 public:
  void add(Bytes begin, Bytes end) {
    const auto first = std::partition_point(ranges_.begin(), ranges_.end(),
                                            [&](const Range& r) { return r.end < begin; });
    auto last = first;
    for (; last != ranges_.end() && last->begin <= end; ++last) {
      begin = std::min(begin, last->begin);
      end = std::max(end, last->end);
    }
    if (first == last) {
      ranges_.insert(first, {begin, end});
    } else {
      *first = {begin, end};
      ranges_.erase(first + 1, last);
    }
  }

  // The lowest offset from `offset` on with `size` free bytes.
  Bytes next_free(Bytes offset, Bytes size) const {
    auto range = std::partition_point(ranges_.begin(), ranges_.end(),
                                      [&](const Range& r) { return r.end <= offset; });
    for (; range != ranges_.end() && range->begin < offset + size; ++range) offset = range->end;
    return offset;
  }

 private:
  std::vector<Range> ranges_;
};

class TakenOverTime {
 public:
  explicit TakenOverTime(std::uint32_t ticks)
      : leaves_(std::bit_ceil(std::max(ticks, 1U))), whole_(2 * leaves_), any_(2 * leaves_) {}

  Bytes lowest_free(std::uint32_t begin, std::uint32_t end, Bytes size) {
    in_the_way_.clear();
    std::uint32_t low = begin + leaves_;
    std::uint32_t high = end + leaves_;
    for (; low < high; low /= 2, high /= 2) {
      if (low & 1) in_the_way_.push_back(&any_[low++]);
      if (high & 1) in_the_way_.push_back(&any_[--high]);
    }
    for_ancestors(begin, end, [&](std::uint32_t node) { in_the_way_.push_back(&whole_[node]); });
    Bytes offset = 0;
    for (std::size_t agreed = 0, i = 0; agreed < in_the_way_.size();
         i = (i + 1) % in_the_way_.size()) {
      const Bytes next = in_the_way_[i]->next_free(offset, size);
      agreed = next == offset ? agreed + 1 : 1;
      offset = next;
    }
    return offset;
  }

  void take(std::uint32_t begin, std::uint32_t end, Bytes offset, Bytes size) {
    std::uint32_t low = begin + leaves_;
    std::uint32_t high = end + leaves_;
    const auto cover = [&](std::uint32_t node) {
      whole_[node].add(offset, offset + size);
      any_[node].add(offset, offset + size);
    };
    for (; low < high; low /= 2, high /= 2) {
      if (low & 1) cover(low++);
      if (high & 1) cover(--high);
    }
    for_ancestors(begin, end, [&](std::uint32_t node) { any_[node].add(offset, offset + size); });
  }

 private:
  // The nodes above those that ticks begin … end − 1 are made of.
  template <class Visit>
  void for_ancestors(std::uint32_t begin, std::uint32_t end, Visit&& visit) {
    // Above the first tick and above the last, where not inside.
    std::uint32_t left = begin + leaves_;
    std::uint32_t right = end - 1 + leaves_;
    std::uint32_t width = 1;
    while (left > 0) {
      const auto covers_less = [&](std::uint32_t node) {
        const std::uint64_t first = std::uint64_t{node} * width - leaves_;
        return first < begin || first + width > end;
      };
      if (covers_less(left)) visit(left);
      if (right != left && covers_less(right)) visit(right);
      left /= 2;
      right /= 2;
      width *= 2;
    }
  }

  std::uint32_t leaves_;
  std::vector<TakenRanges> whole_;
  std::vector<TakenRanges> any_;
  std::vector<const TakenRanges*> in_the_way_;
};

std::optional<Planned> plan(const Buffers& buffers, const Deadline& deadline) {
  constexpr std::size_t kBetweenLooks = 256;
  const Ranks ranks(buffers);
  std::vector<std::uint32_t> places(buffers.size());
  std::iota(places.begin(), places.end(), std::uint32_t{0});
  const auto of = [&](std::uint32_t place) -> const Buffer& { return buffers[ranks.order[place]]; };
  // Of equals the longest-lived first, and of those the first.
  std::stable_sort(places.begin(), places.end(), [&](std::uint32_t a, std::uint32_t b) {
    if (of(a).size != of(b).size) return of(a).size > of(b).size;
    return of(a).end - of(a).begin > of(b).end - of(b).begin;
  });
  TakenOverTime taken(ranks.count);
  Offsets offsets(buffers.size());
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (i % kBetweenLooks == 0 && deadline.passed()) return std::nullopt;
    const std::uint32_t place = places[i];
    const Bytes size = of(place).size;
    const Bytes offset = taken.lowest_free(ranks.begin[place], ranks.end[place], size);
    taken.take(ranks.begin[place], ranks.end[place], offset, size);
    offsets[ranks.order[place]] = offset;
  }
  return Planned{std::move(offsets), kName};
}

const bool registered = planner_registry().add({
    .name = kName,
    .summary = "the largest first, each at the lowest offset that is free over its lifetime",
    .plan = plan,
});

}  // namespace
}  // namespace workbench
