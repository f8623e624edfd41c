// The Python face of the check of a recorded history.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "allocators/history_check.h"
#include "bindings_columns.h"
#include "bindings_events.h"
#include "core/errors.h"

using namespace nanobind::literals;

namespace workbench {
namespace {

using caching::HeldBlock;
using caching::HeldSegment;
using caching::HistoryResult;

template <class T>
Column<T> column(const nb::dict& columns, const char* name) {
  return nb::cast<Column<T>>(columns[name]);
}

std::vector<caching::RecordedSegment> segments_of(const nb::dict& columns) {
  const auto address = column<std::uint64_t>(columns, "address");
  const auto size = column<std::int64_t>(columns, "size");
  const auto stream = column<std::int32_t>(columns, "stream");
  const auto small = column<std::uint8_t>(columns, "is_small");
  const auto expandable = column<std::uint8_t>(columns, "is_expandable");
  std::vector<caching::RecordedSegment> segments(address.size());
  for (std::size_t i = 0; i < segments.size(); ++i) {
    segments[i] = {address(i), size(i), stream(i), small(i) != 0, expandable(i) != 0};
  }
  return segments;
}

std::vector<caching::RecordedBlock> blocks_of(const nb::dict& columns) {
  const auto address = column<std::uint64_t>(columns, "address");
  const auto size = column<std::int64_t>(columns, "size");
  const auto requested = column<std::int64_t>(columns, "requested");
  const auto pending = column<std::uint8_t>(columns, "pending");
  const auto slack = column<std::int64_t>(columns, "slack");
  std::vector<caching::RecordedBlock> blocks(address.size());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = {address(i), size(i), requested(i), pending(i) != 0, slack(i)};
  }
  return blocks;
}

std::vector<caching::RecordedEntry> entries_of(const nb::dict& columns) {
  const auto action = column<std::uint8_t>(columns, "action");
  const auto address = column<std::uint64_t>(columns, "address");
  const auto size = column<std::int64_t>(columns, "size");
  const auto stream = column<std::int32_t>(columns, "stream");
  std::vector<caching::RecordedEntry> entries(action.size());
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (action(i) >= kActionNames.size()) throw InputError("an action that is none");
    entries[i] = {static_cast<Action>(action(i)), address(i), size(i), stream(i)};
  }
  return entries;
}

nb::object difference_dict(const std::optional<caching::Difference>& difference) {
  if (!difference) return nb::none();
  nb::dict answer;
  answer["entry"] = difference->entry;
  answer["problem"] = difference->problem;
  answer["recorded_address"] = difference->recorded_address;
  answer["recorded_size"] = difference->recorded_size;
  answer["address"] = difference->address;
  answer["size"] = difference->size;
  return answer;
}

nb::dict held_segments(const std::vector<HeldSegment>& segments) {
  nb::dict columns;
  columns["address"] = numpy_of(segments, [](const HeldSegment& s) { return s.address; });
  columns["size"] = numpy_of(segments, [](const HeldSegment& s) { return s.size; });
  columns["stream"] = numpy_of(segments, [](const HeldSegment& s) { return s.lane.stream; });
  columns["pool"] = numpy_of(segments, [](const HeldSegment& s) { return s.lane.pool; });
  columns["is_small"] = numpy_of(
      segments, [](const HeldSegment& s) { return static_cast<std::uint8_t>(s.is_small); });
  columns["is_expandable"] = numpy_of(
      segments, [](const HeldSegment& s) { return static_cast<std::uint8_t>(s.is_expandable); });
  return columns;
}

nb::dict held_blocks(const std::vector<HeldBlock>& blocks) {
  nb::dict columns;
  columns["address"] = numpy_of(blocks, [](const HeldBlock& b) { return b.address; });
  columns["size"] = numpy_of(blocks, [](const HeldBlock& b) { return b.size; });
  columns["requested"] = numpy_of(blocks, [](const HeldBlock& b) { return b.requested; });
  // The codes of recorders/trace/history.py: inactive, allocated, pending.
  columns["state"] = numpy_of(blocks, [](const HeldBlock& b) {
    return static_cast<std::uint8_t>(b.state == BlockState::kInactive          ? 0
                                     : b.state == BlockState::kActiveAllocated ? 1
                                                                               : 2);
  });
  columns["entry"] = numpy_of(blocks, [](const HeldBlock& b) { return b.entry; });
  return columns;
}

caching::Learning learning_of(const std::string& name) {
  if (name == "nothing") return caching::Learning::kNothing;
  if (name == "order") return caching::Learning::kOrder;
  if (name == "size") return caching::Learning::kSize;
  throw InputError("learning is one of: nothing, order, size");
}

nb::dict check_history(const nb::dict& segments, const nb::dict& blocks, const nb::dict& entries,
                       const nb::dict& lanes, const std::string& settings,
                       const std::string& learning, std::optional<std::size_t> state_at) {
  const caching::History history = {
      segments_of(segments), blocks_of(blocks), entries_of(entries),
      lanes_of(column<std::int32_t>(lanes, "stream"), column<std::int32_t>(lanes, "pool"))};
  HistoryResult result;
  {
    const nb::gil_scoped_release release;
    result = caching::HistoryCheck(history, settings, learning_of(learning), state_at).run();
  }
  nb::dict answer;
  answer["difference"] = difference_dict(result.difference);
  nb::list order;
  for (const auto& [first, second] : result.created_before) {
    order.append(nb::make_tuple(first, second));
  }
  answer["created_before"] = order;
  nb::dict slacks;
  for (const auto& [place, bytes] : result.slacks) slacks[nb::int_(place)] = bytes;
  answer["slacks"] = slacks;
  answer["segments"] = held_segments(result.segments);
  answer["blocks"] = held_blocks(result.blocks);
  answer["reserved"] = numpy(std::move(result.reserved));
  answer["allocated"] = numpy(std::move(result.allocated));
  answer["flushes"] = numpy(std::move(result.flushes));
  answer["deduced"] = result.deduced;
  answer["collected"] = result.collected;
  answer["pool_releases"] = result.pool_releases;
  answer["begins_in_request"] = result.begins_in_request;
  return answer;
}

}  // namespace

void bind_history(nb::module_& m) {
  m.def("check_history", &check_history, "segments"_a, "blocks"_a, "entries"_a, nb::kw_only(),
        "lanes"_a, "settings"_a, "learning"_a, "state_at"_a = nb::none());
}

}  // namespace workbench
