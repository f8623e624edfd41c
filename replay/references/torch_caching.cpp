// The library torch-caching: PyTorch's CUDA caching allocator, out of libc10_cuda.so, behind the
// engine's C interface. There is one of it in a process: it is emptied for the next.
#include <algorithm>
#include <atomic>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "original.h"
#include "torch_cuda.h"
#include "torch_pools.h"

namespace reference {
namespace {

constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
constexpr std::uint64_t kMost = std::uint64_t{1} << 60;  // and more is refused

// PyTorch keeps what it was told before of keys that a text does not name.
std::string with_defaults(std::string_view text) {
  constexpr std::pair<const char*, const char*> kKept[] = {
      {"large_segment_size_mb", "20"},         {"expandable_segments", "False"},
      {"release_lock_on_cudamalloc", "False"}, {"graph_capture_record_stream_reuse", "False"},
      {"per_process_memory_fraction", "1.0"},
#if WORKBENCH_TORCH_SINCE(13)
      {"throw_on_cudamalloc_oom", "False"},
#endif
  };
  std::string all(text);
  for (const auto& [key, value] : kKept) {
    if (!setting(text, key).empty()) continue;
    if (!all.empty() && all.back() != ',') all += ',';
    all += std::string(key) + ":" + value;
  }
  return all;
}

// PyTorch keeps how large a device is, and that a share of it was set once. Over the stand-in,
// whose devices are all one, an allocator that wants it otherwise has a device of its own; a GPU is
// one.
struct Known {
  std::uint64_t total;
  bool has_share;
  bool is_spoilt;  // it kept something
};
std::vector<Known> known;
bool is_taken = false;

// The number of a device of this size; -1 where there are no more.
c10::DeviceIndex choose_device(std::uint64_t total, bool shares) {
  for (std::size_t i = 0; i < known.size(); ++i) {
    const bool fits =
        !known[i].is_spoilt && known[i].total == total && (shares || !known[i].has_share);
    if (fits || kDevices == 1) return static_cast<c10::DeviceIndex>(i);
  }
  if (known.size() == kDevices) return -1;
  known.push_back({total, false, false});
  return static_cast<c10::DeviceIndex>(known.size() - 1);
}

struct Instance {
  Instance(const wb_host& from, bool is_expandable, c10::DeviceIndex on)
      : host(from), expandable(is_expandable), streams(host), device(on), pools(device, streams) {}

  c10::CachingDeviceAllocator::DeviceStats stats() const {
    return original().getDeviceStats(device);
  }

