#include "core/events.h"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "core/errors.h"

namespace workbench {
namespace {

bool needs_id(Op op) {
  return op == Op::kAlloc || op == Op::kLive || op == Op::kFree || op == Op::kFreeCompleted ||
         op == Op::kRecordStream;
}

// Slot of each id: an array where ids are dense, as in a trace, else a hash map.
class DenseSlots {
 public:
  DenseSlots(std::int64_t lowest, std::size_t range) : lowest_(lowest), slots_(range, kNoSlot) {}
  std::int32_t& operator[](std::int64_t id) {
    return slots_[static_cast<std::size_t>(id - lowest_)];
  }

 private:
  std::int64_t lowest_;
  std::vector<std::int32_t> slots_;
};

class SparseSlots {
 public:
  std::int32_t& operator[](std::int64_t id) {
    return slots_.try_emplace(id, kNoSlot).first->second;
  }

 private:
  std::unordered_map<std::int64_t, std::int32_t> slots_;
};

[[noreturn]] void fail(std::size_t event, std::int64_t id, const char* problem) {
  throw InputError("event " + std::to_string(event) + ": id " + std::to_string(id) + " " + problem +
                   "; check the trace with wb info");
}

// In the map: slot ≥ 0 while live, kNoSlot before the allocation, kFreed after the free, and
// −3 − slot between a free and its free_completed.
constexpr std::int32_t kFreed = -2;
constexpr std::int32_t waiting(std::int32_t slot) { return -3 - slot; }

template <class Slots>
std::int32_t assign(std::span<const std::uint8_t> op, std::span<const std::int64_t> id,
                    std::span<std::int32_t> slot, Slots slots, Slots completes) {
  for (std::size_t i = 0; i < op.size(); ++i) {
    if (static_cast<Op>(op[i]) == Op::kFreeCompleted) completes[id[i]] = 0;
  }
  std::vector<std::int32_t> unused;
  std::int32_t count = 0;
  for (std::size_t i = 0; i < op.size(); ++i) {
    const Op kind = static_cast<Op>(op[i]);
    slot[i] = kNoSlot;
    if (!needs_id(kind)) continue;
    std::int32_t& mine = slots[id[i]];
    switch (kind) {
      case Op::kAlloc:
      case Op::kLive:
        if (mine != kNoSlot) fail(i, id[i], "is allocated a second time");
        if (unused.empty()) {
          mine = count++;
        } else {
          mine = unused.back();
          unused.pop_back();
        }
        slot[i] = mine;
        break;
      case Op::kFree:
        if (mine == kNoSlot) fail(i, id[i], "is freed but was never allocated");
        if (mine < 0) fail(i, id[i], "is freed a second time");
        slot[i] = mine;
        if (completes[id[i]] == 0) {
          mine = waiting(mine);
        } else {
          unused.push_back(mine);
          mine = kFreed;
        }
        break;
      case Op::kFreeCompleted:
        if (mine >= kFreed) fail(i, id[i], "completes a free that did not happen before");
        slot[i] = waiting(mine);
        unused.push_back(slot[i]);
        mine = kFreed;
        break;
      default:  // record_stream: on a live block, or without effect
        if (mine >= 0) slot[i] = mine;
        break;
    }
  }
  return count;
}

void check_lanes(std::span<const PoolStream> lanes) {
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const PoolStream& lane = lanes[i];
    if (lane.stream < 0 || lane.stream >= kMostStreams || lane.pool < kDefaultPool ||
        lane.pool > kMostPools) {
      throw InputError("lane " + std::to_string(i) + " is of stream " +
                       std::to_string(lane.stream) + " and pool " + std::to_string(lane.pool) +
                       ", outside 0 to " + std::to_string(kMostStreams - 1) + " and 0 to " +
                       std::to_string(kMostPools));
    }
  }
}

}  // namespace

std::int32_t assign_slots(std::span<const std::uint8_t> op, std::span<const std::int64_t> id,
                          std::span<std::int32_t> slot) {
  if (op.size() != id.size() || op.size() != slot.size()) {
    throw InputError("op and id differ in length; pass one of each for every event");
  }
  std::int64_t lowest = INT64_MAX;
  std::int64_t highest = INT64_MIN;
  for (std::size_t i = 0; i < op.size(); ++i) {
    if (!needs_id(static_cast<Op>(op[i]))) continue;
    lowest = std::min(lowest, id[i]);
    highest = std::max(highest, id[i]);
  }
  if (lowest > highest) lowest = highest = 0;
  const std::uint64_t range =
      static_cast<std::uint64_t>(highest) - static_cast<std::uint64_t>(lowest) + 1;
  if (range != 0 && range <= 16 * static_cast<std::uint64_t>(op.size()) + 1024) {
    const DenseSlots slots(lowest, range);
    return assign(op, id, slot, slots, slots);
  }
  return assign(op, id, slot, SparseSlots(), SparseSlots());
}

