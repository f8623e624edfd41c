// What the engine finds in this library by name: backends/cuda.cpp.
#include <cstdlib>
#include <string>

#include "cuda/calibration.h"
#include "cuda/device.h"

#define WORKBENCH_EXPORT extern "C" __attribute__((visibility("default")))

WORKBENCH_EXPORT const char* workbench_cuda_unavailable() {
  // Streams that share one of the device's queues would wait for each other's gates. Read when the
  // device is first used.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
  static thread_local std::string reason;
  reason = workbench::cuda::unavailable();
  return reason.c_str();
}

WORKBENCH_EXPORT workbench::Backend* workbench_cuda_create(
    const workbench::BackendOptions& options) {
  return new workbench::cuda::Device(options);
}

WORKBENCH_EXPORT void workbench_cuda_calibrate(const workbench::CalibrationOptions& options,
                                               workbench::CalibrationSink& sink) {
  workbench::cuda::Bench bench(options.capacity);
  bench.describe(sink);
  workbench::cuda::find_pool_rules(bench, sink);
  workbench::cuda::Prices(bench, sink).measure(options.rounds);
}
