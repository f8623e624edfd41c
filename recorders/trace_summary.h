// What a trace holds, from one pass over its rows.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "flat_map.h"
#include "trace_batch.h"

namespace workbench {

// Counts by power of two: bucket 0 holds the number 0, bucket k those in [2^(k-1), 2^k).
using PowerBuckets = std::array<std::uint64_t, 64>;

// Live bytes of one device.
struct DeviceSummary {
  std::uint64_t allocs = 0;
  std::uint64_t frees = 0;
  std::int64_t allocated_bytes = 0;  // sum over all allocations
  std::int64_t live_bytes = 0;
  std::int64_t live_blocks = 0;
  std::int64_t peak_bytes = 0;
  std::int64_t peak_blocks = 0;
  std::int64_t peak_row = -1;
  std::int64_t peak_time_ns = -1;
  std::int32_t peak_step = -1;
  std::int32_t peak_phase = -1;
  std::uint64_t peak_epoch = 0;  // counts the times a new peak was reached
};

// Live bytes on one device that were allocated in one phase or one scope.
struct Group {
  std::int32_t device;
  bool is_scope;      // else a phase
  std::int32_t code;  // of the phase or scope
  std::int64_t live_bytes = 0;
  std::int64_t live_blocks = 0;
  // Change since the device's peak, valid while `epoch` is the device's: a new peak then costs
  // nothing, however many groups there are.
  std::int64_t bytes_since_peak = 0;
  std::int64_t blocks_since_peak = 0;
  std::uint64_t epoch = 0;
};

class TraceSummary {
 public:
  // The batch must have passed the checker. `step`, `phase` and `scope` (-1 = none) have one
  // entry for each row.
  void Add(const TraceBatch& batch, const std::int32_t* step, const std::int32_t* phase,
           const std::int32_t* scope);

  const std::vector<DeviceSummary>& devices() const { return devices_; }
  const std::vector<Group>& groups() const { return groups_; }
  const PowerBuckets& size_counts() const { return size_counts_; }
  const PowerBuckets& size_bytes() const { return size_bytes_; }
  const PowerBuckets& lifetimes_in_events() const { return lifetimes_in_events_; }
  const PowerBuckets& lifetimes_in_ns() const { return lifetimes_in_ns_; }
  std::int64_t rows() const { return rows_; }

 private:
  struct Live {
    std::int64_t row;
    std::int64_t time_ns;
    std::uint32_t phase_group;
    std::uint32_t scope_group;
  };

  std::uint32_t GroupOf(std::int32_t device, bool is_scope, std::int32_t code);
  void Change(std::uint32_t group, const DeviceSummary& device, std::int64_t bytes,
              std::int64_t blocks);

  std::vector<DeviceSummary> devices_;
  std::vector<Group> groups_;
  FlatMap<std::uint32_t> group_places_;
  FlatMap<Live> live_;
  PowerBuckets size_counts_{};
  PowerBuckets size_bytes_{};
  PowerBuckets lifetimes_in_events_{};
  PowerBuckets lifetimes_in_ns_{};
  std::int64_t rows_ = 0;
};

}  // namespace workbench
