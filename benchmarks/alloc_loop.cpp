// A tight loop of allocations and frees through PyTorch's CPU allocator, timed.
#include <c10/core/CPUAllocator.h>

#include <chrono>
#include <cstddef>
#include <cstdint>

// Nanoseconds for `pairs` allocations of `bytes` with their frees.
extern "C" __attribute__((visibility("default"))) std::uint64_t alloc_loop(std::uint64_t pairs,
                                                                           std::uint64_t bytes) {
  c10::Allocator* const allocator = c10::GetCPUAllocator();
  const auto start = std::chrono::steady_clock::now();
  for (std::uint64_t pair = 0; pair < pairs; ++pair) {
    const c10::DataPtr memory = allocator->allocate(static_cast<std::size_t>(bytes));
  }
  const auto end = std::chrono::steady_clock::now();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(end - start).count());
}
