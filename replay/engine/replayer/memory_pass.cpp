// The untimed pass: statistics at every event, peaks, blocks, and the digest. Where several threads
// replay, the events are sampled in the order in which they happened.
#include <algorithm>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "backends/process_memory.h"
#include "core/errors.h"
#include "core/last_words.h"
#include "replayer/fill_pattern.h"
#include "replayer/live_ranges.h"
#include "replayer/replay.h"
#include "replayer/reported.h"
#include "replayer/run.h"

namespace workbench {
namespace {

constexpr std::size_t kChunk = 1 << 16;

const char* word_of(Op op) {
  switch (op) {
    case Op::kAlloc:
    case Op::kLive:
      return "allocate";
    case Op::kFree:
      return "free";
    case Op::kRecordStream:
      return "record_stream";
    default:
      return "empty_cache";
  }
}

// Has the system put memory behind a block that a library handed out, as using it would.
void touch(const Allocation& allocation, Bytes size) {
  constexpr Bytes kPage = 4096;
  auto* const bytes = reinterpret_cast<volatile char*>(allocation.address);
  for (Bytes i = 0; i < size; i += kPage) bytes[i] = 0;
}

// Has a library's faults say at which event they were found.
template <class Call>
decltype(auto) at_event(std::size_t event, Call&& call) {
  try {
    return call();
  } catch (const LibraryCallError& error) {
    throw LibraryFaultError(error.what() + (" at event " + std::to_string(event)));
  }
}

class MemoryObserver {
 public:
  // `kind` is the allocator's; `is_library`: whether it is one of the user's.
  MemoryObserver(const Events& events, const MemoryOptions& options, Run& run, MemoryResult& result,
                 AllocatorKind kind, bool is_library)
      : events_(events),
        options_(options),
        run_(run),
        result_(result),
        is_library_(is_library),
        touches_(is_library && run.backend().has_memory()),
        digest_(run.allocator(), run.backend()),
        pattern_(run.backend(), kind),
        sizes_(static_cast<std::size_t>(events.slot_count)),
        addresses_(options.ranges ? sizes_.size() : 0),
        blocks_(options.journal ? sizes_.size() : 0) {
    result_.peak_events.fill(-1);
    if (options_.full) result_.rows.reserve(events_.count());
    if (options_.journal) run_.allocator().keep_journal(&journal_);
    buckets_ =
        std::clamp<std::size_t>(options_.buckets, 1, std::max<std::size_t>(events_.count(), 1));
    result_.timeline.reserve(buckets_);
  }

  template <class Call>
  void call(std::size_t event, const Allocator&, Call&& make) {
    current_ = event;
    if (options_.verify && events_.op_at(event) == Op::kRecordStream) use(event);
    journal_.begin_event(event);
    if (is_library_) {
      LastWords::say(word_of(events_.op_at(event)), static_cast<std::int64_t>(event));
      at_event(event, make);
    } else {
      make();
    }
    digest_.called();
    if (frees_ != nullptr) complete_free();
  }

  template <class Call>
  void tell(Call&& make) {
    make();
  }

  void allocated(std::size_t event, const Allocation& allocation) {
    digest_.allocated(allocation);
    live_requested_ += events_.size[event];
    sizes_[slot(event)] = events_.size[event];
    if (options_.journal) {
      const Block block = {allocation.address, events_.size[event], events_.lane_of(event)};
      blocks_[slot(event)] = block;
      write(Action::kAlloc, block);
    }
    if (is_library_) LastWords::say("write", static_cast<std::int64_t>(event));
    if (options_.ranges) {
      const Bytes alignment = run_.allocator().alignment(events_.size[event]);
      ranges_.add(allocation, events_.size[event], alignment, event);
      addresses_[slot(event)] = allocation.address;
    }
    if (options_.verify) {
      pattern_.fill(allocation, events_.size[event], event, events_.lane_of(event).stream);
    } else if (touches_) {
      touch(allocation, events_.size[event]);
    }
    ++allocated_;
    if (options_.blocks_at) alloc_events_[allocation.handle] = static_cast<std::int64_t>(event);
  }

