// Planners: every plan is valid and no lower than the peak; each keeps to its own rules.
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/errors.h"
#include "core/free_ranges.h"
#include "core/lifetimes.h"
#include "planners/planner.h"
#include "planners/validate.h"

namespace {

using namespace workbench;

// Lifetimes as a trace has them: allocation i at time i.
Lifetimes random_lifetimes(unsigned seed, std::size_t count, Bytes most) {
  std::mt19937 random(seed);
  Lifetimes lifetimes;
  for (std::size_t id = 0; id < count; ++id) {
    lifetimes.size.push_back(1 + static_cast<Bytes>(random() % static_cast<unsigned>(most)));
    const PlanTime length = 1 + static_cast<PlanTime>(random() % (random() % 2 ? 5 : 60));
    const PlanTime end = static_cast<PlanTime>(id) + length;
    const bool is_freed = random() % 12 != 0 && end <= static_cast<PlanTime>(count);
    lifetimes.end.push_back(is_freed ? end : kUnmanaged);
  }
  return lifetimes;
}

// Independent of the validator: every pair.
bool overlaps(const Plan& plan) {
  const auto& [size, end] = plan.lifetimes;
  for (std::size_t a = 0; a < size.size(); ++a) {
    for (std::size_t b = a + 1; b < size.size(); ++b) {
      if (end[a] == kUnmanaged || end[b] == kUnmanaged) continue;
      const bool together = static_cast<PlanTime>(b) < end[a];
      if (together && plan.offset[a] < plan.offset[b] + size[b] &&
          plan.offset[b] < plan.offset[a] + size[a]) {
        return true;
      }
    }
  }
  return false;
}

TEST(every_planner_makes_valid_plans_no_lower_than_the_peak) {
  for (const PlannerEntry& planner : planner_registry().entries()) {
    for (unsigned seed = 0; seed < 40; ++seed) {
      // Few sizes make many equal free ranges.
      const Bytes most = seed % 2 ? 200 : 100'000;
      const Plan plan = make_plan(random_lifetimes(seed, 1 + seed * 7, most),
                                  {.planner = planner.name, .alignment = seed % 3 ? 64 : 512});
      CHECK(!overlaps(plan));
      CHECK(plan.height >= plan.lower_bound);
      for (std::size_t id = 0; id < plan.offset.size(); ++id) {
        CHECK((plan.offset[id] == kNoOffset) == (plan.lifetimes.end[id] == kUnmanaged));
        if (plan.offset[id] != kNoOffset) CHECK(plan.offset[id] % plan.alignment == 0);
      }
    }
  }
}

TEST(equal_plans_for_equal_lifetimes) {
  for (const PlannerEntry& planner : planner_registry().entries()) {
    const PlanOptions options = {.planner = planner.name};
    const Plan first = make_plan(random_lifetimes(3, 300, 5000), options);
    const Plan second = make_plan(random_lifetimes(3, 300, 5000), options);
    CHECK(first.offset == second.offset);
  }
}

TEST(nothing_and_unmanaged_only_are_planned_in_no_bytes) {
  for (const PlannerEntry& planner : planner_registry().entries()) {
    const PlanOptions options = {.planner = planner.name};
    CHECK(make_plan({}, options).height == 0);
    const Plan plan = make_plan({{64, 64}, {kUnmanaged, kUnmanaged}}, options);
    CHECK(plan.height == 0 && plan.lower_bound == 0);
  }
}

Offsets planned(const char* planner, const Buffers& buffers) {
  return planner_registry().get(planner).plan(buffers, Deadline::never())->offsets;
}

TEST(greedy_takes_the_smallest_free_range_and_the_lowest_of_equals) {
  // Free at time 6: 0 … 64, 128 … 192 and 256 … 384.
  const Buffers buffers = {{0, 5, 64}, {1, 9, 64}, {2, 5, 64}, {3, 9, 64}, {4, 5, 128},
                           {5, 9, 64}, {6, 9, 64}, {7, 9, 64}, {8, 9, 192}};
  const Offsets offsets = planned("greedy", buffers);
  CHECK((Offsets(offsets.begin() + 5, offsets.begin() + 8) == Offsets{0, 128, 256}));
  // The rest of the last range touches the end, and is not grown.
  CHECK(offsets[8] == 384);
}

TEST(greedy_survives_what_crashes_the_original) {
  const Buffers buffers = {{0, 4, 64}, {1, 5, 64},  {2, 6, 64}, {3, 12, 64},
                           {7, 9, 64}, {8, 10, 64}, {9, 11, 64}};
  CHECK((planned("greedy", buffers) == Offsets{0, 64, 128, 192, 0, 64, 0}));
}

TEST(a_free_comes_before_an_allocation_of_the_same_time) {
  for (const PlannerEntry& planner : planner_registry().entries()) {
    CHECK((planned(planner.name.c_str(), {{0, 3, 64}, {3, 5, 64}}) == Offsets{0, 0}));
  }
}

TEST(first_fit_places_the_largest_first) {
  // The large one at the bottom, though it begins last.
  const Buffers buffers = {{0, 10, 64}, {1, 3, 64}, {2, 10, 1024}};
  CHECK((planned("first-fit-by-size", buffers) == Offsets{1024, 1088, 0}));
}

TEST(skyline_looks_again_at_what_a_step_kept_waiting) {
  // The long buffers cross steps that come and go.
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    Buffers buffers;
    for (int i = 0; i < 60; ++i) {
      const auto begin = static_cast<PlanTime>(random() % 30);
      const auto length = static_cast<PlanTime>(1 + random() % 20);
      buffers.push_back({begin, begin + length, 64 * static_cast<Bytes>(1 + random() % 4)});
    }
    const Offsets offsets = planned("skyline", buffers);
    bool overlap = false;
    for (std::size_t a = 0; a < buffers.size(); ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        overlap |= buffers[a].begin < buffers[b].end && buffers[b].begin < buffers[a].end &&
                   offsets[a] < offsets[b] + buffers[b].size &&
                   offsets[b] < offsets[a] + buffers[a].size;
      }
    }
    CHECK(!overlap);
    CHECK(height_of(buffers, offsets) >= peak_of(buffers));
  }
}

