// Which CUDA events have completed, as the trace and --completion say. Where streams are no real
// ones this is all there is of them; real ones are made to keep to it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string_view>
#include <vector>

#include "core/lock.h"
#include "core/units.h"

namespace workbench {

// When the work on a stream completes.
struct Completion {
  enum class Kind : std::uint8_t {
    kRecorded,   // where the trace says so, or the allocator waits
    kImmediate,  // at once
    kNever,      // only when the allocator waits
    kDelay,      // `delay` events later, or where the program synchronizes
  };
  Kind kind = Kind::kRecorded;
  std::int64_t delay = 0;

  // Reads recorded, immediate, never or delay:EVENTS; throws InputError for anything else.
  static Completion parse(std::string_view text);
};

struct CudaEvent {
  StreamId stream;
  std::uint64_t sequence;     // position among all CUDA events of the backend, from 1
  std::int64_t submitted_at;  // the trace event during which it was recorded
};

class StreamProgress {
 public:
  explicit StreamProgress(Completion completion, bool several_threads = false)
      : completion_(completion), lock_(several_threads) {}

  CudaEvent record(StreamId stream) {
    const std::lock_guard guard(lock_);
    return {stream, ++sequence_, now_};
  }

  bool completed(const CudaEvent& event) const {
    const std::lock_guard guard(lock_);
    if (event.sequence <= done_everywhere_) return true;
    const auto stream = static_cast<std::size_t>(event.stream);
    if (stream < done_.size() && event.sequence <= done_[stream]) return true;
    switch (completion_.kind) {
      case Completion::Kind::kImmediate:
        return true;
      case Completion::Kind::kDelay:
        return now_ - event.submitted_at >= completion_.delay;
      default:
        return false;
    }
  }

  void wait(const CudaEvent& event) {
    const std::lock_guard guard(lock_);
    complete(event.stream, event.sequence);
  }

  // The trace says that all work submitted to `stream` so far is complete (kAllStreams: to any).
  void synchronize(StreamId stream) {
    if (completion_.kind == Completion::Kind::kNever) return;
    const std::lock_guard guard(lock_);
    if (stream < 0) {
      done_everywhere_ = sequence_;
    } else {
      complete(stream, sequence_);
    }
  }

  // The trace says that the work submitted to `stream` up to `sequence` is complete.
  void complete_recorded(StreamId stream, std::uint64_t sequence) {
    if (completion_.kind != Completion::Kind::kRecorded) return;
    const std::lock_guard guard(lock_);
    complete(stream, sequence);
  }

  std::uint64_t sequence() const {
    const std::lock_guard guard(lock_);
    return sequence_;
  }
  // Up to where all work of `stream` is complete, whatever the event is at.
  std::uint64_t done(StreamId stream) const {
    const std::lock_guard guard(lock_);
    const auto index = static_cast<std::size_t>(stream);
    return std::max(done_everywhere_, index < done_.size() ? done_[index] : 0);
  }
  const Completion& completion() const { return completion_; }
  std::int64_t now() const {
    const std::lock_guard guard(lock_);
    return now_;
  }
  // Whether the replayer must say before every event that it comes.
  bool counts_events() const { return completion_.kind == Completion::Kind::kDelay; }
  void set_now(std::int64_t event) { now_ = event; }
  // The same where several threads make events: one more.
  void next_event() {
    const std::lock_guard guard(lock_);
    ++now_;
  }

 private:
  void complete(StreamId stream, std::uint64_t sequence) {
    const auto index = static_cast<std::size_t>(stream);
    if (index >= done_.size()) done_.resize(index + 1);
    done_[index] = std::max(done_[index], sequence);
  }

  const Completion completion_;
  mutable Lock lock_;
  std::vector<std::uint64_t> done_;  // by stream: CUDA events up to this one have completed
  std::uint64_t done_everywhere_ = 0;
  std::uint64_t sequence_ = 0;
  std::int64_t now_ = 0;
};

}  // namespace workbench
