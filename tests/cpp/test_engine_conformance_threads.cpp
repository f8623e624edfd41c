// What every allocator is held to where several threads call it at once, on every backend and in
// every order. A new allocator joins by being registered.
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "allocators/allocator.h"
#include "backends/backend.h"
#include "check.h"
#include "core/errors.h"
#include "replayer/planning.h"
#include "replayer/run.h"
#include "subjects.h"
#include "threaded_events.h"

namespace {

using namespace workbench;

// What all threads see of the program's blocks: whose bytes are whose.
class Blocks {
 public:
  Blocks(const Events& events, Backend& backend, AllocatorKind kind)
      : events_(events),
        backend_(backend),
        kind_(kind),
        blocks_(static_cast<std::size_t>(events.slot_count)) {}

  void allocated(std::size_t event, const Allocation& allocation) {
    Block& block = at(event);
    // As in replayer/fill_pattern.h.
    const StreamId stream = kind_ == AllocatorKind::kCpu ? 0 : events_.stream[event];
    block = {{allocation.address, events_.size[event], event}, stream};
    const std::uint64_t start = allocation.address;
    const std::uint64_t end = start + static_cast<std::uint64_t>(events_.size[event]);
    {
      const std::lock_guard guard(mutex_);
      const auto next = ends_.lower_bound(start);
      if (next != ends_.end() && end > next->first) ++faults;
      if (next != ends_.begin() && std::prev(next)->second > start) ++faults;
      ends_[start] = end;
    }
    if (!backend_.has_bytes()) return;
    if (kind_ == AllocatorKind::kPinned) {
      fill_bytes(block.filled);
    } else {
      backend_.fill(block.filled, block.stream);
    }
  }

  void freeing(std::size_t event) {
    const Block& block = at(event);
    if (backend_.has_bytes()) {
      const auto damage = kind_ == AllocatorKind::kPinned
                              ? find_damage(block.filled)
                              : backend_.verify(block.filled, block.stream);
      if (damage) ++faults;
    }
    const std::lock_guard guard(mutex_);
    ends_.erase(block.filled.address);
  }

  std::atomic<int> faults = 0;

 private:
  struct Block {
    FilledBlock filled;
    StreamId stream;
  };

  Block& at(std::size_t event) { return blocks_[static_cast<std::size_t>(events_.slot[event])]; }

  const Events& events_;
  Backend& backend_;
  const AllocatorKind kind_;
  std::vector<Block> blocks_;  // by slot: of one allocation alone
  std::mutex mutex_;
  std::map<std::uint64_t, std::uint64_t> ends_;  // of live blocks, by address
};

struct Watched : UnobservedThread {
  Watched(Blocks& all, Lock& around_calls) : UnobservedThread(around_calls), blocks(all) {}

  void allocated(std::size_t event, const Allocation& allocation) {
    blocks.allocated(event, allocation);
  }
  void freeing(std::size_t event, const void*) { blocks.freeing(event); }

  Blocks& blocks;
};

// Replays `events` twice on one allocator, the second time with what is left of the first.
void replay(const Events& events, const CellOptions& options) {
  const ThreadEvents threads(events, options.order);
  const CompletedStreams completed(events);
  const std::vector<std::size_t> no_steps;
  Run run(events, completed, no_steps, options, &threads, /*counts=*/true);
  Allocator& allocator = run.allocator();
  Blocks blocks(run.program().events, run.backend(),
                allocator_registry().get(options.allocator).kind);
  for (int pass = 0; pass < 2; ++pass) {
    const auto end = run.in_threads([](std::size_t) {},
                                    [&](ThreadedProgram& threaded, std::size_t number) {
                                      Watched watched(blocks, threaded.lock);
                                      walk(allocator, threaded, watched, number);
                                    });
    CHECK(end.came_to_end);
    run.end_program();
    allocator.empty_cache();
    const Statistics now = allocator.statistics();
    CHECK(now.allocated == 0 && now.active == 0 && now.requested == 0);
    CHECK(now.n_alloc == 0 && now.n_active == 0 && now.ooms == 0);
    // The arena of a plan stays, and so does a segment that is kept.
    const PlanStatistics* const plan = allocator.plan_statistics();
    const bool keeps = options.settings.find("pinned_reserve_segment") != std::string::npos;
    CHECK(keeps || now.reserved == (plan == nullptr ? 0 : plan->arena));
    CHECK(plan != nullptr || run.backend().used() == now.reserved);
  }
  CHECK(blocks.faults == 0 && !run.backend().damage());
}

template <class Body>
void for_every_subject(const Events& events, Body&& body) {
  for (const AllocatorEntry& allocator : allocator_registry().entries()) {
    if (allocator.hidden) continue;
    for (const BackendEntry& backend : backend_registry().entries()) {
      if (!backend.unavailable().empty()) continue;
      for (const std::string& settings : settings_of(allocator)) {
        for (const Order order : {Order::kHandoff, Order::kFree}) {
          const int before = check::failures();
          CellOptions options = {.allocator = allocator.name,
                                 .settings = settings,
                                 .backend = backend.name,
                                 .backend_options = {.several_threads = true},
                                 .order = order};
          if (allocator.runs_plan) {
            options.plan = plan_for(events, Settings(settings, allocator.name, allocator.settings));
          }
          try {
            body(options);
          } catch (const UnavailableError& error) {  // no fault of the allocator's
            std::printf("  not on this machine: %s\n", error.what());
          }
          if (check::failures() != before) {
            std::printf("  … with %s:%s on %s, order %s\n", allocator.name.c_str(),
                        settings.c_str(), backend.name.c_str(),
                        std::string(kOrderNames[static_cast<std::size_t>(order)]).c_str());
          }
        }
      }
    }
  }
}

TEST(threads_with_blocks_of_their_own_lose_nothing) {
  threaded::Program program = threaded::random_program({});
  const Events events = program.events();
  for_every_subject(events, [&](const CellOptions& options) { replay(events, options); });
}

TEST(threads_that_hand_blocks_over_lose_nothing) {
  threaded::Program program = threaded::random_program({.hands_over = true});
  const Events events = program.events();
  for_every_subject(events, [&](const CellOptions& options) {
    try {
      replay(events, options);
    } catch (const PlanMismatchError&) {
      // When another thread frees a planned block depends on the race; a strict plan says so.
      CHECK(options.plan != nullptr);
    }
  });
}

}  // namespace

int main() { return check::run(); }
