#include "core/lifetimes.h"

#include <map>
#include <string>

#include "core/errors.h"

namespace workbench {
namespace {

bool allocates(const Events& events, std::size_t event) {
  const Op op = events.op_at(event);
  return (op == Op::kAlloc || op == Op::kLive) && events.size[event] > 0;
}

}  // namespace

EventRange events_of(const Events& events, const std::optional<Steps>& steps) {
  if (!steps) return {0, events.count()};
  if (events.step.empty() && events.count() > 0) {
    throw InputError("these events do not tell steps; leave steps out");
  }
  // Steps only grow, but for a trace that was put together by hand: from the first event of the
  // first step to the first event past the last.
  std::size_t first = 0;
  while (first < events.count() && events.step[first] < steps->first) ++first;
  std::size_t last = first;
  while (last < events.count() && events.step[last] < steps->end) ++last;
  if (first == last && events.count() > 0) {
    throw InputError("there is no event in steps " + std::to_string(steps->first) + ":" +
                     std::to_string(steps->end) + "; wb info shows how many steps a trace has");
  }
  return {first, last};
}

ThreadId busiest_thread(const Events& events, EventRange range) {
  std::map<ThreadId, std::int64_t> counts;
  for (std::size_t i = range.first; i < range.last; ++i) {
    if (allocates(events, i)) ++counts[events.thread[i]];
  }
  ThreadId busiest = 0;
  std::int64_t most = 0;
  for (const auto& [thread, count] : counts) {
    if (count > most) {
      busiest = thread;
      most = count;
    }
  }
  return busiest;
}

Lifetimes lifetimes_of(const Events& events, EventRange range, std::optional<ThreadId> thread) {
  constexpr std::int64_t kNobody = -1;
  Lifetimes lifetimes;
  // The allocation that each slot holds.
  std::vector<std::int64_t> holder(static_cast<std::size_t>(events.slot_count), kNobody);
  for (std::size_t i = range.first; i < range.last; ++i) {
    const auto slot = static_cast<std::size_t>(events.slot[i]);
    if (allocates(events, i)) {
      holder[slot] = kNobody;
      if (thread && events.thread[i] != *thread) continue;
      holder[slot] = static_cast<std::int64_t>(lifetimes.count());
      lifetimes.size.push_back(events.size[i]);
      lifetimes.end.push_back(kUnmanaged);
    } else if (events.op_at(i) == Op::kFree && holder[slot] != kNobody) {
      lifetimes.end[static_cast<std::size_t>(holder[slot])] =
          static_cast<PlanTime>(lifetimes.count());
      holder[slot] = kNobody;
    }
  }
  return lifetimes;
}

}  // namespace workbench
