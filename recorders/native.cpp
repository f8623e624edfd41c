// Python's face of what is here in C++; nothing else here knows nanobind.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "clock.h"
#include "json_events.h"
#include "pickle_check.h"
#include "spool_converter.h"
#include "trace_checker.h"
#include "trace_summary.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace workbench {
namespace {

template <typename T>
using Column = nb::ndarray<const T, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Hands the vector's memory to numpy without a copy.
template <typename T>
nb::object ToNumpy(std::vector<T>&& values) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned,
                    [](void* memory) noexcept { delete static_cast<std::vector<T>*>(memory); });
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner));
}

nb::list ToList(const PowerBuckets& buckets) {
  nb::list list;
  for (const std::uint64_t count : buckets) list.append(count);
  return list;
}

template <typename T>
const T* Pointer(const Column<T>& column, std::size_t rows) {
  if (column.shape(0) != rows) throw std::invalid_argument("columns differ in length");
  return column.data();
}

TraceBatch BatchOf(const Column<std::int64_t>& time_ns, const Column<std::uint8_t>& op,
                   const Column<std::int64_t>& id, const Column<std::int64_t>& size,
                   const Column<std::int32_t>& device) {
  const std::size_t rows = time_ns.shape(0);
  return {rows,
          time_ns.data(),
          Pointer(op, rows),
          Pointer(id, rows),
          Pointer(size, rows),
          Pointer(device, rows)};
}

// The control page as a dictionary; ValueError says what is wrong with it.
nb::dict ParseControl(nb::bytes bytes) {
  spool::ControlPage page{};
  if (bytes.size() < sizeof page) throw std::invalid_argument("the control page is cut short");
  std::memcpy(&page, bytes.c_str(), sizeof page);
  if (std::memcmp(page.magic, spool::kMagic, sizeof spool::kMagic) != 0) {
    throw std::invalid_argument("the control page does not begin as one");
  }
  if (page.version != spool::kVersion) {
    throw std::invalid_argument("the spool has version " + std::to_string(page.version) +
                                ", this workbench reads version " +
                                std::to_string(spool::kVersion));
  }
  nb::dict control;
  control["process_id"] = page.process_id;
  control["clock_in_nanoseconds"] = page.clock_kind == spool::ClockKind::kNanoseconds;
  control["stop_reason"] = static_cast<std::uint32_t>(page.stop_reason);
  control["first"] = nb::make_tuple(page.first.ticks, page.first.nanoseconds);
  control["last"] = nb::make_tuple(page.last.ticks, page.last.nanoseconds);
  control["ended"] = page.ended != 0;
  control["lost_events"] = page.lost_events;
  control["zero_byte_allocs"] = page.zero_byte_allocs;
  control["forked_children"] = page.forked_children;
  control["steps_seen"] = page.steps_seen != 0;
  control["removed_bytes"] = page.removed_bytes;
  return control;
}

nb::dict NextRows(SpoolConverter& converter, std::size_t count) {
  RowColumns rows;
  {
    nb::gil_scoped_release released;
    rows = converter.NextRows(count);
  }
  nb::dict columns;
  columns["time_ns"] = ToNumpy(std::move(rows.time_ns));
  columns["event"] = ToNumpy(std::move(rows.event));
  columns["id"] = ToNumpy(std::move(rows.id));
  columns["size"] = ToNumpy(std::move(rows.size));
  columns["device"] = ToNumpy(std::move(rows.device));
  columns["stream"] = ToNumpy(std::move(rows.stream));
  columns["thread"] = ToNumpy(std::move(rows.thread));
  columns["pool"] = ToNumpy(std::move(rows.pool));
  columns["step"] = ToNumpy(std::move(rows.step));
  columns["phase"] = ToNumpy(std::move(rows.phase));
  columns["scope"] = ToNumpy(std::move(rows.scope));
  columns["stack"] = ToNumpy(std::move(rows.stack));
  columns["duration_ns"] = ToNumpy(std::move(rows.duration_ns));
  columns["value"] = ToNumpy(std::move(rows.value));
  columns["label"] = ToNumpy(std::move(rows.label));
  return columns;
}

