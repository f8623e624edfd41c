#include "cuda/calls.h"

#include <utility>

#include "core/errors.h"

namespace workbench::cuda {
namespace {

constexpr unsigned kDriverVersion = 12000;  // whose functions are asked for

template <class Function>
void find(const char* name, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, kDriverVersion, cudaEnableDefault, &status);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
#endif
  if (error != cudaSuccess) cudaGetLastError();
  function = error == cudaSuccess && status == cudaDriverEntryPointSuccess
                 ? reinterpret_cast<Function>(found)
                 : nullptr;
}

bool waits_for_values() {
  decltype(&cuDeviceGetAttribute) attribute = nullptr;
  find("cuDeviceGetAttribute", attribute);
  const auto has = [&](CUdevice_attribute what) {
    int can = 0;
    return attribute(&can, what, 0) == CUDA_SUCCESS && can != 0;
  };
  // The second is what drivers were asked before CUDA 12.
  return attribute != nullptr && (has(CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS) ||
                                  has(CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V1));
}

}  // namespace

std::string sentence(const char* call, cudaError_t error) {
  const char* const name = cudaGetErrorName(error);
  const char* const text = cudaGetErrorString(error);
  return std::string(call) + " failed with " +
         (name == nullptr ? std::to_string(static_cast<int>(error)) : name) +
         (text == nullptr ? "" : " (" + std::string(text) + ")");
}

DriverFunctions::DriverFunctions() {
  find("cuMemGetAllocationGranularity", granularity);
  find("cuMemAddressReserve", reserve);
  find("cuMemAddressFree", unreserve);
  find("cuMemCreate", create);
  find("cuMemRelease", release);
  find("cuMemMap", map);
  find("cuMemUnmap", unmap);
  find("cuMemSetAccess", set_access);
  if (waits_for_values()) find("cuStreamWaitValue64", wait_value);
}

bool DriverFunctions::maps() const {
  return granularity != nullptr && reserve != nullptr && unreserve != nullptr &&
         create != nullptr && release != nullptr && map != nullptr && unmap != nullptr &&
         set_access != nullptr;
}

Calls::Calls(bool timed, bool several_threads)
    : lock_(several_threads), times_(timed ? kDriverCallNames.size() : 0) {}

bool Calls::found_memory(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return true;
  if (error != cudaErrorMemoryAllocation) require(call, error);
  cudaGetLastError();  // it is a result, not what the next call is to be told
  return false;
}

void Calls::require(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  failed_.store(true);
  throw EngineError(sentence(call, error));
}

void Calls::keep(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  const std::lock_guard guard(lock_);
  if (failure_.empty()) failure_ = sentence(call, error);
  failed_.store(true);
}

void Calls::check() {
  const std::lock_guard guard(lock_);
  if (!failure_.empty()) throw EngineError(std::exchange(failure_, {}));
}

}  // namespace workbench::cuda
