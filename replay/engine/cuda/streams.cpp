#include "cuda/streams.h"

#include <algorithm>
#include <chrono>
#include <mutex>

#include "core/events.h"

namespace workbench::cuda {
namespace {

// What a stream holds that is not done is bounded by the driver, in about a thousand pieces of
// work: the next would wait, for good behind a closed gate.
constexpr int kMostBehind = 512;
constexpr int kMostGates = 64;
// A CUDA event may depend on another stream whose gate is closed.
constexpr std::chrono::milliseconds kPatience{2};

// Above all streams of a trace there is one of an allocator's own.
constexpr std::size_t kMostNumbers = static_cast<std::size_t>(kMostStreams) + 1;

}  // namespace

Streams::Streams(Calls& calls, const StreamProgress& progress, bool several_threads)
    : calls_(calls),
      progress_(progress),
      gated_(progress.completion().kind != Completion::Kind::kImmediate),
      lock_(several_threads) {
  if (gated_) gates_ = std::make_unique<Gates>(calls, kMostNumbers);
}

Streams::~Streams() {
  if (gates_ != nullptr) gates_->open_all();
  for (const StreamId number : used_) {
    const Stream& stream = *streams_[static_cast<std::size_t>(number)];
    // Also where the device failed: the driver gives back what it can.
    cudaStreamSynchronize(stream.handle);
    for (const Pending& pending : stream.pending) cudaEventDestroy(pending.event);
    cudaStreamDestroy(stream.handle);
  }
  for (const cudaEvent_t event : unused_events_) cudaEventDestroy(event);
  cudaGetLastError();
}

std::int64_t Streams::early() const {
  return left_out_ + (gates_ == nullptr ? 0 : gates_->opened_early());
}

Streams::Stream& Streams::find(StreamId number) {
  const auto index = static_cast<std::size_t>(number);
  if (index >= streams_.size()) streams_.resize(index + 1);
  std::unique_ptr<Stream>& found = streams_[index];
  if (found == nullptr) [[unlikely]] {
    auto made = std::make_unique<Stream>();
    // Of the default stream's rules, waiting for all others is none of a trace's.
    calls_.require("cudaStreamCreateWithFlags", calls_.make([&] {
      return cudaStreamCreateWithFlags(&made->handle, cudaStreamNonBlocking);
    }));
    found = std::move(made);
    used_.push_back(number);
  }
  return *found;
}

cudaStream_t Streams::at(StreamId stream) {
  const std::lock_guard guard(lock_);
  return find(stream).handle;
}

cudaEvent_t Streams::take_event() {
  if (unused_events_.empty()) [[unlikely]] {
    cudaEvent_t made = nullptr;
    calls_.require("cudaEventCreateWithFlags", calls_.make(DriverCall::kEventCreate, [&] {
      return cudaEventCreateWithFlags(&made, cudaEventDisableTiming);
    }));
    return made;
  }
  const cudaEvent_t event = unused_events_.back();
  unused_events_.pop_back();
  return event;
}

void Streams::record(const CudaEvent& event) {
  const std::lock_guard guard(lock_);
  Stream& stream = find(event.stream);
  submitted(event.stream, stream);
  hold(event.stream, stream, event.sequence);
  const cudaEvent_t made = take_event();
  stream.pending.push_back({event.sequence, made});
  calls_.require("cudaEventRecord", calls_.make(DriverCall::kEventRecord, [&] {
    return cudaEventRecord(made, stream.handle);
  }));
}

bool Streams::reaches(const CudaEvent& event, bool due) {
  const std::lock_guard guard(lock_);
  Stream& stream = find(event.stream);
  if (event.sequence <= stream.arrived || calls_.failed()) return due;
  if (due) {
    arrive(event.stream, stream, event, DriverCall::kEventQuery);
    return true;
  }
  // What the device answers decides nothing; that it is asked is part of an allocator's work.
  const auto pending = std::lower_bound(
      stream.pending.begin(), stream.pending.end(), event.sequence,
      [](const Pending& one, std::uint64_t sequence) { return one.sequence < sequence; });
  if (pending != stream.pending.end() && pending->sequence == event.sequence) {
    poll(pending->event);
  }
  return false;
}

void Streams::await(const CudaEvent& event) {
  const std::lock_guard guard(lock_);
  Stream& stream = find(event.stream);
  if (event.sequence <= stream.arrived || calls_.failed()) return;
  arrive(event.stream, stream, event, DriverCall::kEventWait);
}

cudaError_t Streams::poll(cudaEvent_t event) {
  const cudaError_t error =
      calls_.make(DriverCall::kEventQuery, [&] { return cudaEventQuery(event); });
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
  } else {
    calls_.keep("cudaEventQuery", error);
  }
  return error;
}

