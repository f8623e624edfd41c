// What torch.cuda.memory_stats counts, with its names and meanings.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/units.h"

namespace workbench::caching {

struct Counter {
  std::int64_t current = 0;
  std::int64_t peak = 0;
  std::int64_t allocated = 0;  // sum of all additions; what was freed is the rest

  void add(std::int64_t amount) {
    allocated += amount;
    raise(amount);
  }
  // For the sum of other counters, whose additions it can be told from later.
  void raise(std::int64_t amount) {
    current += amount;
    if (current > peak) peak = current;
  }
  void remove(std::int64_t amount) { current -= amount; }
};

struct PoolCounters {
  Counter allocation;
  Counter allocated_bytes;
  Counter active;
  Counter active_bytes;
  Counter requested_bytes;
  Counter inactive_split;
  Counter inactive_split_bytes;
  Counter segment;
  Counter reserved_bytes;
};

// Those that PyTorch keeps for all pools together only.
struct SharedCounters {
  Counter oversize_allocations;
  Counter oversize_segments;
  std::int64_t retries = 0;
  std::int64_t ooms = 0;
  std::int64_t rejections = 0;
  std::int64_t synchronizations = 0;
  std::int64_t device_allocs = 0;
  std::int64_t device_frees = 0;
};

using NamedNumbers = std::vector<std::pair<std::string, std::int64_t>>;

void add_counter(NamedNumbers& numbers, const std::string& name, const Counter& counter);

// The flat dictionary of torch.cuda.memory_stats, sorted by name. `all` has currents and peaks
// only.
NamedNumbers torch_statistics(const PoolCounters& all, const PoolCounters& large,
                              const PoolCounters& small, const SharedCounters& shared,
                              std::int64_t max_split_size);

}  // namespace workbench::caching
