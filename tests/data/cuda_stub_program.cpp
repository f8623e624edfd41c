// A program over the stand-in for the CUDA runtime; says what does not hold and ends with 1.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cuda_stub.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

bool failed = false;

#define CHECK(condition)                                  \
  do {                                                    \
    if (!(condition)) {                                   \
      std::printf("line %d: %s\n", __LINE__, #condition); \
      failed = true;                                      \
    }                                                     \
  } while (false)
#define OK(call) CHECK((call) == cudaSuccess)

constexpr std::size_t kMiB = std::size_t{1} << 20;

template <class Function>
Function* driver(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult status{};
  OK(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &status));
  CHECK((function != nullptr) == (status == cudaDriverEntryPointSuccess));
  return reinterpret_cast<Function*>(function);
}

std::size_t free_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  OK(cudaMemGetInfo(&free, &total));
  CHECK(total == 256 * kMiB);
  return free;
}

// The capacity holds, and all comes back.
void memory() {
  void* one = nullptr;
  void* other = nullptr;
  OK(cudaMalloc(&one, 200 * kMiB));
  CHECK(cudaMalloc(&other, 100 * kMiB) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaSuccess);
  OK(cudaMalloc(&other, 100));
  CHECK(free_bytes() == 56 * kMiB - 512);
  OK(cudaFree(one));
  OK(cudaFree(other));
  CHECK(cudaFree(other) == cudaErrorInvalidValue);
  CHECK(free_bytes() == 256 * kMiB);
  int device = -1;
  CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice);
  OK(cudaSetDevice(1));
  OK(cudaGetDevice(&device));
  CHECK(device == 1);
  OK(cudaSetDevice(0));
}

// What is copied is there once the stream has come to it.
void copies(bool has_memory) {
  cudaStream_t stream = nullptr;
  OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  char text[] = "0123456789";
  char back[sizeof text] = {};
  void* memory = nullptr;
  OK(cudaMalloc(&memory, sizeof text));
  OK(cudaMemcpyAsync(memory, text, sizeof text, cudaMemcpyHostToDevice, stream));
  OK(cudaMemsetAsync(memory, 'x', 3, stream));
  OK(cudaMemcpyAsync(back, memory, sizeof text, cudaMemcpyDeviceToHost, stream));
  OK(cudaStreamSynchronize(stream));
  CHECK(std::strcmp(back, has_memory ? "xxx3456789" : "") == 0);
  OK(cudaFree(memory));
}

// Addresses without memory get some piece by piece.
void virtual_memory(bool has_memory) {
  auto* const reserve = driver<decltype(cuMemAddressReserve)>("cuMemAddressReserve");
  auto* const create = driver<decltype(cuMemCreate)>("cuMemCreate");
  auto* const map = driver<decltype(cuMemMap)>("cuMemMap");
  auto* const set_access = driver<decltype(cuMemSetAccess)>("cuMemSetAccess");
  auto* const unmap = driver<decltype(cuMemUnmap)>("cuMemUnmap");
  auto* const release = driver<decltype(cuMemRelease)>("cuMemRelease");
  auto* const unreserve = driver<decltype(cuMemAddressFree)>("cuMemAddressFree");
  CHECK(driver<int()>("cuNothingOfTheKind") == nullptr);
  CUmemAllocationProp properties{};
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  CUmemAccessDesc access{};
  CUdeviceptr range = 0;
  CHECK(reserve(&range, 1024 * kMiB, 0, 0, 0) == CUDA_SUCCESS);
  CHECK(free_bytes() == 256 * kMiB);
  CUmemGenericAllocationHandle handles[2] = {};
  for (int i = 0; i < 2; ++i) {
    CHECK(create(&handles[i], 100 * kMiB, &properties, 0) == CUDA_SUCCESS);
    CHECK(map(range + i * 100 * kMiB, 100 * kMiB, 0, handles[i], 0) == CUDA_SUCCESS);
  }
  CUmemGenericAllocationHandle none = 0;
  CHECK(create(&none, 100 * kMiB, &properties, 0) == CUDA_ERROR_OUT_OF_MEMORY);
  CHECK(map(range + 50 * kMiB, 100 * kMiB, 0, handles[0], 0) != CUDA_SUCCESS);
  CHECK(set_access(range, 200 * kMiB, &access, 1) == CUDA_SUCCESS);
  CHECK(set_access(range, 300 * kMiB, &access, 1) != CUDA_SUCCESS);
  if (has_memory) std::memset(reinterpret_cast<void*>(range + 99 * kMiB), 7, 2 * kMiB);
  CHECK(unreserve(range, 1024 * kMiB) != CUDA_SUCCESS);
  CHECK(free_bytes() == 56 * kMiB);
  CHECK(unmap(range, 200 * kMiB) == CUDA_SUCCESS);
  CHECK(free_bytes() == 56 * kMiB);
  for (const auto handle : handles) CHECK(release(handle) == CUDA_SUCCESS);
  CHECK(free_bytes() == 256 * kMiB);
  CHECK(unreserve(range, 1024 * kMiB) == CUDA_SUCCESS);
}

