// The events of a trace, as Python gives them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <utility>
#include <vector>

#include "bindings_columns.h"
#include "core/errors.h"
#include "core/events.h"

namespace workbench {

using LaneColumn = std::optional<Column<std::int32_t>>;

inline std::vector<PoolStream> lanes_of(const LaneColumn& stream, const LaneColumn& pool) {
  const std::size_t count = stream ? stream->size() : 0;
  if (count != (pool ? pool->size() : 0)) {
    throw InputError("lane_stream and lane_pool differ in length; pass one of each for every lane");
  }
  std::vector<PoolStream> lanes(count);
  for (std::size_t i = 0; i < count; ++i) lanes[i] = {(*stream)(i), (*pool)(i)};
  return lanes;
}

struct PyEvents {
  PyEvents(Column<std::uint8_t> op_column, Column<std::int32_t> slot_column,
           Column<std::int64_t> size_column, Column<std::int32_t> stream_column,
           Column<std::int32_t> thread_column, std::int32_t slot_count,
           std::optional<Column<std::int32_t>> step_column,
           std::optional<Column<std::int64_t>> value_column, const LaneColumn& lane_stream,
           const LaneColumn& lane_pool)
      : op(std::move(op_column)),
        slot(std::move(slot_column)),
        size(std::move(size_column)),
        stream(std::move(stream_column)),
        thread(std::move(thread_column)),
        step(std::move(step_column)),
        value(std::move(value_column)),
        lanes(lanes_of(lane_stream, lane_pool)),
        events{view(op),
               view(slot),
               view(size),
               view(stream),
               view(thread),
               slot_count,
               step ? view(*step) : std::span<const std::int32_t>(),
               value ? view(*value) : std::span<const std::int64_t>(),
               lanes} {
    check_events(events);
  }

  const Column<std::uint8_t> op;
  const Column<std::int32_t> slot;
  const Column<std::int64_t> size;
  const Column<std::int32_t> stream;
  const Column<std::int32_t> thread;
  const std::optional<Column<std::int32_t>> step;
  const std::optional<Column<std::int64_t>> value;
  const std::vector<PoolStream> lanes;
  const Events events;
};

}  // namespace workbench
