#include "allocators/caching_counters.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace workbench::caching {
namespace {

constexpr std::array<std::pair<std::string_view, Counter PoolCounters::*>, 9> kNames = {{
    {"allocation", &PoolCounters::allocation},
    {"allocated_bytes", &PoolCounters::allocated_bytes},
    {"active", &PoolCounters::active},
    {"active_bytes", &PoolCounters::active_bytes},
    {"requested_bytes", &PoolCounters::requested_bytes},
    {"inactive_split", &PoolCounters::inactive_split},
    {"inactive_split_bytes", &PoolCounters::inactive_split_bytes},
    {"segment", &PoolCounters::segment},
    {"reserved_bytes", &PoolCounters::reserved_bytes},
}};

}  // namespace

void add_counter(NamedNumbers& numbers, const std::string& name, const Counter& counter) {
  numbers.emplace_back(name + ".current", counter.current);
  numbers.emplace_back(name + ".peak", counter.peak);
  numbers.emplace_back(name + ".allocated", counter.allocated);
  numbers.emplace_back(name + ".freed", counter.allocated - counter.current);
}

NamedNumbers torch_statistics(const PoolCounters& all, const PoolCounters& large,
                              const PoolCounters& small, const SharedCounters& shared,
                              std::int64_t max_split_size) {
  NamedNumbers numbers;
  for (const auto& [name, counter] : kNames) {
    const std::string prefix = std::string(name) + ".";
    Counter sum = all.*counter;
    sum.allocated = (large.*counter).allocated + (small.*counter).allocated;
    add_counter(numbers, prefix + "all", sum);
    add_counter(numbers, prefix + "large_pool", large.*counter);
    add_counter(numbers, prefix + "small_pool", small.*counter);
  }
  add_counter(numbers, "oversize_allocations", shared.oversize_allocations);
  add_counter(numbers, "oversize_segments", shared.oversize_segments);
  numbers.emplace_back("max_split_size", max_split_size);
  numbers.emplace_back("num_alloc_retries", shared.retries);
  numbers.emplace_back("num_device_alloc", shared.device_allocs);
  numbers.emplace_back("num_device_free", shared.device_frees);
  numbers.emplace_back("num_oom_rejections", shared.rejections);
  numbers.emplace_back("num_ooms", shared.ooms);
  numbers.emplace_back("num_sync_all_streams", shared.synchronizations);
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

}  // namespace workbench::caching