  const wb_host host;
  const bool expandable;
  Streams streams;
  const c10::DeviceIndex device;
  Pools pools;
  std::atomic<std::int64_t> hits = 0;
  std::atomic<std::int64_t> misses = 0;
};

Instance& self(void* allocator) { return *static_cast<Instance*>(allocator); }

// What part of the device the workbench lets it have: over the stand-in the device is no larger.
double allowed_part([[maybe_unused]] const wb_host& host) {
#ifndef WORKBENCH_OVER_STUB
  std::size_t free = 0;
  std::size_t total = 0;
  if (host.capacity != UINT64_MAX && cudaMemGetInfo(&free, &total) == cudaSuccess) {
    return std::min(1.0, static_cast<double>(host.capacity) / static_cast<double>(total));
  }
#endif
  return 1;
}

void set_share(double share, c10::DeviceIndex device) {
  original().setMemoryFraction(share, device);
  known[static_cast<std::size_t>(device)].has_share = true;
}

// The device of the next allocator, empty; -1, and why, where there can be none.
c10::DeviceIndex begin_turn(const wb_host& host, std::string_view text, char* error,
                            std::size_t error_size) {
  const auto cannot = [&](const char* why) -> c10::DeviceIndex {
    refuse(why, error, error_size);
    return -1;
  };
  if (is_taken) return cannot("PyTorch has one caching allocator in a process, and it is in use");
  if (!read_settings(with_defaults(text), error, error_size)) return -1;
  start_cuda();
  const double share =
      c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig::per_process_memory_fraction() *
      allowed_part(host);
  const c10::DeviceIndex device = choose_device(host.total, share < 1);
  if (device < 0) return cannot("PyTorch has no more devices in this process; start another");
  original().init(static_cast<int>(known.size()));
  be_on(device);
  if (known[static_cast<std::size_t>(device)].is_spoilt) {
    return cannot("PyTorch's allocator kept memory of the replay before this one");
  }
  if (share < 1 || known[static_cast<std::size_t>(device)].has_share) set_share(share, device);
  is_taken = true;
  return device;
}

void* create(const wb_host* host, const char* configuration, char* error, std::size_t error_size) {
  use(host);
  c10::DeviceIndex device = -1;
  if (is_ready(*host, "native", error, error_size)) {
    device = begin_turn(*host, configuration, error, error_size);
  }
  if (device >= 0) {
    return new Instance(*host, setting(configuration, "expandable_segments") == "True", device);
  }
  use(nullptr);
  return nullptr;
}

// Allocates and frees in every pool, on every stream.
void visit_lanes(Instance& instance) {
  constexpr std::size_t kSmall = 1;
  constexpr std::size_t kLarge = 2 << 20;
  for (const std::int32_t pool : instance.pools.in_use()) {
    for (const cudaStream_t stream : instance.streams.used()) {
      for (const std::size_t bytes : {kSmall, kLarge}) {
        try {
          original().raw_delete(instance.pools.in_pool(
              pool, [&] { return original().raw_alloc_with_stream(bytes, stream); }));
        } catch (const c10::OutOfMemoryError&) {
          // Its share leaves no room.
        }
      }
    }
  }
}

// A range of addresses that nothing could be mapped into stays until something was; one of a pool
// that is no more stays for good.
void give_ranges_back(Instance& instance) {
  for (std::size_t before = 0, left = reserved_ranges(); left != before;) {
    before = left;
    visit_lanes(instance);
    original().emptyCache();
    left = reserved_ranges();
  }
}

void destroy(void* allocator) {
  Instance& instance = self(allocator);
  be_on(instance.device);
  instance.pools.end_all();
  // Frees that waited for the end of a capture come with the next allocation.
  if (instance.pools.had_captures()) {
    try {
      original().raw_delete(original().raw_alloc(1));
    } catch (const c10::OutOfMemoryError&) {
      // It came to where the frees are, which is before it asks for memory.
    }
  }
  original().emptyCache();
  if (instance.expandable && instance.stats().num_alloc_retries > 0) give_ranges_back(instance);
  instance.pools.release_all();
  original().emptyCache();
  known[static_cast<std::size_t>(instance.device)].is_spoilt =
      reserved_ranges() > 0 || instance.stats().reserved_bytes[kAll].current != 0;
  original().resetAccumulatedStats(instance.device);
  original().resetPeakStats(instance.device);
  delete &instance;
  use(nullptr);
  is_taken = false;
}

void* allocate_from(Instance& instance, std::uint64_t bytes, const wb_lane& lane) {
  const cudaStream_t stream = instance.streams.of(lane.stream);
  return instance.pools.in_pool(lane.pool,
                                [&] { return original().raw_alloc_with_stream(bytes, stream); });
}

// A miss asked the device for memory, whether it got some or not.
void* allocate_counted(Instance& instance, std::uint64_t bytes, const wb_lane& lane) {
  const auto before = instance.stats();
  ++instance.misses;
  void* const memory = allocate_from(instance, bytes, lane);
  if (instance.stats().num_device_alloc == before.num_device_alloc) {
    --instance.misses;
    ++instance.hits;
  }
  return memory;
}

void* allocate(void* allocator, std::uint64_t bytes, std::int32_t number, std::int32_t) {
  Instance& instance = self(allocator);
  if (bytes >= kMost) return nullptr;
  be_on(instance.device);
  const wb_lane lane = instance.pools.lane(number);
  try {
    return instance.host.counts != 0 ? allocate_counted(instance, bytes, lane)
                                     : allocate_from(instance, bytes, lane);
  } catch (const c10::OutOfMemoryError&) {
    return nullptr;
  }
}

void deallocate(void* allocator, void* memory, std::uint64_t, std::int32_t, std::int32_t) {
  be_on(self(allocator).device);
  original().raw_delete(memory);
}

void record_stream(void* allocator, void* memory, std::int32_t stream) {
  Instance& instance = self(allocator);
  be_on(instance.device);
  record_use(memory, instance.streams.of(stream), instance.device);
}

void empty_cache(void* allocator) {
  be_on(self(allocator).device);
  original().emptyCache();
}

void statistics(void* allocator, wb_statistics* to) {
  Instance& instance = self(allocator);
  be_on(instance.device);
  const auto stats = instance.stats();
  to->requested = stats.requested_bytes[kAll].current;
  to->allocated = stats.allocated_bytes[kAll].current;
  to->active = stats.active_bytes[kAll].current;
  to->reserved = stats.reserved_bytes[kAll].current;
  to->inactive_split = stats.inactive_split_bytes[kAll].current;
  to->stranded = instance.expandable ? to->reserved - to->active : to->inactive_split;
  to->segments = stats.segment[kAll].current;
  to->active_blocks = stats.active[kAll].current;
  to->inactive_split_blocks = stats.inactive_split[kAll].current;
  to->retries = stats.num_alloc_retries;
  to->ooms = stats.num_ooms;
  to->device_allocs = stats.num_device_alloc;
  to->device_frees = stats.num_device_free;
  // Asked with 0 it begins with what the device has free.
  std::size_t largest = 1;
  original().cacheInfo(instance.device, &largest);
  to->largest_free = largest > 1 ? static_cast<std::int64_t>(largest) : 0;
  to->hits = instance.hits;
  to->misses = instance.misses;
}

void lanes(void* allocator, const wb_lane* lanes, std::size_t count) {
  self(allocator).pools.set_lanes(lanes, count);
}
void pool_begin(void* allocator, std::int32_t pool) { self(allocator).pools.begin(pool); }
void pool_end(void* allocator, std::int32_t pool) { self(allocator).pools.end(pool); }
void pool_release(void* allocator, std::int32_t pool) { self(allocator).pools.release(pool); }
void capture_begin(void* allocator, std::int32_t stream) {
  self(allocator).pools.begin_capture(stream);
}
void capture_end(void* allocator, std::int32_t stream) {
  self(allocator).pools.end_capture(stream);
}
void set_fraction(void* allocator, std::int64_t millionths) {
  const Instance& instance = self(allocator);
  set_share(static_cast<double>(millionths) / 1e6 * allowed_part(instance.host), instance.device);
}

const wb_interface interface = {
    .size = sizeof(wb_interface),
    .version = WB_VERSION,
    .name = "torch-caching",
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
    .capture_begin = capture_begin,
    .capture_end = capture_end,
    .set_fraction = set_fraction,
    .synchronized = nullptr,
};

}  // namespace
}  // namespace reference

extern "C" __attribute__((visibility("default"))) const wb_interface* workbench_allocator(
    std::uint32_t version) {
  return version >= WB_VERSION ? &reference::interface : nullptr;
}
