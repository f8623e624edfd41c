// The three sets of functions a library of the user's may have, each behind the same few calls.
// Nothing is checked here: that is the memory pass's. `kPassesNothingOn`: whether requests for 0
// bytes are the library's too. `kStartsAfresh`: whether there can be several allocators in a
// process.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "allocators/shared_library.h"
#include "backends/backend.h"
#include "core/errors.h"
#include "core/events.h"
#include "core/last_words.h"
#include "core/lock.h"
#include "core/printable.h"
#include "core/settings.h"
#include "core/statistics.h"
#include "include/workbench_allocator.h"

namespace workbench {

// Calls a function of a library's. A C++ exception that leaves it is a LibraryCallError that names
// the function; those of ours pass.
template <class Call>
decltype(auto) call_library(const char* function, Call&& call) {
  const auto thrown = [&](const std::string& what) {
    return LibraryCallError("it threw a C++ exception" + what + " in " + function);
  };
  try {
    return call();
  } catch (const EngineError&) {
    throw;
  } catch (const std::exception& error) {
    throw thrown(" (" + printable(error.what()) + ")");
  } catch (...) {
    throw thrown("");
  }
}

struct LibraryStatistics {
  Statistics values;
  Bytes largest_free = 0;
  // Which of what can be known without the library it tells all the same.
  bool tells_requested = false;
  bool tells_ooms = false;
  bool tells_device_calls = false;
};

// malloc and free, as jemalloc, mimalloc, tcmalloc and the C library have them. Where there is a
// posix_memalign it is called instead of malloc, with 64, as PyTorch does.
class MallocCalls {
 public:
  MallocCalls(SharedLibrary library, Backend& backend, const Settings& settings);

  void* allocate(Bytes size, StreamId, ThreadId) {
    if (aligned_ == nullptr) return allocate_(static_cast<std::size_t>(size));
    void* memory = nullptr;
    return aligned_(&memory, kHostAlignment, static_cast<std::size_t>(size)) == 0 ? memory
                                                                                  : nullptr;
  }
  void deallocate(void* memory, Bytes, StreamId, ThreadId) { deallocate_(memory); }
  void record_stream(void*, StreamId) { ++ignored_record_streams; }
  void empty_cache() {}
  void capture_begin(StreamId) {}
  void capture_end(StreamId) {}
  void set_fraction(std::int64_t) {}
  void synchronized(StreamId) {}
  void pool_begin(PoolId) {}
  void pool_end(PoolId) {}
  void pool_release(PoolId) {}
  bool takes_lanes() const { return false; }
  void prepare(const Events&) {}
  void program_begins() {}
  void program_ends() {}
  static constexpr bool kPassesNothingOn = false;
  static constexpr bool kStartsAfresh = false;
  Bytes alignment(Bytes size) const;
  Reported reported() const;
  LibraryStatistics statistics() { return {}; }
  std::vector<std::string> warnings() const { return {}; }
  const std::string& path() const { return library_.path(); }

  std::atomic<std::int64_t> ignored_record_streams = 0;

 private:
  const SharedLibrary library_;
  void* (*allocate_)(std::size_t) = nullptr;
  int (*aligned_)(void**, std::size_t, std::size_t) = nullptr;
  void (*deallocate_)(void*) = nullptr;
};

// The functions of torch.cuda.memory.CUDAPluggableAllocator. A stream is passed as the pointer of
// its number, the default stream as null.
class TorchCalls {
 public:
  TorchCalls(SharedLibrary library, Backend& backend, const Settings& settings);

  void* allocate(Bytes size, StreamId stream, ThreadId) {
    return allocate_(static_cast<ssize_t>(size), 0, pointer(stream));
  }
  void deallocate(void* memory, Bytes size, StreamId stream, ThreadId) {
    deallocate_(memory, static_cast<ssize_t>(size), 0, pointer(stream));
  }
  void record_stream(void* memory, StreamId stream) {
    if (record_stream_ == nullptr) {
      ++ignored_record_streams;
    } else {
      record_stream_(memory, pointer(stream));
    }
  }
  void empty_cache() {
    if (reset_ != nullptr) reset_();
  }
  void capture_begin(StreamId) {}
  void capture_end(StreamId) {}
  void set_fraction(std::int64_t) {}
  void synchronized(StreamId) {}
  void pool_begin(PoolId) {}
  void pool_end(PoolId) {}
  void pool_release(PoolId) {}
  bool takes_lanes() const { return false; }
  void prepare(const Events&) {}
  void program_begins() {}
  void program_ends() {}
  static constexpr bool kPassesNothingOn = true;
  static constexpr bool kStartsAfresh = false;
  Bytes alignment(Bytes size) const;
  Reported reported() const;
  LibraryStatistics statistics() { return {}; }
  std::vector<std::string> warnings() const { return warnings_; }
  const std::string& path() const { return library_.path(); }

  std::atomic<std::int64_t> ignored_record_streams = 0;

 private:
  static void* pointer(StreamId stream) {
    return reinterpret_cast<void*>(static_cast<std::uintptr_t>(stream));
  }

