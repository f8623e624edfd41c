#include "cuda_peaks.h"

#include <algorithm>
#include <exception>

namespace workbench {

void CudaPeaks::begin(Allocator& allocator, int devices) {
  const std::lock_guard<std::mutex> locked(mutex_);
  peaks_.clear();
  for (int device = 0; device < devices; ++device) {
    try {
      peaks_[device].requested_before =
          allocator.getDeviceStats(static_cast<c10::DeviceIndex>(device)).requested_bytes[0].peak;
    } catch (const std::exception&) {  // it keeps no statistics
    }
  }
}

void CudaPeaks::keep(Allocator& allocator, int device) {
  const auto stats = allocator.getDeviceStats(static_cast<c10::DeviceIndex>(device));
  const std::lock_guard<std::mutex> locked(mutex_);
  Peaks& kept = peaks_[device];
  kept.requested = std::max(kept.requested, stats.requested_bytes[0].peak);
  kept.allocated = std::max(kept.allocated, stats.allocated_bytes[0].peak);
  kept.active = std::max(kept.active, stats.active_bytes[0].peak);
  kept.reserved = std::max(kept.reserved, stats.reserved_bytes[0].peak);
}

void CudaPeaks::tell(Allocator& allocator, const std::vector<int>& devices) {
  for (const int device : devices) {
    try {
      keep(allocator, device);
    } catch (const std::exception&) {
      continue;
    }
    const std::lock_guard<std::mutex> locked(mutex_);
    const Peaks& kept = peaks_[device];
    const std::string text = "{\"device\": " + std::to_string(device) +
                             ", \"requested\": " + std::to_string(kept.requested) +
                             ", \"allocated\": " + std::to_string(kept.allocated) +
                             ", \"active\": " + std::to_string(kept.active) +
                             ", \"reserved\": " + std::to_string(kept.reserved) +
                             ", \"requested_before\": " + std::to_string(kept.requested_before) +
                             '}';
    face_.define_name("peaks", text.c_str());
  }
}

}  // namespace workbench
