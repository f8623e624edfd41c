// Streams, CUDA events, and the order of work.
#include <algorithm>
#include <chrono>
#include <new>
#include <thread>

#include "device.h"

namespace cuda_stub {
namespace {

using Clock = std::chrono::steady_clock;

// In order of their numbers, so that handles are too: the allocator sorts by them.
alignas(Stream) std::byte storage[sizeof(Stream) * kMostStreams];
std::int32_t stream_count = 0;           // from 0 on
std::int32_t first_made = kMostStreams;  // up to the end: made over a host, whose numbers are low

Stream& stream_at(std::int32_t number) {
  return reinterpret_cast<Stream*>(static_cast<void*>(storage))[number];
}

void make_stream(std::int32_t number) {
  Stream* const made = new (&stream_at(number)) Stream;
  made->number = number;
  made->device = current_device();
}

Stream& stream_numbered(std::int32_t number) {
  while (stream_count <= number && stream_count < first_made) make_stream(stream_count++);
  return stream_at(number);
}

// How far `place` may be gone for: only as far as nothing is in the way, or as far as it takes.
enum class Reach { kAllowed, kForced };

bool advance(Stream& stream, std::uint64_t position, Reach reach) {
  while (stream.done < position && !stream.waiting.empty()) {
    Work& next = stream.waiting.front();
    if (next.after.stream != nullptr && !advance(*next.after.stream, next.after.position, reach)) {
      break;
    }
    if (next.allowed && !next.allowed()) break;
    const Work work = std::move(next);
    stream.waiting.pop_front();
    ++stream.done;
    if (work.run) work.run();
  }
  return stream.done >= position;
}

// What a cudaEvent_t is.
struct Event {
  bool recorded = false;
  unsigned long long capture = 0;
  Mark mark;
  Clock::time_point time;
};

Event& event_of(cudaEvent_t handle) { return *reinterpret_cast<Event*>(handle); }

}  // namespace

Stream* stream_of(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
    return &stream_numbered(0);
  }
  const auto address = reinterpret_cast<std::uintptr_t>(handle);
  const auto first = reinterpret_cast<std::uintptr_t>(storage);
  if (address < first || (address - first) % sizeof(Stream) != 0) return nullptr;
  const std::uintptr_t number = (address - first) / sizeof(Stream);
  const bool is_one = number < static_cast<std::uintptr_t>(stream_count) ||
                      (number >= static_cast<std::uintptr_t>(first_made) && number < kMostStreams);
  return is_one ? reinterpret_cast<Stream*>(handle) : nullptr;
}

cudaStream_t handle_of(Stream& stream) {
  return stream.number == 0 ? nullptr : reinterpret_cast<cudaStream_t>(&stream);
}

Stream& new_stream() {
  if (host() == nullptr) return stream_numbered(std::max(stream_count, 1));
  make_stream(--first_made);
  return stream_at(first_made);
}

void for_each_stream(const std::function<void(Stream&)>& visit) {
  for (std::int32_t number = 0; number < stream_count; ++number) visit(stream_at(number));
  for (std::int32_t number = first_made; number < kMostStreams; ++number) {
    visit(stream_at(number));
  }
}

void submit(Stream& stream, Work work) {
  // Captured work is not made; over a host there is none that anybody could see.
  if (stream.capture != 0 || host() != nullptr) return;
  stream.waiting.push_back(std::move(work));
  ++stream.submitted;
  if (device().completes_at_once) advance(stream, stream.submitted, Reach::kAllowed);
}

Mark mark(Stream& stream) {
  if (host() != nullptr) {
    return {&stream, 0, host()->event_record(host()->context, stream.number)};
  }
  submit(stream, {});
  return {&stream, stream.submitted, 0};
}

bool is_complete(const Mark& place) {
  if (host() != nullptr) return host()->event_query(host()->context, place.host_event) != 0;
  if (device().completes_at_once) advance(*place.stream, place.position, Reach::kAllowed);
  return place.stream->done >= place.position;
}

void wait_for(const Mark& place) {
  if (host() != nullptr) return host()->event_wait(host()->context, place.host_event);
  // Each function of the runtime holds the lock once; what has to happen first is another thread's.
  while (!advance(*place.stream, place.position, Reach::kForced)) {
    mutex().unlock();
    std::this_thread::yield();
    mutex().lock();
  }
}

