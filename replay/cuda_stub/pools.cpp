// cudaMallocAsync: pools of memory in the order of streams. A simple model: a pool grows by chunks,
// takes the smallest free range that will do, and hands a range out again on the stream it was
// freed on at once, on another when the work up to the free is complete.
#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "device.h"

namespace cuda_stub {
namespace {

constexpr std::uint64_t kChunk = std::uint64_t{32} << 20;
constexpr std::uint64_t kUnit = 512;

struct Range {
  std::uint64_t bytes;
  std::uintptr_t chunk;
  bool is_free;
  Mark freed;  // where the free stands; no stream: everybody may have it
};

struct Pool {
  int device = 0;
  std::uint64_t most = 0;  // bytes; 0: what the device has
  std::uint64_t threshold = 0;
  std::uint64_t reserved = 0;
  std::uint64_t reserved_high = 0;
  std::uint64_t used = 0;
  std::uint64_t used_high = 0;
  int follows_events = 1;
  int is_opportunistic = 1;
  int follows_internal = 1;
  std::map<std::uintptr_t, std::uint64_t> chunks;
  std::map<std::uintptr_t, Range> ranges;
};

std::vector<std::unique_ptr<Pool>>& pools() {
  static std::vector<std::unique_ptr<Pool>> all;
  return all;
}

Pool& default_pool(int device) {
  static Pool* of_device[kMostDevices];
  if (of_device[device] == nullptr) {
    of_device[device] = pools().emplace_back(std::make_unique<Pool>()).get();
    of_device[device]->device = device;
  }
  return *of_device[device];
}

Pool*& current_pool(int device) {
  static Pool* of_device[kMostDevices];
  if (of_device[device] == nullptr) of_device[device] = &default_pool(device);
  return of_device[device];
}

// Whether the work up to the free of a range is complete; it then belongs to nobody.
bool is_anybodys(Range& range) {
  if (range.freed.stream != nullptr && is_complete(range.freed)) range.freed = {};
  return range.freed.stream == nullptr;
}

bool may_have(Pool& pool, Range& range, const Stream& stream) {
  return range.is_free && (range.freed.stream == &stream || range.freed.stream == nullptr ||
                           (pool.is_opportunistic != 0 && is_anybodys(range)));
}

// Makes one range of it and its right neighbour, where nothing tells them apart.
bool merge(Pool& pool, std::map<std::uintptr_t, Range>::iterator left) {
  const auto right = std::next(left);
  if (right == pool.ranges.end()) return false;
  Range& one = left->second;
  Range& other = right->second;
  if (!one.is_free || !other.is_free || one.chunk != other.chunk) return false;
  is_anybodys(one);
  is_anybodys(other);
  if (one.freed.stream != other.freed.stream) return false;
  if (other.freed.position >= one.freed.position &&
      other.freed.host_event >= one.freed.host_event) {
    one.freed = other.freed;
  }
  one.bytes += other.bytes;
  pool.ranges.erase(right);
  return true;
}

void merge_all(Pool& pool) {
  for (auto range = pool.ranges.begin(); range != pool.ranges.end(); ++range) {
    while (merge(pool, range)) {
    }
  }
}

void trim(Pool& pool, std::uint64_t keep) {
  merge_all(pool);
  for (auto chunk = pool.chunks.begin(); chunk != pool.chunks.end() && pool.reserved > keep;) {
    const auto range = pool.ranges.find(chunk->first);
    if (!range->second.is_free || range->second.bytes != chunk->second ||
        !is_anybodys(range->second)) {
      ++chunk;
      continue;
    }
    give_memory(chunk->first, chunk->second, pool.device);
    pool.reserved -= chunk->second;
    pool.ranges.erase(range);
    chunk = pool.chunks.erase(chunk);
  }
}

bool grow(Pool& pool, std::uint64_t bytes) {
  const std::uint64_t chunk = round_up(bytes, kChunk);
  const auto take = [&]() -> std::uintptr_t {
    const bool fits = pool.most == 0 || chunk + pool.reserved <= pool.most;
    return fits ? take_memory(chunk, pool.device) : 0;
  };
  std::uintptr_t address = take();
  if (address == 0) {
    trim(pool, 0);
    address = take();
  }
  if (address == 0) return false;
  pool.chunks[address] = chunk;
  pool.ranges[address] = {chunk, address, true, {}};
  pool.reserved += chunk;
  pool.reserved_high = std::max(pool.reserved_high, pool.reserved);
  return true;
}

auto best_fit(Pool& pool, std::uint64_t bytes, const Stream& stream) {
  auto best = pool.ranges.end();
  for (auto range = pool.ranges.begin(); range != pool.ranges.end(); ++range) {
    if (range->second.bytes < bytes || !may_have(pool, range->second, stream)) continue;
    if (best == pool.ranges.end() || range->second.bytes < best->second.bytes) best = range;
  }
  return best;
}

cudaError_t allocate(void** memory, std::size_t requested, Pool& pool, const Stream& stream) {
  *memory = nullptr;
  if (requested == 0) return cudaSuccess;
  if (requested > total_bytes()) return result(cudaErrorMemoryAllocation);
  const std::uint64_t bytes = round_up(requested, kUnit);
  auto found = best_fit(pool, bytes, stream);
  if (found == pool.ranges.end()) {
    merge_all(pool);
    found = best_fit(pool, bytes, stream);
  }
  if (found == pool.ranges.end()) {
    if (!grow(pool, bytes)) return result(cudaErrorMemoryAllocation);
    found = best_fit(pool, bytes, stream);
  }
  Range& range = found->second;
  if (range.bytes > bytes) {
    pool.ranges[found->first + bytes] = {range.bytes - bytes, range.chunk, true, range.freed};
    range.bytes = bytes;
  }
  range.is_free = false;
  pool.used += range.bytes;
  pool.used_high = std::max(pool.used_high, pool.used);
  *memory = reinterpret_cast<void*>(found->first);
  return cudaSuccess;
}

Pool* pool_of(cudaMemPool_t handle) {
  const auto is_it = [&](const auto& pool) {
    return reinterpret_cast<cudaMemPool_t>(pool.get()) == handle;
  };
  const auto found = std::find_if(pools().begin(), pools().end(), is_it);
  return found == pools().end() ? nullptr : found->get();
}

cudaMemPool_t handle_of(Pool& pool) { return reinterpret_cast<cudaMemPool_t>(&pool); }

}  // namespace

bool free_to_pool(std::uintptr_t address, Stream* stream) {
  for (const auto& pool : pools()) {
    const auto found = pool->ranges.find(address);
    if (found == pool->ranges.end() || found->second.is_free) continue;
    pool->used -= found->second.bytes;
    found->second.is_free = true;
    if (stream != nullptr) found->second.freed = mark(*stream);
    return true;
  }
  return false;
}

void trim_pools() {
  for (const auto& pool : pools()) {
    if (pool->reserved > pool->threshold) trim(*pool, pool->threshold);
  }
}

}  // namespace cuda_stub

