// The CUDA allocator that records: stands in front of whichever PyTorch uses, forwards all to it
// and writes a record of what decides where memory can be. Built against the installed torch where
// that is a CUDA build, loaded once, never unloaded.

#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>
#include <utility>

#include "cuda_forward.h"
#include "cuda_numbers.h"
#include "cuda_peaks.h"
#include "cuda_records.h"
#include "hook_face.h"

namespace workbench {
namespace {

using spool::Event;
using Cuda = native::CUDAAllocator;

CudaPeaks* peaks = nullptr;  // never destroyed, like all of it

class RecordingAllocator final : public ForwardingAllocator<Cuda> {
  using Forward = ForwardingAllocator<Cuda>;

 public:
  using Forward::Forward;
  using Forward::recordStream;

  // The allocator to stand in front of from here on.
  void stand_before(Cuda* original) {
    original_ = original;
    track();
  }

  c10::DataPtr allocate(std::size_t bytes) override {
    if (!recording()) return original_->allocate(bytes);
    const Request request(*original_, bytes);
    c10::DataPtr memory = request.made([&] { return original_->allocate(bytes); });
    return own(std::move(memory), request);
  }
  c10::DataPtr allocateWithAddress(std::size_t bytes, void* address) {
    if (!recording()) return Forward::allocateWithAddress(bytes, address);
    const Request request(*original_, bytes);
    return own(request.made([&] { return Forward::allocateWithAddress(bytes, address); }), request);
  }
  c10::DeleterFnPtr raw_deleter() const override { return our_deleter(original_->raw_deleter()); }

  void* raw_alloc(std::size_t bytes) override {
    if (!recording()) return original_->raw_alloc(bytes);
    const Request request(*original_, bytes);
    void* const data = request.made([&] { return original_->raw_alloc(bytes); });
    request.record_alloc(data);
    return data;
  }
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override {
    if (!recording()) return original_->raw_alloc_with_stream(bytes, stream);
    const Request request(*original_, bytes, stream);
    void* const data =
        request.made([&] { return original_->raw_alloc_with_stream(bytes, stream); });
    request.record_alloc(data);
    return data;
  }
  void raw_delete(void* data) override {
    if (data == nullptr) return original_->raw_delete(data);
    const FreeCall call(data);
    original_->raw_delete(data);
  }

  void init(int devices) override {
    original_->init(devices);
    track();
  }

  void recordStream(const c10::DataPtr& memory, c10::cuda::CUDAStream stream) override {
    const std::uint64_t began = face->now();
    original_->recordStream(AsOriginal(memory).pointer(), stream);
    if (!recording() || memory.get() == nullptr) return;
    DeviceEvent event = event_of(Event::kRecordStream, stream.device_index());
    event.stream = number_of(stream);
    event.address = as_number(memory.get());
    event.began = began;
    record(event);
  }

  // It is of all devices: a row for each that was used, the first with the time that all took.
  void emptyCache(c10::MempoolId_t pool) override {
    if (!recording()) return original_->emptyCache(pool);
    std::vector<int> devices = numbers->devices();
    if (devices.empty() && original_->initialized()) devices = {c10::cuda::current_device()};
    OpenCall call;
    for (const int device : devices) {
      DeviceEvent event = event_of(Event::kEmptyCache, device);
      event.pool = numbers->pool(device, pool);
      const OpenCall made = face->record_device(event, false);
      if (call.detail == nullptr) call = made;
    }
    original_->emptyCache(pool);
    face->call_ended(call);
  }

  void setMemoryFraction(double fraction, Device device) override {
    original_->setMemoryFraction(fraction, device);
    DeviceEvent event = event_of(Event::kSetFraction, device);
    event.value = std::llround(fraction * 1e6);
    if (recording()) record(event);
  }

  void beginAllocateToPool(Device device, Pool pool,
                           std::function<bool(cudaStream_t)> filter) override {
    original_->beginAllocateToPool(device, pool, std::move(filter));
    record_pool(Event::kPoolBegin, device, pool);
  }
  void endAllocateToPool(Device device, Pool pool) override {
    original_->endAllocateToPool(device, pool);
    record_pool(Event::kPoolEnd, device, pool);
  }
  void releasePool(Device device, Pool pool) override {
    original_->releasePool(device, pool);
    record_pool(Event::kPoolRelease, device, pool);
  }
  // One user more of the pool, as at its begin, and nothing is allocated to it.
  void createOrIncrefPool(Device device, Pool pool, std::shared_ptr<Cuda> allocator) override {
    original_->createOrIncrefPool(device, pool, std::move(allocator));
    record_pool(Event::kPoolBegin, device, pool);
    record_pool(Event::kPoolEnd, device, pool);
  }
  void markCaptureBegin(Device device) {
    Forward::markCaptureBegin(device);
    record_capture(Event::kCaptureBegin, device);
  }
  void markCaptureEnd(Device device) {
    Forward::markCaptureEnd(device);
    record_capture(Event::kCaptureEnd, device);
  }

