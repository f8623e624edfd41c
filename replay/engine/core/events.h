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
};

inline constexpr std::array<std::string_view, 12> kOpNames = {
    "alloc",       "free",         "live",       "free_completed", "record_stream", "synchronize",
    "empty_cache", "event_record", "event_wait", "capture_begin",  "capture_end",   "set_fraction",
};

// `stream` of a synchronize that waits for all streams.
inline constexpr StreamId kAllStreams = -1;
// Streams are numbered from 0 without gaps; a number past this is a broken trace.
inline constexpr StreamId kMostStreams = 1 << 16;
// `slot` of an event that has no id.
inline constexpr std::int32_t kNoSlot = -1;
// `value` of a set_fraction that is the whole device.
inline constexpr std::int64_t kWholeFraction = 1'000'000;

struct Events {
  std::span<const std::uint8_t> op;
  // Where the event's allocation is kept while it lives; a slot is used again after its free.
  std::span<const std::int32_t> slot;
  std::span<const Bytes> size;
  std::span<const StreamId> stream;
  std::span<const ThreadId> thread;
  std::int32_t slot_count = 0;
  // Optimizer steps completed so far; empty where that is not told.
  std::span<const std::int32_t> step = {};
  // Of event_record and event_wait the number of the CUDA event, below count(); of set_fraction
  // millionths of the device. Empty where there is nothing to tell.
  std::span<const std::int64_t> value = {};

  std::size_t count() const { return op.size(); }
  Op op_at(std::size_t event) const { return static_cast<Op>(op[event]); }
};

// Gives each id a slot in an array no longer than the greatest number of ids alive at once. An id
// with a `free_completed` keeps its slot until then. Returns the number of slots.
// Throws InputError where an id is allocated twice, or freed without being allocated.
std::int32_t assign_slots(std::span<const std::uint8_t> op, std::span<const std::int64_t> id,
                          std::span<std::int32_t> slot);

// Throws InputError unless all columns are equally long and hold what the replayer relies on:
// known ops, slots inside 0 … slot_count − 1 where the op needs one, sizes ≥ 0, streams
// below kMostStreams, values that `value` allows.
void check_events(const Events& events);

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
