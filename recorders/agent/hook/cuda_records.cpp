#include "cuda_records.h"

#include <array>
#include <atomic>
#include <utility>

namespace workbench {

using spool::Event;

const HookFace* face = nullptr;
CudaNumbers* numbers = nullptr;
thread_local constinit ThreadCall thread_call;

DeviceEvent event_of(Event event, int device) {
  return {.event = event, .device = static_cast<std::uint16_t>(spool::kFirstCuda + device)};
}

void record(const DeviceEvent& event) { face->record_device(event, false); }

// The lowest bit of a stream's id is set in streams that PyTorch made; the default stream has id 0.
std::int32_t number_of(const c10::cuda::CUDAStream& stream) {
  const bool is_external = stream.id() != 0 && (stream.id() & 1) == 0;
  return numbers->stream(stream.device_index(), stream.stream(), is_external);
}

FreeCall::FreeCall(const void* data) {
  thread_call.freeing = as_number(data);
  // Which device it is of follows from its allocation: addresses are of one range for all.
  DeviceEvent event = event_of(Event::kFree, 0);
  event.address = as_number(data);
  call_ = face->record_device(event, false);
}

FreeCall::~FreeCall() {
  thread_call.freeing = 0;
  face->call_ended(call_);
}

Request::Request(native::CUDAAllocator& original, std::size_t bytes, int device,
                 std::int32_t stream)
    : bytes_(bytes), device_(device), stream_(stream) {
  numbers->meet_device(device, original);
  thread_call.allocated = 0;
  thread_call.pool = 0;
  thread_call.free_bytes = -1;
  began_ = face->now();
}

Request::Request(native::CUDAAllocator& original, std::size_t bytes)
    : Request(original, bytes, c10::cuda::current_device(),
              number_of(c10::cuda::getCurrentCUDAStream())) {}

Request::Request(native::CUDAAllocator& original, std::size_t bytes, cudaStream_t stream)
    : Request(original, bytes, c10::cuda::current_device(),
              numbers->stream(c10::cuda::current_device(), stream)) {}

DeviceEvent Request::about(Event event) const {
  DeviceEvent found = event_of(event, device_);
  found.stream = stream_;
  found.bytes = bytes_;
  found.began = began_;
  return found;
}

void Request::record_alloc(const void* data) const {
  if (data == nullptr) return;
  DeviceEvent event = about(Event::kAlloc);
  event.address = as_number(data);
  if (thread_call.allocated == event.address) event.pool = thread_call.pool;
  face->record_device(event, true);
}

void Request::record_failure() const {
  DeviceEvent event = about(Event::kOutOfMemory);
  event.pool = thread_call.pool;
  event.value = thread_call.free_bytes;
  std::size_t free = 0, total = 0;
  if (event.value < 0) {  // no tracker has said it
    if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
      event.value = static_cast<std::int64_t>(free);
    } else {
      (void)cudaGetLastError();
    }
  }
  record(event);
}

namespace {

// A pointer's deleter is all that a free is told: ours, one for each deleter of an original, which
// it calls after the record. There are two where caching can be switched off, and more where the
// allocator is changed.
constexpr int kDeleters = 8;
std::atomic<c10::DeleterFnPtr> original_deleters[kDeleters];

template <int place>
void record_and_free(void* data) {
  const auto original = original_deleters[place].load(std::memory_order_relaxed);
  if (data == nullptr) return original(data);
  const FreeCall call(data);
  original(data);
}

template <int... places>
constexpr auto make_deleters(std::integer_sequence<int, places...>) {
  return std::array<c10::DeleterFnPtr, sizeof...(places)>{&record_and_free<places>...};
}
constexpr auto our_deleters = make_deleters(std::make_integer_sequence<int, kDeleters>());

c10::DeleterFnPtr original_of(c10::DeleterFnPtr deleter) {
  for (std::size_t place = 0; place < kDeleters; ++place) {
    if (deleter == our_deleters[place]) return original_deleters[place].load();
  }
  return deleter;
}

}  // namespace

c10::DeleterFnPtr our_deleter(c10::DeleterFnPtr original) {
  if (original == nullptr) return nullptr;
  for (std::size_t place = 0; place < kDeleters; ++place) {
    c10::DeleterFnPtr known = nullptr;
    if (original_deleters[place].compare_exchange_strong(known, original) || known == original) {
      return our_deleters[place];
    }
  }
  return original;
}

bool take_deleter(c10::DataPtr& memory) {
  const auto original = memory.get_deleter();
  const auto ours = our_deleter(original);
  return ours != original && memory.compare_exchange_deleter(original, ours);
}

AsOriginal::AsOriginal(const c10::DataPtr& memory)
    : shown_(memory.get(), memory.get_context(), original_of(memory.get_deleter()),
             memory.device()) {}

void on_trace(const native::TraceEntry& entry) {
  if (!recording()) return;
  using Entry = native::TraceEntry;
  const int device = entry.device_;
  const std::uint32_t pool = numbers->pool(device, entry.mempool_);
  ThreadCall& call = thread_call;
  Event what{};
  switch (entry.action_) {
    case Entry::ALLOC:
      call.allocated = entry.addr_;
      call.pool = pool;
      if (!call.in_checkpoint) return;
      what = Event::kAlloc;
      break;
    case Entry::FREE_REQUESTED:
      if (!call.in_checkpoint) return;
      call.freeing = entry.addr_;
      what = Event::kFree;
      break;
    case Entry::FREE_COMPLETED:
      if (entry.addr_ == call.freeing) return;  // not later than the free
      what = Event::kFreeCompleted;
      break;
    case Entry::SEGMENT_ALLOC:
      what = Event::kSegmentAlloc;
      break;
    case Entry::SEGMENT_FREE:
      what = Event::kSegmentFree;
      break;
    case Entry::SEGMENT_MAP:
      what = Event::kSegmentMap;
      break;
    case Entry::SEGMENT_UNMAP:
      what = Event::kSegmentUnmap;
      break;
    case Entry::OOM:
      call.free_bytes = static_cast<std::int64_t>(entry.addr_);
      call.pool = pool;
      return;
    default:
      return;
  }
  DeviceEvent event = event_of(what, device);
  event.stream = numbers->stream(device, static_cast<cudaStream_t>(entry.stream_));
  event.pool = pool;
  event.address = entry.addr_;
  event.bytes = entry.size_;
  record(event);
}

}  // namespace workbench
