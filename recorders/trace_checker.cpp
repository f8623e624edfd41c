#include "trace_checker.h"

#include <algorithm>

namespace workbench {
namespace {

// Above this no sum of sizes is believed; it leaves room for one more allocation below 2^63.
constexpr std::int64_t kMostLiveBytes = std::int64_t{1} << 62;

}  // namespace

std::optional<Violation> TraceChecker::Check(const TraceBatch& batch) {
  for (std::size_t row = 0; row < batch.rows; ++row) {
    if (auto violation = CheckRow(batch, row)) return violation;
  }
  return std::nullopt;
}

std::optional<Violation> TraceChecker::CheckRow(const TraceBatch& batch, std::size_t row) {
  const std::int64_t time = batch.time_ns[row];
  if (time < last_time_) {
    if (time < 0) return Violation{TraceRule::kTimeNegative, row, time, 0};
    return Violation{TraceRule::kTimeBackwards, row, time, last_time_};
  }
  last_time_ = time;
  if (batch.size[row] < 0) return Violation{TraceRule::kSizeNegative, row, batch.size[row], 0};
  const auto op = static_cast<TraceOp>(batch.op[row]);
  const std::int64_t id = batch.id[row];
  if (id < 0 && (op != TraceOp::kOther || id < -1)) {
    return Violation{TraceRule::kIdMissing, row, id, 0};
  }
  switch (op) {
    case TraceOp::kAlloc:
      return Allocate(batch, row);
    case TraceOp::kFree:
      return Free(batch, row);
    case TraceOp::kFreeCompleted:
      return Complete(batch, row);
    case TraceOp::kRecordStream:
      if (live_.Find(static_cast<std::uint64_t>(id)) == nullptr) {
        return Violation{TraceRule::kUseOfUnknownId, row, id, 0};
      }
      break;
    case TraceOp::kOther:
      break;
  }
  return std::nullopt;
}

std::optional<Violation> TraceChecker::Allocate(const TraceBatch& batch, std::size_t row) {
  const std::int64_t id = batch.id[row];
  const std::int64_t size = batch.size[row];
  if (id < next_id_) return Violation{TraceRule::kAllocatedTwice, row, id, next_id_};
  if (id > next_id_) return Violation{TraceRule::kIdSkipped, row, id, next_id_};
  if (size > kMostLiveBytes - live_bytes_) {
    return Violation{TraceRule::kLiveBytesOverflow, row, size, kMostLiveBytes};
  }
  ++next_id_;
  live_bytes_ += size;
  live_.Insert(static_cast<std::uint64_t>(id), {size, batch.device[row]});
  return std::nullopt;
}

std::optional<Violation> TraceChecker::Free(const TraceBatch& batch, std::size_t row) {
  const std::int64_t id = batch.id[row];
  Live* block = live_.Find(static_cast<std::uint64_t>(id));
  if (block == nullptr) {
    const bool known = id < next_id_;
    return Violation{known ? TraceRule::kFreedTwice : TraceRule::kFreeBeforeAlloc, row, id, 0};
  }
  if (block->size != batch.size[row]) {
    return Violation{TraceRule::kFreeSizeDiffers, row, batch.size[row], block->size};
  }
  if (block->device != batch.device[row]) {
    return Violation{TraceRule::kFreeDeviceDiffers, row, batch.device[row], block->device};
  }
  live_bytes_ -= block->size;
  live_.Remove(block);
  return std::nullopt;
}

std::optional<Violation> TraceChecker::Complete(const TraceBatch& batch, std::size_t row) {
  const std::int64_t id = batch.id[row];
  if (id >= next_id_ || live_.Find(static_cast<std::uint64_t>(id)) != nullptr) {
    return Violation{TraceRule::kCompletedBeforeFree, row, id, 0};
  }
  const auto place = static_cast<std::size_t>(id);
  if (place >= completed_.size()) {
    completed_.resize(std::max(static_cast<std::size_t>(next_id_), completed_.size() * 2));
  }
  if (completed_[place]) return Violation{TraceRule::kCompletedTwice, row, id, 0};
  completed_[place] = true;
  return std::nullopt;
}

}  // namespace workbench
