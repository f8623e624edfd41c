// The engine's Python face. Only bindings*.cpp know nanobind.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <utility>

#include "backends/cuda.h"
#include "bindings_columns.h"
#include "bindings_events.h"
#include "core/clock.h"
#include "core/last_words.h"
#include "planners/planner.h"
#include "replayer/replay.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace workbench {

nb::object driver_time_dict(const MemoryResult& result);  // bindings_driver.cpp
void bind_driver(nb::module_& m);
void bind_history(nb::module_& m);  // bindings_history.cpp
void bind_plan(nb::module_& m);     // bindings_plan.cpp

namespace {

nb::tuple py_assign_slots(const Column<std::uint8_t>& op, const Column<std::int64_t>& id) {
  std::vector<std::int32_t> slots(op.size());
  std::int32_t count = 0;
  {
    const nb::gil_scoped_release release;
    count = assign_slots(view(op), view(id), slots);
  }
  return nb::make_tuple(numpy(std::move(slots)), count);
}

// Lets Ctrl-C through and reports progress.
Checkpoint make_checkpoint(std::size_t total, nb::handle progress = nb::none()) {
  return [total, progress](std::size_t done) {
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!progress.is_none()) progress(done, total);
  };
}

State parse_state(const std::string& text) {
  if (text == "cold") return State::kCold;
  if (text == "steady") return State::kSteady;
  throw InputError("state '" + text + "' is unknown; use cold or steady");
}

const char* outcome(bool out_of_memory, bool mismatched) {
  if (mismatched) return "plan_mismatch";
  return out_of_memory ? "out_of_memory" : "ok";
}

nb::object digest_or_none(const std::string& digest) {
  return digest.empty() ? nb::none() : nb::object(nb::str(digest.c_str()));
}

nb::object capacity_or_none(Bytes bytes) {
  return bytes == kUnlimited ? nb::none() : nb::object(nb::int_(bytes));
}

nb::dict waterfall_dict(const Waterfall& waterfall) {
  nb::dict parts;
  parts["live_requested"] = waterfall.live_requested;
  parts["rounding"] = waterfall.rounding;
  parts["pending"] = waterfall.pending;
  parts["stranded"] = waterfall.stranded;
  parts["cached"] = waterfall.cached;
  return parts;
}

// A number that the allocator tells, or None.
nb::object told(bool is_reported, std::int64_t value) {
  return is_reported ? nb::object(nb::int_(value)) : nb::none();
}

// Whether the parts of reserved memory are known.
bool tells_waterfall(const Reported& reported) {
  return reported.allocated && reported.active && reported.reserved && reported.stranded;
}

// Whether a column of the timeline is.
bool tells(const Reported& reported, std::size_t column) {
  switch (column) {
    case Sample::kRequested:
      return reported.requested;
    case Sample::kAllocated:
      return reported.allocated;
    case Sample::kActive:
      return reported.active;
    case Sample::kReserved:
      return reported.reserved;
    case Sample::kSegments:
      return reported.segments;
    case Sample::kLargestFree:
      return reported.largest_free;
    default:  // live requested bytes are the program's
      return true;
  }
}

nb::object oom_dict(const std::optional<OutOfMemory>& oom, const Reported& reported) {
  if (!oom) return nb::none();
  nb::dict result;
  result["event"] = oom->event;
  result["requested"] = oom->requested;
  result["allocated"] = told(reported.allocated, oom->allocated);
  result["reserved"] = told(reported.reserved, oom->reserved);
  result["active"] = told(reported.active, oom->active);
  result["live_requested"] = oom->live_requested;
  result["largest_free"] = told(reported.largest_free, oom->largest_free);
  result["device_free"] = capacity_or_none(oom->device_free);
  result["waterfall"] =
      tells_waterfall(reported) ? nb::object(waterfall_dict(oom->waterfall)) : nb::none();
  if (!oom->message.empty()) result["message"] = oom->message;
  return result;
}