using namespace cuda_stub;

extern "C" {

cudaError_t cudaMallocFromPoolAsync(void** memory, size_t bytes, cudaMemPool_t from,
                                    cudaStream_t on) {
  CUDA_STUB_ENTER();
  Stream* const stream = stream_of(on);
  Pool* const pool = pool_of(from);
  if (stream == nullptr || pool == nullptr) return result(cudaErrorInvalidValue);
  return allocate(memory, bytes, *pool, *stream);
}

cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t on) {
  CUDA_STUB_ENTER();
  Stream* const stream = stream_of(on);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  return allocate(memory, bytes, *current_pool(current_device()), *stream);
}

cudaError_t cudaFreeAsync(void* memory, cudaStream_t on) {
  CUDA_STUB_ENTER();
  if (memory == nullptr) return cudaSuccess;
  Stream* const stream = stream_of(on);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  return free_to_pool(reinterpret_cast<std::uintptr_t>(memory), stream)
             ? cudaSuccess
             : result(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  CUDA_STUB_ENTER();
  if (device < 0 || device >= kMostDevices) return result(cudaErrorInvalidDevice);
  *pool = handle_of(default_pool(device));
  return cudaSuccess;
}

cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int device) {
  CUDA_STUB_ENTER();
  if (device < 0 || device >= kMostDevices) return result(cudaErrorInvalidDevice);
  *pool = handle_of(*current_pool(device));
  return cudaSuccess;
}

