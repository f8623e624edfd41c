// The events of a trace as the replayer walks them: one array per column, viewed, never copied.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/units.h"

namespace workbench {

// The trace's events that concern an allocator, with the codes they have in the `op` column.
enum class Op : std::uint8_t {
  kAlloc,
  kFree,
  kLive,
  kFreeCompleted,
  kRecordStream,
  kSynchronize,
  kEmptyCache,
  kEventRecord,
  kEventWait,
  kCaptureBegin,
  kCaptureEnd,
  kSetFraction,
  kPoolBegin,
  kPoolEnd,
  kPoolRelease,
};

inline constexpr std::array<std::string_view, 15> kOpNames = {
    "alloc",       "free",         "live",         "free_completed", "record_stream",
    "synchronize", "empty_cache",  "event_record", "event_wait",     "capture_begin",
    "capture_end", "set_fraction", "pool_begin",   "pool_end",       "pool_release",
};

// `stream` of a synchronize that waits for all streams.
inline constexpr StreamId kAllStreams = -1;
// Streams are numbered from 0 without gaps; a number past this is a broken trace.
inline constexpr StreamId kMostStreams = 1 << 16;
// The pool that is no private one; private pools are numbered from 1, up to here.
inline constexpr PoolId kDefaultPool = 0;
inline constexpr PoolId kMostPools = 1 << 16;
// `slot` of an event that has no id.
inline constexpr std::int32_t kNoSlot = -1;
// `value` of a set_fraction that is the whole device.
inline constexpr std::int64_t kWholeFraction = 1'000'000;

// A lane: one stream's part of a pool. Blocks of different lanes share no memory.
struct PoolStream {
  StreamId stream;
  PoolId pool;
};

struct Events {
  std::span<const std::uint8_t> op;
  // Where the event's allocation is kept while it lives; a slot is used again after its free.
  std::span<const std::int32_t> slot;
  std::span<const Bytes> size;
  // Of an allocation its lane, where there are lanes; of any other event a stream.
  std::span<const StreamId> stream;
  std::span<const ThreadId> thread;
  std::int32_t slot_count = 0;
  // Optimizer steps completed so far; empty where that is not told.
  std::span<const std::int32_t> step = {};
  // Of event_record and event_wait the number of the CUDA event, below count(); of set_fraction
  // millionths of the device; of pool_begin, pool_end and pool_release the private pool. Empty
  // where there is nothing to tell.
  std::span<const std::int64_t> value = {};
  // By the numbers that allocations have in `stream`. Empty where no private pool serves any: then
  // these are streams.
  std::span<const PoolStream> lanes = {};

  std::size_t count() const { return op.size(); }
  Op op_at(std::size_t event) const { return static_cast<Op>(op[event]); }
  // Where the allocation `event` was made.
  PoolStream lane_of(std::size_t event) const {
    if (lanes.empty()) return {stream[event], kDefaultPool};
    return lanes[static_cast<std::size_t>(stream[event])];
  }
};

// Gives each id a slot in an array no longer than the greatest number of ids alive at once. An id
// with a `free_completed` keeps its slot until then. Returns the number of slots.
// Throws InputError where an id is allocated twice, or freed without being allocated.
std::int32_t assign_slots(std::span<const std::uint8_t> op, std::span<const std::int64_t> id,
                          std::span<std::int32_t> slot);

// Throws InputError unless all columns are equally long and hold what the replayer relies on:
// known ops, slots inside 0 … slot_count − 1 where the op needs one, sizes ≥ 0, streams
// below kMostStreams, lanes of allocations that there are, values that `value` allows.
void check_events(const Events& events);

// `stream` with the streams of lanes in place of their numbers; empty where there are no lanes.
std::vector<StreamId> streams_of_lanes(const Events& events);

// The streams that each `free_completed` event's block had been recorded on.
class CompletedStreams {
 public:
  explicit CompletedStreams(const Events& events);

  bool empty() const { return first_.empty(); }
  // Streams of the `number`-th free_completed event of the trace.
  std::span<const StreamId> of(std::size_t number) const {
    return std::span(streams_).subspan(first_[number], first_[number + 1] - first_[number]);
  }
  // The number, as above, of the free_completed event `event` of the trace.
  std::size_t number_of(std::size_t event) const;

 private:
  std::vector<std::size_t> events_;
  std::vector<std::size_t> first_;
  std::vector<StreamId> streams_;
};

}  // namespace workbench