nb::object mismatch_dict(const std::optional<PlanMismatch>& mismatch) {
  if (!mismatch) return nb::none();
  nb::dict result;
  result["event"] = mismatch->event;
  result["id"] = mismatch->id;
  result["expected"] = mismatch->expected;
  result["got"] = mismatch->got;
  return result;
}

nb::object plan_dict(const std::optional<PlanStatistics>& plan) {
  if (!plan) return nb::none();
  nb::dict result;
  result["planned"] = plan->planned;
  result["unmanaged"] = plan->unmanaged;
  result["other_threads"] = plan->other_threads;
  result["outside"] = plan->outside;
  result["mismatches"] = plan->mismatches;
  result["fallback"] = plan->fallback;
  result["fallback_bytes"] = plan->fallback_bytes;
  result["peak_fallback_bytes"] = plan->peak_fallback;
  result["arena_bytes"] = plan->arena;
  return result;
}

nb::dict bucket_columns(const std::vector<Bucket>& buckets, const Reported& reported) {
  nb::dict timeline;
  timeline["event_first"] = numpy_of(buckets, [](const Bucket& b) { return b.first_event; });
  timeline["event_last"] = numpy_of(buckets, [](const Bucket& b) { return b.last_event; });
  for (std::size_t column = 0; column < Sample::kNames.size(); ++column) {
    if (!tells(reported, column)) continue;
    const std::string name = Sample::kNames[column];
    timeline[(name + "_min").c_str()] =
        numpy_of(buckets, [column](const Bucket& b) { return b.lowest.values[column]; });
    timeline[(name + "_max").c_str()] =
        numpy_of(buckets, [column](const Bucket& b) { return b.highest.values[column]; });
  }
  return timeline;
}

nb::dict full_columns(const std::vector<FullRow>& rows) {
  nb::dict timeline;
  const auto add = [&](const char* name, auto&& get) { timeline[name] = numpy_of(rows, get); };
  for (std::size_t column = 0; column < Sample::kNames.size(); ++column) {
    add(Sample::kNames[column], [column](const FullRow& r) { return r.sample.values[column]; });
  }
  add("inactive_split", [](const FullRow& r) { return r.statistics.inactive_split; });
  add("stranded", [](const FullRow& r) { return r.statistics.stranded; });
  add("n_alloc", [](const FullRow& r) { return r.statistics.n_alloc; });
  add("n_segment", [](const FullRow& r) { return r.statistics.n_segment; });
  add("n_active", [](const FullRow& r) { return r.statistics.n_active; });
  add("n_inactive_split", [](const FullRow& r) { return r.statistics.n_inactive_split; });
  add("retries", [](const FullRow& r) { return r.statistics.retries; });
  add("ooms", [](const FullRow& r) { return r.statistics.ooms; });
  add("device_allocs", [](const FullRow& r) { return r.statistics.device_allocs; });
  add("device_frees", [](const FullRow& r) { return r.statistics.device_frees; });
  add("hits", [](const FullRow& r) { return r.statistics.hits; });
  add("misses", [](const FullRow& r) { return r.statistics.misses; });
  add("device_used", [](const FullRow& r) { return r.device_used; });
  add("oom", [](const FullRow& r) { return static_cast<std::uint8_t>(r.oom); });
  return timeline;
}

const char* state_name(BlockState state) {
  switch (state) {
    case BlockState::kActiveAllocated:
      return "active_allocated";
    case BlockState::kActivePendingFree:
      return "active_pending_free";
    default:
      return "inactive";
  }
}