cudaError_t cudaDeviceSetMemPool(int device, cudaMemPool_t pool) {
  CUDA_STUB_ENTER();
  if (device < 0 || device >= kMostDevices) return result(cudaErrorInvalidDevice);
  Pool* const found = pool_of(pool);
  if (found == nullptr) return result(cudaErrorInvalidValue);
  current_pool(device) = found;
  return cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  CUDA_STUB_ENTER();
  Pool& made = *pools().emplace_back(std::make_unique<Pool>());
  made.device = properties->location.id;
  made.most = properties->maxSize;
  *pool = handle_of(made);
  return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  CUDA_STUB_ENTER();
  Pool* const found = pool_of(pool);
  if (found == nullptr) return result(cudaErrorInvalidValue);
  synchronize_device();
  trim(*found, 0);
  if (current_pool(found->device) == found) {
    current_pool(found->device) = &default_pool(found->device);
  }
  std::erase_if(pools(), [&](const auto& one) { return one.get() == found; });
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute,
                                    void* value) {
  CUDA_STUB_ENTER();
  const Pool* const found = pool_of(pool);
  if (found == nullptr) return result(cudaErrorInvalidValue);
  const auto number = [&](std::uint64_t told) {
    *static_cast<std::uint64_t*>(value) = told;
    return cudaSuccess;
  };
  const auto flag = [&](int told) {
    *static_cast<int*>(value) = told;
    return cudaSuccess;
  };
  switch (attribute) {
    case cudaMemPoolReuseFollowEventDependencies:
      return flag(found->follows_events);
    case cudaMemPoolReuseAllowOpportunistic:
      return flag(found->is_opportunistic);
    case cudaMemPoolReuseAllowInternalDependencies:
      return flag(found->follows_internal);
    case cudaMemPoolAttrReleaseThreshold:
      return number(found->threshold);
    case cudaMemPoolAttrReservedMemCurrent:
      return number(found->reserved);
    case cudaMemPoolAttrReservedMemHigh:
      return number(found->reserved_high);
    case cudaMemPoolAttrUsedMemCurrent:
      return number(found->used);
    case cudaMemPoolAttrUsedMemHigh:
      return number(found->used_high);
    default:
      return result(cudaErrorInvalidValue);
  }
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute,
                                    void* value) {
  CUDA_STUB_ENTER();
  Pool* const found = pool_of(pool);
  if (found == nullptr) return result(cudaErrorInvalidValue);
  switch (attribute) {
    case cudaMemPoolReuseFollowEventDependencies:
      found->follows_events = *static_cast<int*>(value);
      break;
    case cudaMemPoolReuseAllowOpportunistic:
      found->is_opportunistic = *static_cast<int*>(value);
      break;
    case cudaMemPoolReuseAllowInternalDependencies:
      found->follows_internal = *static_cast<int*>(value);
      break;
    case cudaMemPoolAttrReleaseThreshold:
      found->threshold = *static_cast<std::uint64_t*>(value);
      break;
    case cudaMemPoolAttrReservedMemHigh:
      found->reserved_high = found->reserved;
      break;
    case cudaMemPoolAttrUsedMemHigh:
      found->used_high = found->used;
      break;
    default:
      return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) {
  CUDA_STUB_ENTER();
  Pool* const found = pool_of(pool);
  if (found == nullptr) return result(cudaErrorInvalidValue);
  trim(*found, keep);
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t) {
  CUDA_STUB_COUNT();
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAccess(enum cudaMemAccessFlags* flags, cudaMemPool_t, cudaMemLocation*) {
  CUDA_STUB_COUNT();
  *flags = cudaMemAccessFlagsProtReadWrite;
  return cudaSuccess;
}

}  // extern "C"
