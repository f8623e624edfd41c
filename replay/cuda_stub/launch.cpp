// Kernels: their registration by what nvcc generates, and their launch.
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "device.h"

namespace {

struct Kernel {
  wb_cuda_stub_run run;
  std::vector<std::size_t> sizes;
};

struct Configuration {
  dim3 grid;
  dim3 block;
  std::size_t shared;
  cudaStream_t stream;
};

std::unordered_map<const void*, std::string>& names() {
  static std::unordered_map<const void*, std::string> all;
  return all;
}

std::unordered_map<std::string, Kernel>& kernels() {
  static std::unordered_map<std::string, Kernel> all;
  return all;
}

thread_local std::vector<Configuration> configurations;

const Kernel* kernel_of(const void* function) {
  const auto name = names().find(function);
  if (name == names().end()) return nullptr;
  const auto found = kernels().find(name->second);
  return found == kernels().end() ? nullptr : &found->second;
}

// A launch reads its arguments when it is made, and runs later.
std::function<void()> launched(const Kernel& kernel, void** arguments, dim3 grid, dim3 block) {
  std::size_t bytes = 0;
  for (const std::size_t size : kernel.sizes) bytes += cuda_stub::round_up(size, 16);
  const std::shared_ptr<std::byte[]> copies(new std::byte[bytes + 1]);
  std::vector<void*> pointers;
  std::byte* next = copies.get();
  for (std::size_t i = 0; i < kernel.sizes.size(); ++i) {
    std::memcpy(next, arguments[i], kernel.sizes[i]);
    pointers.push_back(next);
    next += cuda_stub::round_up(kernel.sizes[i], 16);
  }
  return [run = kernel.run, copies, pointers, grid, block]() mutable {
    const std::uint32_t grid_size[3] = {grid.x, grid.y, grid.z};
    const std::uint32_t block_size[3] = {block.x, block.y, block.z};
    run(pointers.data(), grid_size, block_size);
  };
}

}  // namespace

using namespace cuda_stub;

extern "C" {

void wb_cuda_stub_kernel(const char* name, wb_cuda_stub_run run, const size_t* sizes,
                         size_t count) {
  const std::lock_guard guard(mutex());
  kernels()[name] = {run, {sizes, sizes + count}};
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t on) {
  CUDA_STUB_ENTER();
  Stream* const stream = stream_of(on);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  const Kernel* const kernel = kernel_of(function);
  submit(*stream,
         {{},
          {},
          kernel == nullptr ? std::function<void()>() : launched(*kernel, arguments, grid, block)});
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* function,
                                void** arguments) {
  CUDA_STUB_COUNT();
  return cudaLaunchKernel(function, how->gridDim, how->blockDim, arguments, how->dynamicSmemBytes,
                          how->stream);
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return result(cudaErrorInvalidConfiguration);
  const Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared = last.shared;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  return cudaSuccess;
}

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  const std::lock_guard guard(mutex());
  names()[function] = name;
}

void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterManagedVar(void**, void**, char*, const char*, int, size_t, int, int) {}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  CUDA_STUB_COUNT();
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, enum cudaFuncAttribute, int) {
  CUDA_STUB_COUNT();
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int,
                                                                   size_t, unsigned) {
  CUDA_STUB_COUNT();
  *blocks = 1;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  CUDA_STUB_COUNT();
  *blocks = 1;
  return cudaSuccess;
}

}  // extern "C"
