// What an allocator is to the replayer: allocate, free, and say what it holds.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backends/backend.h"
#include "core/events.h"
#include "core/journal.h"
#include "core/registry.h"
#include "core/settings.h"
#include "core/statistics.h"
#include "core/units.h"

namespace workbench {

// Returned in registers. `handle` is what the allocator frees by; null where there is no block,
// because the request was for 0 bytes (address 0) or refused (address kRefused).
struct Allocation {
  std::uint64_t address;
  void* handle;

  static constexpr std::uint64_t kRefused = ~std::uint64_t{0};
  static Allocation nothing() { return {0, nullptr}; }
  static Allocation refused() { return {kRefused, nullptr}; }
  bool is_refused() const { return address == kRefused; }
};

// Where a block lies, in words that are the same in every process.
struct Location {
  std::uint64_t segment;  // serial number, in the order segments were taken
  std::uint64_t offset;   // bytes
};

enum class BlockState : std::uint8_t { kActiveAllocated, kActivePendingFree, kInactive };

// One block of the allocator's state, as `visit` reports it; segments in order of their serial
// numbers, blocks in order of their offsets.
struct BlockView {
  std::uint64_t segment;
  std::uint64_t segment_address;
  Bytes segment_size;
  StreamId stream;
  std::string_view pool;  // of sizes
  bool expandable;        // then segment_size is what has memory, and offsets may lie beyond it
  std::uint64_t offset;
  Bytes size;
  Bytes requested;
  BlockState state;
  const void* handle;
  PoolId private_pool = kDefaultPool;
};

struct Program;
struct ThreadedProgram;
struct Timed;

// How far traffic was from the plan it was served by.
struct PlanStatistics {
  std::int64_t planned = 0;        // allocations served from the arena
  std::int64_t unmanaged = 0;      // not freed while the plan was made: from raw memory
  std::int64_t other_threads = 0;  // of a thread that is not planned, likewise
  std::int64_t outside = 0;        // before the plan's first step, likewise
  std::int64_t mismatches = 0;
  std::int64_t fallback = 0;  // allocations that mismatches sent to raw memory
  Bytes fallback_bytes = 0;   // all of them together
  Bytes peak_fallback = 0;    // the most alive at once
  Bytes arena = 0;
};

// An allocator derives from Replayed<itself> (walk.h).
class Allocator {
 public:
  explicit Allocator(Backend& backend) : backend_(backend) {}
  // Gives all cached memory back to the backend. The program's blocks must have been freed.
  virtual ~Allocator() = default;
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  // The fast path: what the replayer calls, trusted to be right. `stream` is a lane's number where
  // the allocator takes lanes and Events::lanes has some.
  virtual Allocation allocate(Bytes size, StreamId stream, ThreadId thread) = 0;
  virtual void free(void* handle, ThreadId thread) = 0;
  virtual void record_stream(void*, StreamId) {}
  virtual void empty_cache() {}
  // What else the program did. Events are CUDA events, numbered from 0; a fraction is in millionths
  // of the device. Do nothing unless an allocator's rules name them.
  virtual void event_record(std::size_t, StreamId) {}
  virtual void event_wait(std::size_t, StreamId) {}
  virtual void synchronized(StreamId) {}  // kAllStreams: every one
  virtual void capture_begin(StreamId) {}
  virtual void capture_end(StreamId) {}
  virtual void set_fraction(std::int64_t) {}
  // Allocations begin to be made in a private pool, and end to; one of those who began to has no
  // use for it any more.
  virtual void pool_begin(PoolId) {}
  virtual void pool_end(PoolId) {}
  virtual void pool_release(PoolId) {}

  // The checked path: by address, as slow as it needs to be. Throws DoubleFreeError or
  // ForeignPointerError and leaves the state unchanged.
  virtual void free_at(std::uint64_t address, ThreadId thread);

  // Replays events begin … end − 1 with these calls; false where memory ran out.
  virtual bool replay(Program& program, std::size_t begin, std::size_t end) = 0;
  virtual bool replay_timed(Program& program, Timed& timed, std::size_t begin, std::size_t end) = 0;
  // The same of thread number `number`, in a thread of its own, while others replay theirs.
  virtual void replay_thread(ThreadedProgram& threaded, std::size_t number) = 0;
  virtual void replay_thread_timed(ThreadedProgram& threaded, Timed& timed, std::size_t number) = 0;

  virtual Location locate(const void* handle) const = 0;
  virtual void visit(const std::function<void(const BlockView&)>& visitor) const = 0;
  // Bytes of the largest free block; cheap enough to ask at every event.
  virtual Bytes largest_free() const = 0;

