// Where memory comes from, and what a stream is. Allocators are written against this and nothing
// below it.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/fill.h"
#include "backends/priced_calls.h"
#include "backends/stream_progress.h"
#include "core/driver_times.h"
#include "core/lock.h"
#include "core/registry.h"
#include "core/units.h"

namespace workbench {

inline constexpr Bytes kUnlimited = std::numeric_limits<Bytes>::max();

// Pinned memory may be neither moved nor swapped out, so that a device can read it by itself;
// registered memory was taken from the system first and pinned then.
enum class Memory : std::uint8_t { kPageable, kPinned, kRegistered };

class MemoryPool;  // allocators/memory_pool.h

// What the driver's memory pool is told.
struct DriverPoolOptions {
  Bytes release_threshold = 0;
  bool follow_event_dependencies = true;
  bool allow_opportunistic = true;
  bool allow_internal_dependencies = true;
};

struct BackendOptions {
  Bytes capacity = kUnlimited;
  Completion completion = {};
  // Whether more than one thread will call it, and the allocator on it.
  bool several_threads = false;
  // Whether calls of a real driver are timed; costs two readings of a clock each.
  bool times_calls = false;
  // What calls of a driver that is a model would cost; null: nobody knows. Used with `times_calls`.
  std::shared_ptr<const DriverPrices> prices = nullptr;
};

// How often the driver, or the system, was called.
struct DriverCalls {
  std::int64_t alloc = 0;
  std::int64_t refused = 0;
  std::int64_t free = 0;
  std::int64_t map = 0;  // pieces of address ranges that were given memory
  std::int64_t unmap = 0;
  std::int64_t event_record = 0;
  std::int64_t event_wait = 0;  // on the host
  // Of allocators that leave memory to the driver's pool.
  std::int64_t pool_alloc = 0;
  std::int64_t pool_free = 0;
  std::int64_t event_create = 0;
  std::int64_t event_destroy = 0;
  std::int64_t stream_wait = 0;  // for a CUDA event, on the device
  std::int64_t synchronize = 0;
};

class Backend {
 public:
  // `is_asked`: whether reaches() is to be told of questions for CUDA events.
  explicit Backend(const BackendOptions& options, bool is_hardware = false, bool is_asked = false)
      : capacity_(options.capacity),
        is_hardware_(is_hardware),
        is_asked_(is_hardware || is_asked),
        lock_(options.several_threads),
        progress_(options.completion, options.several_threads) {}
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // Address of `size` > 0 fresh bytes; 0 when there is no room. Throws UnavailableError where the
  // system lets this process pin no more.
  std::uint64_t allocate(Bytes size, Memory memory = Memory::kPageable) {
    // The first condition keeps the arithmetic of the second in range.
    const Bytes taken = size < kEiB ? footprint(size) : kUnlimited;
    if (size >= kEiB || !claim(taken, calls_.alloc)) return refuse();
    std::uint64_t address = 0;
    try {
      address = memory == Memory::kPageable ? take(size) : take_pinned(size, memory);
    } catch (...) {
      refuse_claimed(taken, calls_.alloc);
      throw;
    }
    if (address == 0) return refuse_claimed(taken, calls_.alloc);
    return address;
  }
  // Gives back what allocate(size, memory) handed out.
  void release(std::uint64_t address, Bytes size, Memory memory = Memory::kPageable) {
    // First: memory that counts as there must be there.
    memory == Memory::kPageable ? give(address, size) : give_pinned(address, size, memory);
    unclaim(footprint(size), calls_.free);
  }

  // Virtual memory: address of a range of `size` bytes without memory; 0 when there is no room.
  // What is mapped and unmapped there will be multiples of `page`.
  std::uint64_t reserve(Bytes size, Bytes page = kDevicePage) {
    return size < kEiB ? take_range(size, page) : 0;
  }
  void unreserve(std::uint64_t address, Bytes size) { give_range(address, size); }
  // Puts memory behind a piece of a range: all of it, or, where there is no room, none.
  bool map(std::uint64_t address, Bytes size) {
    if (!claim(size, calls_.map)) return refuse() != 0;
    return map_piece(address, size) || refuse_claimed(size, calls_.map) != 0;
  }
  void unmap(std::uint64_t address, Bytes size) {
    unmap_piece(address, size);
    unclaim(size, calls_.unmap);
  }