  const SharedLibrary library_;
  void* (*allocate_)(ssize_t, int, void*) = nullptr;
  void (*deallocate_)(void*, ssize_t, int, void*) = nullptr;
  void (*record_stream_)(void*, void*) = nullptr;
  void (*reset_)() = nullptr;
  std::vector<std::string> warnings_;
};

// include/workbench_allocator.h.
class WorkbenchCalls {
 public:
  WorkbenchCalls(SharedLibrary library, Backend& backend, const Settings& settings);
  ~WorkbenchCalls();
  WorkbenchCalls(const WorkbenchCalls&) = delete;
  WorkbenchCalls& operator=(const WorkbenchCalls&) = delete;

  void* allocate(Bytes size, StreamId stream, ThreadId thread) {
    void* const memory =
        functions_.allocate(allocator_, static_cast<std::uint64_t>(size), stream, thread);
    if (memory == nullptr) [[unlikely]]
      throw_if_unavailable();
    return memory;
  }
  void deallocate(void* memory, Bytes size, StreamId stream, ThreadId thread) {
    functions_.deallocate(allocator_, memory, static_cast<std::uint64_t>(size), stream, thread);
  }
  void record_stream(void* memory, StreamId stream) {
    if (functions_.record_stream == nullptr) {
      ++ignored_record_streams;
    } else {
      functions_.record_stream(allocator_, memory, stream);
    }
  }
  void empty_cache() {
    if (functions_.empty_cache != nullptr) functions_.empty_cache(allocator_);
  }
  void capture_begin(StreamId stream) { tell("capture_begin", functions_.capture_begin, stream); }
  void capture_end(StreamId stream) { tell("capture_end", functions_.capture_end, stream); }
  void set_fraction(std::int64_t millionths) {
    tell("set_fraction", functions_.set_fraction, millionths);
  }
  void synchronized(StreamId stream) { tell("synchronized", functions_.synchronized, stream); }
  void pool_begin(PoolId pool) { tell("pool_begin", functions_.pool_begin, pool); }
  void pool_end(PoolId pool) { tell("pool_end", functions_.pool_end, pool); }
  void pool_release(PoolId pool) { tell("pool_release", functions_.pool_release, pool); }
  bool takes_lanes() const { return functions_.lanes != nullptr; }
  void prepare(const Events& events);
  void program_begins();
  void program_ends();
  static constexpr bool kPassesNothingOn = false;
  static constexpr bool kStartsAfresh = true;
  Bytes alignment(Bytes) const { return host_.is_device != 0 ? kDeviceAlignment : kHostAlignment; }
  Reported reported() const;
  LibraryStatistics statistics();
  std::vector<std::string> warnings() const { return {}; }
  const std::string& path() const { return library_.path(); }

  std::atomic<std::int64_t> ignored_record_streams = 0;

 private:
  // What the library may call. Its frames may know no exceptions: what it does wrong is told when
  // its own call is over, and statistics are asked for.
  static void* take(void* self, std::uint64_t bytes);
  static void give(void* self, void* memory, std::uint64_t bytes);
  static void* take_pinned(void* self, std::uint64_t bytes);
  static void give_pinned(void* self, void* memory, std::uint64_t bytes);
  static std::uint64_t event_record(void* self, std::int32_t stream);
  static std::int32_t event_query(void* self, std::uint64_t event);
  static void event_wait(void* self, std::uint64_t event);
  static std::uint64_t used(void* self);
  static void* reserve(void* self, std::uint64_t bytes);
  static void unreserve(void* self, void* address, std::uint64_t bytes);
  static std::int32_t map(void* self, void* address, std::uint64_t bytes);
  static void unmap(void* self, void* address, std::uint64_t bytes);
  static void* stream(void* self, std::int32_t number);
  const CudaEvent* find_event(std::uint64_t number);  // with the lock held

  // Calls what the library need not have.
  template <class Value>
  void tell(const char* name, void (*function)(void*, Value), Value value) {
    if (function == nullptr) return;
    const LastWords::While doing(name);
    function(allocator_, value);
  }
  void tell_lanes(const Events& events);
  wb_statistics ask() const;
  void* take_memory(std::uint64_t bytes, Memory memory);
  void give_memory(void* memory, std::uint64_t bytes, Memory kind);
  // Whether all of it lies in a range of its; blames it where it does not.
  bool is_reserved(void* address, std::uint64_t bytes, const char* what);
  // The first thing that it does wrong is kept.
  void blame(const std::string& fault);
  void throw_if_blamed();
  // Why the system did not give what the library asked for, where it says.
  void throw_if_unavailable();

  const SharedLibrary library_;
  Backend& backend_;
  wb_host host_{};
  wb_interface functions_{};
  void* allocator_ = nullptr;
  Reported reported_;
  std::atomic<bool> took_ = false;  // memory from the workbench
  Lock events_lock_;
  std::string unavailable_;
  // Where statistics are asked for: what it has of ours, by address.
  struct Taken {
    std::uint64_t bytes;
    Memory kind;
  };
  std::map<void*, Taken> taken_;
  std::map<void*, std::uint64_t> ranges_;  // the same of reserved addresses
  std::string fault_;
  std::deque<CudaEvent> events_;  // by number; without those at its front that have completed
};

}  // namespace workbench