cudaError_t synchronize_device() {
  bool captured = false;
  for_each_stream([&](Stream& stream) { captured |= stream.capture != 0; });
  if (captured) return cudaErrorStreamCaptureUnsupported;
  for_each_stream([](Stream& stream) {
    if (host() != nullptr || stream.done < stream.submitted) wait_for(mark(stream));
  });
  trim_pools();
  return cudaSuccess;
}

}  // namespace cuda_stub

using namespace cuda_stub;

extern "C" {

int32_t wb_cuda_stub_stream_number(const void* stream) {
  CUDA_STUB_ENTER();
  const Stream* const found = stream_of(static_cast<cudaStream_t>(const_cast<void*>(stream)));
  return found == nullptr ? -1 : found->number;
}

void* wb_cuda_stub_stream(int32_t number) {
  CUDA_STUB_ENTER();
  if (number < 0 || number >= kMostStreams) return nullptr;
  return handle_of(stream_numbered(number));
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  CUDA_STUB_ENTER();
  if (stream_count >= first_made) return result(cudaErrorMemoryAllocation);
  Stream& made = new_stream();
  made.flags = flags;
  made.priority = priority;
  made.device = current_device();
  *stream = handle_of(made);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  CUDA_STUB_COUNT();
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  CUDA_STUB_COUNT();
  return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

// Its number stays its own: work and CUDA events may still name it.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  CUDA_STUB_ENTER();
  return stream_of(stream) == nullptr ? result(cudaErrorInvalidResourceHandle) : cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  CUDA_STUB_ENTER();
  const Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  *priority = found->priority;
  return cudaSuccess;
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  CUDA_STUB_ENTER();
  const Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  *flags = found->flags;
  return cudaSuccess;
}

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  CUDA_STUB_ENTER();
  const Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  *id = static_cast<unsigned long long>(found->number) + 1;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  CUDA_STUB_ENTER();
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (found->capture != 0) return result(cudaErrorStreamCaptureUnsupported);
  const Mark end = host() != nullptr ? mark(*found) : Mark{found, found->submitted, 0};
  return is_complete(end) ? cudaSuccess : result(cudaErrorNotReady);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  CUDA_STUB_ENTER();
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (found->capture != 0) return result(cudaErrorStreamCaptureUnsupported);
  wait_for(host() != nullptr ? mark(*found) : Mark{found, found->submitted, 0});
  trim_pools();
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  CUDA_STUB_ENTER();
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  const Event& awaited = event_of(event);
  if (!awaited.recorded) return cudaSuccess;
  if (awaited.capture != 0) {  // the capture has this stream too
    found->capture = awaited.capture;
    found->graph = awaited.mark.stream->graph;
    return cudaSuccess;
  }
  submit(*found, {awaited.mark, {}, {}});
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  CUDA_STUB_ENTER();
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (host() != nullptr) {
    function(argument);
  } else {
    submit(*found, {{}, {}, [=] { function(argument); }});
  }
  return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function,
                                  void* argument, unsigned) {
  CUDA_STUB_ENTER();
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  submit(*found, {{}, {}, [=] { function(stream, cudaSuccess, argument); }});
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  CUDA_STUB_COUNT();
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  CUDA_STUB_COUNT();
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  CUDA_STUB_ENTER();
  delete &event_of(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  CUDA_STUB_ENTER();
  Stream* const found = stream_of(stream);
  if (found == nullptr) return result(cudaErrorInvalidResourceHandle);
  Event& recorded = event_of(event);
  recorded.recorded = true;
  recorded.capture = found->capture;
  recorded.mark = found->capture == 0 ? mark(*found) : Mark{found, 0, 0};
  recorded.time = Clock::now();
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  CUDA_STUB_COUNT();
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  CUDA_STUB_ENTER();
  const Event& asked = event_of(event);
  if (!asked.recorded) return cudaSuccess;
  if (asked.capture != 0) return result(cudaErrorCapturedEvent);
  return is_complete(asked.mark) ? cudaSuccess : result(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  CUDA_STUB_ENTER();
  const Event& awaited = event_of(event);
  if (!awaited.recorded) return cudaSuccess;
  if (awaited.capture != 0) return result(cudaErrorCapturedEvent);
  wait_for(awaited.mark);
  return cudaSuccess;
}

// Between the calls that recorded them.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  CUDA_STUB_ENTER();
  if (!event_of(start).recorded || !event_of(end).recorded) {
    return result(cudaErrorInvalidResourceHandle);
  }
  const std::chrono::duration<float, std::milli> between =
      event_of(end).time - event_of(start).time;
  *milliseconds = between.count();
  return cudaSuccess;
}

}  // extern "C"
