#include "cuda/gates.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "cuda/kernels.h"

namespace workbench::cuda {
namespace {

// Longer than any call takes that does not wait, and short against a pass.
constexpr std::chrono::milliseconds kPatience{200};

}  // namespace

Gates::Gates(Calls& calls, std::size_t count) : calls_(calls) {
  void* memory = nullptr;
  const std::size_t size = count * sizeof(std::uint64_t);
  calls_.require("cudaHostAlloc",
                 calls_.make([&] { return cudaHostAlloc(&memory, size, cudaHostAllocMapped); }));
  std::memset(memory, 0, size);
  numbers_ = static_cast<std::uint64_t*>(memory);
}

Gates::~Gates() {
  {
    const std::lock_guard guard(mutex_);
    ending_ = true;
  }
  ends_.notify_all();
  if (watch_.joinable()) watch_.join();
  open_all();
  // Streams may still read their numbers.
  cudaDeviceSynchronize();
  cudaFreeHost(numbers_);
}

cudaError_t Gates::close(std::size_t gate, cudaStream_t stream, std::uint64_t value) {
  if (used_.load(std::memory_order_relaxed) <= gate) {
    const std::lock_guard guard(mutex_);
    if (used_.load() <= gate) used_.store(gate + 1);
    if (!watch_.joinable()) watch_ = std::thread([this] { watch(); });
  }
  std::uint64_t highest = highest_.load();
  while (highest < value && !highest_.compare_exchange_weak(highest, value)) {
  }
  std::uint64_t* const number = numbers_ + gate;
  return calls_.make(DriverCall::kGate, [&] {
    const auto wait_value = calls_.driver().wait_value;
    if (wait_value == nullptr) return launch_gate(stream, number, value);
    return static_cast<cudaError_t>(
        wait_value(stream, reinterpret_cast<CUdeviceptr>(number), value, CU_STREAM_WAIT_VALUE_GEQ));
  });
}

void Gates::raise(std::uint64_t& number, std::uint64_t value) {
  const std::atomic_ref<std::uint64_t> gate(number);
  std::uint64_t now = gate.load(std::memory_order_relaxed);
  while (now < value && !gate.compare_exchange_weak(now, value, std::memory_order_release)) {
  }
}

void Gates::open_all() {
  const std::uint64_t value = highest_.load();
  const std::size_t used = used_.load();
  for (std::size_t gate = 0; gate < used; ++gate) raise(numbers_[gate], value);
}

void Gates::watch() {
  std::uint64_t ended = calls_.ended();
  std::unique_lock guard(mutex_);
  while (!ends_.wait_for(guard, kPatience, [this] { return ending_; })) {
    const std::uint64_t now = calls_.ended();
    if (now == ended && calls_.begun() != now) {
      open_all();
      ++opened_early_;
    }
    ended = now;
  }
}

}  // namespace workbench::cuda
