#include "replayer/planning.h"

#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "core/lifetimes.h"
#include "planners/planner.h"

namespace workbench {
namespace {

std::optional<Steps> steps_of(const Settings& settings) {
  const std::optional<std::string_view> text = settings.find("steps");
  if (!text) return std::nullopt;
  const std::size_t colon = text->find(':');
  const auto number = [](std::string_view part) { return Settings::parse_whole_number(part); };
  const auto first = colon == text->npos ? std::nullopt : number(text->substr(0, colon));
  const auto end = colon == text->npos ? std::nullopt : number(text->substr(colon + 1));
  if (!first || !end || *first < 0 || *end <= *first ||
      *end > std::numeric_limits<std::int32_t>::max()) {
    settings.refuse("steps", "give A:B, from step A up to, not including, step B");
  }
  return Steps{static_cast<std::int32_t>(*first), static_cast<std::int32_t>(*end)};
}

}  // namespace

std::shared_ptr<const Plan> plan_for(const Events& events, const Settings& settings) {
  if (settings.find("file")) {
    settings.refuse("file", "only wb replay reads plans from files; leave it out");
  }
  const std::optional<Steps> steps = steps_of(settings);
  const std::optional<std::int64_t> wanted = settings.whole_number("thread", 0);
  PlanOptions options;
  if (const auto planner = settings.find("planner")) options.planner = *planner;
  if (const auto alignment = settings.whole_number("alignment", kHostAlignment)) {
    options.alignment = *alignment;
  }
  if (const auto seconds = settings.number("seconds")) {
    if (*seconds <= 0) settings.refuse("seconds", "give a number above 0");
    options.seconds = *seconds;
  }
  const EventRange range = events_of(events, steps);
  const ThreadId thread = wanted ? static_cast<ThreadId>(*wanted) : busiest_thread(events, range);
  Plan plan = make_plan(lifetimes_of(events, range, thread), options);
  plan.thread = thread;
  if (steps) {
    plan.first_step = steps->first;
    plan.step_count = steps->count();
  }
  return std::make_shared<const Plan>(std::move(plan));
}

}  // namespace workbench
