// Python's side of what calls of a driver cost: prices, times, and measuring them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/cuda.h"
#include "bindings_columns.h"
#include "core/driver_prices.h"
#include "core/errors.h"
#include "replayer/replay.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace workbench {
namespace {

nb::str name_of(DriverCall kind) {
  const std::string_view name = kDriverCallNames[static_cast<std::size_t>(kind)];
  return nb::str(name.data(), name.size());
}

nb::object priced_calls_dict(const std::vector<PricedTotal>& totals) {
  nb::dict kinds;
  for (const PricedTotal& total : totals) {
    nb::dict one;
    one["count"] = total.count;
    one["total_ns"] = std::llround(total.nanoseconds);
    kinds[name_of(total.kind)] = one;
  }
  return kinds;
}

}  // namespace

// What the driver's calls took, by kind, or would have cost; None where there is no driver and no
// prices, or nothing was measured.
nb::object driver_time_dict(const MemoryResult& result) {
  const DriverTimes& times = result.driver_times;
  if (result.priced_calls) return priced_calls_dict(*result.priced_calls);
  if (times.empty()) return nb::none();
  nb::dict kinds;
  for (std::size_t kind = 0; kind < times.size(); ++kind) {
    const Durations& durations = times[kind];
    if (durations.count() == 0) continue;
    nb::dict one;
    one["count"] = durations.count();
    one["total_ns"] = durations.total();
    one["p50_ns"] = durations.quantile(0.5);
    one["p99_ns"] = durations.quantile(0.99);
    one["max_ns"] = durations.longest();
    kinds[name_of(static_cast<DriverCall>(kind))] = one;
  }
  return kinds;
}

namespace {

// What a calibration finds, for Python.
class Findings final : public CalibrationSink {
 public:
  explicit Findings(nb::handle progress) : progress_(progress) {}

  void fact(const std::string& name, const std::string& value) override { facts_[name] = value; }
  void call(DriverCall kind, Bytes size, std::vector<std::uint64_t> nanoseconds) override {
    calls_.push_back({kind, size, std::move(nanoseconds)});
  }
  void progress(std::size_t done, std::size_t total) override {
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!progress_.is_none()) progress_(done, total);
  }

  nb::dict take() {
    nb::dict facts;
    for (const auto& [name, value] : facts_) facts[nb::str(name.c_str())] = nb::str(value.c_str());
    nb::list calls;
    for (Call& call : calls_) {
      calls.append(
          nb::make_tuple(name_of(call.kind), call.size, numpy(std::move(call.nanoseconds))));
    }
    nb::dict answer;
    answer["facts"] = facts;
    answer["calls"] = calls;
    return answer;
  }

 private:
  struct Call {
    DriverCall kind;
    Bytes size;
    std::vector<std::uint64_t> nanoseconds;
  };

  const nb::handle progress_;
  std::map<std::string, std::string> facts_;
  std::vector<Call> calls_;
};

nb::dict py_calibrate(Bytes capacity, std::size_t rounds, const nb::object& progress) {
  if (capacity <= 0) throw InputError("capacity must be above 0 bytes");
  Findings findings(progress);
  {
    const nb::gil_scoped_release release;
    calibrate_cuda({capacity, rounds}, findings);
  }
  return findings.take();
}

}  // namespace

void bind_driver(nb::module_& m) {
  nb::class_<DriverPrices>(m, "DriverPrices")
      .def(nb::init<const std::map<std::string, std::vector<DriverPrices::Point>>&>(), "prices"_a)
      .def(
          "of",
          [](const DriverPrices& prices, const std::string& kind, Bytes size) {
            for (std::size_t i = 0; i < kDriverCallNames.size(); ++i) {
              const auto call = static_cast<DriverCall>(i);
              if (kDriverCallNames[i] == kind && call != DriverCall::kGate) {
                return prices.of(call, size);
              }
            }
            throw InputError("there is no kind of driver call '" + kind + "'");
          },
          "kind"_a, "size"_a);
  m.def("calibrate", &py_calibrate, "capacity"_a, "rounds"_a, "progress"_a = nb::none());
}

}  // namespace workbench
