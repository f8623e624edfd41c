// Calls of CUDA: their errors as results, and how long they took.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "core/driver_times.h"
#include "core/lock.h"

namespace workbench::cuda {

// "cudaMalloc failed with cudaErrorIllegalAddress (an illegal memory access was encountered)"
std::string sentence(const char* call, cudaError_t error);

// Functions of the driver that the runtime has no name for; null where the driver lacks them.
struct DriverFunctions {
  DriverFunctions();

  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) unreserve = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  decltype(&cuStreamWaitValue64) wait_value = nullptr;  // also null where the device cannot

  bool maps() const;
};

class Calls {
 public:
  Calls(bool timed, bool several_threads);

  // Makes a call, which gives a cudaError_t or a CUresult: their numbers are the same.
  template <class Call>
  cudaError_t make(DriverCall kind, Call&& call) {
    const InFlight in_flight(*this);
    if (!times_.empty()) return timed(kind, call);
    return static_cast<cudaError_t>(call());
  }
  template <class Call>
  cudaError_t make(Call&& call) {
    const InFlight in_flight(*this);
    return static_cast<cudaError_t>(call());
  }

  // What came of a call that may find no memory: whether it found some. Any other error is thrown.
  bool found_memory(const char* call, cudaError_t error);
  // Throws EngineError where a call failed.
  void require(const char* call, cudaError_t error);
  // Keeps the failure of a call that may not throw, for check().
  void keep(const char* call, cudaError_t error);
  // Throws EngineError where a call failed that could not say so, once.
  void check();
  // Whether a call failed for good: what follows is not worth waiting for.
  bool failed() const { return failed_.load(std::memory_order_relaxed); }

  const DriverTimes& times() const { return times_; }
  const DriverFunctions& driver() const { return driver_; }

  // How many calls began and ended so far, for who watches over those that do not end.
  std::uint64_t begun() const { return begun_.load(std::memory_order_relaxed); }
  std::uint64_t ended() const { return ended_.load(std::memory_order_relaxed); }

 private:
  struct InFlight {
    explicit InFlight(Calls& all) : calls(all) {
      calls.begun_.fetch_add(1, std::memory_order_relaxed);
    }
    ~InFlight() { calls.ended_.fetch_add(1, std::memory_order_relaxed); }
    InFlight(const InFlight&) = delete;
    InFlight& operator=(const InFlight&) = delete;
    Calls& calls;
  };

  template <class Call>
  cudaError_t timed(DriverCall kind, Call&& call) {
    const auto start = std::chrono::steady_clock::now();
    const auto error = static_cast<cudaError_t>(call());
    const auto took = std::chrono::steady_clock::now() - start;
    const std::lock_guard guard(lock_);
    times_[static_cast<std::size_t>(kind)].add(static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(took).count()));
    return error;
  }

  const DriverFunctions driver_;
  std::atomic<std::uint64_t> begun_ = 0;
  std::atomic<std::uint64_t> ended_ = 0;
  std::atomic<bool> failed_ = false;
  Lock lock_;          // around what follows
  DriverTimes times_;  // empty where calls are not timed
  std::string failure_;
};

}  // namespace workbench::cuda
