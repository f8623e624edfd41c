#include "spool_converter.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace workbench {
namespace {

using spool::Event;

// How many records ahead a free may hide behind the allocation that reuses its address. Clocks of
// two processors differ by less than a record takes, so this is generous.
constexpr std::size_t kLateFreeWindow = 256;
constexpr double kLargest = 4e18;  // nanoseconds, below 2^62: a broken record must not overflow

// Steps are numbers of 48 bits; the upper half stands for negative ones.
std::int32_t StepOf(std::uint64_t value) {
  const std::uint64_t low = value & ((std::uint64_t{1} << 48) - 1);
  if (low >> 47 != 0) return -1;
  return static_cast<std::int32_t>(
      std::min<std::uint64_t>(low, std::numeric_limits<std::int32_t>::max()));
}

Event EventOf(const MergedRecord& merged) {
  switch (merged.kind()) {
    case spool::Kind::kAlloc:
      return Event::kAlloc;
    case spool::Kind::kFree:
      return Event::kFree;
    case spool::Kind::kMark:
      return Event::kMark;
    case spool::Kind::kDevice:
      return merged.detail.event;
    default:
      return Event::kCount;
  }
}

// Addresses are told apart by where they are of: the CPU, pinned memory, or any device of CUDA, all
// of which share one range of addresses, so that a free need not say of which it is.
std::size_t SpaceOf(std::uint16_t device) {
  return std::min<std::size_t>(device, spool::kFirstCuda);
}

// What a row says besides when and who, of an event that is not an allocation's.
Block PlaceOf(const MergedRecord& merged) {
  Block block{};
  block.id = -1;
  block.size =
      merged.kind() == spool::Kind::kDevice ? static_cast<std::int64_t>(merged.value()) : 0;
  block.stream = merged.detail.stream;
  block.pool = static_cast<std::int32_t>(merged.detail.pool);
  block.device = merged.detail.device;
  return block;
}

}  // namespace

std::int64_t ClockLine::operator()(std::uint64_t ticks) const {
  return ticks <= first_ticks ? 0 : Span(ticks - first_ticks);
}

std::int64_t ClockLine::Span(std::uint64_t ticks) const {
  return static_cast<std::int64_t>(
      std::min(static_cast<double>(ticks) * nanoseconds_per_tick, kLargest));
}

void RowColumns::Reserve(std::size_t rows) {
  time_ns.reserve(rows);
  event.reserve(rows);
  id.reserve(rows);
  size.reserve(rows);
  device.reserve(rows);
  stream.reserve(rows);
  thread.reserve(rows);
  pool.reserve(rows);
  step.reserve(rows);
  phase.reserve(rows);
  scope.reserve(rows);
  stack.reserve(rows);
  duration_ns.reserve(rows);
  value.reserve(rows);
  label.reserve(rows);
}

SpoolConverter::SpoolConverter(const std::filesystem::path& process_folder, ClockLine clock,
                               bool steps_seen, SpoolState state, Until until, bool key_frame)
    : merge_(process_folder, state.begun, state.finished, until.known_ticks),
      clock_(clock),
      steps_seen_(steps_seen),
      until_(until) {
  Restore(state, key_frame);
}

void SpoolConverter::Restore(const SpoolState& state, bool key_frame) {
  for (const auto& [number, id] : state.threads) merge_.NameThread(number, id);
  for (const std::uint32_t scope : state.scopes) ScopePlace(scope);
  for (const SegmentProgress& segment : state.begun) {
    begun_places_.Insert(segment.sequence, static_cast<std::uint32_t>(begun_.size()));
    begun_.push_back(segment);
  }
  finished_ = state.finished;
  taken_ = state.taken;
  last_time_ = state.last_time;
  step_ = state.step;
  phase_ = state.phase;
  std::vector<BlockAt> live = state.live;
  if (key_frame) {
    rows_before_ = state.rows;
    std::sort(live.begin(), live.end(), [](const BlockAt& left, const BlockAt& right) {
      return left.block.id < right.block.id;
    });
    for (BlockAt& entry : live) {
      entry.block.id = next_id_++;
      key_frame_.push_back(entry.block);
    }
  } else {
    for (const BlockAt& entry : state.freed) {
      At(freed_, entry.block.device).Insert(entry.address, entry.block);
    }
    next_id_ = state.next_id;
    rows_ = state.rows;
    unmatched_frees_ = state.unmatched_frees;
    reused_addresses_ = state.reused_addresses;
  }
  for (const BlockAt& entry : live) {
    At(live_, entry.block.device).Insert(entry.address, entry.block);
  }
}

