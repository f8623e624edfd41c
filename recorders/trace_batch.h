// A view of some rows of a trace: columns that the caller owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace workbench {

// What an event means to the rules; events a reader does not know are `kOther`.
enum class TraceOp : std::uint8_t {
  kOther = 0,
  kAlloc = 1,  // also `live`
  kFree = 2,
  kFreeCompleted = 3,
  kRecordStream = 4,
};

struct TraceBatch {
  std::size_t rows = 0;
  const std::int64_t* time_ns = nullptr;
  const std::uint8_t* op = nullptr;  // TraceOp
  const std::int64_t* id = nullptr;
  const std::int64_t* size = nullptr;    // bytes
  const std::int32_t* device = nullptr;  // a number for each name, the same in all batches
};

}  // namespace workbench
