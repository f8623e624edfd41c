#include "trace_summary.h"

#include <bit>

namespace workbench {
namespace {

// `number` is not negative, so the highest bucket is 63.
std::size_t BucketOf(std::int64_t number) {
  return static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(number)));
}

}  // namespace

void TraceSummary::Add(const TraceBatch& batch, const std::int32_t* step, const std::int32_t* phase,
                       const std::int32_t* scope) {
  for (std::size_t row = 0; row < batch.rows; ++row, ++rows_) {
    const auto op = static_cast<TraceOp>(batch.op[row]);
    if (op != TraceOp::kAlloc && op != TraceOp::kFree) continue;
    const std::int32_t device_code = batch.device[row];
    const auto device_place = static_cast<std::size_t>(device_code);
    if (device_place >= devices_.size()) devices_.resize(device_place + 1);
    DeviceSummary& device = devices_[device_place];
    const std::int64_t size = batch.size[row];
    const std::int64_t time = batch.time_ns[row];
    const auto id = static_cast<std::uint64_t>(batch.id[row]);
    if (op == TraceOp::kAlloc) {
      const Live block{rows_, time, GroupOf(device_code, false, phase[row]),
                       GroupOf(device_code, true, scope[row])};
      live_.Insert(id, block);
      ++size_counts_[BucketOf(size)];
      size_bytes_[BucketOf(size)] += static_cast<std::uint64_t>(size);
      ++device.allocs;
      ++device.live_blocks;
      device.allocated_bytes += size;
      device.live_bytes += size;
      Change(block.phase_group, device, size, 1);
      Change(block.scope_group, device, size, 1);
      if (device.live_bytes > device.peak_bytes || device.peak_row < 0) {
        device.peak_bytes = device.live_bytes;
        device.peak_blocks = device.live_blocks;
        device.peak_row = rows_;
        device.peak_time_ns = time;
        device.peak_step = step[row];
        device.peak_phase = phase[row];
        ++device.peak_epoch;
      }
      continue;
    }
    Live* found = live_.Find(id);
    if (found == nullptr) continue;
    const Live block = *found;
    live_.Remove(found);
    ++lifetimes_in_events_[BucketOf(rows_ - block.row)];
    ++lifetimes_in_ns_[BucketOf(time - block.time_ns)];
    ++device.frees;
    --device.live_blocks;
    device.live_bytes -= size;
    Change(block.phase_group, device, -size, -1);
    Change(block.scope_group, device, -size, -1);
  }
}

std::uint32_t TraceSummary::GroupOf(std::int32_t device, bool is_scope, std::int32_t code) {
  const std::uint64_t key = static_cast<std::uint64_t>(static_cast<std::uint32_t>(device)) << 33 |
                            static_cast<std::uint64_t>(is_scope) << 32 |
                            static_cast<std::uint32_t>(code);
  if (const std::uint32_t* place = group_places_.Find(key)) return *place;
  const auto place = static_cast<std::uint32_t>(groups_.size());
  groups_.push_back({.device = device, .is_scope = is_scope, .code = code});
  group_places_.Insert(key, place);
  return place;
}

void TraceSummary::Change(std::uint32_t group, const DeviceSummary& device, std::int64_t bytes,
                          std::int64_t blocks) {
  Group& changed = groups_[group];
  if (changed.epoch != device.peak_epoch) {
    changed.epoch = device.peak_epoch;
    changed.bytes_since_peak = 0;
    changed.blocks_since_peak = 0;
  }
  changed.live_bytes += bytes;
  changed.live_blocks += blocks;
  changed.bytes_since_peak += bytes;
  changed.blocks_since_peak += blocks;
}

}  // namespace workbench
