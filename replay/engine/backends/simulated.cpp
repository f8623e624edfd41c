// A device without memory: addresses, a capacity, and nothing behind them.
#include <mutex>

#include "backends/backend.h"
#include "core/lock.h"

namespace workbench {
namespace {

// The device hands out memory in pages. Requests below one share pages in the driver; how is not
// modelled, they count in steps of 512 bytes.
constexpr Bytes kPage = kDevicePage;

class Simulated final : public Backend {
 public:
  using Backend::Backend;

  bool is_device() const override { return true; }
  bool has_memory() const override { return false; }

 private:
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

const bool registered = backend_registry().add({
    .name = "simulated",
    .summary = "a device's addresses and capacity without memory; driver calls cost nothing",
    .is_model = true,
    .create = [](const BackendOptions& options) { return std::make_unique<Simulated>(options); },
});

}  // namespace
}  // namespace workbench
