// What the driver calls of a model would have cost, by the prices measured on a device.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/driver_prices.h"
#include "core/driver_times.h"
#include "core/lock.h"
#include "core/units.h"

namespace workbench {

struct PricedTotal {
  DriverCall kind;
  std::int64_t count;
  double nanoseconds;
};

class PricedCalls {
 public:
  PricedCalls(std::shared_ptr<const DriverPrices> prices, bool several_threads)
      : prices_(std::move(prices)), lock_(several_threads) {}

  // A call about `size` bytes (0: of a kind for which that means nothing) that was served.
  void add(DriverCall kind, Bytes size, std::int64_t count = 1) {
    const double price = prices_->of(kind, size) * static_cast<double>(count);
    const std::lock_guard guard(lock_);
    if (in_pool_) return;
    Sum& sum = sums_[static_cast<std::size_t>(kind)];
    sum.count += count;
    sum.nanoseconds += price;
  }

  // While there is one, what the backend is asked for is the pool's own work: part of the price of
  // the call that the pool is in. Pools are called by one thread at a time.
  class InPool {
   public:
    explicit InPool(PricedCalls& calls) : calls_(calls) { calls_.enter(true); }
    ~InPool() { calls_.enter(false); }
    InPool(const InPool&) = delete;
    InPool& operator=(const InPool&) = delete;

   private:
    PricedCalls& calls_;
  };

  // Of the kinds that were called.
  std::vector<PricedTotal> totals() const {
    const std::lock_guard guard(lock_);
    std::vector<PricedTotal> found;
    for (std::size_t kind = 0; kind < sums_.size(); ++kind) {
      if (sums_[kind].count == 0) continue;
      found.push_back({static_cast<DriverCall>(kind), sums_[kind].count, sums_[kind].nanoseconds});
    }
    return found;
  }

 private:
  struct Sum {
    std::int64_t count = 0;
    double nanoseconds = 0;
  };

  void enter(bool in_pool) {
    const std::lock_guard guard(lock_);
    in_pool_ = in_pool;
  }

  const std::shared_ptr<const DriverPrices> prices_;
  mutable Lock lock_;  // around what follows
  bool in_pool_ = false;
  std::array<Sum, kDriverCallNames.size()> sums_{};
};

}  // namespace workbench
