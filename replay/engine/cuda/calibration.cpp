#include "cuda/calibration.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>

#include "core/errors.h"
#include "cuda/device.h"

namespace workbench::cuda {
namespace {

constexpr int kDevice = 0;
// Pinning takes about as long as touching: more would only take longer.
constexpr Bytes kMostPinned = 256 * kMiB;
constexpr Bytes kMostMapped = 4 * kGiB;
constexpr Bytes kMostInPool = 4 * kGiB;
// Pages in which PyTorch maps memory of its small pool, and of its large one.
constexpr Bytes kSmallPage = kDevicePage;
constexpr Bytes kLargePage = 20 * kMiB;
// Left to the driver and to what else is on the device.
constexpr Bytes kMargin = 512 * kMiB;
constexpr std::size_t kWarmRounds = 2;

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Whether the CUDA runtime is the stand-in, which measures nothing.
bool is_stand_in() {
  const std::string name = "libcudart.so." + std::to_string(CUDART_VERSION / 1000);
  void* const runtime = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (runtime == nullptr) return false;
  const bool found = dlsym(runtime, "wb_cuda_stub_use") != nullptr;
  dlclose(runtime);
  return found;
}

}  // namespace

Bench::Bench(Bytes capacity) : capacity_(capacity) {
  if (const std::string reason = unavailable(); !reason.empty()) throw UnavailableError(reason);
  require("cudaSetDevice", cudaSetDevice(kDevice));
  std::size_t free = 0;
  std::size_t total = 0;
  require("cudaMemGetInfo", cudaMemGetInfo(&free, &total));
  capacity_ = std::min(capacity, static_cast<Bytes>(free) - kMargin);
  if (capacity_ < kGiB) {
    throw UnavailableError("a calibration takes 1 GiB of the GPU at least, and of " +
                           std::to_string(total / kMiB) + " MiB " + std::to_string(free / kMiB) +
                           " are free; end what else uses it, or give a larger --capacity");
  }
  for (cudaStream_t& stream : streams_) {
    require("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
}

Bench::~Bench() {
  cudaDeviceSynchronize();
  for (const cudaStream_t stream : streams_) {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
}

void Bench::describe(CalibrationSink& sink) {
  cudaDeviceProp properties = {};
  int driver = 0;
  int runtime = 0;
  require("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, kDevice));
  require("cudaDriverGetVersion", cudaDriverGetVersion(&driver));
  require("cudaRuntimeGetVersion", cudaRuntimeGetVersion(&runtime));
  sink.fact("device", properties.name);
  sink.fact("compute_capability",
            std::to_string(properties.major) + "." + std::to_string(properties.minor));
  sink.fact("memory_bytes", std::to_string(properties.totalGlobalMem));
  sink.fact("driver", version(driver));
  sink.fact("runtime", version(runtime));
  sink.fact("stand_in", is_stand_in() ? "True" : "False");
}

Prices::Prices(Bench& bench, CalibrationSink& sink)
    : bench_(bench), sink_(sink), pool_(bench, nullptr, /*keeps_memory=*/true) {
  add_device_memory();
  add_host_memory();
  add_address_ranges();
  add_pool();
  add_events();
}

template <class Call>
cudaError_t Prices::timed(DriverCall kind, Bytes size, Call&& call) {
  const auto start = std::chrono::steady_clock::now();
  const auto error = static_cast<cudaError_t>(call());
  const auto took = std::chrono::steady_clock::now() - start;
  if (warm_ && error == cudaSuccess) {
    samples_[{kind, size}].push_back(static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(took).count()));
  }
  return error;
}

// Powers of two times the first.
std::vector<Bytes> Prices::sizes(Bytes first, Bytes last) const {
  std::vector<Bytes> found;
  for (Bytes size = first; size <= std::min(last, bench_.capacity()); size *= 2) {
    found.push_back(size);
  }
  return found;
}

void Prices::add_device_memory() {
  for (const Bytes size : sizes(512, bench_.capacity())) {
    // Below the device's page prices hardly differ.
    if (size < kDevicePage && size % (64 * kKiB) != 0 && size != 512) continue;
    steps_.push_back([this, size] {
      void* memory = nullptr;
      const cudaError_t error = timed(DriverCall::kAlloc, size, [&] {
        return cudaMalloc(&memory, static_cast<std::size_t>(size));
      });
      if (!bench_.calls().found_memory("cudaMalloc", error)) return;
      bench_.require("cudaFree", timed(DriverCall::kFree, size, [&] { return cudaFree(memory); }));
    });
  }
}

void Prices::add_host_memory() {
  for (const Bytes size : sizes(4 * kKiB, kMostPinned)) {
    steps_.push_back([this, size] {
      void* memory = nullptr;
      const cudaError_t error = timed(DriverCall::kHostAlloc, size, [&] {
        return cudaHostAlloc(&memory, static_cast<std::size_t>(size), cudaHostAllocDefault);
      });
      if (!bench_.calls().found_memory("cudaHostAlloc", error)) return;
      bench_.require("cudaFreeHost",
                     timed(DriverCall::kHostFree, size, [&] { return cudaFreeHost(memory); }));
    });
  }
}

void Prices::add_pool() {
  for (const Bytes size : sizes(512, kMostInPool)) {
    steps_.push_back([this, size] {
      const cudaStream_t stream = bench_.first();
      pool_.trim();
      void* memory = nullptr;
      const auto allocate = [&](DriverCall kind) {
        return timed(kind, size, [&] {
          memory = pool_.allocate(size, stream);
          return memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
        });
      };
      const auto free = [&] {
        timed(DriverCall::kPoolFree, size, [&] {
          pool_.free(memory, stream);
          return cudaSuccess;
        });
        bench_.settle();
      };
      // An empty pool has to grow, and afterwards has what is asked for.
      if (allocate(DriverCall::kPoolAllocGrown) != cudaSuccess) return;
      free();
      if (allocate(DriverCall::kPoolAlloc) != cudaSuccess) return;
      free();
    });
  }
}

void Prices::add_events() {
  steps_.push_back([this] {
    const auto make = [&](DriverCall kind, const char* name, auto&& call) {
      bench_.require(name, timed(kind, 0, call));
    };
    cudaEvent_t event = nullptr;
    make(DriverCall::kEventCreate, "cudaEventCreateWithFlags",
         [&] { return cudaEventCreateWithFlags(&event, cudaEventDisableTiming); });
    make(DriverCall::kEventRecord, "cudaEventRecord",
         [&] { return cudaEventRecord(event, bench_.first()); });
    make(DriverCall::kStreamWait, "cudaStreamWaitEvent",
         [&] { return cudaStreamWaitEvent(bench_.second(), event, 0); });
    bench_.settle();
    make(DriverCall::kEventQuery, "cudaEventQuery", [&] { return cudaEventQuery(event); });
    make(DriverCall::kEventWait, "cudaEventSynchronize",
         [&] { return cudaEventSynchronize(event); });
    make(DriverCall::kEventDestroy, "cudaEventDestroy", [&] { return cudaEventDestroy(event); });
    make(DriverCall::kSynchronize, "cudaDeviceSynchronize",
         [&] { return cudaDeviceSynchronize(); });
  });
}

// As PyTorch's expandable segments do, in pages of its small or its large pool.
void Prices::add_address_ranges() {
  std::vector<std::pair<Bytes, Bytes>> pieces;  // size and page
  for (const Bytes size : sizes(kSmallPage, kLargePage / 2)) pieces.emplace_back(size, kSmallPage);
  for (const Bytes size : sizes(kLargePage, kMostMapped)) pieces.emplace_back(size, kLargePage);
  for (const auto& [piece, of_page] : pieces) {
    steps_.push_back([this, size = piece, page = of_page] {
      // Gives back what is left at its end.
      AddressRanges ranges(bench_.calls(), kDevice, /*several_threads=*/false);
      std::uint64_t address = 0;
      const cudaError_t reserved = timed(DriverCall::kReserve, size, [&] {
        address = ranges.reserve(size, page);
        return address == 0 ? cudaErrorMemoryAllocation : cudaSuccess;
      });
      if (reserved != cudaSuccess) return;
      const cudaError_t mapped = timed(DriverCall::kMap, size, [&] {
        return ranges.map(address, size) ? cudaSuccess : cudaErrorMemoryAllocation;
      });
      const auto give_back = [&](DriverCall kind, auto&& call) {
        timed(kind, size, [&] {
          call();
          return cudaSuccess;
        });
      };
      if (mapped == cudaSuccess) {
        give_back(DriverCall::kUnmap, [&] { ranges.unmap(address, size); });
      }
      give_back(DriverCall::kUnreserve, [&] { ranges.unreserve(address); });
      bench_.calls().check();
    });
  }
}

void Prices::measure(std::size_t rounds) {
  std::mt19937 dice(1);
  for (std::size_t round = 0; round < rounds + kWarmRounds; ++round) {
    warm_ = round >= kWarmRounds;
    sink_.progress(round, rounds + kWarmRounds);
    std::shuffle(steps_.begin(), steps_.end(), dice);
    for (const Step& step : steps_) step();
  }
  sink_.progress(rounds + kWarmRounds, rounds + kWarmRounds);
  for (auto& [call, nanoseconds] : samples_) {
    sink_.call(call.first, call.second, std::move(nanoseconds));
  }
}

}  // namespace workbench::cuda
