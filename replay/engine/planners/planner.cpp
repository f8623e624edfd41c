#include "planners/planner.h"

#include <algorithm>
#include <bit>
#include <cstdio>

#include "core/errors.h"
#include "planners/validate.h"

namespace workbench {
namespace {

struct Managed {
  Buffers buffers;
  std::vector<std::size_t> ids;
};

Managed managed_of(const Lifetimes& lifetimes, Bytes alignment) {
  Managed managed;
  for (std::size_t id = 0; id < lifetimes.count(); ++id) {
    if (lifetimes.end[id] == kUnmanaged) continue;
    managed.buffers.push_back(
        {static_cast<PlanTime>(id), lifetimes.end[id], round_up(lifetimes.size[id], alignment)});
    managed.ids.push_back(id);
  }
  return managed;
}

}  // namespace

Registry<PlannerEntry>& planner_registry() {
  static Registry<PlannerEntry> registry("planner");
  return registry;
}

Bytes height_of(const Buffers& buffers, const Offsets& offsets) {
  Bytes height = 0;
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    height = std::max(height, offsets[i] + buffers[i].size);
  }
  return height;
}

Bytes peak_of(const Buffers& buffers) {
  std::vector<std::pair<PlanTime, Bytes>> changes;
  changes.reserve(2 * buffers.size());
  for (const Buffer& buffer : buffers) {
    changes.emplace_back(buffer.begin, buffer.size);
    changes.emplace_back(buffer.end, -buffer.size);
  }
  // Frees first at equal times: their changes are below 0.
  std::sort(changes.begin(), changes.end());
  Bytes live = 0;
  Bytes peak = 0;
  for (const auto& [time, change] : changes) peak = std::max(peak, live += change);
  return peak;
}

void measure(Plan& plan) {
  const Managed managed = managed_of(plan.lifetimes, plan.alignment);
  Offsets offsets;
  for (const std::size_t id : managed.ids) offsets.push_back(plan.offset[id]);
  plan.height = height_of(managed.buffers, offsets);
  plan.lower_bound = peak_of(managed.buffers);
}

Plan make_plan(Lifetimes lifetimes, const PlanOptions& options) {
  const PlannerEntry& planner = planner_registry().get(options.planner);
  check_alignment(options.alignment);
  Bytes total = 0;
  for (const Bytes size : lifetimes.size) {
    if (size >= kEiB || (total += round_up(size, options.alignment)) >= 4 * kEiB) {
      throw InputError(
          "the sizes of this trace add up to more than any memory holds; check it "
          "with wb info");
    }
  }
  const auto start = std::chrono::steady_clock::now();
  const Managed managed = managed_of(lifetimes, options.alignment);
  const Deadline deadline =
      options.seconds > 0 ? Deadline::in_seconds(options.seconds) : Deadline::never();
  std::optional<Planned> planned = planner.plan(managed.buffers, deadline);
  if (!planned) {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%g", options.seconds);
    throw InputError("planner " + options.planner + " found no plan in " + seconds +
                     " s; choose another, such as greedy");
  }
  Plan plan;
  plan.offset.assign(lifetimes.count(), kNoOffset);
  for (std::size_t i = 0; i < managed.ids.size(); ++i) {
    plan.offset[managed.ids[i]] = planned->offsets[i];
  }
  plan.lifetimes = std::move(lifetimes);
  plan.alignment = options.alignment;
  plan.planner = std::move(planned->planner);
  plan.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  validate(plan);
  measure(plan);
  return plan;
}

}  // namespace workbench
