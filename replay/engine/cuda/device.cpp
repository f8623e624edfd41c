#include "cuda/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "core/errors.h"
#include "cuda/driver_pool.h"

namespace workbench::cuda {
namespace {

// CUDA_VISIBLE_DEVICES says which that is.
constexpr int kDevice = 0;

// Left on the device where no capacity is given: what kernels and the driver itself take later.
Bytes margin(Bytes total) { return std::max<Bytes>(256 * kMiB, total / 100); }

// How long other streams' use of a block takes where nothing holds it back.
constexpr std::uint64_t kUseNanoseconds = 20'000;

[[noreturn]] void refuse(const char* call, cudaError_t error) {
  cudaGetLastError();
  throw UnavailableError("the GPU cannot be used: " + sentence(call, error));
}

// The options, with what is free as the capacity where none is given.
BackendOptions with_capacity(BackendOptions options) {
  if (const std::string reason = unavailable(); !reason.empty()) throw UnavailableError(reason);
  if (const cudaError_t error = cudaSetDevice(kDevice); error != cudaSuccess) {
    refuse("cudaSetDevice", error);
  }
  std::size_t free = 0;
  std::size_t total = 0;
  if (const cudaError_t error = cudaMemGetInfo(&free, &total); error != cudaSuccess) {
    refuse("cudaMemGetInfo", error);
  }
  if (options.capacity != kUnlimited) return options;
  const Bytes left = margin(static_cast<Bytes>(total));
  options.capacity = static_cast<Bytes>(free) - left;
  if (options.capacity <= 0) {
    throw UnavailableError("of the GPU's " + std::to_string(total / kMiB) + " MiB only " +
                           std::to_string(free / kMiB) +
                           " are free; end what else uses it, or say what to take with --capacity");
  }
  return options;
}

}  // namespace

std::string unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return {};
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver || error == cudaErrorStubLibrary) {
    return "no NVIDIA driver is here that knows CUDA " + std::to_string(CUDART_VERSION / 1000) +
           "; install one, or a newer one (nvidia-smi tells which there is)";
  }
  if (error == cudaSuccess || error == cudaErrorNoDevice) {
    return "there is no GPU that this process may use; look at CUDA_VISIBLE_DEVICES and nvidia-smi";
  }
  return "the GPU cannot be used: " + sentence("cudaGetDeviceCount", error) +
         "; see what nvidia-smi says";
}

Device::Device(const BackendOptions& options)
    : Backend(with_capacity(options), /*is_hardware=*/true),
      calls_(options.times_calls, options.several_threads),
      streams_(calls_, progress(), options.several_threads),
      filler_(calls_, streams_, options.several_threads),
      ranges_(calls_, kDevice, options.several_threads) {}

// As on the simulated device, so that the same requests are refused.
Bytes Device::footprint(Bytes size) const {
  return round_up(size, size < kDevicePage ? kDeviceAlignment : kDevicePage);
}

std::uint64_t Device::take(Bytes size) {
  streams_.open_all();
  void* memory = nullptr;
  const cudaError_t error = calls_.make(
      DriverCall::kAlloc, [&] { return cudaMalloc(&memory, static_cast<std::size_t>(size)); });
  if (!calls_.found_memory("cudaMalloc", error)) return 0;
  return reinterpret_cast<std::uint64_t>(memory);
}

void Device::give(std::uint64_t address, Bytes) {
  settle();
  calls_.keep("cudaFree", calls_.make(DriverCall::kFree,
                                      [&] { return cudaFree(reinterpret_cast<void*>(address)); }));
}

std::uint64_t Device::take_pinned(Bytes size, Memory memory) {
  streams_.open_all();
  const auto length = static_cast<std::size_t>(size);
  void* pinned = nullptr;
  if (memory == Memory::kRegistered) {
    pinned = mmap(nullptr, length, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pinned == MAP_FAILED) return 0;
    const cudaError_t error = calls_.make(DriverCall::kHostAlloc, [&] {
      return cudaHostRegister(pinned, length, cudaHostRegisterDefault);
    });
    if (error != cudaSuccess) munmap(pinned, length);
    if (!calls_.found_memory("cudaHostRegister", error)) return 0;
  } else {
    const cudaError_t error = calls_.make(DriverCall::kHostAlloc, [&] {
      return cudaHostAlloc(&pinned, length, cudaHostAllocDefault);
    });
    if (!calls_.found_memory("cudaHostAlloc", error)) return 0;
  }
  return reinterpret_cast<std::uint64_t>(pinned);
}

void Device::give_pinned(std::uint64_t address, Bytes size, Memory memory) {
  settle();
  void* const pinned = reinterpret_cast<void*>(address);
  if (memory == Memory::kRegistered) {
    calls_.keep("cudaHostUnregister",
                calls_.make(DriverCall::kHostFree, [&] { return cudaHostUnregister(pinned); }));
    munmap(pinned, static_cast<std::size_t>(size));
  } else {
    calls_.keep("cudaFreeHost",
                calls_.make(DriverCall::kHostFree, [&] { return cudaFreeHost(pinned); }));
  }
}

std::uint64_t Device::take_range(Bytes size, Bytes page) { return ranges_.reserve(size, page); }
void Device::give_range(std::uint64_t address, Bytes) { ranges_.unreserve(address); }

bool Device::map_piece(std::uint64_t address, Bytes size) {
  streams_.open_all();
  return ranges_.map(address, size);
}

void Device::unmap_piece(std::uint64_t address, Bytes size) {
  settle();
  ranges_.unmap(address, size);
}

// What the stream does with the block comes before the CUDA event that a free will record there,
// and not at once.
std::optional<Damage> Device::use(const FilledBlock& block, StreamId own, StreamId stream) {
  streams_.order(own, stream);
  if (streams_.gated()) {
    streams_.hold(stream, sequence() + 1);
  } else {
    filler_.keep_busy(stream, kUseNanoseconds);
  }
  return filler_.verify(block, stream);
}

MemoryPool* Device::new_driver_pool(const DriverPoolOptions& options) {
  pool_ = new DriverPool(*this, calls_, streams_, kDevice, capacity(), options,
                         [this] { pool_ = nullptr; });
  return pool_;
}

Bytes Device::used_by_pools() const { return pool_ == nullptr ? 0 : pool_->reserved(); }

const DriverTimes* Device::driver_times() const {
  return calls_.times().empty() ? nullptr : &calls_.times();
}

std::vector<std::string> Device::warnings() const {
  std::vector<std::string> found;
  if (driver_calls().event_record > 0) {
    found.push_back(
        streams_.gated()
            ? "CUDA events were held back until the trace has them complete, so recording one "
              "takes "
              "a call of the driver more than in life"
            : "nothing held CUDA events back: they complete when the device comes to them");
  }
  if (const std::int64_t early = streams_.early(); early > 0) {
    found.push_back("the device was let go on before the trace's time " + std::to_string(early) +
                    (early == 1 ? " time" : " times") +
                    ", because it holds only so much work or a call waited for it; what the driver "
                    "decides by itself may differ");
  }
  return found;
}

}  // namespace workbench::cuda
