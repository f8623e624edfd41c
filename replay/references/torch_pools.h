// Private pools and captures of a trace, as PyTorch's programs make them.
#pragma once

#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "torch_cuda.h"

namespace reference {

class Pools {
 public:
  Pools(c10::DeviceIndex device, Streams& streams) : device_(device), streams_(streams) {}

  void set_lanes(const wb_lane* lanes, std::size_t count) { lanes_.assign(lanes, lanes + count); }

  wb_lane lane(std::int32_t number) const {
    return lanes_.empty() ? wb_lane{number, 0} : lanes_[static_cast<std::size_t>(number)];
  }

  // Calls `allocate` so that what it allocates comes from `pool`.
  template <class Allocate>
  void* in_pool(std::int32_t pool, Allocate&& allocate) {
    asked_ = pool;
    if (pool == 0) return allocate();
    std::unique_lock guard(mutex_);
    if (begun_.contains(pool)) {
      guard.unlock();
      return allocate();
    }
    // What recorded the trace did not tell that its pool was in use.
    const bool was_there = users_[pool] > 0;
    begin(pool);
    void* memory = nullptr;
    try {
      memory = allocate();
    } catch (...) {
      leave(pool, was_there);
      throw;
    }
    leave(pool, was_there);
    return memory;
  }

  void begin(std::int32_t pool) {
    const std::lock_guard guard(mutex_);
    if (begun_.contains(pool)) return;
    original().beginAllocateToPool(device_, id(pool),
                                   [pool](cudaStream_t) { return asked_ == pool; });
    begun_.insert(pool);
    ++users_[pool];
  }

  void end(std::int32_t pool) {
    const std::lock_guard guard(mutex_);
    if (begun_.erase(pool) == 0) return;
    original().endAllocateToPool(device_, id(pool));
  }

  void release(std::int32_t pool) {
    const std::lock_guard guard(mutex_);
    const auto found = users_.find(pool);
    if (found == users_.end() || found->second == 0) return;
    --found->second;
    original().releasePool(device_, id(pool));
  }

  void begin_capture(std::int32_t stream) {
    const std::lock_guard guard(mutex_);
    if (!capturing_.insert(stream).second) return;
    had_captures_ = true;
#ifdef WORKBENCH_OVER_STUB
    // Refused for the default stream, as by the real one.
    (void)cudaStreamBeginCapture(streams_.of(stream), cudaStreamCaptureModeRelaxed);
    (void)cudaGetLastError();
#endif
#if WORKBENCH_TORCH_SINCE(13)
    original().markCaptureBegin(device_);
#endif
    go_on_with(stream);
  }

  void end_capture(std::int32_t stream) {
    const std::lock_guard guard(mutex_);
    if (capturing_.erase(stream) == 0) return;
#ifdef WORKBENCH_OVER_STUB
    cudaGraph_t graph = nullptr;
    (void)cudaStreamEndCapture(streams_.of(stream), &graph);
    (void)cudaGetLastError();
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
#endif
#if WORKBENCH_TORCH_SINCE(13)
    original().markCaptureEnd(device_);
#endif
    go_on_with(capturing_.empty() ? 0 : *capturing_.begin());
  }

  bool had_captures() const { return had_captures_; }

  // Leaves nothing begun or captured.
  void end_all() {
    while (!capturing_.empty()) end_capture(*capturing_.begin());
    while (!begun_.empty()) end(*begun_.begin());
  }

  // The default pool and those that somebody uses.
  std::vector<std::int32_t> in_use() const {
    std::vector<std::int32_t> pools = {0};
    for (const auto& [pool, users] : users_) {
      if (users > 0) pools.push_back(pool);
    }
    return pools;
  }

  // Leaves none in use.
  void release_all() {
    for (const auto& [pool, users] : std::map(users_)) {
      for (int i = 0; i < users; ++i) release(pool);
    }
  }

 private:
  // The original takes what is done on a thread whose current stream is captured for captured.
  void go_on_with(std::int32_t stream) {
    c10::cuda::setCurrentCUDAStream(
        stream == 0 ? c10::cuda::getDefaultCUDAStream(device_)
                    : c10::cuda::getStreamFromExternal(streams_.of(stream), device_));
  }

  // Not the same again in this process: the original may not forget a pool that was given back.
  c10::MempoolId_t id(std::int32_t pool) const {
    return {first_ + static_cast<c10::CaptureId_t>(pool), 0};
  }

  void leave(std::int32_t pool, bool was_there) {
    end(pool);
    if (was_there) release(pool);
  }

  static inline thread_local std::int32_t asked_ = 0;  // the pool of this thread's allocation
  static inline std::atomic<c10::CaptureId_t> next_ = 0;
  const c10::CaptureId_t first_ = next_.fetch_add(c10::CaptureId_t{1} << 20);
  const c10::DeviceIndex device_;
  Streams& streams_;
  std::vector<wb_lane> lanes_;
  std::recursive_mutex mutex_;  // around what follows
  bool had_captures_ = false;
  std::set<std::int32_t> begun_;
  std::map<std::int32_t, int> users_;
  std::set<std::int32_t> capturing_;
};

}  // namespace reference
