// The library torch-cpu-caching: c10::CPUCachingAllocator behind the engine's C interface.
#include <c10/mobile/CPUCachingAllocator.h>
#include <workbench_allocator.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

#include "original.h"

namespace reference {

using c10::CPUCachingAllocator;

// The original empties its cache when it is destroyed, and has no public way to do so earlier.
struct FreeCached {
  using type = void (CPUCachingAllocator::*)();
  friend type reach(FreeCached);
};
template struct Reach<FreeCached, &CPUCachingAllocator::free_cached>;

namespace {

struct Original : CPUCachingAllocator {
  // Blocks that it knows, live and cached.
  static std::size_t remembered() {
    const std::lock_guard lock(mutex_);
    return allocation_map_.size();
  }
};

// What the original holds, watched from outside: it counts nothing itself. Several threads may
// call it.
class Watcher {
 public:
  void allocated(void* pointer, std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    // Refused by the system, it gives all of its cache back and asks once more.
    if (Original::remembered() < blocks_.size()) forget_cached();
    const auto [block, is_new] = blocks_.try_emplace(pointer, Block{bytes, true});
    live_ += bytes;
    // A pointer that was given back before comes from the cache, any other from the system.
    if (!is_new) {
      block->second.live = true;
      uncache(bytes);
      ++hits_;
      return;
    }
    reserved_ += bytes;
    ++misses_;
  }

  void freed(void* pointer) {
    const std::lock_guard lock(mutex_);
    Block& block = blocks_.at(pointer);
    block.live = false;
    live_ -= block.bytes;
    ++cached_[block.bytes];
  }

  void emptied() {
    const std::lock_guard lock(mutex_);
    forget_cached();
  }

  void report(wb_statistics& to) {
    const std::lock_guard lock(mutex_);
    to.allocated = to.active = static_cast<std::int64_t>(live_);
    to.reserved = static_cast<std::int64_t>(reserved_);
    to.largest_free = cached_.empty() ? 0 : static_cast<std::int64_t>(cached_.rbegin()->first);
    to.segments = static_cast<std::int64_t>(blocks_.size());
    to.hits = hits_;
    to.misses = misses_;
  }

 private:
  struct Block {
    std::uint64_t bytes;
    bool live;
  };

  void forget_cached() {
    std::erase_if(blocks_, [&](const auto& entry) {
      if (!entry.second.live) reserved_ -= entry.second.bytes;
      return !entry.second.live;
    });
    cached_.clear();
  }

  void uncache(std::uint64_t bytes) {
    const auto found = cached_.find(bytes);
    if (--found->second == 0) cached_.erase(found);
  }

  std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;        // all that the original holds
  std::map<std::uint64_t, std::uint64_t> cached_;  // blocks in the cache by their size
  std::uint64_t live_ = 0;
  std::uint64_t reserved_ = 0;
  std::int64_t hits_ = 0;
  std::int64_t misses_ = 0;
};

struct Instance {
  explicit Instance(const wb_host& host) : counts(host.counts != 0) {}

  Original original;
  const bool counts;  // timed passes measure the original alone
  Watcher watcher;
};

Instance& self(void* allocator) { return *static_cast<Instance*>(allocator); }

void* create(const wb_host* host, const char*, char* error, std::size_t error_size) {
  if (!has_system_memory(*host, error, error_size)) return nullptr;
  return new Instance(*host);
}

void destroy(void* allocator) { delete &self(allocator); }

void* allocate(void* allocator, std::uint64_t bytes, std::int32_t, std::int32_t) {
  void* pointer = nullptr;
  try {
    pointer = self(allocator).original.allocate(bytes);
  } catch (const std::exception&) {
    return nullptr;  // how the original says that the system has no more
  }
  if (self(allocator).counts) self(allocator).watcher.allocated(pointer, bytes);
  return pointer;
}

void deallocate(void* allocator, void* memory, std::uint64_t, std::int32_t, std::int32_t) {
  if (self(allocator).counts) self(allocator).watcher.freed(memory);
  self(allocator).original.free(memory);
}

void empty_cache(void* allocator) {
  (self(allocator).original.*reach(FreeCached{}))();
  if (self(allocator).counts) self(allocator).watcher.emptied();
}

void statistics(void* allocator, wb_statistics* to) { self(allocator).watcher.report(*to); }

const wb_interface interface = {
    .size = sizeof(wb_interface),
    .version = WB_VERSION,
    .name = "torch-cpu-caching",
    .create = create,
    .destroy = destroy,
    .allocate = allocate,
    .deallocate = deallocate,
    .record_stream = nullptr,
    .empty_cache = empty_cache,
    .statistics = statistics,
    .prepare = nullptr,
    .program_begins = nullptr,
    .program_ends = nullptr,
};

}  // namespace
}  // namespace reference

extern "C" __attribute__((visibility("default"))) const wb_interface* workbench_allocator(
    std::uint32_t version) {
  return version >= WB_VERSION ? &reference::interface : nullptr;
}