SpoolState SpoolConverter::State() const {
  SpoolState state;
  state.finished = finished_;
  for (const SegmentProgress& segment : begun_) {
    const auto closed = merge_.closed().find(segment.sequence);
    if (closed != merge_.closed().end() && closed->second == segment.records) {
      state.finished.Add(segment.sequence);
    } else {
      state.begun.push_back(segment);
    }
  }
  state.threads = merge_.threads();
  state.scopes = scopes_;
  for (const auto& [spaces, blocks] :
       {std::pair(&live_, &state.live), std::pair(&freed_, &state.freed)}) {
    for (const Space& space : *spaces) {
      space.ForEach([blocks](std::uint64_t address, const Block& block) {
        blocks->push_back({address, block});
      });
    }
  }
  state.taken = taken_;
  state.next_id = next_id_;
  state.last_time = last_time_;
  state.rows = rows_;
  state.unmatched_frees = unmatched_frees_;
  state.reused_addresses = reused_addresses_;
  state.step = step_;
  state.phase = phase_;
  return state;
}

RowColumns SpoolConverter::NextRows(std::size_t rows) {
  RowColumns columns;
  const std::uint64_t left =
      merge_.total_records() - std::min(merge_.records_read(), merge_.total_records());
  columns.Reserve(std::min<std::uint64_t>(rows, left + ahead_.size() + key_frame_.size()) + 1);
  EmitKeyFrame(&columns);
  MergedRecord merged{};
  while (columns.id.size() < rows && Take(&merged)) Convert(merged, &columns);
  return columns;
}

// The next record in order; what is behind `until_` stays for another time.
bool SpoolConverter::Take(MergedRecord* merged) {
  if (ahead_.empty()) {
    if (!Merge(merged)) return false;
    if (merged->record.ticks > until_.ticks) {
      ahead_.push_back(*merged);
      return false;
    }
  } else {
    if (ahead_.front().record.ticks > until_.ticks) return false;
    *merged = ahead_.front();
    ahead_.pop_front();
  }
  if (begun_.empty() || begun_[last_begun_].sequence != merged->segment) {
    if (const std::uint32_t* place = begun_places_.Find(merged->segment)) {
      last_begun_ = *place;
    } else {
      last_begun_ = static_cast<std::uint32_t>(begun_.size());
      begun_places_.Insert(merged->segment, last_begun_);
      begun_.push_back({});
    }
  }
  begun_[last_begun_] = {merged->segment, merged->end, merged->record.ticks, merged->thread};
  if (merged->kind() == spool::Kind::kNone) std::erase(taken_, TakenRecord::Of(*merged));
  return true;
}

// The next record of the merge, as nothing where it has been taken ahead of its place before.
bool SpoolConverter::Merge(MergedRecord* merged) {
  if (!merge_.Next(merged)) return false;
  if (!taken_.empty() && std::ranges::find(taken_, TakenRecord::Of(*merged)) != taken_.end()) {
    merged->record.kind_and_value = 0;
  }
  return true;
}

void SpoolConverter::Convert(const MergedRecord& merged, RowColumns* rows) {
  switch (merged.kind()) {
    case spool::Kind::kAlloc:
      Allocate(merged, rows);
      break;
    case spool::Kind::kFree:
      Free(merged, rows);
      break;
    case spool::Kind::kContext:
      phase_ = static_cast<std::uint8_t>(merged.record.address <=
                                                 static_cast<std::uint64_t>(spool::Phase::kData)
                                             ? merged.record.address
                                             : 0);
      step_ = StepOf(merged.value());
      break;
    case spool::Kind::kMark:
      Emit(Event::kMark, merged, merged.record.ticks, PlaceOf(merged), rows);
      break;
    case spool::Kind::kDevice:
      ConvertDevice(merged, rows);
      break;
    case spool::Kind::kDetail:  // the reader of the segment has taken these in
    case spool::Kind::kThread:
    case spool::Kind::kNone:  // a late free that has been taken out of its place
      break;
  }
}

void SpoolConverter::ConvertDevice(const MergedRecord& merged, RowColumns* rows) {
  const Event event = merged.detail.event;
  Block block = PlaceOf(merged);
  if (event == Event::kAlloc) return Allocate(merged, rows);
  if (event == Event::kFree) return Free(merged, rows);
  if (event == Event::kRecordStream) {
    Block* const used = At(live_, block.device).Find(merged.record.address);
    if (used == nullptr) return;  // allocated before recording began
    // Use on its own stream delays nothing.
    if (block.stream != used->stream) used->used_elsewhere = true;
    block.id = used->id;
    block.size = used->size;
    block.pool = used->pool;
    block.device = used->device;
  } else if (event == Event::kFreeCompleted) {
    Space& freed = At(freed_, block.device);
    Block* const completed = freed.Find(merged.record.address);
    if (completed == nullptr) return;
    block = *completed;
    freed.Remove(completed);
  }
  Emit(event, merged, merged.record.ticks, block, rows);
}

