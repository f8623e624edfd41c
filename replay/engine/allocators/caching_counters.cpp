#include "allocators/caching_counters.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace workbench::caching {
namespace {

void add_counter(NamedNumbers& numbers, const std::string& name, const Counter& counter) {
  numbers.emplace_back(name + ".current", counter.current);
  numbers.emplace_back(name + ".peak", counter.peak);
  numbers.emplace_back(name + ".allocated", counter.allocated);
  numbers.emplace_back(name + ".freed", counter.allocated - counter.current);
}

void add_pool(NamedNumbers& numbers, const std::string& pool, const PoolCounters& counters) {
  const std::array<std::pair<std::string_view, const Counter*>, 9> named = {{
      {"allocation", &counters.allocation},
      {"allocated_bytes", &counters.allocated_bytes},
      {"active", &counters.active},
      {"active_bytes", &counters.active_bytes},
      {"requested_bytes", &counters.requested_bytes},
      {"inactive_split", &counters.inactive_split},
      {"inactive_split_bytes", &counters.inactive_split_bytes},
      {"segment", &counters.segment},
      {"reserved_bytes", &counters.reserved_bytes},
  }};
  for (const auto& [name, counter] : named) {
    add_counter(numbers, std::string(name) + "." + pool, *counter);
  }
}

}  // namespace

NamedNumbers torch_statistics(const PoolCounters& all, const PoolCounters& large,
                              const PoolCounters& small, const SharedCounters& shared,
                              std::int64_t max_split_size) {
  NamedNumbers numbers;
  add_pool(numbers, "all", all);
  add_pool(numbers, "large_pool", large);
  add_pool(numbers, "small_pool", small);
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