  // Streams. When a CUDA event completes, the trace and --completion say (StreamProgress). Where
  // streams are real ones, what completes is complete on the device too: completed() and wait() see
  // to that, and the device is held back until then.

  // Marks the work submitted to `stream` so far.
  CudaEvent record_event(StreamId stream) {
    count(calls_.event_record);
    const CudaEvent event = progress_.record(stream);
    if (is_hardware_) submit(event);
    return event;
  }
  // Likewise, without a CUDA event.
  CudaEvent mark(StreamId stream) { return progress_.record(stream); }
  bool completed(const CudaEvent& event) {
    const bool due = progress_.completed(event);
    if (is_asked_) return reaches(event, due);
    return due;
  }
  // Blocks until the event has completed, and with it all earlier work of its stream.
  void wait(const CudaEvent& event) {
    count(calls_.event_wait);
    progress_.wait(event);
    if (is_hardware_) await(event);
  }
  // The same of what mark() told of, without a call of the driver.
  void finish(const CudaEvent& mark) { progress_.wait(mark); }
  // The number of the last CUDA event or mark.
  std::uint64_t sequence() const { return progress_.sequence(); }
  // One of the driver calls that do nothing here.
  void count(std::int64_t DriverCalls::* call) {
    const std::lock_guard guard(lock_);
    ++(calls_.*call);
  }

  // What the replayer tells of the trace: all work submitted to `stream` so far is complete
  // (kAllStreams: to any); that up to `sequence` is.
  void synchronize(StreamId stream) {
    progress_.synchronize(stream);
    if (is_hardware_) progress_moved();
  }
  void complete_recorded(StreamId stream, std::uint64_t sequence) {
    progress_.complete_recorded(stream, sequence);
    if (is_hardware_) progress_moved();
  }
  // Whether it must be told before every event that it comes: its number, or where several threads
  // make events that there is one more.
  bool counts_events() const { return progress_.counts_events(); }
  void set_now(std::int64_t event) {
    progress_.set_now(event);
    if (is_hardware_) progress_moved();
  }
  void next_event() {
    progress_.next_event();
    if (is_hardware_) progress_moved();
  }

  // The cudaStream_t of a stream of a real device; null elsewhere.
  virtual void* native_stream(StreamId) { return nullptr; }
  // A memory pool of the driver's, the caller's to delete; null where there is no driver.
  virtual MemoryPool* new_driver_pool(const DriverPoolOptions&) { return nullptr; }
  // Whether driver calls and streams are a real device's.
  bool is_hardware() const { return is_hardware_; }

  // Whether memory is a device's: rounded to 512 bytes and used by streams.
  virtual bool is_device() const = 0;
  // Whether addresses can be read and written.
  virtual bool has_memory() const = 0;
  // Whether blocks have bytes: fill() and verify() do something.
  virtual bool has_bytes() const { return has_memory(); }
  // Writes the pattern of the trace event that allocated the block, as work of `stream`.
  virtual void fill(const FilledBlock& block, StreamId stream);
  // Reads it again. The damage found in this block or, where work of streams is not waited for, in
  // one before it.
  virtual std::optional<Damage> verify(const FilledBlock& block, StreamId stream);
  // Likewise by the work of another stream than `own`, which filled it; that may take its time.
  virtual std::optional<Damage> use(const FilledBlock& block, StreamId own, StreamId stream);
  // What is still to be told of all that was verified.
  virtual std::optional<Damage> damage() { return std::nullopt; }
  // Whether this thread's last allocate() made the system hand out pages.
  virtual bool last_faulted() const { return false; }