void SpoolConverter::Free(const MergedRecord& merged, RowColumns* rows) {
  Space& live = At(live_, merged.detail.device);
  Block* const block = live.Find(merged.record.address);
  if (block == nullptr) {
    ++unmatched_frees_;
    return;
  }
  const Block freed = *block;
  live.Remove(block);
  if (freed.used_elsewhere) At(freed_, freed.device).Insert(merged.record.address, freed);
  Emit(Event::kFree, merged, merged.record.ticks, freed, rows);
}

void SpoolConverter::Allocate(const MergedRecord& merged, RowColumns* rows) {
  Space& live = At(live_, merged.detail.device);
  if (Block* const block = live.Find(merged.record.address)) {
    const Block old = *block;
    live.Remove(block);
    MergedRecord late{};
    if (TakeLateFree(merged, &late)) {
      Emit(Event::kFree, late, merged.record.ticks, old, rows);
    } else {
      ++reused_addresses_;
    }
  }
  if (merged.kind() == spool::Kind::kDevice) {
    Space& freed = At(freed_, merged.detail.device);
    if (Block* const old = freed.Find(merged.record.address)) freed.Remove(old);
  }
  Block block = PlaceOf(merged);
  block.id = next_id_++;
  block.size = static_cast<std::int64_t>(merged.value());
  block.thread = merged.thread;
  block.scope = merged.record.scope;
  block.stack = merged.record.stack;
  live.Insert(merged.record.address, block);
  Emit(Event::kAlloc, merged, merged.record.ticks, block, rows);
}

// A free that another thread stamped a moment too late. It is one only if the next record of this
// address is a free by another thread and the one after it, if near, is a free again: otherwise it
// is the new block's own.
bool SpoolConverter::TakeLateFree(const MergedRecord& alloc, MergedRecord* late) {
  MergedRecord further{};
  while (ahead_.size() < kLateFreeWindow && Merge(&further)) ahead_.push_back(further);
  MergedRecord* candidate = nullptr;
  for (MergedRecord& next : ahead_) {
    const bool is_free = EventOf(next) == Event::kFree;
    if ((!is_free && EventOf(next) != Event::kAlloc) ||
        next.record.address != alloc.record.address ||
        SpaceOf(next.detail.device) != SpaceOf(alloc.detail.device)) {
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
  taken_.push_back(TakenRecord::Of(*candidate));
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

SpoolConverter::Space& SpoolConverter::At(Spaces& spaces, std::uint16_t device) {
  return spaces[SpaceOf(device)];
}

void SpoolConverter::EmitKeyFrame(RowColumns* rows) {
  for (const Block& block : key_frame_) {
    MergedRecord merged{};
    merged.thread = block.thread;
    merged.record.scope = block.scope;
    merged.record.stack = block.stack;
    Emit(Event::kLive, merged, 0, block, rows);
  }
  key_frame_.clear();
}

void SpoolConverter::Emit(Event event, const MergedRecord& merged, std::uint64_t ticks,
                          const Block& block, RowColumns* rows) {
  const bool is_device = merged.kind() == spool::Kind::kDevice;
  last_time_ = std::max(last_time_, clock_(ticks));
  rows->time_ns.push_back(last_time_);
  rows->event.push_back(static_cast<std::uint8_t>(event));
  rows->id.push_back(block.id);
  rows->size.push_back(block.size);
  rows->device.push_back(block.device);
  rows->stream.push_back(block.stream);
  rows->thread.push_back(merged.thread);
  rows->pool.push_back(block.pool);
  rows->step.push_back(steps_seen_ ? step_ : -1);
  rows->phase.push_back(phase_);
  rows->scope.push_back(ScopePlace(merged.record.scope));
  rows->stack.push_back(merged.record.stack);
  rows->duration_ns.push_back(
      is_device && merged.detail.ticks != 0 ? clock_.Span(merged.detail.ticks) : -1);
  rows->value.push_back(is_device && merged.detail.has_value != 0
                            ? static_cast<std::int64_t>(merged.detail.kind_and_value >> 8)
                            : -1);
  std::int64_t label = -1;
  if (event == Event::kMark) label = static_cast<std::int64_t>(merged.value());
  if (event == Event::kSample) label = static_cast<std::int64_t>(merged.record.address);
  rows->label.push_back(label);
  ++rows_;
}

}  // namespace workbench