TEST(a_planner_that_is_out_of_time_says_so_and_best_still_has_a_plan) {
  const Lifetimes many = random_lifetimes(1, 20000, 4000);
  CHECK_THROWS(InputError, make_plan(many, {.planner = "skyline", .seconds = 1e-9}));
  CHECK(make_plan(many, {.planner = "best", .seconds = 1e-9}).height > 0);
}

std::string problem_of(const Plan& plan) {
  try {
    validate(plan);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(the_validator_names_both_ids) {
  Plan plan;
  plan.lifetimes = {{100, 100, 100}, {3, 2, 3}};
  plan.offset = {0, 128, 128};
  CHECK(problem_of(plan).empty());
  plan.offset = {0, 128, 64};
  const std::string problem = problem_of(plan);
  CHECK(problem.find("id 0 ") != std::string::npos && problem.find("id 2 ") != std::string::npos);
}

TEST(the_validator_refuses_what_cannot_be_run) {
  const Plan good = [] {
    Plan plan;
    plan.lifetimes = {{100, 100}, {2, kUnmanaged}};
    plan.offset = {64, kNoOffset};
    return plan;
  }();
  CHECK(problem_of(good).empty());
  const auto changed = [&](auto&& change) {
    Plan plan = good;
    change(plan);
    return problem_of(plan);
  };
  CHECK(!changed([](Plan& p) { p.offset.pop_back(); }).empty());
  CHECK(!changed([](Plan& p) { p.lifetimes.end[0] = 0; }).empty());
  CHECK(!changed([](Plan& p) { p.lifetimes.end[0] = 3; }).empty());
  CHECK(!changed([](Plan& p) { p.lifetimes.size[1] = 0; }).empty());
  CHECK(!changed([](Plan& p) { p.offset[0] = 32; }).empty());
  CHECK(!changed([](Plan& p) { p.offset[0] = kNoOffset; }).empty());
  CHECK(!changed([](Plan& p) { p.offset[1] = 0; }).empty());
  CHECK(!changed([](Plan& p) { p.alignment = 96; }).empty());
}

TEST(lifetimes_end_at_the_number_of_allocations_before_the_free) {
  // Slots 0, 1, 2; thread 1 makes the one in slot 2; step 1 begins at event 4.
  const std::vector<std::uint8_t> op = {0, 0, 0, 1, 0, 1, 1};
  const std::vector<std::int32_t> slot = {0, 1, 2, 0, 0, 1, 0};
  const std::vector<Bytes> size = {10, 20, 30, 0, 40, 0, 0};
  const std::vector<std::int32_t> stream(7, 0);
  const std::vector<ThreadId> thread = {0, 0, 1, 0, 0, 1, 0};
  const std::vector<std::int32_t> step = {0, 0, 0, 0, 1, 1, 1};
  const Events events = {op, slot, size, stream, thread, 3, step};
  const EventRange all = events_of(events, std::nullopt);
  CHECK(busiest_thread(events, all) == 0);
  const Lifetimes whole = lifetimes_of(events, all, 0);
  CHECK((whole.size == std::vector<Bytes>{10, 20, 40}));
  CHECK((whole.end == std::vector<PlanTime>{2, 3, 3}));
  CHECK((lifetimes_of(events, all, 1).end == std::vector<PlanTime>{kUnmanaged}));
  // A free of what was allocated before is ignored.
  const Lifetimes last = lifetimes_of(events, events_of(events, Steps{1, 2}), 0);
  CHECK((last.size == std::vector<Bytes>{40} && last.end == std::vector<PlanTime>{1}));
  const Lifetimes first = lifetimes_of(events, events_of(events, Steps{0, 1}), 0);
  CHECK((first.end == std::vector<PlanTime>{2, kUnmanaged}));
  CHECK_THROWS(InputError, events_of(events, Steps{2, 3}));
}

TEST(free_ranges_merge_with_both_neighbours) {
  FreeRanges ranges;
  ranges.give(0, 300);
  ranges.take(100, 100);
  CHECK(ranges.largest() == 100);
  ranges.give(100, 100);
  CHECK(ranges.largest() == 300);
  CHECK(ranges.take_best(300) == 0);
  CHECK(!ranges.take_best(1));
}

}  // namespace

int main() { return check::run(); }