  void freeing(std::size_t event, const void* handle) {
    if (options_.verify) {
      LastWords::say("read", static_cast<std::int64_t>(pattern_.event_of(handle)));
      pattern_.check(handle);
    }
    if (options_.ranges) ranges_.remove(addresses_[slot(event)]);
    live_requested_ -= sizes_[slot(event)];
    if (options_.journal) begin_free(event, handle);
  }

  void refused(std::size_t event) {
    if (options_.ranges && is_library_) check_refusal(event);
    oom_ = true;
    ++result_.ooms;
    if (options_.journal) {
      const Backend& device = run_.backend();
      write(Action::kOom, {static_cast<std::uint64_t>(device.total() - device.used()),
                           events_.size[event], events_.lane_of(event)});
    }
    if (result_.oom) return;
    const Statistics now = run_.allocator().statistics();
    const Backend& backend = run_.backend();
    const bool limited = backend.capacity() != kUnlimited;
    result_.oom = OutOfMemory{
        .event = event,
        .requested = events_.size[event],
        .allocated = now.allocated,
        .reserved = now.reserved,
        .active = now.active,
        .live_requested = live_requested_,
        .largest_free = run_.allocator().largest_free(),
        .device_free = limited ? backend.capacity() - backend.used() : kUnlimited,
        .waterfall = Waterfall(now, live_requested_),
        .message = run_.allocator().refusal(),
    };
  }

  void after(std::size_t event) {
    if (is_library_) LastWords::say("statistics", static_cast<std::int64_t>(event));
    const Statistics now = at_event(event, [&] { return run_.allocator().statistics(); });
    const Bytes largest_free = at_event(event, [&] { return run_.allocator().largest_free(); });
    if (is_library_) check_reported(event, run_.allocator().reported(), now, largest_free);
    const Sample sample = {{now.requested, live_requested_, now.allocated, now.active, now.reserved,
                            now.n_segment, largest_free}};
    const auto number = static_cast<std::int64_t>(event);
    for (std::size_t column = 0; column < Sample::kPeakColumns; ++column) {
      if (sample.values[column] > result_.peaks[column]) {
        result_.peaks[column] = sample.values[column];
        result_.peak_events[column] = number;
      }
    }
    // Reserved stays at its peak for long; of those events the one with most of it active says how
    // much was really needed.
    std::int64_t& peak_event = result_.peak_events[Sample::kReserved];
    if (now.reserved > 0 && now.reserved == result_.peaks[Sample::kReserved] &&
        (peak_event == number || now.active > active_at_peak_)) {
      peak_event = number;
      active_at_peak_ = now.active;
      result_.waterfall = Waterfall(now, live_requested_);
    }
    if (options_.full) {
      result_.rows.push_back({sample, now, run_.backend().used(), oom_});
    } else {
      add_to_bucket(made_, sample);
    }
    ++made_;
    result_.finals = sample;
    oom_ = false;
    if (options_.blocks_at == event) result_.blocks = blocks();
  }

  // The last event at which the allocator was called.
  std::size_t current() const { return current_; }

  // After the last event: what the program left must be whole too.
  void finish() {
    if (options_.verify) {
      LastWords::say("read");
      pattern_.check_all();
    }
    run_.backend().check();
    result_.active_at_peak = active_at_peak_;
    if (!run_.threaded()) result_.digest = digest_.hex();
    result_.journal = journal_.take();
  }

 private:
  struct Block {
    std::uint64_t address;
    Bytes size;
    PoolStream lane;
  };

  void write(Action action, const Block& block) {
    journal_.add(action, block.address, block.size, block.lane.stream, block.lane.pool);
  }

