// From events to lifetimes: what a plan is made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/events.h"
#include "core/plan.h"

namespace workbench {

// Steps `first` … `end` − 1, as in the trace's `step` column.
struct Steps {
  std::int32_t first;
  std::int32_t end;

  std::int32_t count() const { return end - first; }
};

// The events first … last − 1 of some steps; all events where none are named.
struct EventRange {
  std::size_t first;
  std::size_t last;
};

// Throws InputError where the events have none of these steps, or do not tell steps.
EventRange events_of(const Events& events, const std::optional<Steps>& steps);

// The thread with most allocations of more than 0 bytes in a range; the lowest of equals, 0 where
// there is none.
ThreadId busiest_thread(const Events& events, EventRange range);

// Of the allocations that `thread` makes in a range; of all where none is named. Who frees does not
// matter; a free of what was allocated before is ignored.
Lifetimes lifetimes_of(const Events& events, EventRange range, std::optional<ThreadId> thread);

}  // namespace workbench
