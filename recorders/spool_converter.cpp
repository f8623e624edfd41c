#include "spool_converter.h"

#include <algorithm>
#include <limits>

namespace workbench {
namespace {

// How many records ahead a free may hide behind the allocation that reuses its address. Clocks of
// two processors differ by less than a record takes, so this is generous.
constexpr std::size_t kLateFreeWindow = 256;

// Steps are numbers of 48 bits; the upper half stands for negative ones.
std::int32_t StepOf(std::uint64_t value) {
  const std::uint64_t low = value & ((std::uint64_t{1} << 48) - 1);
  if (low >> 47 != 0) return -1;
  return static_cast<std::int32_t>(
      std::min<std::uint64_t>(low, std::numeric_limits<std::int32_t>::max()));
}

}  // namespace

std::int64_t ClockLine::operator()(std::uint64_t ticks) const {
  if (ticks <= first_ticks) return 0;
  const double nanoseconds = static_cast<double>(ticks - first_ticks) * nanoseconds_per_tick;
  constexpr double kLargest = 4e18;  // below 2^62: a broken record must not overflow
  return static_cast<std::int64_t>(std::min(nanoseconds, kLargest));
}

void RowColumns::Reserve(std::size_t rows) {
  time_ns.reserve(rows);
  event.reserve(rows);
  id.reserve(rows);
  size.reserve(rows);
  thread.reserve(rows);
  step.reserve(rows);
  phase.reserve(rows);
  scope.reserve(rows);
  stack.reserve(rows);
  label.reserve(rows);
}

RowColumns SpoolConverter::NextRows(std::size_t rows) {
  RowColumns columns;
  const std::uint64_t left =
      merge_.total_records() - std::min(merge_.records_read(), merge_.total_records());
  columns.Reserve(std::min<std::uint64_t>(rows, left + ahead_.size()) + 1);
  MergedRecord merged{};
  while (columns.id.size() < rows && Take(&merged)) Convert(merged, &columns);
  return columns;
}

bool SpoolConverter::Take(MergedRecord* merged) {
  if (ahead_.empty()) return merge_.Next(merged);
  *merged = ahead_.front();
  ahead_.pop_front();
  return true;
}

void SpoolConverter::Convert(const MergedRecord& merged, RowColumns* rows) {
  switch (merged.kind()) {
    case spool::Kind::kAlloc:
      Allocate(merged, rows);
      break;
    case spool::Kind::kFree:
      if (Live* block = live_.Find(merged.record.address)) {
        const Live freed = *block;
        live_.Remove(block);
        Emit(RowEvent::kFree, merged, merged.record.ticks, freed, rows);
      } else {
        ++unmatched_frees_;
      }
      break;
    case spool::Kind::kContext:
      phase_ = static_cast<std::uint8_t>(merged.record.address <=
                                                 static_cast<std::uint64_t>(spool::Phase::kData)
                                             ? merged.record.address
                                             : 0);
      step_ = StepOf(merged.value());
      break;
    case spool::Kind::kMark:
      Emit(RowEvent::kMark, merged, merged.record.ticks, {-1, 0}, rows);
      break;
    case spool::Kind::kThread:  // the reader of the segment has taken it in
    case spool::Kind::kNone:    // a late free that has been taken out of its place
      break;
  }
}

void SpoolConverter::Allocate(const MergedRecord& merged, RowColumns* rows) {
  if (Live* block = live_.Find(merged.record.address)) {
    const Live old = *block;
    live_.Remove(block);
    MergedRecord late{};
    if (TakeLateFree(merged, &late)) {
      Emit(RowEvent::kFree, late, merged.record.ticks, old, rows);
    } else {
      ++reused_addresses_;
    }
  }
  const Live block{next_id_++, static_cast<std::int64_t>(merged.value())};
  live_.Insert(merged.record.address, block);
  Emit(RowEvent::kAlloc, merged, merged.record.ticks, block, rows);
}

// A free that another thread stamped a moment too late. It is one only if the next record of this
// address is a free by another thread and the one after it, if near, is a free again: otherwise it
// is the new block's own.
bool SpoolConverter::TakeLateFree(const MergedRecord& alloc, MergedRecord* late) {
  MergedRecord further{};
  while (ahead_.size() < kLateFreeWindow && merge_.Next(&further)) ahead_.push_back(further);
  MergedRecord* candidate = nullptr;
  for (MergedRecord& next : ahead_) {
    const bool is_free = next.kind() == spool::Kind::kFree;
    if ((!is_free && next.kind() != spool::Kind::kAlloc) ||
        next.record.address != alloc.record.address) {
      continue;
    }
    if (candidate != nullptr) {
      if (!is_free) return false;
      break;
    }
    if (!is_free || next.thread == alloc.thread || next.segment == alloc.segment) return false;
    candidate = &next;
  }
  if (candidate == nullptr) return false;
  *late = *candidate;
  candidate->record.kind_and_value = 0;
  return true;
}

std::int32_t SpoolConverter::ScopePlace(std::uint32_t scope) {
  if (scope == 0) return -1;
  if (const std::int32_t* place = scope_places_.Find(scope)) return *place;
  const auto place = static_cast<std::int32_t>(scopes_.size());
  scopes_.push_back(scope);
  scope_places_.Insert(scope, place);
  return place;
}

void SpoolConverter::Emit(RowEvent event, const MergedRecord& merged, std::uint64_t ticks,
                          Live block, RowColumns* rows) {
  last_time_ = std::max(last_time_, clock_(ticks));
  rows->time_ns.push_back(last_time_);
  rows->event.push_back(static_cast<std::uint8_t>(event));
  rows->id.push_back(block.id);
  rows->size.push_back(block.size);
  rows->thread.push_back(merged.thread);
  rows->step.push_back(steps_seen_ ? step_ : -1);
  rows->phase.push_back(phase_);
  rows->scope.push_back(ScopePlace(merged.record.scope));
  rows->stack.push_back(merged.record.stack);
  rows->label.push_back(event == RowEvent::kMark ? static_cast<std::int64_t>(merged.value()) : -1);
}

}  // namespace workbench
