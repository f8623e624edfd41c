// The device, as the environment describes it or the host is it, and errors.
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

namespace cuda_stub {
namespace {

const wb_host* the_host = nullptr;
thread_local int the_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

// A variable of the environment; what it cannot be ends the process with a sentence.
std::string_view variable(const char* name) {
  const char* const text = std::getenv(name);
  return text == nullptr ? std::string_view() : std::string_view(text);
}

[[noreturn]] void refuse(const char* name, const char* remedy) {
  std::fprintf(stderr, "%s=%s will not do; %s\n", name, std::getenv(name), remedy);
  std::exit(2);
}

std::uint64_t number(const char* name, std::uint64_t otherwise, std::uint64_t most) {
  const std::string text(variable(name));
  if (text.empty()) return otherwise;
  char* end = nullptr;
  const std::uint64_t value = std::strtoull(text.c_str(), &end, 10);
  if (*end != 0 || value == 0 || value > most) {
    refuse(name, ("give a number from 1 to " + std::to_string(most)).c_str());
  }
  return value;
}

bool chosen(const char* name, const char* no, const char* yes) {
  const std::string_view text = variable(name);
  if (!text.empty() && text != no && text != yes) {
    refuse(name, (std::string("give ") + no + " or " + yes).c_str());
  }
  return text == yes;
}

Device read_device() {
  Device made;
  made.total = number("WB_CUDA_STUB_BYTES", made.total, std::uint64_t{1} << 50);
  made.count = static_cast<int>(number("WB_CUDA_STUB_DEVICES", 1, kMostDevices));
  made.has_memory = chosen("WB_CUDA_STUB_MEMORY", "none", "host");
  made.completes_at_once = !chosen("WB_CUDA_STUB_COMPLETION", "immediate", "waited");
  return made;
}

std::map<std::string, std::atomic<std::uint64_t>, std::less<>>& counters() {
  static std::map<std::string, std::atomic<std::uint64_t>, std::less<>> all;
  return all;
}

int device_count() { return the_host == nullptr ? device().count : kMostDevices; }

}  // namespace

std::recursive_mutex& mutex() {
  static std::recursive_mutex all;
  return all;
}

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

std::atomic<std::uint64_t>& counter(const char* function) {
  const std::lock_guard guard(mutex());
  // A name of the driver's that carries a version is asked for without it.
  const std::string name(function);
  return counters()[name.ends_with("_v2") ? name.substr(0, name.size() - 3) : name];
}

const Device& device() {
  static const Device read = read_device();
  return read;
}

int current_device() { return the_device; }

const wb_host* host() { return the_host; }

std::uint64_t total_bytes() { return the_host == nullptr ? device().total : the_host->total; }

}  // namespace cuda_stub

using namespace cuda_stub;

extern "C" {

void wb_cuda_stub_use(const wb_host* host) {
  const std::lock_guard guard(mutex());
  if (host == the_host) return;
  the_host = host;
  forget_memory();
  forget_ranges();
}

uint64_t wb_cuda_stub_calls(const char* function) {
  const std::lock_guard guard(mutex());
  const auto found = counters().find(std::string_view(function));
  return found == counters().end() ? 0 : found->second.load();
}

cudaError_t cudaGetDeviceCount(int* count) {
  CUDA_STUB_ENTER();
  *count = device_count();
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  CUDA_STUB_COUNT();
  *device = the_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  CUDA_STUB_ENTER();
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  the_device = device;
  return cudaSuccess;
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned) { return cudaSetDevice(device); }
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaGetDeviceFlags(unsigned* flags) {
  *flags = cudaDeviceScheduleAuto;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  CUDA_STUB_ENTER();
  return result(synchronize_device());
}

cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }

cudaError_t cudaDriverGetVersion(int* version) {
  CUDA_STUB_COUNT();
  *version = CUDA_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  CUDA_STUB_COUNT();
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int device) {
  CUDA_STUB_ENTER();
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 1;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = 0x7fffffff;
      break;
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
      *value = 1;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  CUDA_STUB_ENTER();
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "Allocator Workbench stand-in");
  properties->totalGlobalMem = total_bytes();
  properties->major = 9;
  properties->multiProcessorCount = 1;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxThreadsDim[0] = 1024;
  properties->unifiedAddressing = 1;
  properties->memoryPoolsSupported = 1;
  properties->hostRegisterSupported = 1;
  properties->canMapHostMemory = 1;
  properties->pciBusID = device + 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  CUDA_STUB_COUNT();
  std::snprintf(id, static_cast<std::size_t>(length), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  CUDA_STUB_COUNT();
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
  return result(cudaErrorPeerAccessUnsupported);
}
cudaError_t cudaDeviceDisablePeerAccess(int) { return result(cudaErrorPeerAccessNotEnabled); }

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  CUDA_STUB_COUNT();
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  CUDA_STUB_COUNT();
  return std::exchange(last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() {
  CUDA_STUB_COUNT();
  return last_error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorIllegalState:
      return "cudaErrorIllegalState";
    case cudaErrorCapturedEvent:
      return "cudaErrorCapturedEvent";
    default:
      return "cudaErrorOfTheStandIn";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNotReady:
      return "device not ready";
    default:
      return cudaGetErrorName(error);
  }
}

}  // extern "C"
