// Where memory comes from, and what a stream is. Allocators are written against this and nothing
// below it.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "backends/stream_progress.h"
#include "core/lock.h"
#include "core/registry.h"
#include "core/units.h"

namespace workbench {

inline constexpr Bytes kUnlimited = std::numeric_limits<Bytes>::max();

// Pinned memory may be neither moved nor swapped out, so that a device can read it by itself.
enum class Memory : std::uint8_t { kPageable, kPinned };

struct BackendOptions {
  Bytes capacity = kUnlimited;
  Completion completion = {};
  // Whether more than one thread will call it, and the allocator on it.
  bool several_threads = false;
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
  explicit Backend(const BackendOptions& options)
      : capacity_(options.capacity),
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
      address = memory == Memory::kPinned ? take_pinned(size) : take(size);
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
    memory == Memory::kPinned ? give_pinned(address, size) : give(address, size);
    unclaim(footprint(size), calls_.free);
  }

  // Virtual memory: address of a range of `size` bytes without memory; 0 when there is no room.
  std::uint64_t reserve(Bytes size) { return size < kEiB ? take_range(size) : 0; }
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

  // Marks the work submitted to `stream` so far.
  CudaEvent record_event(StreamId stream) {
    count(calls_.event_record);
    return progress_.record(stream);
  }
  bool completed(const CudaEvent& event) const { return progress_.completed(event); }
  // One of the driver calls that do nothing here.
  void count(std::int64_t DriverCalls::* call) {
    const std::lock_guard guard(lock_);
    ++(calls_.*call);
  }
  // Blocks until the event has completed, and with it all earlier work of its stream.
  void wait(const CudaEvent& event) {
    count(calls_.event_wait);
    progress_.wait(event);
  }

  // Whether memory is a device's: rounded to 512 bytes and used by streams.
  virtual bool is_device() const = 0;
  // Whether addresses can be read and written.
  virtual bool has_memory() const = 0;
  // The cudaStream_t of a stream of a real device; null elsewhere, and for its default stream.
  virtual void* native_stream(StreamId) { return nullptr; }
  // Whether this thread's last allocate() made the system hand out pages.
  virtual bool last_faulted() const { return false; }

  Bytes capacity() const { return capacity_; }
  bool several_threads() const { return lock_.in_use(); }
  // What the device calls its memory, where the capacity is unlimited too.
  Bytes total() const { return capacity_ == kUnlimited ? total_if_unlimited() : capacity_; }
  // Bytes given out, as the device counts them.
  Bytes used() const {
    const std::lock_guard guard(lock_);
    return used_;
  }
  // Read where no other thread calls.
  const DriverCalls& driver_calls() const { return calls_; }
  // How far streams have come; the replayer moves it as the trace and --completion say.
  StreamProgress& progress() { return progress_; }

 private:
  // These are called without a lock, so that one thread's slow call keeps no other waiting.
  virtual std::uint64_t take(Bytes size) = 0;
  virtual void give(std::uint64_t address, Bytes size) = 0;
  virtual std::uint64_t take_pinned(Bytes size) { return take(size); }
  virtual void give_pinned(std::uint64_t address, Bytes size) { give(address, size); }
  virtual std::uint64_t take_range(Bytes size) = 0;
  virtual void give_range(std::uint64_t address, Bytes size) = 0;
  virtual bool map_piece(std::uint64_t address, Bytes size) = 0;
  virtual void unmap_piece(std::uint64_t address, Bytes size) = 0;
  virtual Bytes total_if_unlimited() const = 0;
  // Bytes by which `used` grows for a request of `size`.
  virtual Bytes footprint(Bytes size) const = 0;

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

}  // namespace workbench
