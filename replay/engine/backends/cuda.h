// The backend `cuda` is a library of its own, loaded when it is asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/driver_times.h"
#include "core/units.h"

namespace workbench {

// Names folders below which Python's packages lie; some bring the CUDA runtime.
void look_for_cuda_in(std::vector<std::string> (*folders)());

struct CalibrationOptions {
  Bytes capacity;      // taken of the device at once, at most
  std::size_t rounds;  // in each of which every call is made once
};

// Told what a calibration finds: cuda/calibration.h.
class CalibrationSink {
 public:
  virtual ~CalibrationSink() = default;
  // About the device, or the rules of its pool.
  virtual void fact(const std::string& name, const std::string& value) = 0;
  // How long a call took each time; `size` is 0 where there is none.
  virtual void call(DriverCall kind, Bytes size, std::vector<std::uint64_t> nanoseconds) = 0;
  // Now and then; may throw to end it.
  virtual void progress(std::size_t done, std::size_t total) = 0;
};

// Measures what the calls of this device's driver cost. Throws UnavailableError where there is
// none, and EngineError where the driver failed.
void calibrate_cuda(const CalibrationOptions& options, CalibrationSink& sink);

}  // namespace workbench
