// Memory of the device and pinned memory of the host.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "device.h"

namespace cuda_stub {
namespace {

struct Allocation {
  std::uint64_t bytes;
  int device;
};

struct Pinned {
  std::uint64_t bytes;
  bool is_ours;  // else registered
  unsigned flags;
};

std::uint64_t used[kMostDevices];
std::map<std::uintptr_t, Allocation> allocations;
std::map<std::uintptr_t, Pinned> pinned;

// The device hands out memory in pages; requests below one share pages, in steps of 512 bytes.
std::uint64_t footprint(std::uint64_t bytes) {
  return round_up(bytes, bytes < kPage ? 512 : kPage);
}

// What holds `address`, or null.
template <class Map>
auto* holder(Map& map, std::uintptr_t address) {
  auto after = map.upper_bound(address);
  if (after == map.begin()) return static_cast<decltype(&*after)>(nullptr);
  --after;
  const bool inside = address - after->first < after->second.bytes;
  return inside ? &*after : nullptr;
}

void copy_now(void* to, const void* from, std::size_t bytes) {
  if (has_bytes()) std::memmove(to, from, bytes);
}

}  // namespace

bool has_bytes() { return host() == nullptr ? device().has_memory : host()->has_memory != 0; }

std::uint64_t used_bytes(int device) {
  return host() == nullptr ? used[device] : host()->used(host()->context);
}

bool claim(std::uint64_t bytes, int device) {
  if (bytes > total_bytes() - used[device]) return false;
  used[device] += bytes;
  return true;
}

void unclaim(std::uint64_t bytes, int device) { used[device] -= bytes; }

std::uintptr_t next_addresses(std::uint64_t bytes) {
  // Between the heap and what the system maps; no address is used twice.
  static std::uintptr_t next = std::uintptr_t{1} << 45;
  if (bytes >= kPage) next = round_up(next, kPage);
  return std::exchange(next, next + bytes);
}

std::uintptr_t take_memory(std::uint64_t bytes, int on) {
  if (host() != nullptr) {
    return reinterpret_cast<std::uintptr_t>(host()->take(host()->context, bytes));
  }
  if (bytes > total_bytes() || !claim(footprint(bytes), on)) return 0;
  if (!device().has_memory) return next_addresses(footprint(bytes));
  void* const memory = mmap(nullptr, footprint(bytes), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory != MAP_FAILED) return reinterpret_cast<std::uintptr_t>(memory);
  unclaim(footprint(bytes), on);
  return 0;
}

void give_memory(std::uintptr_t address, std::uint64_t bytes, int on) {
  auto* const memory = reinterpret_cast<void*>(address);
  if (host() != nullptr) return host()->give(host()->context, memory, bytes);
  if (device().has_memory) munmap(memory, footprint(bytes));
  unclaim(footprint(bytes), on);
}

void forget_memory() {
  allocations.clear();
  pinned.clear();
  for (std::uint64_t& bytes : used) bytes = 0;
}

}  // namespace cuda_stub

using namespace cuda_stub;