  void use(std::size_t event) {
    const void* const handle = run_.program().handles[slot(event)];
    LastWords::say("read", static_cast<std::int64_t>(pattern_.event_of(handle)));
    pattern_.use(handle, events_.stream[event]);
  }

  // The first of all requests cannot be too much where there is room for it.
  void check_refusal(std::size_t event) const {
    const Bytes size = events_.size[event];
    const Bytes left = run_.backend().total() - run_.backend().used();
    if (allocated_ > 0 || size > left) return;
    throw LibraryFaultError("it returned null for its first request, " + std::to_string(size) +
                            " bytes at event " + std::to_string(event) + ", with " +
                            std::to_string(left) + " bytes left");
  }

  void begin_free(std::size_t event, const void* handle) {
    const Block& block = blocks_[slot(event)];
    journal_.begin_event(event);
    write(Action::kFreeRequested, block);
    if (!run_.allocator().delays_free(handle)) frees_ = &block;
  }

  void complete_free() {
    write(Action::kFreeCompleted, *frees_);
    frees_ = nullptr;
  }

  std::size_t slot(std::size_t event) const {
    return static_cast<std::size_t>(events_.slot[event]);
  }

  void add_to_bucket(std::int64_t event, const Sample& sample) {
    if (event >= bucket_end_) {
      // Bucket b of B holds the events from ceil(b·n/B) on; each holds at least one.
      const std::size_t next = result_.timeline.size() + 1;
      bucket_end_ = static_cast<std::int64_t>((next * events_.count() + buckets_ - 1) / buckets_);
      result_.timeline.push_back({event, event, sample, sample});
      return;
    }
    Bucket& bucket = result_.timeline.back();
    bucket.last_event = event;
    for (std::size_t column = 0; column < sample.values.size(); ++column) {
      std::int64_t& lowest = bucket.lowest.values[column];
      std::int64_t& highest = bucket.highest.values[column];
      lowest = std::min(lowest, sample.values[column]);
      highest = std::max(highest, sample.values[column]);
    }
  }

  std::vector<BlockRow> blocks() const {
    std::vector<BlockRow> rows;
    run_.allocator().visit([&](const BlockView& view) {
      const auto found = alloc_events_.find(view.handle);
      const bool known = view.state != BlockState::kInactive && found != alloc_events_.end();
      rows.push_back({view, known ? found->second : -1});
    });
    return rows;
  }

  const Events& events_;
  const MemoryOptions& options_;
  Run& run_;
  MemoryResult& result_;
  const bool is_library_;
  const bool touches_;
  DecisionDigest digest_;
  FillPattern pattern_;
  LiveRanges ranges_;
  std::vector<Bytes> sizes_;              // by slot
  std::vector<std::uint64_t> addresses_;  // by slot, for the ranges
  std::int64_t allocated_ = 0;            // blocks so far
  std::unordered_map<const void*, std::int64_t> alloc_events_;
  Journal journal_;
  std::vector<Block> blocks_;     // by slot, for the journal
  const Block* frees_ = nullptr;  // whose free is under way and will be complete at its end
  Bytes live_requested_ = 0;
  std::size_t current_ = 0;
  std::int64_t made_ = 0;  // events
  std::size_t buckets_;
  std::int64_t bucket_end_ = 0;
  Bytes active_at_peak_ = 0;  // active bytes at the event of the peak of reserved
  bool oom_ = false;
};

// Of one thread among several. Statistics can be read only where nobody calls, so each event is
// made with its sample before another begins.
class MemoryThread {
 public:
  MemoryThread(MemoryObserver& all, std::mutex& one_at_a_time) : all_(all), mutex_(one_at_a_time) {}

