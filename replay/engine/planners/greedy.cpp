// The planner of c10/mobile/CPUProfilingAllocator, which goes through time and takes the smallest
// free range that fits. The original keys free ranges by size alone, so that two of the same size
// corrupt it; here there may be any number.
#include <algorithm>
#include <tuple>

#include "core/free_ranges.h"
#include "planners/planner.h"

namespace workbench {
namespace {

std::optional<Planned> plan(const Buffers& buffers, const Deadline&) {
  struct Event {
    PlanTime time;
    bool is_alloc;  // frees come before allocations of the same time
    std::size_t buffer;
    bool operator<(const Event& other) const {
      return std::tie(time, is_alloc, buffer) < std::tie(other.time, other.is_alloc, other.buffer);
    }
  };
  std::vector<Event> events;
  events.reserve(2 * buffers.size());
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    events.push_back({buffers[i].begin, true, i});
    events.push_back({buffers[i].end, false, i});
  }
  std::sort(events.begin(), events.end());

  Offsets offsets(buffers.size());
  FreeRanges ranges;
  Bytes height = 0;
  for (const Event& event : events) {
    const Bytes size = buffers[event.buffer].size;
    Bytes& offset = offsets[event.buffer];
    if (!event.is_alloc) {
      ranges.give(offset, size);
    } else if (const std::optional<Bytes> best = ranges.take_best(size)) {
      offset = *best;
    } else {
      // At the end; a free range that touches it is not grown.
      offset = height;
      height += size;
    }
  }
  return Planned{std::move(offsets), "greedy"};
}

const bool registered = planner_registry().add({
    .name = "greedy",
    .summary = "in order of time, the smallest free range that fits (PyTorch's, repaired)",
    .plan = plan,
});

}  // namespace
}  // namespace workbench
