// A backend, an allocator and the program's live blocks: what one walk over the events needs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "allocators/allocator.h"
#include "backends/backend.h"
#include "core/digest.h"
#include "core/events.h"
#include "replayer/replay.h"

namespace workbench {

// Does nothing at each call; what a measuring observer derives from.
struct Unobserved {
  // Makes the allocator's call of event `event`.
  template <class Call>
  void call(std::size_t, Call&& make) {
    make();
  }
  void allocated(std::size_t, const Allocation&) {}
  void freeing(std::size_t, const void*) {}
  void refused(std::size_t) {}
  void after(std::size_t) {}
};

class Run {
 public:
  Run(const Events& events, const CompletedStreams& completed_streams, const CellOptions& options)
      : events_(events),
        completed_streams_(completed_streams),
        continue_after_oom_(options.continue_after_oom),
        backend_(backend_registry().get(options.backend).create(options.backend_options)),
        allocator_(make_allocator(options.allocator, options.settings, *backend_)),
        handles_(static_cast<std::size_t>(events.slot_count)),
        needs_more_(!completed_streams.empty() || backend_->progress().counts_events()),
        freed_at_(needs_more_ ? handles_.size() : 0) {}

  ~Run() { end_program(); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  Backend& backend() { return *backend_; }
  Allocator& allocator() { return *allocator_; }

  // The program's end: frees what it left, and all its work is complete.
  void end_program() {
    for (void*& handle : handles_) {
      if (handle != nullptr) allocator_->free(handle, 0);
      handle = nullptr;
    }
    backend_->progress().synchronize(kAllStreams);
    completed_seen_ = 0;
  }

  // Walks all events in chunks of `chunk`, calling `checkpoint` between them. False where it
  // stopped because memory ran out.
  template <class Observer>
  bool walk(Observer& observer, std::size_t chunk, const Checkpoint& checkpoint) {
    for (std::size_t begin = 0; begin < events_.count(); begin += chunk) {
      const std::size_t end = std::min(events_.count(), begin + chunk);
      const bool whole = needs_more_ ? walk_chunk<true>(observer, begin, end)
                                     : walk_chunk<false>(observer, begin, end);
      if (!whole) return false;
      checkpoint(end);
    }
    return true;
  }

 private:
  // kMore: the loop also tells the streams which event it is at, and marks frees, for traces and
  // completions that need it.
  template <bool kMore, class Observer>
  bool walk_chunk(Observer& observer, const std::size_t begin, const std::size_t end) {
    // Everything the loop reads, in locals: the allocator's stores must not make it read again.
    const std::uint8_t* const op = events_.op.data();
    const std::int32_t* const slot = events_.slot.data();
    const Bytes* const size = events_.size.data();
    const StreamId* const stream = events_.stream.data();
    const ThreadId* const thread = events_.thread.data();
    void** const handles = handles_.data();
    Allocator& allocator = *allocator_;

    for (std::size_t i = begin; i < end; ++i) {
      if constexpr (kMore) backend_->progress().set_now(static_cast<std::int64_t>(i));
      const Op kind = static_cast<Op>(op[i]);
      // Only used for events that have a slot.
      const auto at = static_cast<std::size_t>(static_cast<std::uint32_t>(slot[i]));
      if (kind == Op::kAlloc || kind == Op::kLive) {
        Allocation allocation;
        observer.call(i, [&] { allocation = allocator.allocate(size[i], stream[i], thread[i]); });
        handles[at] = allocation.handle;
        if (allocation.handle == nullptr) [[unlikely]] {
          if (allocation.is_refused()) {
            observer.refused(i);
            if (!continue_after_oom_) {
              observer.after(i);
              return false;
            }
          }
        } else {
          observer.allocated(i, allocation);
        }
      } else if (kind == Op::kFree) {
        void* const handle = handles[at];
        if (handle != nullptr) [[likely]] {
          observer.freeing(i, handle);
          observer.call(i, [&] { allocator.free(handle, thread[i]); });
          handles[at] = nullptr;
          if constexpr (kMore) {
            freed_at_[at] = backend_->progress().sequence();
          }
        }
      } else {
        other(observer, kind, i);
      }
      observer.after(i);
    }
    return true;
  }

  template <class Observer>
  void other(Observer& observer, Op kind, std::size_t i) {
    switch (kind) {
      case Op::kRecordStream: {
        if (events_.slot[i] == kNoSlot) break;
        void* const handle = handles_[static_cast<std::size_t>(events_.slot[i])];
        if (handle == nullptr) break;
        observer.call(i, [&] { allocator_->record_stream(handle, events_.stream[i]); });
        break;
      }
      case Op::kEmptyCache:
        observer.call(i, [&] { allocator_->empty_cache(); });
        break;
      case Op::kSynchronize:
        backend_->progress().synchronize(events_.stream[i]);
        break;
      case Op::kFreeCompleted:
        for (const StreamId stream : completed_streams_.of(completed_seen_++)) {
          backend_->progress().complete_recorded(
              stream, freed_at_[static_cast<std::size_t>(events_.slot[i])]);
        }
        break;
      default:  // event_record, event_wait: these allocators do not look at the program's own
        break;
    }
  }

  const Events& events_;
  const CompletedStreams& completed_streams_;
  const bool continue_after_oom_;
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<Allocator> allocator_;
  std::vector<void*> handles_;  // by slot; null where nothing lives
  const bool needs_more_;
  std::vector<std::uint64_t> freed_at_;  // by slot: the last CUDA event at its free
  std::size_t completed_seen_ = 0;
};

// Adds each decision to a digest: which block an allocation got, and the driver calls so far.
class DecisionDigest {
 public:
  explicit DecisionDigest(Run& run) : run_(run) {}

  void allocated(const Allocation& allocation) {
    const Location location = run_.allocator().locate(allocation.handle);
    digest_.add(location.segment);
    digest_.add(location.offset);
  }
  void called() {
    const DriverCalls& calls = run_.backend().driver_calls();
    digest_.add(static_cast<std::uint64_t>(calls.alloc + calls.refused) << 32 ^
                static_cast<std::uint64_t>(calls.free));
  }
  std::string hex() const { return digest_.hex(); }

 private:
  Run& run_;
  Digest digest_;
};

}  // namespace workbench