  native::CheckpointDelta setCheckpointPoolState(
      Device device, std::shared_ptr<native::AllocatorState> state) override {
    thread_call.in_checkpoint = true;
    struct End {
      ~End() {
        thread_call.in_checkpoint = false;
        thread_call.freeing = 0;
      }
    } const end;
    native::CheckpointDelta delta = original_->setCheckpointPoolState(device, std::move(state));
    for (c10::DataPtr& memory : delta.dataptrs_allocd) take_deleter(memory);
    return delta;
  }

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(Device device) override {
    record_query(device);
    return original_->getDeviceStats(device);
  }
  std::pair<std::size_t, std::size_t> getMemoryInfo(Device device) override {
    record_query(device);
    return original_->getMemoryInfo(device);
  }
  void cacheInfo(Device device, std::size_t* largest) override {
    record_query(device);
    original_->cacheInfo(device, largest);
  }
  void resetPeakStats(Device device) override {
    if (recording()) peaks->keep(*original_, device);
    original_->resetPeakStats(device);
  }

 private:
  static c10::DataPtr own(c10::DataPtr memory, const Request& request) {
    if (memory.get() != nullptr && take_deleter(memory)) request.record_alloc(memory.get());
    return memory;
  }

  // The tracker is for the native allocator's devices, which are there once it is initialised; it
  // cannot be taken away again.
  void track() {
    if (tracked_ == original_ || !original_->initialized() || original_->name() != "native") return;
    tracked_ = original_;
    original_->attachAllocatorTraceTracker(&on_trace);
  }

  static void record_pool(Event what, int device, Pool pool) {
    if (!recording()) return;
    DeviceEvent event = event_of(what, device);
    event.pool = numbers->pool(device, pool);
    record(event);
  }

  static void record_capture(Event what, int device) {
    if (!recording()) return;
    DeviceEvent event = event_of(what, device);
    event.stream =
        number_of(c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)));
    record(event);
  }

  static void record_query(int device) {
    if (recording()) record(event_of(Event::kQuery, device));
  }

  Cuda* tracked_ = nullptr;
};

template <typename Base>
constexpr bool sees_captures() {
  return requires(Base& base) { base.markCaptureBegin(c10::DeviceIndex{}); };
}

RecordingAllocator* hook = nullptr;
bool is_behind = false;  // another one, which forwards to us, for all we know

bool is_in_front() { return hook != nullptr && native::allocator.load() == hook; }

}  // namespace
}  // namespace workbench

using namespace workbench;  // NOLINT: the functions below are the library's whole face

// Stands in front of the allocator that PyTorch uses now, also after a change of it; nothing is
// initialised by that. The recording is the one in progress.
WORKBENCH_EXPORT void wb_cuda_start(const HookFace* given) {
  Cuda* const current = native::allocator.load();
  if (hook == nullptr) {
    face = given;
    numbers = new CudaNumbers(*face);
    peaks = new CudaPeaks(*face);
    hook = new RecordingAllocator(current);
  }
  if (!is_in_front() && !is_behind) {
    hook->stand_before(current);
    native::allocator.store(hook);
    c10::SetAllocator(c10::DeviceType::CUDA, hook);
  }
  // Counting devices would initialise CUDA, after which forked children cannot use it.
  const bool is_used = hook->original()->initialized();
  peaks->begin(*hook->original(), is_used ? c10::cuda::device_count() : 0);
  const std::string settings =
      c10::CachingAllocator::AcceleratorAllocatorConfig::last_allocator_settings();
  const std::string text = "{\"backend\": " + quoted(hook->original()->name()) +
                           ", \"settings\": " + quoted(settings) + '}';
  face->define_name("allocator", text.c_str());
}

// Puts the original back, where nobody else has come before us; memory is freed through us still.
WORKBENCH_EXPORT void wb_cuda_stop() {
  is_behind = is_behind || !is_in_front();
  if (is_behind) return;
  native::allocator.store(hook->original());
  c10::SetAllocator(c10::DeviceType::CUDA, hook->original());
}

WORKBENCH_EXPORT int wb_cuda_is_in_front() { return is_in_front() ? 1 : 0; }

// Writes the peaks that the allocator reports by now.
WORKBENCH_EXPORT void wb_cuda_tell_peaks() {
  if (hook != nullptr && recording()) peaks->tell(*hook->original(), numbers->devices());
}

// Whether PyTorch tells the allocator of captures, or somebody else has to.
WORKBENCH_EXPORT int wb_cuda_sees_captures() { return sees_captures<Cuda>() ? 1 : 0; }

// The number of a c10::Stream, for others who record.
WORKBENCH_EXPORT std::int32_t wb_cuda_stream_number(int device, std::int64_t id) {
  const c10::Stream stream(c10::Stream::UNSAFE,
                           {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)}, id);
  return number_of(c10::cuda::CUDAStream(stream));
}

WORKBENCH_EXPORT std::uint64_t wb_cuda_now() { return face->now(); }

// An event that the allocator is not told of. `stream`: a cudaStream_t, or all ones for all.
WORKBENCH_EXPORT void wb_cuda_event(std::uint32_t event, int device, std::uint64_t stream,
                                    std::int64_t value, std::uint64_t began) {
  if (!recording()) return;
  DeviceEvent made = event_of(static_cast<Event>(event), device);
  made.stream = stream == ~std::uint64_t{0}
                    ? -1
                    : numbers->stream(device, reinterpret_cast<cudaStream_t>(stream));
  made.value = value;
  made.began = began;
  record(made);
}