nb::object blocks_dict(const std::optional<std::vector<BlockRow>>& blocks) {
  if (!blocks) return nb::none();
  std::vector<BlockView> segments;
  for (const BlockRow& row : *blocks) {
    if (segments.empty() || segments.back().segment != row.view.segment) {
      segments.push_back(row.view);
    }
  }
  const auto integer = [](std::uint64_t value) { return static_cast<std::int64_t>(value); };
  nb::dict segment_columns;
  segment_columns["number"] =
      numpy_of(segments, [&](const BlockView& v) { return integer(v.segment); });
  segment_columns["address"] =
      numpy_of(segments, [](const BlockView& v) { return v.segment_address; });
  segment_columns["size"] = numpy_of(segments, [](const BlockView& v) { return v.segment_size; });
  segment_columns["expandable"] = numpy_of(
      segments, [](const BlockView& v) { return static_cast<std::uint8_t>(v.expandable); });
  segment_columns["stream"] = numpy_of(segments, [](const BlockView& v) { return v.stream; });
  segment_columns["private_pool"] =
      numpy_of(segments, [](const BlockView& v) { return v.private_pool; });
  nb::list pools;
  for (const BlockView& segment : segments) {
    pools.append(nb::str(segment.pool.data(), segment.pool.size()));
  }
  segment_columns["pool"] = nb::module_::import_("numpy").attr("array")(pools, "dtype"_a = "U16");

  nb::dict block_columns;
  const auto add = [&](const char* name, auto&& get) {
    block_columns[name] = numpy_of(*blocks, get);
  };
  add("segment", [&](const BlockRow& r) { return integer(r.view.segment); });
  add("offset", [&](const BlockRow& r) { return integer(r.view.offset); });
  add("size", [](const BlockRow& r) { return r.view.size; });
  add("requested", [](const BlockRow& r) { return r.view.requested; });
  add("slot_event", [](const BlockRow& r) { return r.alloc_event; });
  nb::list states;
  for (const BlockRow& row : *blocks) states.append(state_name(row.view.state));
  block_columns["state"] = nb::module_::import_("numpy").attr("array")(states, "dtype"_a = "U19");

  nb::dict result;
  result["segments"] = segment_columns;
  result["blocks"] = block_columns;
  return result;
}

nb::dict journal_dict(const std::vector<JournalEntry>& entries) {
  nb::dict columns;
  columns["action"] =
      numpy_of(entries, [](const JournalEntry& e) { return static_cast<std::uint8_t>(e.action); });
  columns["address"] = numpy_of(entries, [](const JournalEntry& e) { return e.address; });
  columns["size"] = numpy_of(entries, [](const JournalEntry& e) { return e.size; });
  columns["stream"] = numpy_of(entries, [](const JournalEntry& e) { return e.stream; });
  columns["pool"] = numpy_of(entries, [](const JournalEntry& e) { return e.pool; });
  columns["event"] = numpy_of(entries, [](const JournalEntry& e) { return e.event; });
  return columns;
}