  virtual Statistics statistics() const { return statistics_; }
  // Which of these it tells.
  virtual Reported reported() const { return {}; }
  // What the address of a block of `size` bytes must be a multiple of.
  virtual Bytes alignment(Bytes /*size*/) const {
    return backend_.is_device() ? kDeviceAlignment : kHostAlignment;
  }
  // Whether a new allocator starts without what the last one in this process kept.
  virtual bool starts_afresh() const { return true; }
  // The dictionary of torch.cuda.memory_stats; empty where PyTorch's original keeps none.
  virtual std::vector<std::pair<std::string, std::int64_t>> torch_statistics() const { return {}; }
  // What the original's error would say of the last refusal; empty where that is no more than what
  // every refusal says.
  virtual std::string refusal() const { return {}; }
  // One sentence each about settings that do nothing or are known to hurt, and about what the
  // program did that has no effect or is an error.
  virtual std::vector<std::string> warnings() const { return {}; }
  // Whether the next free of this block is complete only when other streams are done.
  virtual bool delays_free(const void*) const { return false; }
  // What it is going to serve; called once by a replay, before anything else and outside of any
  // measured time.
  virtual void prepare(const Events&) {}
  // Whether allocations in private pools are told by their lanes, as prepare() is; else by the
  // lanes' streams.
  virtual bool takes_lanes() const { return false; }
  // The program begins (again), or comes to an end: the frees that follow are not its own.
  virtual void program_begins() {}
  virtual void program_ends() {}
  // `step` optimizer steps are complete; also told when the program begins, where steps are known.
  virtual void step_begins(std::int32_t) {}
  // Whether it has a thread of its own, and what that does: once before each event of a trace,
  // outside the time of its calls.
  virtual bool works_in_background() const { return false; }
  virtual void work_in_background() {}
  // Null but for allocators that run a plan.
  virtual const PlanStatistics* plan_statistics() const { return nullptr; }
  // From here on, segments and delayed frees are written into `journal`, which must outlive it.
  void keep_journal(Journal* journal) { journal_ = journal; }
  // Why this thread's last call took as long as it did.
  static Cause cause() { return cause_; }

 protected:
  Cause backend_cause() const {
    return backend_.last_faulted() ? Cause::kPageFault : Cause::kDriverCall;
  }

  void write_journal(Action action, std::uint64_t address, Bytes size, StreamId stream,
                     PoolId pool = kDefaultPool) {
    if (journal_ != nullptr) journal_->add(action, address, size, stream, pool);
  }

  Backend& backend_;
  Journal* journal_ = nullptr;
  Statistics statistics_;
  // Of the calling thread; found without a call of the loader.
  [[gnu::tls_model("initial-exec")]] static inline constinit thread_local Cause cause_ =
      Cause::kServedFromCache;
};

// The memory it is made for.
enum class AllocatorKind : std::uint8_t { kCpu, kPinned, kDevice };
inline constexpr std::array<const char*, 3> kAllocatorKindNames = {"cpu", "pinned", "device"};

struct AllocatorEntry {
  std::string name;
  std::string summary;
  AllocatorKind kind;
  std::function<std::unique_ptr<Allocator>(Backend&, const Settings&)> create;
  std::vector<SettingHelp> settings = {};
  // Left out of lists and of `all`; can be used by name.
  bool hidden = false;
  // Takes its own locks (core/lock.h): several threads may call it at once. Any other allocator is
  // called under one lock where several threads replay.
  bool locks_itself = false;
  // Settings besides the defaults under which it is held to what every allocator is held to.
  std::vector<std::string> also_tested_with = {};
  // Whether it gives back what it has cached before memory runs out.
  bool flushes_when_refused = true;
  // Whether it is given a plan, made of what it is to serve where there is no other.
  bool runs_plan = false;
  // Whether memory is a model's on every backend that is no real device.
  bool is_model = false;
  // Whether each of its calls is one of the backend's, whose time it is.
  bool passes_calls_on = false;
  // Whether it is nothing without the setting `library`, a shared library of the user's.
  bool needs_library = false;
  // Throws InputError for settings that will not do, without making an allocator; empty where only
  // making one tells.
  std::function<void(const Settings&)> check_settings = {};
};

Registry<AllocatorEntry>& allocator_registry();

// A fresh allocator; throws InputError for an unknown name or setting. `counts`: whether it will be
// asked for statistics.
std::unique_ptr<Allocator> make_allocator(std::string_view name, std::string_view settings,
                                          Backend& backend,
                                          std::shared_ptr<const Plan> plan = nullptr,
                                          bool counts = true);

}  // namespace workbench
