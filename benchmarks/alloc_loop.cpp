// Allocations and frees through PyTorch's CPU allocator, timed: in a tight loop, and one by one
// with chosen memory driven out of the processor's caches before each.
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t nanoseconds(Clock::duration time) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
}

struct Range {
  std::uint64_t begin;
  std::uint64_t end;
};

// The calling thread's static block lies below its thread pointer.
constexpr std::uint64_t kThreadBlock = 4096;

void evict([[maybe_unused]] const Range* ranges, [[maybe_unused]] std::uint64_t count) {
#if defined(__x86_64__)
  const auto flush = [](std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t at = begin; at < end; at += 64) _mm_clflush(reinterpret_cast<void*>(at));
  };
  for (std::uint64_t i = 0; i < count; ++i) flush(ranges[i].begin, ranges[i].end);
  const auto thread = reinterpret_cast<std::uint64_t>(__builtin_thread_pointer());
  flush(thread - kThreadBlock, thread);
  _mm_mfence();
#endif
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Nanoseconds for `pairs` allocations of `bytes` with their frees.
EXPORT std::uint64_t alloc_loop(std::uint64_t pairs, std::uint64_t bytes) {
  c10::Allocator* const allocator = c10::GetCPUAllocator();
  const auto start = Clock::now();
  for (std::uint64_t pair = 0; pair < pairs; ++pair) {
    const c10::DataPtr memory = allocator->allocate(static_cast<std::size_t>(bytes));
  }
  return nanoseconds(Clock::now() - start);
}

// The same, with `ranges` (count pairs of addresses) and the thread's static memory evicted before
// each call: median nanoseconds of an allocation and its free together.
EXPORT std::uint64_t evicted_loop(std::uint64_t pairs, std::uint64_t bytes, const Range* ranges,
                                  std::uint64_t count) {
  c10::Allocator* const allocator = c10::GetCPUAllocator();
  std::vector<std::uint64_t> times(pairs);
  for (std::uint64_t& time : times) {
    evict(ranges, count);
    const auto start = Clock::now();
    c10::DataPtr memory = allocator->allocate(static_cast<std::size_t>(bytes));
    time = nanoseconds(Clock::now() - start);
    evict(ranges, count);
    const auto middle = Clock::now();
    memory.clear();
    time += nanoseconds(Clock::now() - middle);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(pairs / 2),
                   times.end());
  return times[pairs / 2];
}
