// Fills the lowest valley of the profile of heights over time with the first buffer in rank whose
// lifetime lies in it, and raises the valley where there is none (after Burke and others' best fit
// for strip packing, and Sekiyama and others, arXiv:1804.10001).
//
// Kept near n log n by parking: a buffer whose lifetime crosses a step of the profile cannot be
// placed while the step is there. It waits at the step beside the highest level in its way, and is
// looked at again only when that step is gone. All others lie in one level each, so that what a
// valley can take is a range of the tree.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "planners/planner.h"
#include "planners/ranks.h"
#include "planners/skyline_profile.h"

namespace workbench::skyline {

class Skyline {
 public:
  // `ranked`: places (ranks.h) in the order in which they are preferred.
  Skyline(const Buffers& buffers, const Ranks& ranks, const std::vector<std::uint32_t>& ranked)
      : buffers_(buffers),
        ranks_(ranks),
        ranked_(ranked),
        rank_(ranked.size()),
        first_place_(ranks.count + 1, static_cast<std::uint32_t>(ranked.size())),
        profile_(ranks.count),
        waiting_(static_cast<std::uint32_t>(ranked.size())),
        parked_(ranks.count, kNone),
        next_parked_(ranked.size(), kNone) {
    for (std::uint32_t rank = 0; rank < ranked.size(); ++rank) rank_[ranked[rank]] = rank;
    for (auto place = static_cast<std::uint32_t>(ranked.size()); place-- > 0;) {
      first_place_[ranks.begin[place]] = place;
    }
  }

  std::optional<Offsets> plan(const Deadline& deadline) {
    constexpr std::size_t kBetweenLooks = 4096;
    Offsets offsets(buffers_.size());
    for (std::uint32_t place = 0; place < rank_.size(); ++place) {
      waiting_.add(place, rank_[place], ranks_.end[place]);
    }
    for (std::size_t placed = 0; placed < rank_.size();) {
      const std::uint32_t valley = profile_.lowest();
      const std::uint32_t rank =
          waiting_.first_rank(first_place_[valley], first_place_[profile_.end(valley)]);
      if (rank == kNone) {
        raise(valley);
        continue;
      }
      const std::uint32_t place = ranked_[rank];
      offsets[ranks_.order[place]] = profile_.height(valley);
      put(place, valley);
      if (++placed % kBetweenLooks == 0 && deadline.passed()) return std::nullopt;
    }
    return offsets;
  }

 private:
  void put(std::uint32_t place, std::uint32_t level) {
    waiting_.remove(place);
    const std::uint32_t begin = ranks_.begin[place];
    const std::uint32_t end = ranks_.end[place];
    if (begin > level) {
      park_crossing(level, begin);
      profile_.split(level, begin);
      level = begin;
    }
    if (end < profile_.end(level)) {
      park_crossing(level, end);
      profile_.split(level, end);
    }
    lift(level, profile_.height(level) + buffers_[ranks_.order[place]].size);
  }

  // Nothing fits into it: up to its lower neighbour.
  void raise(std::uint32_t level) {
    const std::uint32_t before = profile_.before(level);
    const std::uint32_t after = profile_.after(level);
    if (before == kNone || after == kNone) {
      lift(level, profile_.height(before == kNone ? after : before));
    } else {
      lift(level, std::min(profile_.height(before), profile_.height(after)));
    }
  }

  void lift(std::uint32_t level, Bytes height) {
    profile_.raise(level, height);
    const std::uint32_t after = profile_.after(level);
    const bool joins_after = profile_.can_join(after);
    const bool joins_before = profile_.can_join(level);
    // Both steps go before anyone is looked at again.
    const std::uint32_t was_at_after = joins_after ? take_parked(after) : kNone;
    const std::uint32_t was_at_level = joins_before ? take_parked(level) : kNone;
    std::uint32_t joined = level;
    if (joins_after) profile_.join(after);
    if (joins_before) {
      joined = profile_.before(level);
      profile_.join(level);
    }
    look_again(was_at_after, joined);
    look_again(was_at_level, joined);
  }

  // Buffers of a level that cross a step which it is about to get.
  void park_crossing(std::uint32_t level, std::uint32_t step) {
    const std::uint32_t last = first_place_[step];
    std::uint32_t place = first_place_[level];
    while ((place = waiting_.first_past(place, last, step)) != kNone) {
      waiting_.remove(place);
      park(place, step);
      ++place;
    }
  }

  void park(std::uint32_t place, std::uint32_t step) {
    next_parked_[place] = parked_[step];
    parked_[step] = place;
  }

  std::uint32_t take_parked(std::uint32_t step) { return std::exchange(parked_[step], kNone); }

  // A chain of buffers that had crossed a step inside what is one level now.
  void look_again(std::uint32_t place, std::uint32_t level) {
    while (place != kNone) {
      const std::uint32_t next = next_parked_[place];
      const std::uint32_t begin = ranks_.begin[place];
      const std::uint32_t end = ranks_.end[place];
      if (begin >= level && end <= profile_.end(level)) {
        waiting_.add(place, rank_[place], end);
      } else {
        park(place, profile_.highest_between(begin + 1, end));
      }
      place = next;
    }
  }

  const Buffers& buffers_;
  const Ranks& ranks_;
  const std::vector<std::uint32_t>& ranked_;
  std::vector<std::uint32_t> rank_;         // by place
  std::vector<std::uint32_t> first_place_;  // by tick: the first buffer that begins there or later
  Profile profile_;
  Waiting waiting_;
  std::vector<std::uint32_t> parked_;       // by step, named by the tick of its right side: a chain
  std::vector<std::uint32_t> next_parked_;  // by place
};

// An order in which buffers are preferred.
struct Order {
  std::string name;
  std::vector<std::uint32_t> ranked;  // places (ranks.h)
};

// By lifetime, by area and by size; the greatest first.
inline std::vector<Order> usual_orders(const Buffers& buffers, const Ranks& ranks) {
  const auto lifetime = [](const Buffer& b) { return static_cast<double>(b.end - b.begin); };
  const auto size = [](const Buffer& b) { return static_cast<double>(b.size); };
  const auto area = [&](const Buffer& b) { return lifetime(b) * size(b); };
  const auto ordered = [&](const char* name, auto&& first, auto&& second) {
    std::vector<std::pair<double, double>> keys;
    keys.reserve(buffers.size());
    for (const std::uint32_t i : ranks.order) {
      keys.emplace_back(first(buffers[i]), second(buffers[i]));
    }
    Order order{name, std::vector<std::uint32_t>(buffers.size())};
    std::iota(order.ranked.begin(), order.ranked.end(), std::uint32_t{0});
    std::stable_sort(order.ranked.begin(), order.ranked.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return keys[a] > keys[b]; });
    return order;
  };
  return {ordered("by lifetime", lifetime, size), ordered("by area", area, lifetime),
          ordered("by size", size, lifetime)};
}

}  // namespace workbench::skyline