extern "C" {

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  CUDA_STUB_ENTER();
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  const std::uintptr_t address = take_memory(bytes, current_device());
  if (address == 0) return result(cudaErrorMemoryAllocation);
  allocations[address] = {bytes, current_device()};
  *memory = reinterpret_cast<void*>(address);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  CUDA_STUB_ENTER();
  if (memory == nullptr) return cudaSuccess;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const auto found = allocations.find(address);
  if (found == allocations.end()) {
    return free_to_pool(address, nullptr) ? cudaSuccess : result(cudaErrorInvalidValue);
  }
  // The real one waits for the device. With a host only the allocator's own waiting completes work.
  if (host() == nullptr) synchronize_device();
  give_memory(address, found->second.bytes, found->second.device);
  allocations.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMallocManaged(void**, size_t, unsigned) { return result(cudaErrorNotSupported); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  CUDA_STUB_ENTER();
  *total = total_bytes();
  *free = *total - std::min<std::uint64_t>(*total, used_bytes(current_device()));
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags) {
  CUDA_STUB_ENTER();
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (host() != nullptr) {
    *memory = host()->take_pinned(host()->context, bytes);
  } else if (bytes < std::uint64_t{1} << 47) {
    *memory = std::aligned_alloc(4096, round_up(bytes, 4096));
  }
  if (*memory == nullptr) return result(cudaErrorMemoryAllocation);
  pinned[reinterpret_cast<std::uintptr_t>(*memory)] = {bytes, true, flags};
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  CUDA_STUB_COUNT();
  return cudaHostAlloc(memory, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* memory) {
  CUDA_STUB_ENTER();
  if (memory == nullptr) return cudaSuccess;
  const auto found = pinned.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == pinned.end() || !found->second.is_ours) return result(cudaErrorInvalidValue);
  if (host() != nullptr) {
    host()->give_pinned(host()->context, memory, found->second.bytes);
  } else {
    synchronize_device();
    std::free(memory);
  }
  pinned.erase(found);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned flags) {
  CUDA_STUB_ENTER();
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  if (memory == nullptr || bytes == 0) return result(cudaErrorInvalidValue);
  if (holder(pinned, address) != nullptr) return result(cudaErrorHostMemoryAlreadyRegistered);
  pinned[address] = {bytes, false, flags};
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* memory) {
  CUDA_STUB_ENTER();
  const auto found = pinned.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == pinned.end() || found->second.is_ours) {
    return result(cudaErrorHostMemoryNotRegistered);
  }
  if (host() == nullptr) synchronize_device();
  pinned.erase(found);
  return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** device_pointer, void* memory, unsigned) {
  CUDA_STUB_ENTER();
  *device_pointer = memory;
  const bool known = holder(pinned, reinterpret_cast<std::uintptr_t>(memory)) != nullptr;
  return known ? cudaSuccess : result(cudaErrorInvalidValue);
}

cudaError_t cudaHostGetFlags(unsigned* flags, void* memory) {
  CUDA_STUB_ENTER();
  const auto* const found = holder(pinned, reinterpret_cast<std::uintptr_t>(memory));
  if (found == nullptr) return result(cudaErrorInvalidValue);
  *flags = found->second.flags;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  CUDA_STUB_ENTER();
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  *attributes = {};
  attributes->device = -2;
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->hostPointer = const_cast<void*>(pointer);
  if (const auto* const found = holder(allocations, address)) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = found->second.device;
    attributes->devicePointer = const_cast<void*>(pointer);
    attributes->hostPointer = nullptr;
  } else if (holder(pinned, address) != nullptr) {
    attributes->type = cudaMemoryTypeHost;
    attributes->device = current_device();
    attributes->devicePointer = const_cast<void*>(pointer);
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, enum cudaMemcpyKind,
                            cudaStream_t on) {
  CUDA_STUB_ENTER();
  Stream* const stream = stream_of(on);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  submit(*stream, {{}, {}, [=] { copy_now(to, from, bytes); }});
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind) {
  CUDA_STUB_COUNT();
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return error == cudaSuccess ? cudaStreamSynchronize(nullptr) : error;
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes,
                                cudaStream_t stream) {
  CUDA_STUB_COUNT();
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t bytes) {
  CUDA_STUB_COUNT();
  return cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice);
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t on) {
  CUDA_STUB_ENTER();
  Stream* const stream = stream_of(on);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  submit(*stream, {{}, {}, [=] {
                     if (has_bytes()) std::memset(memory, value, bytes);
                   }});
  return cudaSuccess;
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  CUDA_STUB_COUNT();
  return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t*, void*) {
  return result(cudaErrorNotSupported);
}
cudaError_t cudaIpcOpenMemHandle(void**, cudaIpcMemHandle_t, unsigned) {
  return result(cudaErrorNotSupported);
}
cudaError_t cudaIpcCloseMemHandle(void*) { return result(cudaErrorNotSupported); }

}  // extern "C"
