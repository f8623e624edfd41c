// The rules of the trace format that concern the order of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "flat_map.h"
#include "trace_batch.h"

namespace workbench {

// Numbered as in workbench/recorders/trace/checks.py, which gives each its name and message.
enum class TraceRule : std::uint8_t {
  kTimeNegative = 0,
  kTimeBackwards,
  kSizeNegative,
  kIdMissing,
  kAllocatedTwice,
  kIdSkipped,
  kFreedTwice,
  kFreeBeforeAlloc,
  kFreeSizeDiffers,
  kFreeDeviceDiffers,
  kCompletedBeforeFree,
  kCompletedTwice,
  kUseOfUnknownId,
  kLiveBytesOverflow,
};

struct Violation {
  TraceRule rule;
  std::size_t row;        // in the batch
  std::int64_t value;     // what was found
  std::int64_t expected;  // what should have been there, where there is such a number
};

// Sees a trace batch by batch, in order. Memory: the live set, and one bit for each id once an
// event `free_completed` was seen.
class TraceChecker {
 public:
  // The first row that breaks a rule; nothing may be checked after one.
  std::optional<Violation> Check(const TraceBatch& batch);

 private:
  struct Live {
    std::int64_t size;
    std::int32_t device;
  };

  std::optional<Violation> CheckRow(const TraceBatch& batch, std::size_t row);
  std::optional<Violation> Allocate(const TraceBatch& batch, std::size_t row);
  std::optional<Violation> Free(const TraceBatch& batch, std::size_t row);
  std::optional<Violation> Complete(const TraceBatch& batch, std::size_t row);

  FlatMap<Live> live_;
  std::vector<bool> completed_;
  std::int64_t next_id_ = 0;
  std::int64_t last_time_ = 0;
  std::int64_t live_bytes_ = 0;
};

}  // namespace workbench
