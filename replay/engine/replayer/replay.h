// One cell of a measurement: a trace's events against an allocator on a backend.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "allocators/allocator.h"
#include "backends/backend.h"
#include "core/events.h"
#include "core/journal.h"
#include "core/plan.h"
#include "core/statistics.h"
#include "core/thread_events.h"

namespace workbench {

struct CellOptions {
  std::string allocator;
  std::string settings;
  std::string backend;
  BackendOptions backend_options;
  // Go on after running out of memory; later events of the failed id are skipped.
  bool continue_after_oom = false;
  // Of a trace with several threads; one thread has one order.
  Order order = Order::kGlobal;
  // For an allocator that runs one; null for one made of the events.
  std::shared_ptr<const Plan> plan = nullptr;
};

// Where the reserved bytes are at one moment; the parts add up to them.
struct Waterfall {
  Bytes live_requested = 0;
  Bytes rounding = 0;  // of live blocks
  Bytes pending = 0;   // freed, and waiting for other streams
  Bytes stranded = 0;  // free, in segments that are partly in use
  Bytes cached = 0;    // free, in segments that could be given back

  Waterfall() = default;
  Waterfall(const Statistics& now, Bytes live)
      : live_requested(live),
        rounding(now.allocated - live),
        pending(now.active - now.allocated),
        stranded(now.stranded),
        cached(now.reserved - now.active - now.stranded) {}
};

struct OutOfMemory {
  std::size_t event;
  Bytes requested;
  Bytes allocated;
  Bytes reserved;
  Bytes active;
  Bytes live_requested;
  Bytes largest_free;
  Bytes device_free;  // kUnlimited where the backend has no capacity
  Waterfall waterfall;
  std::string message = {};  // Allocator::refusal
};

// Where a plan that must be met was not.
struct PlanMismatch {
  std::size_t event;
  std::int64_t id;  // of the plan
  std::string expected;
  std::string got;
};

// The state after an event, as one row of the timeline.
struct Sample {
  enum Column {
    kRequested,
    kLiveRequested,
    kAllocated,
    kActive,
    kReserved,
    kSegments,
    kLargestFree
  };
  static constexpr std::array<const char*, 7> kNames = {
      "requested", "live_requested", "allocated", "active", "reserved", "segments", "largest_free"};
  // The columns whose peaks and finals are reported: those in bytes that sum over blocks.
  static constexpr std::size_t kPeakColumns = kReserved + 1;

  std::array<std::int64_t, kNames.size()> values{};
};

struct Bucket {
  std::int64_t first_event;
  std::int64_t last_event;
  Sample lowest;
  Sample highest;
};

// What `full` adds to the sample, under the names of the golden tables.
struct FullRow {
  Sample sample;
  Statistics statistics;
  Bytes device_used;
  bool oom;
};

struct BlockRow {
  BlockView view;
  std::int64_t alloc_event;  // the event that allocated it; −1 where it is free
};

struct MemoryOptions {
  std::size_t buckets = 20000;
  bool full = false;
  std::optional<std::size_t> blocks_at = {};
  // Fill every block with a pattern at allocation and check it at free, and where another stream
  // uses it; needs memory.
  bool verify = false;
  // See that blocks are aligned and no two live ones overlap, and that a library which is called
  // refuses no first request that there is room for.
  bool ranges = false;
  // Keep every entry of what the allocator did.
  bool journal = false;
  // `blocks_at` and `journal` are for one thread: of another pass's race they would tell nothing.
};

struct MemoryResult {
  std::optional<OutOfMemory> oom;  // the first
  std::int64_t ooms = 0;
  std::optional<PlanMismatch> mismatch;
  std::optional<PlanStatistics> plan;
  std::vector<Bucket> timeline;
  std::vector<FullRow> rows;
  std::array<std::int64_t, Sample::kPeakColumns> peaks{};
  std::array<std::int64_t, Sample::kPeakColumns> peak_events{};
  Sample finals;
  Statistics statistics;
  Reported reported;
  Bytes active_at_peak = 0;  // of reserved
  DriverCalls driver_calls;
  DriverTimes driver_times;  // of a real device; else empty
  // Of a model with prices: what its calls would have cost.
  std::optional<std::vector<PricedTotal>> priced_calls;
  std::vector<std::pair<std::string, std::int64_t>> torch_statistics;
  std::vector<std::string> warnings;  // of the settings and of what the program did
  Waterfall waterfall;                // at the event of the peak of reserved
  std::string digest;                 // empty where several threads replayed
  std::optional<std::vector<BlockRow>> blocks;
  std::vector<JournalEntry> journal;
  Bytes rss_growth = 0;
  std::int64_t minor_faults = 0;
  std::int64_t major_faults = 0;
};

// Cold: a fresh allocator. Steady: after one unmeasured pass and the end of the program's blocks.
enum class State : std::uint8_t { kCold, kSteady };

struct TimedResult {
  std::vector<std::uint32_t> ticks;  // 0 for an event without a call
  std::vector<std::uint8_t> causes;
  double nanoseconds = 0;  // of the whole pass
  std::string digest;      // empty where none was asked for, and where several threads replayed
  bool out_of_memory = false;
  bool mismatched = false;
};

struct ThroughputResult {
  std::vector<double> nanoseconds;  // of each whole pass
  bool out_of_memory = false;
  bool mismatched = false;
};

// Called now and then with the number of events done; may throw to end the pass.
using Checkpoint = std::function<void(std::size_t done)>;

class Replay {
 public:
  // Throws InputError for an unknown name or setting, and for events that contradict themselves.
  Replay(const Events& events, CellOptions options);

  MemoryResult memory(const MemoryOptions& options, const Checkpoint& checkpoint) const;
  TimedResult timed(State state, bool digest, const Checkpoint& checkpoint) const;
  ThroughputResult throughput(State state, std::size_t repeat, const Checkpoint& checkpoint) const;

  // One sentence each about settings that do nothing or are known to hurt.
  const std::vector<std::string>& warnings() const { return warnings_; }

  const Events& events() const { return events_; }
  // Null where the allocator runs none.
  const std::shared_ptr<const Plan>& plan() const { return options_.plan; }
  // How many threads replay.
  std::size_t threads() const { return threads_ == nullptr ? 1 : threads_->parts().size(); }
  bool backend_has_memory() const { return backend_has_memory_; }
  bool backend_has_bytes() const { return backend_has_bytes_; }
  // Whether each pass starts with nothing kept from the last one.
  bool starts_afresh() const { return starts_afresh_; }

 private:
  const Events events_;
  const CellOptions options_;
  const CompletedStreams completed_streams_;
  const std::unique_ptr<const ThreadEvents> threads_;  // null where one thread replays
  // Events at which a step begins, for an allocator that runs a plan.
  const std::vector<std::size_t> step_starts_;
  bool backend_has_memory_ = false;
  bool backend_has_bytes_ = false;
  bool starts_afresh_ = true;
  std::vector<std::string> warnings_;
};

}  // namespace workbench