void Streams::arrive(StreamId number, Stream& stream, const CudaEvent& event, DriverCall kind) {
  open(number, stream, event.sequence);
  const auto after = std::upper_bound(
      stream.pending.begin(), stream.pending.end(), event.sequence,
      [](std::uint64_t sequence, const Pending& one) { return sequence < one.sequence; });
  if (after == stream.pending.begin()) return;
  const cudaEvent_t last = std::prev(after)->event;
  const auto reached = [&] {
    const auto start = std::chrono::steady_clock::now();
    do {
      const cudaError_t error = kind == DriverCall::kEventQuery ? poll(last) : cudaEventQuery(last);
      if (error != cudaErrorNotReady) return error;
      cudaGetLastError();
    } while (std::chrono::steady_clock::now() - start < kPatience);
    open_held();
    return cudaEventSynchronize(last);
  };
  const cudaError_t error =
      kind == DriverCall::kEventQuery ? reached() : calls_.make(kind, reached);
  calls_.keep("waiting for a CUDA event", error);
  for (auto one = stream.pending.begin(); one != after; ++one) unused_events_.push_back(one->event);
  stream.pending.erase(stream.pending.begin(), after);
  stream.arrived = event.sequence;
}

void Streams::order(StreamId before, StreamId number) {
  const std::lock_guard guard(lock_);
  Stream& earlier = find(before);
  Stream& stream = find(number);
  submitted(before, earlier);
  submitted(number, stream);
  const cudaEvent_t event = take_event();
  calls_.require("cudaEventRecord",
                 calls_.make([&] { return cudaEventRecord(event, earlier.handle); }));
  calls_.require("cudaStreamWaitEvent",
                 calls_.make([&] { return cudaStreamWaitEvent(stream.handle, event, 0); }));
  // What waits for it does so for the event as it is now.
  unused_events_.push_back(event);
}

void Streams::hold(StreamId number, std::uint64_t sequence) {
  if (!gated_) return;
  const std::lock_guard guard(lock_);
  hold(number, find(number), sequence);
}

void Streams::hold(StreamId number, Stream& stream, std::uint64_t sequence) {
  if (!gated_ || sequence <= std::max(stream.closed, stream.opened)) return;
  if (stream.gates >= kMostGates) {
    ++left_out_;
    return;
  }
  if (stream.gates == 0) {
    ++held_;
    stream.behind = 0;
  }
  ++stream.gates;
  stream.closed = sequence;
  if (progress_.counts_events()) delayed_.push_back({number, sequence, progress_.now()});
  calls_.require("cuStreamWaitValue64",
                 gates_->close(static_cast<std::size_t>(number), stream.handle, sequence));
}

void Streams::open(StreamId number, Stream& stream, std::uint64_t sequence) {
  if (!gated_ || sequence <= stream.opened) return;
  stream.opened = sequence;
  gates_->open(static_cast<std::size_t>(number), sequence);
  if (stream.gates > 0 && stream.opened >= stream.closed) {
    stream.gates = 0;
    --held_;
  }
}

void Streams::open_held() {
  if (held_ == 0) return;
  for (const StreamId number : used_) {
    Stream& stream = *streams_[static_cast<std::size_t>(number)];
    open(number, stream, stream.closed);
  }
}

void Streams::open_all() {
  const std::lock_guard guard(lock_);
  open_held();
}

void Streams::follow() {
  const std::lock_guard guard(lock_);
  if (held_ == 0) return;
  for (const StreamId number : used_) {
    open(number, *streams_[static_cast<std::size_t>(number)], progress_.done(number));
  }
  while (!delayed_.empty() &&
         progress_.now() - delayed_.front().submitted_at >= progress_.completion().delay) {
    const CudaEvent held = delayed_.front();
    delayed_.pop_front();
    open(held.stream, find(held.stream), held.sequence);
  }
}

void Streams::submitted(StreamId number) {
  if (!gated_) return;
  const std::lock_guard guard(lock_);
  submitted(number, find(number));
}

void Streams::submitted(StreamId number, Stream& stream) {
  if (stream.gates == 0 || ++stream.behind < kMostBehind) return;
  ++left_out_;
  open(number, stream, stream.closed);
}

}  // namespace workbench::cuda