  template <class Make>
  bool event(Make&& make) {
    const std::lock_guard guard(mutex_);
    return make();
  }
  template <class Call>
  void call(std::size_t event, const Allocator& allocator, Call&& make) {
    all_.call(event, allocator, make);
  }
  template <class Call>
  void tell(Call&& make) {
    make();
  }
  void allocated(std::size_t event, const Allocation& allocation) {
    all_.allocated(event, allocation);
  }
  void freeing(std::size_t event, const void* handle) { all_.freeing(event, handle); }
  void refused(std::size_t event) { all_.refused(event); }
  void after(std::size_t event) { all_.after(event); }

 private:
  MemoryObserver& all_;
  std::mutex& mutex_;
};

// Calls whose price depends on no size need only be counted.
std::optional<std::vector<PricedTotal>> priced_totals(Backend& backend) {
  PricedCalls* const priced = backend.priced_calls();
  if (priced == nullptr) return std::nullopt;
  const DriverCalls& calls = backend.driver_calls();
  priced->add(DriverCall::kEventRecord, 0, calls.event_record);
  priced->add(DriverCall::kEventWait, 0, calls.event_wait);
  priced->add(DriverCall::kEventCreate, 0, calls.event_create);
  priced->add(DriverCall::kEventDestroy, 0, calls.event_destroy);
  priced->add(DriverCall::kStreamWait, 0, calls.stream_wait);
  priced->add(DriverCall::kSynchronize, 0, calls.synchronize);
  return priced->totals();
}

}  // namespace

MemoryResult Replay::memory(const MemoryOptions& options, const Checkpoint& checkpoint) const {
  if (options.verify && !backend_has_bytes_) {
    throw InputError("blocks on backend " + options_.backend +
                     " have no bytes to verify; use the host backend");
  }
  if (threads_ != nullptr && (options.blocks_at || options.journal)) {
    throw InputError("blocks at an event and the journal need the order global");
  }
  MemoryResult result;
  CellOptions timed = options_;
  timed.backend_options.times_calls = true;
  Run run(events_, completed_streams_, step_starts_, timed, threads_.get(), /*counts=*/true);
  const AllocatorEntry& entry = allocator_registry().get(options_.allocator);
  const bool is_library = entry.needs_library;
  MemoryObserver observer(run.program().events, options, run, result, entry.kind, is_library);
  const ResidentGrowth growth;
  const PageFaults before = page_faults(run.threaded());
  try {
    if (run.threaded()) {
      std::mutex one_at_a_time;
      run.in_threads(checkpoint, [&](ThreadedProgram& threaded, std::size_t number) {
        MemoryThread thread(observer, one_at_a_time);
        walk(run.allocator(), threaded, thread, number);
      });
    } else {
      run.in_chunks(kChunk, checkpoint, [&](std::size_t begin, std::size_t end) {
        return walk(run.allocator(), run.program(), observer, begin, end);
      });
    }
  } catch (const PlanMismatchError& error) {
    result.mismatch = PlanMismatch{observer.current(), error.id, error.expected, error.got};
  }
  checkpoint(events_.count());
  const PageFaults after = page_faults(run.threaded());
  result.rss_growth = growth.peak();
  result.minor_faults = after.minor - before.minor;
  result.major_faults = after.major - before.major;
  result.statistics = run.allocator().statistics();
  result.reported = run.allocator().reported();
  result.driver_calls = run.backend().driver_calls();
  if (const DriverTimes* times = run.backend().driver_times()) result.driver_times = *times;
  result.priced_calls = priced_totals(run.backend());
  if (const PlanStatistics* plan = run.allocator().plan_statistics()) result.plan = *plan;
  result.torch_statistics = run.allocator().torch_statistics();
  result.warnings = run.allocator().warnings();
  observer.finish();
  for (const std::string& warning : run.backend().warnings()) result.warnings.push_back(warning);
  run.allocator().keep_journal(nullptr);
  if (is_library) {
    const Bytes kept = run.close();
    if (kept > 0) {
      result.warnings.push_back("the library kept " + std::to_string(kept) +
                                " bytes that it took; give them back by the end of destroy");
    }
  }
  return result;
}

}  // namespace workbench
