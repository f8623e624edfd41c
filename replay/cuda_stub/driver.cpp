// The functions of the driver that are asked for by name.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string_view>

#include "device.h"

namespace cuda_stub {
namespace {

template <class Number>
bool holds(Number found, Number wanted, unsigned flags) {
  switch (flags & 0x3) {
    case CU_STREAM_WAIT_VALUE_GEQ:
      return static_cast<std::make_signed_t<Number>>(found - wanted) >= 0;
    case CU_STREAM_WAIT_VALUE_EQ:
      return found == wanted;
    case CU_STREAM_WAIT_VALUE_AND:
      return (found & wanted) != 0;
    default:
      return static_cast<Number>(~(found | wanted)) != 0;
  }
}

template <class Number>
CUresult wait_value(CUstream on, CUdeviceptr address, Number wanted, unsigned flags) {
  Stream* const stream = stream_of(on);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  auto* const number = reinterpret_cast<Number*>(static_cast<std::uintptr_t>(address));
  submit(*stream, {{}, [=] { return holds(std::atomic_ref(*number).load(), wanted, flags); }, {}});
  return CUDA_SUCCESS;
}

template <class Number>
CUresult write_value(CUstream on, CUdeviceptr address, Number value) {
  Stream* const stream = stream_of(on);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  auto* const number = reinterpret_cast<Number*>(static_cast<std::uintptr_t>(address));
  submit(*stream, {{}, {}, [=] { std::atomic_ref(*number).store(value); }});
  return CUDA_SUCCESS;
}

}  // namespace
}  // namespace cuda_stub

using namespace cuda_stub;

extern "C" {

CUresult cuInit(unsigned) {
  CUDA_STUB_COUNT();
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
  CUDA_STUB_COUNT();
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  CUDA_STUB_COUNT();
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "an error of the stand-in";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** text) {
  CUDA_STUB_COUNT();
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR";
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  CUDA_STUB_COUNT();
  int count = 0;
  cudaGetDeviceCount(&count);
  if (ordinal < 0 || ordinal >= count) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  CUDA_STUB_COUNT();
  cudaGetDeviceCount(count);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  CUDA_STUB_COUNT();
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR:
    // Read up to CUDA 12 for whether streams wait for values of 64 bits.
    case CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V1:
      *value = 1;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = 9;
      break;
    default:
      *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuStreamWaitValue32(CUstream stream, CUdeviceptr address, cuuint32_t value,
                             unsigned flags) {
  CUDA_STUB_ENTER();
  return wait_value(stream, address, value, flags);
}

CUresult cuStreamWaitValue64(CUstream stream, CUdeviceptr address, cuuint64_t value,
                             unsigned flags) {
  CUDA_STUB_ENTER();
  return wait_value(stream, address, value, flags);
}

CUresult cuStreamWriteValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned) {
  CUDA_STUB_ENTER();
  return write_value(stream, address, value);
}

CUresult cuStreamWriteValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned) {
  CUDA_STUB_ENTER();
  return write_value(stream, address, value);
}

CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t count, CUstream on) {
  CUDA_STUB_ENTER();
  Stream* const stream = stream_of(on);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  auto* const numbers = reinterpret_cast<unsigned*>(static_cast<std::uintptr_t>(address));
  submit(*stream, {{}, {}, [=] {
                     if (has_bytes()) std::fill_n(numbers, count, value);
                   }});
  return CUDA_SUCCESS;
}

// Memory of the stand-in is not shared with other processes.
CUresult cuMemExportToShareableHandle(void*, CUmemGenericAllocationHandle,
                                      CUmemAllocationHandleType, unsigned long long) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle*, void*,
                                        CUmemAllocationHandleType) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle*, void*) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp*,
                                                CUmemGenericAllocationHandle) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

}  // extern "C"

namespace cuda_stub {
namespace {

struct Entry {
  std::string_view name;
  void* function;
};

#define ENTRY(name) {#name, reinterpret_cast<void*>(&name)}
const Entry kEntries[] = {
    ENTRY(cuInit),
    ENTRY(cuDriverGetVersion),
    ENTRY(cuGetErrorString),
    ENTRY(cuGetErrorName),
    ENTRY(cuDeviceGet),
    ENTRY(cuDeviceGetCount),
    ENTRY(cuDeviceGetAttribute),
    ENTRY(cuStreamWaitValue32),
    ENTRY(cuStreamWaitValue64),
    ENTRY(cuStreamWriteValue32),
    ENTRY(cuStreamWriteValue64),
    ENTRY(cuMemsetD32Async),
    ENTRY(cuMemAddressReserve),
    ENTRY(cuMemAddressFree),
    ENTRY(cuMemCreate),
    ENTRY(cuMemRelease),
    ENTRY(cuMemMap),
    ENTRY(cuMemSetAccess),
    ENTRY(cuMemUnmap),
    ENTRY(cuMemGetAllocationGranularity),
    ENTRY(cuMemGetAddressRange),
    ENTRY(cuMemExportToShareableHandle),
    ENTRY(cuMemImportFromShareableHandle),
    ENTRY(cuMemRetainAllocationHandle),
    ENTRY(cuMemGetAllocationPropertiesFromHandle),
};
#undef ENTRY

}  // namespace

void* driver_function(const char* name) {
  const auto found = std::find_if(std::begin(kEntries), std::end(kEntries),
                                  [&](const Entry& entry) { return entry.name == name; });
  return found == std::end(kEntries) ? nullptr : found->function;
}

}  // namespace cuda_stub

extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             enum cudaDriverEntryPointQueryResult* status) {
  CUDA_STUB_COUNT();
  *function = driver_function(name);
  if (status != nullptr) {
    *status =
        *function == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult* status) {
  CUDA_STUB_COUNT();
  return cudaGetDriverEntryPointByVersion(name, function, CUDA_VERSION, flags, status);
}

}  // extern "C"
