// Every planner's plan within the time there is, and of those the lowest.
#include "planners/planner.h"

namespace workbench {
namespace {

constexpr const char* kName = "best";

std::optional<Planned> plan(const Buffers& buffers, const Deadline& deadline) {
  std::optional<Planned> best;
  Bytes lowest = 0;
  const Bytes peak = peak_of(buffers);
  const auto attempt = [&](const PlannerEntry& planner) {
    // None can be lower than the peak. Without any plan yet, time does not matter.
    if (planner.name == kName || (best && (lowest == peak || deadline.passed()))) return;
    std::optional<Planned> found = planner.plan(buffers, best ? deadline : Deadline::never());
    if (!found) return;
    const Bytes height = height_of(buffers, found->offsets);
    if (best && height >= lowest) return;
    best = std::move(found);
    lowest = height;
  };
  // First the one that most often needs no other.
  attempt(planner_registry().get("skyline"));
  for (const PlannerEntry& planner : planner_registry().entries()) {
    if (planner.name != "skyline") attempt(planner);
  }
  return best;
}

const bool registered = planner_registry().add({
    .name = kName,
    .summary = "the lowest of all the others' plans that are found in time",
    .plan = plan,
});

}  // namespace
}  // namespace workbench