nb::dict memory_dict(const MemoryResult& result, bool full, bool has_memory) {
  const Reported& reported = result.reported;
  nb::dict peaks;
  nb::dict finals;
  for (std::size_t column = 0; column < Sample::kPeakColumns; ++column) {
    nb::dict peak;
    const bool is_told = tells(reported, column);
    peak["bytes"] = told(is_told, result.peaks[column]);
    peak["event"] = told(is_told, result.peak_events[column]);
    peaks[Sample::kNames[column]] = peak;
    finals[Sample::kNames[column]] = told(is_told, result.finals.values[column]);
  }
  nb::dict calls;
  calls["alloc"] = told(reported.device_calls, result.driver_calls.alloc);
  calls["refused"] = told(reported.device_calls, result.driver_calls.refused);
  calls["free"] = told(reported.device_calls, result.driver_calls.free);
  calls["map"] = told(reported.device_calls, result.driver_calls.map);
  calls["unmap"] = told(reported.device_calls, result.driver_calls.unmap);
  calls["event_record"] = told(reported.device_calls, result.driver_calls.event_record);
  calls["event_wait"] = told(reported.device_calls, result.driver_calls.event_wait);
  calls["pool_alloc"] = told(reported.device_calls, result.driver_calls.pool_alloc);
  calls["pool_free"] = told(reported.device_calls, result.driver_calls.pool_free);
  calls["event_create"] = told(reported.device_calls, result.driver_calls.event_create);
  calls["event_destroy"] = told(reported.device_calls, result.driver_calls.event_destroy);
  calls["stream_wait"] = told(reported.device_calls, result.driver_calls.stream_wait);
  calls["synchronize"] = told(reported.device_calls, result.driver_calls.synchronize);
  const bool device_memory = reported.device_calls && reported.device_memory_calls;
  nb::dict counters;
  counters["retries"] = told(reported.retries, result.statistics.retries);
  counters["ooms"] = result.statistics.ooms;
  counters["hits"] = told(reported.hits, result.statistics.hits);
  counters["misses"] = told(reported.misses, result.statistics.misses);
  counters["device_allocs"] = told(device_memory, result.statistics.device_allocs);
  counters["device_frees"] = told(device_memory, result.statistics.device_frees);
  if (result.statistics.ignored_record_streams > 0) {
    counters["ignored_record_streams"] = result.statistics.ignored_record_streams;
  }

  nb::dict answer;
  answer["outcome"] = outcome(result.oom.has_value(), result.mismatch.has_value());
  answer["oom"] = oom_dict(result.oom, reported);
  answer["ooms"] = result.ooms;
  answer["mismatch"] = mismatch_dict(result.mismatch);
  answer["plan"] = plan_dict(result.plan);
  answer["timeline"] = full ? full_columns(result.rows) : bucket_columns(result.timeline, reported);
  answer["peaks"] = peaks;
  answer["finals"] = finals;
  answer["driver_calls"] = calls;
  answer["driver_time"] = reported.device_calls ? driver_time_dict(result) : nb::none();
  answer["counters"] = counters;
  nb::dict torch_statistics;
  for (const auto& [name, value] : result.torch_statistics) torch_statistics[name.c_str()] = value;
  answer["torch_statistics"] = torch_statistics;
  nb::list warnings;
  for (const std::string& sentence : result.warnings) warnings.append(nb::str(sentence.c_str()));
  answer["warnings"] = warnings;
  answer["waterfall"] =
      tells_waterfall(reported) ? nb::object(waterfall_dict(result.waterfall)) : nb::none();
  answer["active_at_peak"] = told(reported.active && reported.reserved, result.active_at_peak);
  answer["digest"] = digest_or_none(result.digest);
  answer["blocks"] = blocks_dict(result.blocks);
  if (has_memory) {
    answer["rss_growth_bytes"] = result.rss_growth;
    answer["minor_faults"] = result.minor_faults;
    answer["major_faults"] = result.major_faults;
  }
  return answer;
}

class PyReplay {
 public:
  PyReplay(const PyEvents& events, std::string allocator, std::string settings, std::string backend,
           std::optional<Bytes> capacity, const std::string& completion,
           const std::string& after_oom, const std::string& order, std::shared_ptr<const Plan> plan,
           std::shared_ptr<const DriverPrices> prices)
      : replay_(events.events, {.allocator = std::move(allocator),
                                .settings = std::move(settings),
                                .backend = std::move(backend),
                                .backend_options = {.capacity = capacity.value_or(kUnlimited),
                                                    .completion = Completion::parse(completion),
                                                    .prices = std::move(prices)},
                                .continue_after_oom = after_oom == "continue",
                                .order = parse_order(order),
                                .plan = std::move(plan)}) {
    if (capacity && *capacity <= 0) throw InputError("capacity must be above 0 bytes");
    if (after_oom != "stop" && after_oom != "continue") {
      throw InputError("after_oom '" + after_oom + "' is unknown; use stop or continue");
    }
  }

  nb::dict memory(std::size_t buckets, bool full, std::optional<std::size_t> blocks_at, bool verify,
                  bool journal, bool ranges, nb::object progress) const {
    const MemoryOptions options = {buckets, full, blocks_at, verify, ranges, journal};
    const Checkpoint checkpoint = make_checkpoint(replay_.events().count(), progress);
    MemoryResult result;
    {
      const nb::gil_scoped_release release;
      result = replay_.memory(options, checkpoint);
    }
    nb::dict answer = memory_dict(result, full, replay_.backend_has_memory());
    if (journal) answer["journal"] = journal_dict(result.journal);
    return answer;
  }

