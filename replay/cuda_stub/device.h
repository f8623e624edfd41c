// What all parts of the stand-in share: the device, its memory, its streams, and one lock.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_stub.h"

namespace cuda_stub {

inline constexpr std::uint64_t kPage = std::uint64_t{2} << 20;
inline constexpr int kMostDevices = 100;
inline constexpr std::int32_t kMostStreams = 1 << 16;

inline std::uint64_t round_up(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// One lock around everything: this is no place where speed matters. A function that runs as work
// of a stream may call the runtime again.
std::recursive_mutex& mutex();

// Remembers an error for cudaGetLastError and returns it.
cudaError_t result(cudaError_t error);

// How often this function has been called.
std::atomic<std::uint64_t>& counter(const char* function);
#define CUDA_STUB_COUNT()                                                            \
  do {                                                                               \
    static std::atomic<std::uint64_t>& calls_of_this = cuda_stub::counter(__func__); \
    calls_of_this.fetch_add(1, std::memory_order_relaxed);                           \
  } while (false)
// What each function begins with.
#define CUDA_STUB_ENTER() \
  CUDA_STUB_COUNT();      \
  const std::lock_guard<std::recursive_mutex> guard(cuda_stub::mutex())

// device.cpp: as the environment, or the host, has it.
struct Device {
  std::uint64_t total = std::uint64_t{80} << 30;
  int count = 1;
  bool has_memory = false;
  bool completes_at_once = true;
};
const Device& device();
int current_device();
// Null where the device is its own.
const wb_host* host();
std::uint64_t total_bytes();
std::uint64_t used_bytes(int device);

// memory.cpp: memory of the device; 0 where there is no room.
std::uintptr_t take_memory(std::uint64_t bytes, int device);
void give_memory(std::uintptr_t address, std::uint64_t bytes, int device);
// Counts bytes of a device's memory; false where there is no room.
bool claim(std::uint64_t bytes, int device);
void unclaim(std::uint64_t bytes, int device);
// Addresses that nobody else has, without memory.
std::uintptr_t next_addresses(std::uint64_t bytes);
// Whether bytes there can be read and written.
bool has_bytes();
// What has not been given back is nobody's: here, and of virtual_memory.cpp.
void forget_memory();
void forget_ranges();

// streams.cpp
struct Stream;
// A place in a stream's work.
struct Mark {
  Stream* stream = nullptr;
  std::uint64_t position = 0;  // pieces of work up to here
  std::uint64_t host_event = 0;
};
struct Work {
  Mark after;                     // of another stream, where there is one
  std::function<bool()> allowed;  // what else must be true
  std::function<void()> run;
};
struct Stream {
  std::int32_t number = 0;
  unsigned flags = 0;
  int priority = 0;
  int device = 0;
  std::uint64_t submitted = 0;
  std::uint64_t done = 0;
  std::deque<Work> waiting;        // submitted − done
  unsigned long long capture = 0;  // id of what captures it; 0: nothing does
  bool is_origin = false;          // where the capture began
  cudaGraph_t graph = nullptr;
};
// Null for what is no stream.
Stream* stream_of(cudaStream_t handle);
cudaStream_t handle_of(Stream& stream);
Stream& new_stream();
void for_each_stream(const std::function<void(Stream&)>& visit);
void submit(Stream& stream, Work work);
Mark mark(Stream& stream);
// Whether the work up to there is complete.
bool is_complete(const Mark& place);
// Waits until it is; the lock is given up meanwhile.
void wait_for(const Mark& place);
cudaError_t synchronize_device();

// pools.cpp: what of cudaMallocAsync is given back where there is nothing to wait for.
void trim_pools();
// Whether `address` was the pool's, and is now given back to it.
bool free_to_pool(std::uintptr_t address, Stream* stream);

// driver.cpp: a function of the driver by name; null where there is none.
void* driver_function(const char* name);

}  // namespace cuda_stub

using cuda_stub::result;