// A stream goes no further than a value in pinned memory lets it, and others wait for it.
void gates(bool at_once) {
  auto* const wait_value = driver<decltype(cuStreamWaitValue64)>("cuStreamWaitValue64");
  cudaStream_t first = nullptr;
  cudaStream_t second = nullptr;
  cudaEvent_t behind = nullptr;
  cudaEvent_t after = nullptr;
  OK(cudaStreamCreate(&first));
  OK(cudaStreamCreate(&second));
  OK(cudaEventCreateWithFlags(&behind, cudaEventDisableTiming));
  OK(cudaEventCreateWithFlags(&after, cudaEventDisableTiming));
  OK(cudaEventQuery(behind));
  void* gate = nullptr;
  OK(cudaHostAlloc(&gate, 64, cudaHostAllocPortable));
  auto* const value = static_cast<std::uint64_t*>(gate);
  *value = 0;
  CHECK(wait_value(first, reinterpret_cast<CUdeviceptr>(gate), 1, CU_STREAM_WAIT_VALUE_GEQ) ==
        CUDA_SUCCESS);
  OK(cudaEventRecord(behind, first));
  OK(cudaStreamWaitEvent(second, behind, 0));
  bool ran = false;
  OK(cudaLaunchHostFunc(second, [](void* told) { *static_cast<bool*>(told) = true; }, &ran));
  OK(cudaEventRecord(after, second));
  CHECK(cudaEventQuery(behind) == cudaErrorNotReady);
  CHECK(cudaStreamQuery(second) == cudaErrorNotReady);
  std::thread opener([value] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic_ref(*value).store(1);
  });
  OK(cudaEventSynchronize(behind));
  opener.join();
  CHECK(cudaEventQuery(behind) == cudaSuccess);
  CHECK(ran == false || at_once);
  CHECK(cudaEventQuery(after) == (at_once ? cudaSuccess : cudaErrorNotReady));
  OK(cudaDeviceSynchronize());
  CHECK(ran);
  OK(cudaEventQuery(after));
  OK(cudaFreeHost(gate));
  OK(cudaEventDestroy(behind));
  OK(cudaEventDestroy(after));
  CHECK(wb_cuda_stub_stream_number(nullptr) == 0);
  CHECK(wb_cuda_stub_stream(wb_cuda_stub_stream_number(second)) == second);
  CHECK(wb_cuda_stub_stream_number(&ran) == -1);
}

// What was freed on a stream is there for that stream at once, for another when work is complete.
void pools(bool at_once) {
  cudaStream_t first = nullptr;
  cudaStream_t second = nullptr;
  OK(cudaStreamCreate(&first));
  OK(cudaStreamCreate(&second));
  cudaMemPool_t pool = nullptr;
  OK(cudaDeviceGetDefaultMemPool(&pool, 0));
  std::uint64_t number = UINT64_MAX;
  OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &number));
  void* memory = nullptr;
  void* again = nullptr;
  OK(cudaMallocAsync(&memory, 32 * kMiB, first));
  OK(cudaFreeAsync(memory, first));
  OK(cudaMallocAsync(&again, 32 * kMiB, first));
  CHECK(again == memory);
  OK(cudaFreeAsync(again, first));
  OK(cudaMallocAsync(&again, 32 * kMiB, second));
  CHECK((again == memory) == at_once);
  OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &number));
  CHECK(number == (at_once ? 32 : 64) * kMiB);
  CHECK(cudaMallocAsync(&memory, 1024 * kMiB, second) == cudaErrorMemoryAllocation);
  OK(cudaFreeAsync(again, second));
  OK(cudaDeviceSynchronize());
  OK(cudaMemPoolTrimTo(pool, 0));
  OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &number));
  CHECK(number == 0);
  CHECK(free_bytes() == 256 * kMiB);
}