  nb::dict timed(const std::string& state, bool digest) const {
    const State parsed = parse_state(state);
    const Checkpoint checkpoint = make_checkpoint(replay_.events().count());
    TimedResult result;
    {
      const nb::gil_scoped_release release;
      clock_costs();
      result = replay_.timed(parsed, digest, checkpoint);
    }
    nb::dict answer;
    answer["ticks"] = numpy(std::move(result.ticks));
    answer["cause"] = numpy(std::move(result.causes));
    nb::list causes;
    for (const std::string_view name : kCauseNames)
      causes.append(nb::str(name.data(), name.size()));
    answer["causes"] = causes;
    answer["ns_per_tick"] = clock_costs().ns_per_tick;
    answer["clock_cost_ns"] = clock_costs().pair_ns;
    answer["digest"] = digest_or_none(result.digest);
    answer["pass_ns"] = result.nanoseconds;
    answer["outcome"] = outcome(result.out_of_memory, result.mismatched);
    return answer;
  }

  nb::dict throughput(const std::string& state, std::size_t repeat) const {
    const State parsed = parse_state(state);
    const Checkpoint checkpoint = make_checkpoint(replay_.events().count());
    ThroughputResult result;
    {
      const nb::gil_scoped_release release;
      result = replay_.throughput(parsed, repeat, checkpoint);
    }
    nb::dict answer;
    answer["ns"] = result.nanoseconds;
    answer["events"] = replay_.events().count();
    answer["outcome"] = outcome(result.out_of_memory, result.mismatched);
    return answer;
  }

  std::vector<std::string> warnings() const { return replay_.warnings(); }
  bool has_memory() const { return replay_.backend_has_memory(); }
  bool has_bytes() const { return replay_.backend_has_bytes(); }
  bool starts_afresh() const { return replay_.starts_afresh(); }
  std::shared_ptr<const Plan> plan() const { return replay_.plan(); }
  std::size_t threads() const { return replay_.threads(); }

 private:
  const Replay replay_;
};

nb::list list_allocators() {
  nb::list list;
  for (const AllocatorEntry& entry : allocator_registry().entries()) {
    if (entry.hidden) continue;
    nb::dict settings;
    for (const SettingHelp& setting : entry.settings) settings[setting.key.c_str()] = setting.help;
    nb::dict item;
    item["name"] = entry.name;
    item["summary"] = entry.summary;
    item["kind"] = kAllocatorKindNames[static_cast<std::size_t>(entry.kind)];
    item["settings"] = settings;
    item["runs_plan"] = entry.runs_plan;
    item["needs_library"] = entry.needs_library;
    item["latency_source"] = entry.needs_library ? "library" : "ours";
    item["is_model"] = entry.is_model;
    item["passes_calls_on"] = entry.passes_calls_on;
    item["available"] = true;
    item["reason"] = "";
    list.append(item);
  }
  return list;
}

void check_settings(const std::string& name, const std::string& text) {
  const AllocatorEntry& entry = allocator_registry().get(name);
  const Settings settings(text, name, entry.settings);
  if (entry.check_settings) entry.check_settings(settings);
}

nb::list list_backends() {
  nb::list list;
  for (const BackendEntry& entry : backend_registry().entries()) {
    if (entry.hidden) continue;
    const std::string reason = entry.unavailable();
    nb::dict item;
    item["name"] = entry.name;
    item["summary"] = entry.summary;
    item["available"] = reason.empty();
    item["reason"] = reason;
    item["is_model"] = entry.is_model;
    list.append(item);
  }
  return list;
}

// Where Python looks for packages: NVIDIA's and torch's bring the CUDA runtime.
std::vector<std::string> python_folders() {
  const nb::gil_scoped_acquire acquire;
  std::vector<std::string> folders;
  for (const nb::handle entry : nb::module_::import_("sys").attr("path")) {
    if (nb::isinstance<nb::str>(entry)) folders.push_back(nb::cast<std::string>(entry));
  }
  return folders;
}

}  // namespace
}  // namespace workbench