nb::dict Counts(const SpoolConverter& converter) {
  const SpoolMerge& merge = converter.merge();
  nb::dict counts;
  counts["total_records"] = merge.total_records();
  counts["records_read"] = merge.records_read();
  counts["unreadable_records"] = merge.losses().unreadable_records;
  counts["broken_segments"] = merge.losses().broken_segments;
  counts["missing_segments"] = merge.losses().missing_segments;
  counts["rows_before"] = converter.rows_before();
  counts["unmatched_frees"] = converter.unmatched_frees();
  counts["reused_addresses"] = converter.reused_addresses();
  return counts;
}

nb::list DeviceDicts(const TraceSummary& summary) {
  nb::list devices;
  for (const DeviceSummary& device : summary.devices()) {
    nb::dict entry;
    entry["allocs"] = device.allocs;
    entry["frees"] = device.frees;
    entry["allocated_bytes"] = device.allocated_bytes;
    entry["live_bytes"] = device.live_bytes;
    entry["live_blocks"] = device.live_blocks;
    entry["peak_bytes"] = device.peak_bytes;
    entry["peak_blocks"] = device.peak_blocks;
    entry["peak_row"] = device.peak_row;
    entry["peak_time_ns"] = device.peak_time_ns;
    entry["peak_step"] = device.peak_step;
    entry["peak_phase"] = device.peak_phase;
    devices.append(entry);
  }
  return devices;
}