  Bytes capacity() const { return capacity_; }
  bool several_threads() const { return lock_.in_use(); }
  // What the device calls its memory, where the capacity is unlimited too.
  Bytes total() const { return capacity_ == kUnlimited ? total_if_unlimited() : capacity_; }
  // Bytes given out, as the device counts them.
  Bytes used() const {
    const std::lock_guard guard(lock_);
    return used_ + used_by_pools();
  }
  // Read where no other thread calls.
  const DriverCalls& driver_calls() const { return calls_; }
  // What they took; null where that was not measured.
  virtual const DriverTimes* driver_times() const { return nullptr; }
  // What those of a model would have cost; null where they have no prices.
  virtual PricedCalls* priced_calls() { return nullptr; }
  // One sentence each about what its numbers mean.
  virtual std::vector<std::string> warnings() const { return {}; }
  // Throws EngineError where the device failed in a call that could not say so.
  virtual void check() {}

 protected:
  const StreamProgress& progress() const { return progress_; }

 private:
  // These are called without a lock, so that one thread's slow call keeps no other waiting.
  virtual std::uint64_t take(Bytes size) = 0;
  virtual void give(std::uint64_t address, Bytes size) = 0;
  virtual std::uint64_t take_pinned(Bytes size, Memory) { return take(size); }
  virtual void give_pinned(std::uint64_t address, Bytes size, Memory) { give(address, size); }
  virtual std::uint64_t take_range(Bytes size, Bytes page) = 0;
  virtual void give_range(std::uint64_t address, Bytes size) = 0;
  virtual bool map_piece(std::uint64_t address, Bytes size) = 0;
  virtual void unmap_piece(std::uint64_t address, Bytes size) = 0;
  virtual Bytes total_if_unlimited() const = 0;
  // Bytes by which `used` grows for a request of `size`.
  virtual Bytes footprint(Bytes size) const = 0;
  // Bytes that new_driver_pool()s hold.
  virtual Bytes used_by_pools() const { return 0; }

  // Of real streams: puts a CUDA event into its stream; asks the device for it, and where it is
  // `due` until it is there; waits for it; StreamProgress says more than before.
  virtual void submit(const CudaEvent&) {}
  virtual bool reaches(const CudaEvent&, bool due) { return due; }
  virtual void await(const CudaEvent&) {}
  virtual void progress_moved() {}

  // Counts `taken` bytes, and one of `calls`; false where there is no room for them.
  bool claim(Bytes taken, std::int64_t& calls) {
    const std::lock_guard guard(lock_);
    if (taken > capacity_ - used_) return false;
    used_ += taken;
    ++calls;
    return true;
  }
  void unclaim(Bytes taken, std::int64_t& calls) {
    const std::lock_guard guard(lock_);
    used_ -= taken;
    ++calls;
  }
  std::uint64_t refuse() {
    count(calls_.refused);
    return 0;
  }
  std::uint64_t refuse_claimed(Bytes taken, std::int64_t& calls) {
    const std::lock_guard guard(lock_);
    used_ -= taken;
    --calls;
    ++calls_.refused;
    return 0;
  }
  void count(std::int64_t& calls) {
    const std::lock_guard guard(lock_);
    ++calls;
  }

  const Bytes capacity_;
  const bool is_hardware_;
  const bool is_asked_;
  mutable Lock lock_;  // around what is counted
  Bytes used_ = 0;
  DriverCalls calls_;
  StreamProgress progress_;
};

struct BackendEntry {
  std::string name;
  std::string summary;
  bool is_model;
  std::function<std::unique_ptr<Backend>(const BackendOptions&)> create;
  // Why it cannot be used on this machine; empty where it can.
  std::function<std::string()> unavailable = [] { return std::string(); };
  bool hidden = false;
};

Registry<BackendEntry>& backend_registry();

inline void Backend::fill(const FilledBlock& block, StreamId) { fill_bytes(block); }
inline std::optional<Damage> Backend::verify(const FilledBlock& block, StreamId) {
  return find_damage(block);
}
inline std::optional<Damage> Backend::use(const FilledBlock& block, StreamId, StreamId) {
  return find_damage(block);
}

}  // namespace workbench
