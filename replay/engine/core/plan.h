// A static plan: for each allocation, in order, a place in one arena that is free over its
// lifetime.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/units.h"

namespace workbench {

// A moment, counted in allocations: allocation i happens at time i. A free happens at the number of
// allocations made before it, and before the allocation of the same time.
using PlanTime = std::int64_t;

// `end` of an allocation that was not freed while it was watched: the plan leaves it out.
inline constexpr PlanTime kUnmanaged = -1;
// `offset` of such an allocation.
inline constexpr Bytes kNoOffset = -1;

// Allocations of one thread in order, without those of 0 bytes; columns are equally long.
struct Lifetimes {
  std::vector<Bytes> size;  // as requested
  std::vector<PlanTime> end;

  std::size_t count() const { return size.size(); }
};

struct Plan {
  Lifetimes lifetimes;
  std::vector<Bytes> offset;
  Bytes alignment = kHostAlignment;
  // The thread whose allocations are planned.
  ThreadId thread = 0;
  // The steps it was made of: the first, and how many; 0 for the whole trace.
  std::int32_t first_step = 0;
  std::int32_t step_count = 0;

  // Of the managed allocations, their sizes rounded up to the alignment.
  Bytes height = 0;       // max(offset + size)
  Bytes lower_bound = 0;  // the peak of live bytes

  std::string planner;  // the one whose plan it is
  double seconds = 0;   // that planning took
};

}  // namespace workbench