NB_MODULE(_engine, m) {
  using namespace workbench;
  m.doc() = "The replay engine.";
  look_for_cuda_in(&python_folders);
  for (const std::string& fault :
       {allocator_registry().fault(), backend_registry().fault(), planner_registry().fault()}) {
    if (!fault.empty()) throw nb::import_error(fault.c_str());
  }

  // A subclass of RuntimeError: those who do not tell faults of libraries apart need not.
  nb::exception<LibraryFaultError>(m, "LibraryFault", PyExc_RuntimeError);
  nb::exception<DamagedBlockError>(m, "DamagedBlock", PyExc_RuntimeError);
  nb::exception<UnavailableError>(m, "UnavailableError", PyExc_RuntimeError);

  nb::dict ops;
  for (std::size_t code = 0; code < kOpNames.size(); ++code) {
    ops[nb::str(kOpNames[code].data(), kOpNames[code].size())] = code;
  }
  m.attr("OPS") = ops;
  nb::dict actions;
  for (std::size_t code = 0; code < kActionNames.size(); ++code) {
    actions[nb::str(kActionNames[code].data(), kActionNames[code].size())] = code;
  }
  m.attr("JOURNAL_ACTIONS") = actions;
  m.def("allocators", &list_allocators);
  m.def("backends", &list_backends);
  m.def("keep_last_words", &LastWords::keep_in, "path"_a);
  m.def("check_settings", &check_settings, "allocator"_a, "settings"_a);
  m.def("assign_slots", &py_assign_slots, "op"_a, "id"_a);

  bind_driver(m);
  bind_history(m);
  bind_plan(m);

  nb::class_<PyEvents>(m, "Events")
      .def(nb::init<Column<std::uint8_t>, Column<std::int32_t>, Column<std::int64_t>,
                    Column<std::int32_t>, Column<std::int32_t>, std::int32_t,
                    std::optional<Column<std::int32_t>>, std::optional<Column<std::int64_t>>,
                    const LaneColumn&, const LaneColumn&>(),
           "op"_a, "slot"_a, "size"_a, "stream"_a, "thread"_a, "slot_count"_a,
           "step"_a = nb::none(), "value"_a = nb::none(), "lane_stream"_a = nb::none(),
           "lane_pool"_a = nb::none())
      .def("__len__", [](const PyEvents& events) { return events.events.count(); });

  nb::class_<PyReplay>(m, "Replay")
      .def(nb::init<const PyEvents&, std::string, std::string, std::string, std::optional<Bytes>,
                    const std::string&, const std::string&, const std::string&,
                    std::shared_ptr<const Plan>, std::shared_ptr<const DriverPrices>>(),
           "events"_a, "allocator"_a, "settings"_a = "", nb::kw_only(), "backend"_a,
           "capacity"_a = nb::none(), "completion"_a = "recorded", "after_oom"_a = "stop",
           "order"_a = "global", "plan"_a = nb::none(), "prices"_a = nb::none(),
           nb::keep_alive<1, 2>())
      .def_prop_ro("warnings", &PyReplay::warnings)
      .def_prop_ro("has_memory", &PyReplay::has_memory)
      .def_prop_ro("has_bytes", &PyReplay::has_bytes)
      .def_prop_ro("starts_afresh", &PyReplay::starts_afresh)
      .def_prop_ro("plan", &PyReplay::plan)
      .def_prop_ro("threads", &PyReplay::threads)
      .def("memory", &PyReplay::memory, "buckets"_a = 20000, "full"_a = false,
           "blocks_at"_a = nb::none(), "verify"_a = false, "journal"_a = false, "ranges"_a = false,
           "progress"_a = nb::none())
      .def("timed", &PyReplay::timed, "state"_a = "cold", "digest"_a = true)
      .def("throughput", &PyReplay::throughput, "state"_a = "cold", "repeat"_a = 1);
}
