// The allocator that runs a plan.
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "allocators/plan.h"
#include "backends/backend.h"
#include "check.h"
#include "core/errors.h"
#include "planners/planner.h"

namespace {

using namespace workbench;

// (id, is a free) in order of time.
struct Operation {
  std::size_t id;
  bool is_free;
};

struct Traffic {
  std::vector<Bytes> size;  // by id
  std::vector<Operation> operations;

  Lifetimes lifetimes() const {
    Lifetimes found = {size, std::vector<PlanTime>(size.size(), kUnmanaged)};
    PlanTime made = 0;
    for (const Operation& operation : operations) {
      if (operation.is_free) {
        found.end[operation.id] = made;
      } else {
        ++made;
      }
    }
    return found;
  }
};

Traffic random_traffic(std::mt19937& random, int count) {
  Traffic traffic;
  std::vector<std::size_t> live;
  for (int i = 0; i < count; ++i) {
    if (random() % 5 < 3 || live.empty()) {
      live.push_back(traffic.size.size());
      traffic.operations.push_back({live.back(), false});
      traffic.size.push_back(static_cast<Bytes>(1 + random() % 300));
    } else {
      std::swap(live[random() % live.size()], live.back());
      traffic.operations.push_back({live.back(), true});
      live.pop_back();
    }
  }
  return traffic;
}

std::shared_ptr<const Plan> plan_of(const Traffic& traffic, std::int32_t steps = 0) {
  Plan plan = make_plan(traffic.lifetimes(), {.planner = "greedy"});
  plan.step_count = steps;
  return std::make_shared<const Plan>(std::move(plan));
}

// A program on an allocator, its blocks filled and checked.
class Subject {
 public:
  explicit Subject(PlanAllocator::Options options, Bytes capacity = kUnlimited)
      : backend_(backend_registry().get("host").create({.capacity = capacity})),
        allocator_(std::make_unique<PlanAllocator>(*backend_, nullptr, options)) {}
  ~Subject() { end(); }

  PlanAllocator& allocator() { return *allocator_; }
  Backend& backend() { return *backend_; }
  const PlanStatistics& counts() { return *allocator_->plan_statistics(); }

  Allocation allocate(std::size_t id, Bytes size, ThreadId thread = 0) {
    const Allocation got = allocator_->allocate(size, 0, thread);
    if (got.handle == nullptr) return got;
    const auto end = got.address + static_cast<std::uint64_t>(size);
    const auto next = ends_.lower_bound(got.address);
    CHECK(next == ends_.end() || end <= next->first);
    CHECK(next == ends_.begin() || std::prev(next)->second <= got.address);
    CHECK(got.address % kHostAlignment == 0);
    ends_[got.address] = end;
    live_[id] = {got, size};
    std::memset(reinterpret_cast<void*>(got.address), static_cast<int>(id % 251),
                static_cast<std::size_t>(size));
    check();
    return got;
  }

  void free(std::size_t id) {
    const auto [got, size] = live_.at(id);
    const auto* bytes = reinterpret_cast<const unsigned char*>(got.address);
    for (Bytes i = 0; i < size; ++i) CHECK(bytes[i] == id % 251);
    allocator_->free(got.handle, 0);
    ends_.erase(got.address);
    live_.erase(id);
    check();
  }

  // Runs what `traffic` says, ids counted from `first`.
  void run(const Traffic& traffic, std::size_t first = 0) {
    for (const Operation& operation : traffic.operations) {
      if (operation.is_free) {
        free(first + operation.id);
      } else {
        allocate(first + operation.id, traffic.size[operation.id]);
      }
    }
  }

  bool is_live(std::size_t id) const { return live_.contains(id); }
  std::vector<std::size_t> live() const {
    std::vector<std::size_t> ids;
    for (const auto& entry : live_) ids.push_back(entry.first);
    return ids;
  }

  void end() {
    allocator_->program_ends();
    for (const std::size_t id : live()) free(id);
  }

