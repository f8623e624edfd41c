// The peaks that PyTorch's CUDA allocator reports of itself, for the trace's metadata.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "hook_face.h"

namespace workbench {

class CudaPeaks {
 public:
  using Allocator = c10::cuda::CUDACachingAllocator::CUDAAllocator;

  explicit CudaPeaks(const HookFace& face) : face_(face) {}

  // What they are before anything is recorded: where memory was handed out already, the trace
  // cannot reach the peak.
  void begin(Allocator& allocator, int devices);
  // Keeps what is about to be reset.
  void keep(Allocator& allocator, int device);
  // Tells them in `names`.
  void tell(Allocator& allocator, const std::vector<int>& devices);

 private:
  struct Peaks {
    std::int64_t requested = 0;
    std::int64_t allocated = 0;
    std::int64_t active = 0;
    std::int64_t reserved = 0;
    std::int64_t requested_before = 0;
  };

  const HookFace& face_;
  std::mutex mutex_;
  std::map<int, Peaks> peaks_;
};

}  // namespace workbench
