// What the library torch-plan has no use for: the original's validation of a second recording, and
// the order in which the C++ library sorts its events.
#include <c10/mobile/CPUProfilingAllocator.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

// What a thread allocates and frees, told to `planner`; allocation i is freed after end[i] others.
// Pointers serve as names only.
void record(c10::AllocationPlanner& planner, std::int64_t count, const std::int64_t* size,
            const std::int64_t* end) {
  const std::vector<char> names(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i <= count; ++i) {
    for (std::int64_t freed = 0; freed < i; ++freed) {
      if (end[freed] == i) planner.record_free(&names[static_cast<std::size_t>(freed)]);
    }
    if (i < count) {
      planner.record_allocation(static_cast<std::uint64_t>(size[i]),
                                &names[static_cast<std::size_t>(i)]);
    }
  }
}

}  // namespace

// Whether the original takes the second recording for one that the plan of the first fits.
extern "C" __attribute__((visibility("default"))) int original_accepts(
    std::int64_t count, const std::int64_t* size, const std::int64_t* end, std::int64_t count_then,
    const std::int64_t* size_then, const std::int64_t* end_then) {
  c10::AllocationPlan plan;
  c10::AllocationPlanner recorder(&plan);
  record(recorder, count, size, end);
  c10::AllocationPlanner validator(&plan, true);
  record(validator, count_then, size_then, end_then);
  return validator.validation_success ? 1 : 0;
}

// The places of `times` in the order in which std::sort leaves them.
extern "C" __attribute__((visibility("default"))) void sorted_order(std::int64_t count,
                                                                    const std::int64_t* times,
                                                                    std::int64_t* order) {
  for (std::int64_t i = 0; i < count; ++i) order[i] = i;
  std::sort(order, order + count,
            [times](std::int64_t a, std::int64_t b) { return times[a] < times[b]; });
}