 private:
  void check() {
    const Statistics now = allocator_->statistics();
    CHECK(now.requested <= now.allocated && now.allocated == now.active);
    CHECK(now.active <= now.reserved && now.reserved == backend_->used());
    CHECK(static_cast<std::size_t>(now.n_alloc) == live_.size());
    Bytes shown = 0;
    Bytes largest = 0;
    allocator_->visit([&](const BlockView& block) {
      shown += block.size;
      if (block.state == BlockState::kInactive) largest = std::max(largest, block.size);
    });
    CHECK(shown == now.reserved);
    CHECK(largest == allocator_->largest_free());
  }

  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<PlanAllocator> allocator_;
  std::map<std::size_t, std::pair<Allocation, Bytes>> live_;
  std::map<std::uint64_t, std::uint64_t> ends_;
};

constexpr PlanAllocator::Options kStrict = {};
constexpr PlanAllocator::Options kFallback = {.falls_back = true, .rearms = true};

std::string mismatch_of(auto&& call) {
  try {
    call();
  } catch (const PlanMismatchError& error) {
    return error.what();
  }
  return "";
}

// Sizes 100, 200, 300: the first two freed within, in order, after two and three allocations.
const Traffic kSmall = {{100, 200, 300},
                        {{0, false}, {1, false}, {0, true}, {2, false}, {1, true}}};

TEST(what_was_planned_is_served_from_one_arena) {
  std::mt19937 random(1);
  for (int i = 0; i < 30; ++i) {
    const Traffic traffic = random_traffic(random, 300);
    const auto plan = plan_of(traffic);
    Subject subject(kStrict);
    subject.allocator().set_plan(plan);
    CHECK(subject.allocator().statistics().reserved == plan->height);
    subject.run(traffic);
    CHECK(subject.counts().mismatches == 0 && subject.counts().fallback == 0);
    CHECK(subject.counts().planned + subject.counts().unmanaged ==
          static_cast<std::int64_t>(traffic.size.size()));
  }
}

TEST(a_strict_plan_names_what_differs) {
  const auto started = [](Subject& subject) -> Subject& {
    subject.allocator().set_plan(plan_of(kSmall));
    subject.allocate(0, 100);
    return subject;
  };
  {
    Subject subject(kStrict);
    const std::string said = mismatch_of([&] { started(subject).allocate(1, 201); });
    CHECK(said == "id 1: the plan expects an allocation of 200 bytes, got one of 201 bytes");
  }
  {
    Subject subject(kStrict);
    const std::string said = mismatch_of([&] { started(subject).free(0); });
    CHECK(said == "id 0: the plan expects a free at 2, got one at 1");
    CHECK(subject.is_live(0));
  }
  {
    // Before anyone gets bytes that are not free.
    Subject subject(kStrict);
    started(subject).allocate(1, 200);
    const std::string said = mismatch_of([&] { subject.allocate(2, 300); });
    CHECK(said == "id 0: the plan expects a free at 2, got alive at 2");
  }
  {
    Subject subject(kStrict);
    subject.allocator().set_plan(plan_of(kSmall));
    subject.run(kSmall);
    const std::string said = mismatch_of([&] { subject.allocate(3, 64); });
    CHECK(said ==
          "id 3: the plan expects the end of the plan, which has 3 ids, got an allocation "
          "of 64 bytes");
  }
}

TEST(setting_a_plan_restarts_the_ids_and_needs_an_empty_arena) {
  Subject subject(kStrict);
  subject.allocator().set_plan(plan_of(kSmall));
  subject.allocate(0, 100);
  CHECK_THROWS(EngineError, subject.allocator().set_plan(plan_of(kSmall)));
  subject.allocate(1, 200);
  subject.free(0);
  subject.allocate(2, 300);
  subject.free(1);
  subject.allocator().set_plan(plan_of(kSmall));
  subject.run(kSmall, 10);
}

TEST(the_arena_grows_for_a_later_plan_and_never_shrinks) {
  const Traffic large = {{4000, 10}, {{0, false}, {0, true}, {1, false}, {1, true}}};
  Subject subject(kStrict);
  subject.allocator().set_plan(plan_of(kSmall));
  CHECK(subject.allocator().statistics().reserved == 384);
  subject.allocator().set_plan(plan_of(large));
  CHECK(subject.allocator().statistics().reserved == 4032);
  subject.allocator().set_plan(plan_of(kSmall));
  subject.run(kSmall);
  subject.allocator().empty_cache();
  CHECK(subject.allocator().statistics().reserved == 4032 + 300);
}

TEST(other_threads_take_raw_memory_and_are_counted) {
  Subject subject(kStrict);
  subject.allocator().set_plan(plan_of(kSmall));
  subject.allocate(10, 5000, 1);
  subject.run(kSmall);
  CHECK(subject.counts().other_threads == 1 && subject.counts().unmanaged == 1);
}

TEST(without_room_for_the_arena_what_is_planned_is_refused) {
  Subject subject(kStrict, 350);
  subject.allocator().set_plan(plan_of(kSmall));
  CHECK(subject.allocate(0, 100).is_refused() && subject.allocate(1, 200).is_refused());
  CHECK(!subject.allocate(2, 300).is_refused());  // which is not planned
  CHECK(subject.allocator().statistics().ooms == 2);
}

TEST(a_plan_of_one_step_serves_the_next) {
  Subject subject({.falls_back = false, .rearms = true});
  subject.allocator().set_plan(plan_of(kSmall, 1));
  for (std::int32_t step = 0; step < 4; ++step) {
    subject.allocator().step_begins(step);
    subject.run(kSmall, 10 * static_cast<std::size_t>(step));
  }
  CHECK(subject.counts().planned == 8 && subject.counts().unmanaged == 4);
}

TEST(a_plan_of_several_steps_begins_again_after_all_of_them) {
  Traffic two = kSmall;
  for (Operation operation : kSmall.operations) {
    two.operations.push_back({operation.id + 3, operation.is_free});
  }
  two.size.insert(two.size.end(), kSmall.size.begin(), kSmall.size.end());
  Subject subject({.falls_back = false, .rearms = true});
  Plan plan = *plan_of(two, 2);
  plan.first_step = 1;
  subject.allocator().set_plan(std::make_shared<const Plan>(plan));
  for (std::int32_t step = 0; step < 6; ++step) {
    subject.allocator().step_begins(step);
    subject.run(kSmall, 10 * static_cast<std::size_t>(step));
  }
  CHECK(subject.counts().outside == 3 && subject.counts().planned == 10);
}

TEST(what_lives_past_its_step_is_a_mismatch) {
  Subject subject({.falls_back = false, .rearms = true});
  subject.allocator().set_plan(plan_of(kSmall, 1));
  subject.allocator().step_begins(0);
  subject.allocate(0, 100);
  CHECK(mismatch_of([&] { subject.allocator().step_begins(1); }).starts_with("id 0: "));
}

TEST(a_block_that_lives_too_long_keeps_its_bytes) {
  Subject subject(kFallback);
  subject.allocator().set_plan(plan_of(kSmall, 1));
  subject.allocator().step_begins(0);
  subject.allocate(0, 100);
  subject.allocator().step_begins(1);
  subject.allocate(10, 100);  // the same bytes
  subject.allocate(11, 200);
  CHECK(subject.counts().mismatches == 1 && subject.counts().fallback == 1);
  CHECK(subject.counts().fallback_bytes == 100);
  subject.free(10);
  subject.free(0);
  subject.allocate(12, 300);
  subject.free(11);
  CHECK(subject.counts().mismatches == 1);
  // Everything is as planned again.
  subject.allocator().step_begins(2);
  subject.run(kSmall, 20);
  CHECK(subject.counts().mismatches == 1 && subject.counts().fallback == 1);
}

TEST(whatever_comes_fallback_hands_out_no_byte_twice) {
  std::int64_t mismatches = 0;
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const Traffic traffic = random_traffic(random, 120);
    Subject subject(kFallback);
    subject.allocator().set_plan(plan_of(traffic, 1));
    for (std::int32_t step = 0; step < 5; ++step) {
      subject.allocator().step_begins(step);
      const std::size_t first = 1000 * static_cast<std::size_t>(step);
      const std::uint64_t rate = step == 0 ? 0 : random() % 30;  // of a hundred
      for (const Operation& operation : traffic.operations) {
        const bool departs = random() % 100 < rate;
        if (operation.is_free) {
          if (departs || !subject.is_live(first + operation.id)) continue;  // late, or never
          subject.free(first + operation.id);
        } else if (!departs) {
          subject.allocate(first + operation.id, traffic.size[operation.id]);
        } else if (random() % 2 == 0) {
          subject.allocate(first + operation.id, 1 + static_cast<Bytes>(random() % 300));
        }  // else it is left out
        if (departs && random() % 2 == 0 && !subject.live().empty()) {
          subject.free(subject.live()[random() % subject.live().size()]);
        }
      }
      if (step == 0) CHECK(subject.counts().mismatches == 0);
      // Some live on into the next step.
      for (const std::size_t id : subject.live()) {
        if (random() % 3 != 0) subject.free(id);
      }
    }
    mismatches += subject.counts().mismatches;
    subject.end();
    CHECK(subject.allocator().statistics().allocated == 0);
    CHECK(subject.allocator().statistics().reserved == subject.counts().arena);
  }
  CHECK(mismatches > 1000);
}

}  // namespace

int main() { return check::run(); }