void check_events(const Events& events) {
  const std::size_t n = events.count();
  if (events.slot.size() != n || events.size.size() != n || events.stream.size() != n ||
      events.thread.size() != n || (!events.step.empty() && events.step.size() != n) ||
      (!events.value.empty() && events.value.size() != n)) {
    throw InputError("the event columns differ in length; pass one value of each for every event");
  }
  if (events.slot_count < 0)
    throw InputError("slot_count is negative; pass what assign_slots gave");
  check_lanes(events.lanes);
  for (std::size_t i = 0; i < n; ++i) {
    const auto fail_at = [i](const std::string& problem) {
      throw InputError("event " + std::to_string(i) + " " + problem);
    };
    if (events.op[i] >= kOpNames.size()) {
      fail_at("has op " + std::to_string(events.op[i]) + ", which is not one of OPS");
    }
    const Op op = events.op_at(i);
    const bool slot_needed = needs_id(op) && op != Op::kRecordStream;
    if (events.slot[i] >= events.slot_count || events.slot[i] < (slot_needed ? 0 : kNoSlot)) {
      fail_at("has slot " + std::to_string(events.slot[i]) + ", outside 0 to " +
              std::to_string(events.slot_count - 1) + "; pass what assign_slots gave");
    }
    if (events.size[i] < 0) fail_at("has a size below 0");
    const bool of_all_streams = op == Op::kSynchronize || op == Op::kSetFraction;
    if (events.stream[i] < (of_all_streams ? kAllStreams : 0) || events.stream[i] >= kMostStreams) {
      fail_at("has stream " + std::to_string(events.stream[i]) + ", outside 0 to " +
              std::to_string(kMostStreams - 1));
    }
    const bool in_lane = op == Op::kAlloc || op == Op::kLive;
    if (in_lane && !events.lanes.empty() &&
        static_cast<std::size_t>(events.stream[i]) >= events.lanes.size()) {
      fail_at("has lane " + std::to_string(events.stream[i]) + ", outside 0 to " +
              std::to_string(events.lanes.size() - 1));
    }
    if (events.value.empty()) continue;
    const std::int64_t value = events.value[i];
    if ((op == Op::kEventRecord || op == Op::kEventWait) &&
        (value < 0 || static_cast<std::size_t>(value) >= n)) {
      fail_at("has CUDA event " + std::to_string(value) + ", outside 0 to " +
              std::to_string(n - 1) + "; number them from 0 without gaps");
    }
    if (op == Op::kSetFraction && (value < 0 || value > kWholeFraction)) {
      fail_at("sets a fraction of " + std::to_string(value) + " millionths, outside 0 to 1000000");
    }
    const bool of_pool = op == Op::kPoolBegin || op == Op::kPoolEnd || op == Op::kPoolRelease;
    if (of_pool && (value <= kDefaultPool || value > kMostPools)) {
      fail_at("names private pool " + std::to_string(value) + ", outside 1 to " +
              std::to_string(kMostPools));
    }
  }
}

std::vector<StreamId> streams_of_lanes(const Events& events) {
  if (events.lanes.empty()) return {};
  std::vector<StreamId> streams(events.stream.begin(), events.stream.end());
  for (std::size_t i = 0; i < streams.size(); ++i) {
    const Op op = events.op_at(i);
    if (op == Op::kAlloc || op == Op::kLive) streams[i] = events.lane_of(i).stream;
  }
  return streams;
}

CompletedStreams::CompletedStreams(const Events& events) {
  if (std::find(events.op.begin(), events.op.end(),
                static_cast<std::uint8_t>(Op::kFreeCompleted)) == events.op.end()) {
    return;
  }
  std::vector<std::vector<StreamId>> recorded(static_cast<std::size_t>(events.slot_count));
  first_.push_back(0);
  for (std::size_t i = 0; i < events.count(); ++i) {
    if (events.slot[i] == kNoSlot) continue;
    std::vector<StreamId>& streams = recorded[static_cast<std::size_t>(events.slot[i])];
    switch (events.op_at(i)) {
      case Op::kAlloc:
      case Op::kLive:
        streams.clear();
        break;
      case Op::kRecordStream:
        streams.push_back(events.stream[i]);
        break;
      case Op::kFreeCompleted:
        streams_.insert(streams_.end(), streams.begin(), streams.end());
        first_.push_back(streams_.size());
        events_.push_back(i);
        break;
      default:
        break;
    }
  }
}

std::size_t CompletedStreams::number_of(std::size_t event) const {
  const auto found = std::lower_bound(events_.begin(), events_.end(), event);
  return static_cast<std::size_t>(found - events_.begin());
}

}  // namespace workbench
