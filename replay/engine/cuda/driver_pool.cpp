#include "cuda/driver_pool.h"

#include <limits>

#include "core/events.h"

namespace workbench::cuda {

DriverPool::DriverPool(Backend& backend, Calls& calls, Streams& streams, int device, Bytes capacity,
                       const DriverPoolOptions& options, std::function<void()> on_end)
    : backend_(backend), calls_(calls), streams_(streams), on_end_(std::move(on_end)) {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  std::size_t free = 0;
  std::size_t total = 0;
  calls_.require("cudaMemGetInfo", calls_.make([&] { return cudaMemGetInfo(&free, &total); }));
  // 0: no more than there is.
  properties.maxSize =
      capacity < static_cast<Bytes>(total) ? static_cast<std::size_t>(capacity) : 0;
  calls_.require("cudaMemPoolCreate",
                 calls_.make([&] { return cudaMemPoolCreate(&pool_, &properties); }));
  set(cudaMemPoolAttrReleaseThreshold, options.release_threshold == kUnlimited
                                           ? std::numeric_limits<std::uint64_t>::max()
                                           : static_cast<std::uint64_t>(options.release_threshold));
  set_flag(cudaMemPoolReuseFollowEventDependencies, options.follow_event_dependencies);
  set_flag(cudaMemPoolReuseAllowOpportunistic, options.allow_opportunistic);
  set_flag(cudaMemPoolReuseAllowInternalDependencies, options.allow_internal_dependencies);
}

DriverPool::~DriverPool() {
  streams_.open_all();
  cudaDeviceSynchronize();
  for (const cudaEvent_t event : events_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  calls_.keep("cudaMemPoolDestroy", cudaMemPoolDestroy(pool_));
  on_end_();
}

void DriverPool::use(StreamId stream) {
  if (first_stream_ < 0) first_stream_ = stream;
  several_streams_ |= stream != first_stream_;
}

Allocation DriverPool::allocate(Bytes size, StreamId stream) {
  use(stream);
  void* memory = nullptr;
  const cudaStream_t on = streams_.at(stream);
  const cudaError_t error = calls_.make(DriverCall::kPoolAlloc, [&] {
    return cudaMallocFromPoolAsync(&memory, static_cast<std::size_t>(size), pool_, on);
  });
  if (!calls_.found_memory("cudaMallocFromPoolAsync", error)) return Allocation::refused();
  return {reinterpret_cast<std::uint64_t>(memory), memory};
}

void DriverPool::free(void* handle, StreamId stream) {
  use(stream);
  const CudaEvent freed = backend_.mark(stream);
  const cudaStream_t on = streams_.at(stream);
  if (stream == kOwnStream) {
    joined_ = false;
  } else if (several_streams_) {
    // To its own stream the memory is free at once; to the others when the work before is complete.
    streams_.hold(stream, freed.sequence);
  }
  streams_.submitted(stream);
  calls_.keep("cudaFreeAsync",
              calls_.make(DriverCall::kPoolFree, [&] { return cudaFreeAsync(handle, on); }));
}

// An event made, recorded, waited for and destroyed each time, as PyTorch's original does.
void DriverPool::join(StreamId waiter, StreamId on) {
  use(on);
  cudaEvent_t event = nullptr;
  backend_.count(&DriverCalls::event_create);
  calls_.require("cudaEventCreateWithFlags", calls_.make(DriverCall::kEventCreate, [&] {
    return cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  }));
  backend_.count(&DriverCalls::event_record);
  const CudaEvent mark = backend_.mark(on);
  // The first is the stream that the block was made on, of whose own work a trace tells nothing.
  if (joined_ || waiter != kOwnStream) streams_.hold(on, mark.sequence);
  joined_ |= waiter == kOwnStream;
  const cudaStream_t recorded = streams_.at(on);
  const cudaStream_t waiting = streams_.at(waiter);
  streams_.submitted(on);
  streams_.submitted(waiter);
  calls_.require("cudaEventRecord", calls_.make(DriverCall::kEventRecord,
                                                [&] { return cudaEventRecord(event, recorded); }));
  backend_.count(&DriverCalls::stream_wait);
  calls_.require("cudaStreamWaitEvent", calls_.make(DriverCall::kStreamWait, [&] {
    return cudaStreamWaitEvent(waiting, event, 0);
  }));
  backend_.count(&DriverCalls::event_destroy);
  calls_.require("cudaEventDestroy",
                 calls_.make(DriverCall::kEventDestroy, [&] { return cudaEventDestroy(event); }));
}

void DriverPool::event_record(std::size_t event, StreamId stream) {
  if (event >= events_.size()) events_.resize(event + 1);
  cudaEvent_t& made = events_[event];
  if (made == nullptr) {
    calls_.require("cudaEventCreateWithFlags", calls_.make([&] {
      return cudaEventCreateWithFlags(&made, cudaEventDisableTiming);
    }));
  }
  const cudaStream_t on = streams_.at(stream);
  streams_.submitted(stream);
  calls_.require("cudaEventRecord", calls_.make([&] { return cudaEventRecord(made, on); }));
}

void DriverPool::event_wait(std::size_t event, StreamId stream) {
  if (event >= events_.size() || events_[event] == nullptr) return;
  const cudaStream_t on = streams_.at(stream);
  streams_.submitted(stream);
  calls_.require("cudaStreamWaitEvent",
                 calls_.make([&] { return cudaStreamWaitEvent(on, events_[event], 0); }));
}

// Where the program waited, the driver gives back what is above the release threshold.
void DriverPool::synchronized(StreamId stream) {
  streams_.open_all();
  if (stream == kAllStreams) {
    calls_.require("cudaDeviceSynchronize", calls_.make([] { return cudaDeviceSynchronize(); }));
    return;
  }
  const cudaStream_t on = streams_.at(stream);
  calls_.require("cudaStreamSynchronize", calls_.make([&] { return cudaStreamSynchronize(on); }));
}

void DriverPool::synchronize() {
  backend_.count(&DriverCalls::synchronize);
  streams_.open_all();
  calls_.require("cudaDeviceSynchronize",
                 calls_.make(DriverCall::kSynchronize, [] { return cudaDeviceSynchronize(); }));
}

void DriverPool::trim_to(Bytes bytes) {
  calls_.require("cudaMemPoolTrimTo", calls_.make([&] {
    return cudaMemPoolTrimTo(pool_, static_cast<std::size_t>(bytes));
  }));
}

void DriverPool::reset_peaks() {
  set(cudaMemPoolAttrUsedMemHigh, 0);
  set(cudaMemPoolAttrReservedMemHigh, 0);
}

Bytes DriverPool::get(cudaMemPoolAttr attribute) const {
  std::uint64_t value = 0;
  calls_.require("cudaMemPoolGetAttribute",
                 calls_.make([&] { return cudaMemPoolGetAttribute(pool_, attribute, &value); }));
  return static_cast<Bytes>(value);
}

void DriverPool::set(cudaMemPoolAttr attribute, std::uint64_t value) {
  calls_.require("cudaMemPoolSetAttribute",
                 calls_.make([&] { return cudaMemPoolSetAttribute(pool_, attribute, &value); }));
}

void DriverPool::set_flag(cudaMemPoolAttr attribute, bool value) {
  int flag = value ? 1 : 0;
  calls_.require("cudaMemPoolSetAttribute",
                 calls_.make([&] { return cudaMemPoolSetAttribute(pool_, attribute, &flag); }));
}

}  // namespace workbench::cuda
