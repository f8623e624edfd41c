// An allocator of CUDA that forwards every call to another one.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace workbench {

namespace native = c10::cuda::CUDACachingAllocator;

// `Base` is native::CUDAAllocator, as a parameter so that functions that only some versions of
// PyTorch have can be asked for; those are written without `override`.
template <typename Base>
class ForwardingAllocator : public Base {
 public:
  using Device = c10::DeviceIndex;
  using Pool = c10::MempoolId_t;

  explicit ForwardingAllocator(Base* original) : original_(original) {}

  Base* original() const { return original_; }

  // c10::Allocator
  c10::DataPtr allocate(std::size_t bytes) override { return original_->allocate(bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return original_->raw_deleter(); }
  bool is_simple_data_ptr(const c10::DataPtr& memory) const override {
    return original_->is_simple_data_ptr(memory);
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    original_->copy_data(to, from, bytes);
  }

  // c10::DeviceAllocator
  bool initialized() override { return original_->initialized(); }
  void emptyCache(Pool pool) override { original_->emptyCache(pool); }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(Device device) override {
    return original_->getDeviceStats(device);
  }
  void resetAccumulatedStats(Device device) override { original_->resetAccumulatedStats(device); }
  void resetPeakStats(Device device) override { original_->resetPeakStats(device); }
  std::pair<std::size_t, std::size_t> getMemoryInfo(Device device) override {
    return original_->getMemoryInfo(device);
  }

  // CUDAAllocator
  using Base::recordStream;
  void* raw_alloc(std::size_t bytes) override { return original_->raw_alloc(bytes); }
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override {
    return original_->raw_alloc_with_stream(bytes, stream);
  }
  void raw_delete(void* memory) override { original_->raw_delete(memory); }
  void init(int devices) override { original_->init(devices); }
  double getMemoryFraction(Device device) override { return original_->getMemoryFraction(device); }
  void setMemoryFraction(double fraction, Device device) override {
    original_->setMemoryFraction(fraction, device);
  }
  std::vector<native::StreamSegmentSize> getExpandableSegmentSizes(Device device) override {
    return original_->getExpandableSegmentSizes(device);
  }
  void enable(bool value) override { original_->enable(value); }
  bool isEnabled() const override { return original_->isEnabled(); }
  void cacheInfo(Device device, std::size_t* largest) override {
    original_->cacheInfo(device, largest);
  }
  void* getBaseAllocation(void* memory, std::size_t* bytes) override {
    return original_->getBaseAllocation(memory, bytes);
  }
  void recordStream(const c10::DataPtr& memory, c10::cuda::CUDAStream stream) override {
    original_->recordStream(memory, stream);
  }
  native::SnapshotInfo snapshot(Pool pool, bool traces) override {
    return original_->snapshot(pool, traces);
  }
  void beginAllocateToPool(Device device, Pool pool,
                           std::function<bool(cudaStream_t)> filter) override {
    original_->beginAllocateToPool(device, pool, std::move(filter));
  }
  void endAllocateToPool(Device device, Pool pool) override {
    original_->endAllocateToPool(device, pool);
  }
  void releasePool(Device device, Pool pool) override { original_->releasePool(device, pool); }
  int getPoolUseCount(Device device, Pool pool) override {
    return original_->getPoolUseCount(device, pool);
  }
  void createOrIncrefPool(Device device, Pool pool, std::shared_ptr<Base> allocator) override {
    original_->createOrIncrefPool(device, pool, std::move(allocator));
  }
  void setUseOnOOM(Device device, Pool pool, bool use) override {
    original_->setUseOnOOM(device, pool, use);
  }
  void setNoSplit(Device device, Pool pool) override { original_->setNoSplit(device, pool); }
  bool checkPoolLiveAllocations(Device device, Pool pool,
                                const std::unordered_set<void*>& expected) override {
    return original_->checkPoolLiveAllocations(device, pool, expected);
  }
  native::ShareableHandle shareIpcHandle(void* memory) override {
    return original_->shareIpcHandle(memory);
  }
  std::shared_ptr<void> getIpcDevPtr(std::string handle) override {
    return original_->getIpcDevPtr(std::move(handle));
  }
  bool isHistoryEnabled() override { return original_->isHistoryEnabled(); }
  void recordHistory(bool enabled, native::CreateContextFn recorder, std::size_t entries,
                     native::RecordContext when, bool clear,
                     const std::vector<std::string>& skipped) override {
    original_->recordHistory(enabled, recorder, entries, when, clear, skipped);
  }
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& pairs) override {
    original_->recordAnnotation(pairs);
  }
  void pushCompileContext(std::string& context) override { original_->pushCompileContext(context); }
  void popCompileContext() override { original_->popCompileContext(); }
  void setUserMetadata(const std::string& text) override { original_->setUserMetadata(text); }
  std::string getUserMetadata() override { return original_->getUserMetadata(); }
  void attachOutOfMemoryObserver(native::OutOfMemoryObserver observer) override {
    original_->attachOutOfMemoryObserver(std::move(observer));
  }
  void attachAllocatorTraceTracker(native::AllocatorTraceTracker tracker) override {
    original_->attachAllocatorTraceTracker(std::move(tracker));
  }
  void enablePeerAccess(Device from, Device to) override { original_->enablePeerAccess(from, to); }
  cudaError_t memcpyAsync(void* to, int to_device, const void* from, int from_device,
                          std::size_t bytes, cudaStream_t stream, bool peers) override {
    return original_->memcpyAsync(to, to_device, from, from_device, bytes, stream, peers);
  }
  std::shared_ptr<native::AllocatorState> getCheckpointState(Device device, Pool pool) override {
    return original_->getCheckpointState(device, pool);
  }
  native::CheckpointDelta setCheckpointPoolState(
      Device device, std::shared_ptr<native::AllocatorState> state) override {
    return original_->setCheckpointPoolState(device, std::move(state));
  }
  std::string name() override { return original_->name(); }

  // Since 2.12 or 2.13.
  void markCaptureBegin(Device device) {
    if constexpr (requires(Base& base) { base.markCaptureBegin(device); }) {
      original_->markCaptureBegin(device);
    }
  }
  void markCaptureEnd(Device device) {
    if constexpr (requires(Base& base) { base.markCaptureEnd(device); }) {
      original_->markCaptureEnd(device);
    }
  }
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* memory) {
    if constexpr (requires(Base& base) { base.getContextForPointer(memory); }) {
      return original_->getContextForPointer(memory);
    }
    return nullptr;
  }
  void attachOomRejectionObserver(
      std::function<void(std::int64_t, std::size_t, std::size_t, std::size_t)> observer) {
    if constexpr (requires(Base& base) { base.attachOomRejectionObserver(observer); }) {
      original_->attachOomRejectionObserver(std::move(observer));
    }
  }
  c10::DataPtr allocateWithAddress(std::size_t bytes, void* address) {
    if constexpr (requires(Base& base) { base.allocateWithAddress(bytes, address); }) {
      return original_->allocateWithAddress(bytes, address);
    }
    return {};
  }

 protected:
  Base* original_;
};

}  // namespace workbench
