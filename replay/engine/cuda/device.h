// The real device.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "cuda/address_ranges.h"
#include "cuda/calls.h"
#include "cuda/filler.h"
#include "cuda/streams.h"

namespace workbench::cuda {

// Why no device can be used; empty where one can. Makes no context on it.
std::string unavailable();

class Device final : public Backend {
 public:
  // Throws UnavailableError, with the error's name, where the device cannot be used.
  explicit Device(const BackendOptions& options);
  ~Device() override { settle(); }

  bool is_device() const override { return true; }
  bool has_memory() const override { return false; }
  bool has_bytes() const override { return true; }

  void fill(const FilledBlock& block, StreamId stream) override { filler_.fill(block, stream); }
  std::optional<Damage> verify(const FilledBlock& block, StreamId stream) override {
    return filler_.verify(block, stream);
  }
  std::optional<Damage> use(const FilledBlock& block, StreamId own, StreamId stream) override;
  std::optional<Damage> damage() override { return filler_.collect(); }

  void* native_stream(StreamId stream) override { return streams_.at(stream); }
  MemoryPool* new_driver_pool(const DriverPoolOptions& options) override;

  const DriverTimes* driver_times() const override;
  std::vector<std::string> warnings() const override;
  void check() override { calls_.check(); }

 private:
  std::uint64_t take(Bytes size) override;
  void give(std::uint64_t address, Bytes size) override;
  std::uint64_t take_pinned(Bytes size, Memory memory) override;
  void give_pinned(std::uint64_t address, Bytes size, Memory memory) override;
  std::uint64_t take_range(Bytes size, Bytes page) override;
  void give_range(std::uint64_t address, Bytes size) override;
  bool map_piece(std::uint64_t address, Bytes size) override;
  void unmap_piece(std::uint64_t address, Bytes size) override;
  // The capacity is never unlimited: see its constructor.
  Bytes total_if_unlimited() const override { return capacity(); }
  Bytes footprint(Bytes size) const override;
  Bytes used_by_pools() const override;

  void submit(const CudaEvent& event) override { streams_.record(event); }
  bool reaches(const CudaEvent& event, bool due) override { return streams_.reaches(event, due); }
  void await(const CudaEvent& event) override { streams_.await(event); }
  void progress_moved() override { streams_.follow(); }

  // Before memory goes, or a call that waits for all of the device.
  void settle() {
    streams_.open_all();
    filler_.settle();
  }

  mutable Calls calls_;
  Streams streams_;
  Filler filler_;
  AddressRanges ranges_;
  MemoryPool* pool_ = nullptr;  // new_driver_pool's, while it is there
};

}  // namespace workbench::cuda