// (device, is a scope, code, bytes and blocks live at the device's peak) of each group.
nb::list GroupsAtPeak(const TraceSummary& summary) {
  nb::list groups;
  for (const Group& group : summary.groups()) {
    const auto& device = summary.devices()[static_cast<std::size_t>(group.device)];
    const bool changed = group.epoch == device.peak_epoch;
    groups.append(nb::make_tuple(group.device, group.is_scope, group.code,
                                 group.live_bytes - (changed ? group.bytes_since_peak : 0),
                                 group.live_blocks - (changed ? group.blocks_since_peak : 0)));
  }
  return groups;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Spool conversion, trace checks, trace summaries, and the guards of imports.";

  m.def(
      "read_clock",
      [] {
        const spool::ClockPair now = ReadClock();
        return nb::make_tuple(now.ticks, now.nanoseconds);
      },
      nb::sig("def read_clock() -> tuple[int, int]"),
      "Processor ticks and CLOCK_MONOTONIC nanoseconds at one moment.");
  m.attr("REMOVED_BYTES_OFFSET") = offsetof(spool::ControlPage, removed_bytes);
  m.def("parse_control", &ParseControl, "page"_a,
        "The fields of a spool's control page; ValueError says what is wrong with it.");

  m.def(
      "check_pickle",
      [](nb::bytes pickle) {
        const std::string_view view(pickle.c_str(), pickle.size());
        nb::gil_scoped_release released;
        CheckPickle(view);
      },
      "pickle"_a,
      "ValueError, with what is wrong and at which byte, unless the pickle holds plain data only.");

  nb::class_<JsonEvents>(m, "JsonEvents",
                         "Cuts a Chrome trace that arrives in pieces into whole events.")
      .def(nb::init<>())
      .def(
          "feed",
          [](JsonEvents& self, nb::bytes piece) {
            const std::string_view view(piece.c_str(), piece.size());
            std::string found;
            {
              nb::gil_scoped_release released;
              found = self.Feed(view);
            }
            return nb::bytes(found.data(), found.size());
          },
          "piece"_a, "A JSON list of the events that are complete by now; ValueError.")
      .def(
          "finish",
          [](JsonEvents& self) {
            const std::string outside = self.Finish();
            return nb::bytes(outside.data(), outside.size());
          },
          "The trace without its events; ValueError where its end is missing.")
      .def_prop_ro("events_at", &JsonEvents::events_at,
                   "The byte of the whole at which the last list of events begins.");

  nb::class_<SpoolConverter>(m, "SpoolConverter",
                             "Rows of a trace from one process's spool folder.")
      .def(
          "__init__",
          [](SpoolConverter* self, const std::filesystem::path& folder, std::uint64_t first_ticks,
             double nanoseconds_per_tick, bool steps_seen, nb::bytes state, std::uint64_t until,
             std::uint64_t known_until, bool key_frame) {
            SpoolState from;
            if (state.size() != 0) from = SpoolState::FromBytes({state.c_str(), state.size()});
            new (self) SpoolConverter(folder, {first_ticks, nanoseconds_per_tick}, steps_seen,
                                      std::move(from), {until, known_until}, key_frame);
          },
          "folder"_a, "first_ticks"_a, "nanoseconds_per_tick"_a, "steps_seen"_a,
          "state"_a = nb::bytes("", 0), "until"_a = Until::kNever, "known_until"_a = Until::kNever,
          "key_frame"_a = false)
      .def("next_rows", &NextRows, "count"_a,
           "Columns of about `count` further rows, fewer at the end, as numpy arrays.")
      .def(
          "state",
          [](const SpoolConverter& self) {
            const std::string bytes = self.State().ToBytes();
            return nb::bytes(bytes.data(), bytes.size());
          },
          "Where the conversion stands after the rows given so far, for one that goes on.")
      .def(
          "finished",
          [](const SpoolConverter& self) {
            const SpoolState state = self.State();
            nb::list others;
            for (const std::uint64_t sequence : state.finished.others) others.append(sequence);
            return nb::make_tuple(state.finished.below, others);
          },
          "Numbers of the segments that are done with: all below the first, and others.")
      .def("counts", &Counts, "Records read so far, and what could not be used.")
      .def(
          "scopes",
          [](const SpoolConverter& self) {
            return ToNumpy(std::vector<std::uint32_t>(self.scopes()));
          },
          "Scope numbers as the hook wrote them, in order of first use.")
      .def(
          "threads",
          [](const SpoolConverter& self) {
            nb::dict threads;
            for (const auto& [number, id] : self.merge().threads()) threads[nb::cast(number)] = id;
            return threads;
          },
          "Thread number → the operating system's thread id.");

  nb::class_<TraceChecker>(m, "TraceChecker", "Enforces the rules on the order of rows.")
      .def(nb::init<>())
      .def(
          "check",
          [](TraceChecker& self, const Column<std::int64_t>& time_ns,
             const Column<std::uint8_t>& op, const Column<std::int64_t>& id,
             const Column<std::int64_t>& size, const Column<std::int32_t>& device) -> nb::object {
            const TraceBatch batch = BatchOf(time_ns, op, id, size, device);
            std::optional<Violation> broken;
            {
              nb::gil_scoped_release released;
              broken = self.Check(batch);
            }
            if (!broken) return nb::none();
            return nb::make_tuple(static_cast<int>(broken->rule), broken->row, broken->value,
                                  broken->expected);
          },
          "time_ns"_a, "op"_a, "id"_a, "size"_a, "device"_a,
          "None, or (rule, row in the batch, value found, value expected) of the first bad row.");

  nb::class_<TraceSummary>(m, "TraceSummary", "What a checked trace holds.")
      .def(nb::init<>())
      .def(
          "add",
          [](TraceSummary& self, const Column<std::int64_t>& time_ns,
             const Column<std::uint8_t>& op, const Column<std::int64_t>& id,
             const Column<std::int64_t>& size, const Column<std::int32_t>& device,
             const Column<std::int32_t>& step, const Column<std::int32_t>& phase,
             const Column<std::int32_t>& scope) {
            const TraceBatch batch = BatchOf(time_ns, op, id, size, device);
            const std::int32_t* steps = Pointer(step, batch.rows);
            const std::int32_t* phases = Pointer(phase, batch.rows);
            const std::int32_t* scopes = Pointer(scope, batch.rows);
            nb::gil_scoped_release released;
            self.Add(batch, steps, phases, scopes);
          },
          "time_ns"_a, "op"_a, "id"_a, "size"_a, "device"_a, "step"_a, "phase"_a, "scope"_a)
      .def("devices", &DeviceDicts, "Live bytes and their peak, for each device code.")
      .def("groups_at_peak", &GroupsAtPeak,
           "(device, is a scope, code, bytes, blocks) live at the device's peak.")
      .def("size_counts", [](const TraceSummary& self) { return ToList(self.size_counts()); })
      .def("size_bytes", [](const TraceSummary& self) { return ToList(self.size_bytes()); })
      .def("lifetimes_in_events",
           [](const TraceSummary& self) { return ToList(self.lifetimes_in_events()); })
      .def("lifetimes_in_ns",
           [](const TraceSummary& self) { return ToList(self.lifetimes_in_ns()); });
}

}  // namespace workbench
