// The library torch-async: PyTorch's allocator over cudaMallocAsync, out of libc10_cuda.so, behind
// the engine's C interface. There is one of it in a process: it is emptied for the next.
#include <atomic>
#include <string>

#include "original.h"
#include "torch_cuda.h"
#include "torch_pools.h"

namespace reference {
namespace {

constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
constexpr std::uint64_t kMost = std::uint64_t{1} << 60;
constexpr c10::DeviceIndex kDevice = 0;
bool is_taken = false;

struct Instance {
  explicit Instance(const wb_host& from) : host(from), streams(host), pools(kDevice, streams) {}

  const wb_host host;
  Streams streams;
  Pools pools;
};

Instance& self(void* allocator) { return *static_cast<Instance*>(allocator); }

bool begin_turn(const std::string& text, char* error, std::size_t error_size) {
  if (is_taken) {
    return refuse("PyTorch has one allocator in a process, and it is in use", error, error_size);
  }
  const bool has_share = !setting(text, "per_process_memory_fraction").empty();
  const std::string all =
      has_share ? text : text + (text.empty() ? "" : ",") + "per_process_memory_fraction:1.0";
  if (!read_settings(all, error, error_size)) return false;
  start_cuda();
  original().init(1);
  using Config = c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig;
  // Once set it cannot be taken back; all of the device is no less than none.
  static bool was_shared = false;
  was_shared |= has_share;
  if (was_shared) original().setMemoryFraction(Config::per_process_memory_fraction(), kDevice);
  is_taken = true;
  return true;
}

void* create(const wb_host* host, const char* configuration, char* error, std::size_t error_size) {
  use(host);
  if (is_ready(*host, "cudaMallocAsync", error, error_size) &&
      begin_turn(configuration, error, error_size)) {
    return new Instance(*host);
  }
  use(nullptr);
  return nullptr;
}

void destroy(void* allocator) {
  self(allocator).pools.end_all();
  self(allocator).pools.release_all();
  original().emptyCache();
  original().resetAccumulatedStats(kDevice);
  original().resetPeakStats(kDevice);
  delete &self(allocator);
  use(nullptr);
  is_taken = false;
}

void* allocate(void* allocator, std::uint64_t bytes, std::int32_t number, std::int32_t) {
  Instance& instance = self(allocator);
  if (bytes >= kMost) return nullptr;
  const wb_lane lane = instance.pools.lane(number);
  try {
    return original().raw_alloc_with_stream(bytes, instance.streams.of(lane.stream));
  } catch (const c10::OutOfMemoryError&) {
    return nullptr;
  }
}

void deallocate(void*, void* memory, std::uint64_t, std::int32_t, std::int32_t) {
  original().raw_delete(memory);
}

void record_stream(void* allocator, void* memory, std::int32_t stream) {
  record_use(memory, self(allocator).streams.of(stream), kDevice);
}

void empty_cache(void*) { original().emptyCache(); }

// What the pool says; nothing else is counted.
void statistics(void*, wb_statistics* to) {
  const auto stats = original().getDeviceStats(kDevice);
  to->allocated = stats.allocated_bytes[kAll].current;
  to->active = stats.allocated_bytes[kAll].current;
  to->reserved = stats.reserved_bytes[kAll].current;
}

void lanes(void* allocator, const wb_lane* lanes, std::size_t count) {
  self(allocator).pools.set_lanes(lanes, count);
}
void pool_begin(void* allocator, std::int32_t pool) { self(allocator).pools.begin(pool); }
void pool_end(void* allocator, std::int32_t pool) { self(allocator).pools.end(pool); }
void pool_release(void* allocator, std::int32_t pool) { self(allocator).pools.release(pool); }
void set_fraction(void*, std::int64_t millionths) {
  original().setMemoryFraction(static_cast<double>(millionths) / 1e6, kDevice);
}

const wb_interface interface = {
    .size = sizeof(wb_interface),
    .version = WB_VERSION,
    .name = "torch-async",
    .create = create,
    .destroy = destroy,
    .allocate = allocate,
    .deallocate = deallocate,
    .record_stream = record_stream,
    .empty_cache = empty_cache,
    .statistics = statistics,
    .prepare = nullptr,
    .program_begins = nullptr,
    .program_ends = nullptr,
    .lanes = lanes,
    .pool_begin = pool_begin,
    .pool_end = pool_end,
    .pool_release = pool_release,
    .capture_begin = nullptr,
    .capture_end = nullptr,
    .set_fraction = set_fraction,
    .synchronized = nullptr,
};

}  // namespace
}  // namespace reference

extern "C" __attribute__((visibility("default"))) const wb_interface* workbench_allocator(
    std::uint32_t version) {
  return version >= WB_VERSION ? &reference::interface : nullptr;
}
