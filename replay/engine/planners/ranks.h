// Buffers in order of their begins, on a clock that only ticks where a buffer begins: two buffers
// are alive together exactly where they share a tick.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "planners/planner.h"

namespace workbench {

struct Ranks {
  explicit Ranks(const Buffers& buffers)
      : order(buffers.size()), begin(buffers.size()), end(buffers.size()) {
    std::iota(order.begin(), order.end(), std::uint32_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
      return buffers[a].begin < buffers[b].begin;
    });
    std::vector<PlanTime> ticks;
    for (const std::uint32_t i : order) {
      if (ticks.empty() || ticks.back() != buffers[i].begin) ticks.push_back(buffers[i].begin);
    }
    for (std::size_t place = 0; place < order.size(); ++place) {
      const Buffer& buffer = buffers[order[place]];
      const auto rank = [&](PlanTime time) {
        return static_cast<std::uint32_t>(std::lower_bound(ticks.begin(), ticks.end(), time) -
                                          ticks.begin());
      };
      begin[place] = rank(buffer.begin);
      end[place] = rank(buffer.end);
    }
    count = static_cast<std::uint32_t>(ticks.size());
  }

  std::vector<std::uint32_t> order;  // of the place-th buffer in order of begins: its index
  // By place: its first tick, and the tick past its last.
  std::vector<std::uint32_t> begin;
  std::vector<std::uint32_t> end;
  std::uint32_t count = 0;  // ticks
};

}  // namespace workbench