// Work that is captured is not made.
void capture() {
  cudaStream_t stream = nullptr;
  cudaStream_t joined = nullptr;
  OK(cudaStreamCreate(&stream));
  OK(cudaStreamCreate(&joined));
  cudaEvent_t event = nullptr;
  OK(cudaEventCreate(&event));
  cudaStreamCaptureStatus status{};
  unsigned long long id = 0;
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) ==
        cudaErrorStreamCaptureUnsupported);
  OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  bool ran = false;
  OK(cudaLaunchHostFunc(stream, [](void* told) { *static_cast<bool*>(told) = true; }, &ran));
  OK(cudaEventRecord(event, stream));
  OK(cudaStreamWaitEvent(joined, event, 0));
  OK(cudaStreamGetCaptureInfo(joined, &status, &id, nullptr, nullptr, nullptr, nullptr));
  CHECK(status == cudaStreamCaptureStatusActive && id > 0);
  CHECK(cudaEventQuery(event) == cudaErrorCapturedEvent);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(joined, &graph) == cudaErrorIllegalState);
  OK(cudaStreamEndCapture(stream, &graph));
  OK(cudaStreamIsCapturing(joined, &status));
  CHECK(status == cudaStreamCaptureStatusNone);
  OK(cudaStreamSynchronize(stream));
  CHECK(!ran);
  cudaGraphExec_t made = nullptr;
  OK(cudaGraphInstantiate(&made, graph, 0));
  OK(cudaGraphLaunch(made, stream));
  OK(cudaGraphExecDestroy(made));
  OK(cudaGraphDestroy(graph));
}

extern "C" void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*,
                                       dim3*, dim3*, int*);
void host_side_of_add(int*, int) {}

// A launch runs what stands for the kernel, with the arguments as they were.
void kernels() {
  const auto* const function = reinterpret_cast<const char*>(&host_side_of_add);
  char name[] = "add";
  __cudaRegisterFunction(nullptr, function, name, name, -1, nullptr, nullptr, nullptr, nullptr,
                         nullptr);
  int sum = 0;
  int* to = &sum;
  int value = 5;
  void* arguments[] = {&to, &value};
  OK(cudaLaunchKernel(function, dim3(2), dim3(32), arguments, 0, nullptr));
  OK(cudaStreamSynchronize(nullptr));
  CHECK(sum == 0);
  const std::size_t sizes[] = {sizeof to, sizeof value};
  wb_cuda_stub_kernel(
      "add",
      [](void** told, const std::uint32_t grid[3], const std::uint32_t block[3]) {
        **static_cast<int**>(told[0]) +=
            *static_cast<int*>(told[1]) * static_cast<int>(grid[0] * block[0]);
      },
      sizes, 2);
  OK(cudaLaunchKernel(function, dim3(2), dim3(32), arguments, 0, nullptr));
  value = 0;
  OK(cudaStreamSynchronize(nullptr));
  CHECK(sum == 5 * 64);
  CHECK(wb_cuda_stub_calls("cudaLaunchKernel") == 2);
  CHECK(wb_cuda_stub_calls("cuStreamWaitValue64") == 1);
  CHECK(wb_cuda_stub_calls("nothing") == 0);
}

}  // namespace

int main(int, char** arguments) {
  const bool has_memory = std::string(arguments[1]) == "host";
  const bool at_once = std::string(arguments[2]) == "immediate";
  memory();
  copies(has_memory);
  virtual_memory(has_memory);
  gates(at_once);
  pools(at_once);
  capture();
  kernels();
  return failed ? 1 : 0;
}
