// What the calls of a simulated device's driver cost, by prices. What totals must be:
// tests/unit/test_profiles.py.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "allocators/allocator.h"
#include "backends/backend.h"
#include "check.h"
#include "core/driver_prices.h"
#include "core/errors.h"
#include "replayer/replay.h"
#include "threaded_events.h"

namespace {

using namespace workbench;

// Every call of a kind costs its number; one about memory as much again for each MiB.
std::shared_ptr<const DriverPrices> prices() {
  std::map<std::string, std::vector<DriverPrices::Point>> all;
  for (std::size_t kind = 0; kind < kDriverCallNames.size(); ++kind) {
    const double base = static_cast<double>(kind) + 1;
    all[std::string(kDriverCallNames[kind])] = {{kMiB, base}, {kGiB, base * 1024}};
  }
  return std::make_shared<const DriverPrices>(all);
}

std::unique_ptr<Backend> device(bool times_calls) {
  return backend_registry()
      .get("simulated")
      .create({.times_calls = times_calls, .prices = prices()});
}

TEST(only_passes_that_time_calls_are_priced) {
  CHECK(device(false)->priced_calls() == nullptr);
  CHECK(device(true)->priced_calls() != nullptr);
}

TEST(each_call_is_priced_by_its_kind_and_size) {
  const auto backend = device(true);
  const std::uint64_t block = backend->allocate(4 * kMiB);
  const std::uint64_t pinned = backend->allocate(2 * kMiB, Memory::kPinned);
  backend->release(block, 4 * kMiB);
  backend->release(pinned, 2 * kMiB, Memory::kPinned);
  const std::uint64_t range = backend->reserve(8 * kMiB);
  CHECK(backend->map(range, 2 * kMiB));
  backend->unmap(range, 2 * kMiB);
  backend->unreserve(range, 8 * kMiB);
  const CudaEvent event = backend->record_event(0);
  CHECK(!backend->completed(event));
  const std::vector<PricedTotal> totals = backend->priced_calls()->totals();
  CHECK(totals.size() == 9);
  const auto of = prices();
  for (const PricedTotal& total : totals) CHECK(total.count == 1 && total.nanoseconds > 0);
  CHECK(totals[0].kind == DriverCall::kAlloc);
  CHECK(totals[0].nanoseconds == of->of(DriverCall::kAlloc, 4 * kMiB));
}

TEST(prices_hold_at_both_ends) {
  const auto of = prices();
  CHECK(of->of(DriverCall::kAlloc, 1) == 1 && of->of(DriverCall::kAlloc, kEiB) == 1024);
  CHECK(check::throws<InputError>([] { DriverPrices({{"alloc", {{1, 1.0}}}}); }));
}

TEST(every_allocator_of_ours_can_be_priced_by_one_thread_or_several) {
  threaded::Program program = threaded::random_program({.hands_over = true});
  const Events events = program.events();
  for (const AllocatorEntry& entry : allocator_registry().entries()) {
    if (entry.needs_library) continue;
    for (const Order order : {Order::kGlobal, Order::kFree}) {
      CellOptions options;
      options.allocator = entry.name;
      options.backend = "simulated";
      options.backend_options.prices = prices();
      options.order = order;
      const MemoryResult result = Replay(events, options).memory({}, [](std::size_t) {});
      CHECK(result.priced_calls.has_value());
    }
  }
}

}  // namespace

int main() { return check::run(); }
