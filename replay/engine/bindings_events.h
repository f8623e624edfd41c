// The events of a trace, as Python gives them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <utility>

#include "bindings_columns.h"
#include "core/events.h"

namespace workbench {

struct PyEvents {
  PyEvents(Column<std::uint8_t> op_column, Column<std::int32_t> slot_column,
           Column<std::int64_t> size_column, Column<std::int32_t> stream_column,
           Column<std::int32_t> thread_column, std::int32_t slot_count,
           std::optional<Column<std::int32_t>> step_column,
           std::optional<Column<std::int64_t>> value_column)
      : op(std::move(op_column)),
        slot(std::move(slot_column)),
        size(std::move(size_column)),
        stream(std::move(stream_column)),
        thread(std::move(thread_column)),
        step(std::move(step_column)),
        value(std::move(value_column)),
        events{view(op),
               view(slot),
               view(size),
               view(stream),
               view(thread),
               slot_count,
               step ? view(*step) : std::span<const std::int32_t>(),
               value ? view(*value) : std::span<const std::int64_t>()} {
    check_events(events);
  }

  const Column<std::uint8_t> op;
  const Column<std::int32_t> slot;
  const Column<std::int64_t> size;
  const Column<std::int32_t> stream;
  const Column<std::int32_t> thread;
  const std::optional<Column<std::int32_t>> step;
  const std::optional<Column<std::int64_t>> value;
  const Events events;
};

}  // namespace workbench
