// Plans, in Python: made of events, given as columns, planned from lifetimes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <utility>

#include "bindings_columns.h"
#include "bindings_events.h"
#include "core/errors.h"
#include "core/lifetimes.h"
#include "core/plan.h"
#include "planners/planner.h"
#include "planners/validate.h"

namespace workbench {

using namespace nb::literals;

namespace {

using PlanPointer = std::shared_ptr<const Plan>;

std::vector<std::int64_t> values(const Column<std::int64_t>& column) {
  return {column.data(), column.data() + column.size()};
}

PlanPointer plan_of_columns(const Column<std::int64_t>& size, const Column<std::int64_t>& end,
                            const Column<std::int64_t>& offset, Bytes alignment, ThreadId thread,
                            std::optional<std::pair<std::int32_t, std::int32_t>> steps,
                            const std::string& planner, double seconds) {
  Plan plan;
  plan.lifetimes = {values(size), values(end)};
  plan.offset = values(offset);
  plan.alignment = alignment;
  plan.thread = thread;
  if (steps) {
    if (steps->first < 0 || steps->second <= steps->first) {
      throw InputError("a broken plan: it is of no step");
    }
    plan.first_step = steps->first;
    plan.step_count = steps->second - steps->first;
  }
  plan.planner = planner;
  plan.seconds = seconds;
  const nb::gil_scoped_release release;
  validate(plan);
  measure(plan);
  return std::make_shared<const Plan>(std::move(plan));
}

PlanPointer plan_of_lifetimes(const Column<std::int64_t>& size, const Column<std::int64_t>& end,
                              const std::string& planner, Bytes alignment, double seconds) {
  Plan unplanned;
  unplanned.lifetimes = {values(size), values(end)};
  unplanned.offset.assign(size.size(), 0);
  for (std::size_t id = 0; id < unplanned.offset.size() && id < end.size(); ++id) {
    if (unplanned.lifetimes.end[id] == kUnmanaged) unplanned.offset[id] = kNoOffset;
  }
  const nb::gil_scoped_release release;
  check_columns(unplanned);
  return std::make_shared<const Plan>(
      make_plan(std::move(unplanned.lifetimes),
                {.planner = planner, .alignment = alignment, .seconds = seconds}));
}

// For minimalloc's instances: any times, none of them unmanaged.
nb::object plan_buffers(const Column<std::int64_t>& lower, const Column<std::int64_t>& upper,
                        const Column<std::int64_t>& size, const std::string& planner,
                        double seconds) {
  if (lower.size() != upper.size() || lower.size() != size.size()) {
    throw InputError("the columns differ in length");
  }
  Buffers buffers;
  for (std::size_t i = 0; i < lower.size(); ++i) {
    if (upper.data()[i] <= lower.data()[i] || size.data()[i] <= 0 || size.data()[i] >= kEiB) {
      throw InputError("buffer " + std::to_string(i) + " has no size or no lifetime");
    }
    buffers.push_back({lower.data()[i], upper.data()[i], size.data()[i]});
  }
  std::optional<Planned> planned;
  {
    const nb::gil_scoped_release release;
    planned = planner_registry().get(planner).plan(
        buffers, seconds > 0 ? Deadline::in_seconds(seconds) : Deadline::never());
  }
  return planned ? numpy(std::move(planned->offsets)) : nb::none();
}

nb::tuple py_lifetimes(const PyEvents& events,
                       std::optional<std::pair<std::int32_t, std::int32_t>> steps,
                       std::optional<ThreadId> thread) {
  Lifetimes lifetimes;
  {
    const nb::gil_scoped_release release;
    std::optional<Steps> chosen;
    if (steps) chosen = Steps{steps->first, steps->second};
    const EventRange range = events_of(events.events, chosen);
    if (!thread) thread = busiest_thread(events.events, range);
    lifetimes = lifetimes_of(events.events, range, *thread);
  }
  return nb::make_tuple(numpy(std::move(lifetimes.size)), numpy(std::move(lifetimes.end)), *thread);
}

nb::list list_planners() {
  nb::list list;
  for (const PlannerEntry& planner : planner_registry().entries()) {
    if (planner.hidden) continue;
    nb::dict item;
    item["name"] = planner.name;
    item["summary"] = planner.summary;
    list.append(item);
  }
  return list;
}

nb::object steps_of(const Plan& plan) {
  if (plan.step_count == 0) return nb::none();
  return nb::make_tuple(plan.first_step, plan.first_step + plan.step_count);
}

}  // namespace

void bind_plan(nb::module_& m) {
  m.def("lifetimes", &py_lifetimes, "events"_a, "steps"_a = nb::none(), "thread"_a = nb::none());
  m.def("planners", &list_planners);
  m.def("make_plan", &plan_of_lifetimes, "size"_a, "end"_a, "planner"_a = "best",
        "alignment"_a = kHostAlignment, "seconds"_a = 10.0);
  m.def("plan_buffers", &plan_buffers, "lower"_a, "upper"_a, "size"_a, "planner"_a = "best",
        "seconds"_a = 10.0);
  nb::class_<Plan>(m, "Plan")
      .def(nb::new_(&plan_of_columns), "size"_a, "end"_a, "offset"_a, nb::kw_only(),
           "alignment"_a = kHostAlignment, "thread"_a = 0, "steps"_a = nb::none(), "planner"_a = "",
           "seconds"_a = 0.0)
      .def("__len__", [](const Plan& plan) { return plan.lifetimes.count(); })
      .def_prop_ro("size", [](const Plan& plan) { return numpy(plan.lifetimes.size); })
      .def_prop_ro("end", [](const Plan& plan) { return numpy(plan.lifetimes.end); })
      .def_prop_ro("offset", [](const Plan& plan) { return numpy(plan.offset); })
      .def_ro("alignment", &Plan::alignment)
      .def_ro("thread", &Plan::thread)
      .def_prop_ro("steps", &steps_of)
      .def_ro("height", &Plan::height)
      .def_ro("lower_bound", &Plan::lower_bound)
      .def_ro("planner", &Plan::planner)
      .def_ro("seconds", &Plan::seconds);
}

}  // namespace workbench
