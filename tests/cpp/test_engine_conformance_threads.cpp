// What every allocator is held to where several threads call it at once, on every backend and in
// every order. A new allocator joins by being registered.
#include <atomic>
#include <cstring>
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
  Blocks(const Events& events, bool has_memory)
      : events_(events),
        has_memory_(has_memory),
        blocks_(static_cast<std::size_t>(events.slot_count)) {}

  void allocated(std::size_t event, const Allocation& allocation) {
    Block& block = at(event);
    block = {allocation.address, static_cast<std::size_t>(events_.size[event]), fill_of(event)};
    {
      const std::lock_guard guard(mutex_);
      const auto next = ends_.lower_bound(block.address);
      if (next != ends_.end() && block.address + block.size > next->first) ++faults;
      if (next != ends_.begin() && std::prev(next)->second > block.address) ++faults;
      ends_[block.address] = block.address + block.size;
    }
    if (has_memory_) {
      std::memset(reinterpret_cast<void*>(block.address), block.fill, block.size);
    }
  }

  void freeing(std::size_t event) {
    const Block& block = at(event);
    if (has_memory_) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(block.address);
      if (bytes[0] != block.fill || std::memcmp(bytes, bytes + 1, block.size - 1) != 0) ++faults;
    }
    const std::lock_guard guard(mutex_);
    ends_.erase(block.address);
  }

  std::atomic<int> faults = 0;

 private:
  struct Block {
    std::uint64_t address;
    std::size_t size;
    unsigned char fill;
  };

  static unsigned char fill_of(std::size_t event) {
    return static_cast<unsigned char>(event * 37 + 1);
  }
  Block& at(std::size_t event) { return blocks_[static_cast<std::size_t>(events_.slot[event])]; }

  const Events& events_;
  const bool has_memory_;
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
  Blocks blocks(run.program().events, run.backend().has_memory());
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
  CHECK(blocks.faults == 0);
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
