// The exact-size CPU cache of c10/mobile/CPUCachingAllocator. Rules: docs/allocators.md.
#pragma once

#include <deque>
#include <memory>
#include <queue>
#include <vector>

#include "allocators/walk.h"
#include "core/lock.h"

namespace workbench {

class CpuCaching final : public Replayed<CpuCaching> {
 public:
  static constexpr ThreadId kEveryThread = -1;

  // Instances on one backend share what is known of blocks, as those of the original share it in a
  // process. `guard_thread` is the one thread that runs under the allocator's guard.
  explicit CpuCaching(Backend& backend, ThreadId guard_thread = kEveryThread);
  ~CpuCaching() override;

  Allocation allocate(Bytes size, StreamId stream, ThreadId thread) override;
  // Memory of another instance lands in this one's cache.
  void free(void* handle, ThreadId thread) override;
  void free_at(std::uint64_t address, ThreadId thread) override;
  void empty_cache() override { free_cached(); }

  // Forgets memory that was freed outside the allocator, so that its address may come back.
  // An unknown address is ignored.
  void record_free(std::uint64_t address);
  // Returns all cached blocks to the system. Live blocks stay live.
  void free_cached();

  Location locate(const void* handle) const override;
  void visit(const std::function<void(const BlockView&)>& visitor) const override;
  Bytes largest_free() const override;

 private:
  struct Bin;
  enum class Where : std::uint8_t { kNowhere, kLive, kLiveUncached, kCached };

  struct Block {
    std::uint64_t address = 0;
    Bytes size = 0;
    std::uint64_t serial = 0;
    CpuCaching* owner = nullptr;  // who counts it; null when that instance is gone
    Bin* bin = nullptr;           // of the owner; null for a block of an unguarded thread
    Block* below = nullptr;       // the next of its stack, or of the unused blocks
    Where where = Where::kNowhere;
  };

  // The stack of cached blocks of one size.
  struct Bin {
    Bytes size;
    Block* top = nullptr;
    bool in_largest = false;
  };

  // The original has a map from addresses to blocks here, and looks into it at every call. Handles
  // need none, and the checked path may search.
  struct Shared {
    explicit Shared(bool several_threads) : lock(several_threads) {}
    Block* find(std::uint64_t address);  // live or cached; with the lock held

    Lock lock;
    std::deque<Block> blocks;
    Block* unused = nullptr;
    std::uint64_t serial = 0;
  };
  static std::shared_ptr<Shared> shared_of(Backend& backend);

  bool guarded(ThreadId thread) const {
    return guard_thread_ == kEveryThread || guard_thread_ == thread;
  }
  Bin& bin_of(Bytes size);
  void grow_table();
  Block* take(Bytes size);
  void give_back(Block& block);
  void forget(Block& block);  // with the lock held
  void adopt(Block& block);
  void count_live(Bytes size, std::int64_t sign);
  void count_held(Bytes size, std::int64_t sign);

  const std::shared_ptr<Shared> shared_;
  const ThreadId guard_thread_;
  std::deque<Bin> bins_;
  std::vector<Bin*> table_;  // bins by size, open addressing; length is a power of two
  // Bins that had blocks when they were put here, largest on top; emptied ones leave when asked.
  struct SmallerBin {
    bool operator()(const Bin* a, const Bin* b) const { return a->size < b->size; }
  };
  mutable std::priority_queue<Bin*, std::vector<Bin*>, SmallerBin> largest_;
};

// Makes an allocator the thread's current one while it lives; nests.
class CpuCachingGuard {
 public:
  explicit CpuCachingGuard(CpuCaching& allocator);
  ~CpuCachingGuard();
  CpuCachingGuard(const CpuCachingGuard&) = delete;
  CpuCachingGuard& operator=(const CpuCachingGuard&) = delete;

  // The innermost guard's allocator of this thread; null outside all guards.
  static CpuCaching* current();

 private:
  CpuCaching* const previous_;
};

}  // namespace workbench
