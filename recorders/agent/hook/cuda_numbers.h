// Numbers that stand for streams and private pools of CUDA devices, in order of their first use on
// the device, and what devices are: told once in `names`.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hook_face.h"

namespace workbench {

class CudaNumbers {
 public:
  explicit CudaNumbers(const HookFace& face) : face_(face) {}

  // 0 is the default stream. `external`: made by others than PyTorch, where that is known.
  std::int32_t stream(int device, cudaStream_t stream, std::optional<bool> external = {});
  // 0 is the default pool.
  std::uint32_t pool(int device, c10::MempoolId_t id);
  // Devices that something was recorded of.
  std::vector<int> devices();

  // Tells once what the device is and what others than PyTorch hold of it.
  void meet_device(int device, c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator);

 private:
  struct Known {
    int device;
    bool is_met = false;
    std::vector<cudaStream_t> streams;
    std::vector<c10::MempoolId_t> pools;
  };

  Known& known(int device);

  const HookFace& face_;
  std::mutex mutex_;
  std::uint64_t session_ = 0;  // that all this belongs to
  std::vector<Known> known_;
};

// As a string of JSON.
std::string quoted(const std::string& text);

}  // namespace workbench
