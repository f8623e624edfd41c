// A device without memory: addresses, a capacity, and nothing behind them.
#include <mutex>

#include "backends/backend.h"
#include "core/lock.h"

namespace workbench {
namespace {

// The device hands out memory in pages. Requests below one share pages in the driver; how is not
// modelled, they count in steps of 512 bytes.
constexpr Bytes kPage = kDevicePage;

class Simulated : public Backend {
 public:
  using Backend::Backend;

  bool is_device() const override { return true; }
  bool has_memory() const override { return false; }

 protected:
  std::uint64_t take(Bytes size) override { return next(footprint(size)); }
  void give(std::uint64_t, Bytes) override {}

  std::uint64_t take_range(Bytes size, Bytes) override { return next(round_up(size, kPage)); }
  void give_range(std::uint64_t, Bytes) override {}
  bool map_piece(std::uint64_t, Bytes) override { return true; }
  void unmap_piece(std::uint64_t, Bytes) override {}

  // Above any device, and so far below 2^64 that a trace can reserve it often.
  Bytes total_if_unlimited() const override { return Bytes{1} << 46; }

  Bytes footprint(Bytes size) const override {
    return round_up(size, size < kPage ? kDeviceAlignment : kPage);
  }

 private:
  std::uint64_t next(Bytes size) {
    const std::lock_guard guard(lock_);
    const std::uint64_t address = next_;
    next_ += static_cast<std::uint64_t>(size);
    return address;
  }

  Lock lock_{several_threads()};
  // No address is used twice: 2^64 bytes last longer than any trace.
  std::uint64_t next_ = static_cast<std::uint64_t>(kPage);
};

// Adds up what its driver calls would cost. A class of its own: the measured passes have none of
// it.
class Priced final : public Simulated {
 public:
  explicit Priced(const BackendOptions& options)
      : Simulated(options, /*is_hardware=*/false, /*is_asked=*/true),
        priced_(options.prices, options.several_threads) {}

  PricedCalls* priced_calls() override { return &priced_; }

 private:
  std::uint64_t take(Bytes size) override {
    priced_.add(DriverCall::kAlloc, size);
    return Simulated::take(size);
  }
  void give(std::uint64_t, Bytes size) override { priced_.add(DriverCall::kFree, size); }
  std::uint64_t take_pinned(Bytes size, Memory) override {
    priced_.add(DriverCall::kHostAlloc, size);
    return Simulated::take(size);
  }
  void give_pinned(std::uint64_t, Bytes size, Memory) override {
    priced_.add(DriverCall::kHostFree, size);
  }
  std::uint64_t take_range(Bytes size, Bytes page) override {
    priced_.add(DriverCall::kReserve, size);
    return Simulated::take_range(size, page);
  }
  void give_range(std::uint64_t, Bytes size) override { priced_.add(DriverCall::kUnreserve, size); }
  bool map_piece(std::uint64_t, Bytes size) override {
    priced_.add(DriverCall::kMap, size);
    return true;
  }
  void unmap_piece(std::uint64_t, Bytes size) override { priced_.add(DriverCall::kUnmap, size); }
  bool reaches(const CudaEvent&, bool due) override {
    priced_.add(DriverCall::kEventQuery, 0);
    return due;
  }

  PricedCalls priced_;
};

std::unique_ptr<Backend> create(const BackendOptions& options) {
  if (options.prices != nullptr && options.times_calls) return std::make_unique<Priced>(options);
  return std::make_unique<Simulated>(options);
}

const bool registered = backend_registry().add({
    .name = "simulated",
    .summary = "a device's addresses and capacity without memory; driver calls take no time",
    .is_model = true,
    .create = &create,
});

}  // namespace
}  // namespace workbench
