// The caching pinned-host allocator (ATen/core/CachingHostAllocator). Rules: docs/allocators.md.
#pragma once

#include <array>
#include <deque>
#include <vector>

#include "allocators/host_pinned_settings.h"
#include "allocators/walk.h"
#include "core/lock.h"

namespace workbench {

class HostPinned final : public Replayed<HostPinned> {
 public:
  HostPinned(Backend& backend, const Settings& settings);
  ~HostPinned() override;

  Allocation allocate(Bytes requested, StreamId stream, ThreadId thread) override;
  void free(void* handle, ThreadId thread) override;
  void record_stream(void* handle, StreamId stream) override;
  // The checked path: the block is found by its handle, else by the address it starts at. False
  // for memory of others; throws EngineError where it is ours but free.
  bool record_event(std::uint64_t pointer, const void* handle, StreamId stream);
  void empty_cache() override;
  bool delays_free(const void* handle) const override;
  bool works_in_background() const override { return settings_.background_events; }
  void work_in_background() override { process_events(); }

  // host_pinned_report.cpp: what it says of itself.
  Location locate(const void* handle) const override;
  void visit(const std::function<void(const BlockView&)>& visitor) const override;
  Bytes largest_free() const override;
  Statistics statistics() const override;
  std::vector<std::string> warnings() const override { return settings_.warnings; }

 private:
  // Of blocks of one power of two; with best fit one lock, the first, is for all of them.
  static constexpr std::size_t kLists = 61;
  static constexpr std::uint64_t kNoReserve = ~std::uint64_t{0};

  struct Block {
    explicit Block(bool several_threads) : lock(several_threads) {}

    std::uint64_t address = 0;
    Bytes size = 0;       // what requests are held against
    Bytes held = 0;       // in the reserve segment whole pages, else the size
    Bytes requested = 0;  // by its last user
    std::uint32_t list = 0;
    std::uint32_t pending_events = 0;
    StreamId stream = 0;  // of its last allocation
    bool allocated = false;
    bool exists = false;
    bool in_reserve = false;
    std::uint64_t segment = 0;  // its serial number
    std::uint64_t offset = 0;
    std::vector<StreamId> streams;  // that used it; one CUDA event for each when it is freed
    Lock lock;
  };

  // Free blocks and what its blocks count for; guarded by the list's lock.
  struct alignas(64) FreeList {
    explicit FreeList(bool several_threads) : lock(several_threads) {}

    std::vector<Block*> blocks;  // the last one in on top; with best fit a heap, the first on top
    std::int64_t hits = 0;
    std::int64_t n_alloc = 0;
    std::int64_t n_pending = 0;  // freed, and waiting for streams
    Bytes requested = 0;
    Bytes allocated = 0;
    Bytes pending = 0;
    Lock lock;
  };

  // CUDA events, oldest first.
  struct Pending {
    CudaEvent event;
    Block* block;
  };

  // Memory that is taken once; blocks are cut off its front and never come back to it.
  struct Reserve {
    explicit Reserve(bool several_threads) : lock(several_threads) {}

    std::uint64_t address = 0;
    std::uint64_t segment = kNoReserve;  // its serial number, once it is there
    Bytes next = 0;
    Lock lock;
  };

  // Where a fresh block lies.
  struct Place {
    std::uint64_t address = 0;
    std::uint64_t segment = 0;
    std::uint64_t offset = 0;
    bool in_reserve = false;
  };

  Lock& lock_of(std::size_t list) const { return lists_[settings_.best_fit ? 0 : list].lock; }

  static void add_stream(Block& block, StreamId stream);
  void process_events();
  void complete(Block& block);
  // A free block with room for `size`, taken from its list and handed out; null where there is
  // none.
  Block* take_cached(std::size_t list, Bytes size, Bytes requested, StreamId stream);
  Block* take_best(std::size_t list);
  // A block of fresh memory, handed out; null, and counted, where it is refused.
  Block* take_fresh(std::size_t list, Bytes size, Bytes requested, StreamId stream);
  // False where memory is refused.
  bool find_place(Bytes size, Place& place);
  bool take_reserve();
  void hand_out(FreeList& list, Block& block, Bytes requested, StreamId stream);
  void wait_for_streams(Block& block);
  // For real; `waited`: for streams.
  void become_free(Block& block, bool waited);
  void count_freed(FreeList& list, const Block& block, bool waited);
  // With the locks of the block list and of the block's free list held.
  void destroy(Block& block);
  void release_cached(std::size_t list);
  void count_refused();

  // What decided how long the call took; the enum is in the order of what things cost.
  static void raise_cause(Cause cause) { cause_ = cause_ < cause ? cause : cause_; }

  const HostPinnedSettings settings_;
  const Memory memory_;
  const Bytes round_limit_;  // a larger request is not rounded
  mutable std::array<FreeList, kLists> lists_;
  std::uint64_t filled_ = 0;  // with best fit: the lists that hold blocks
  // Blocks, and statistics of memory taken and given back.
  mutable Lock blocks_lock_;
  std::deque<Block> blocks_;
  std::vector<Block*> unused_;
  std::uint64_t next_segment_ = 0;
  std::uint64_t used_lists_ = 0;
  Bytes reserve_in_blocks_ = 0;  // bytes of the reserve segment that are in blocks
  Lock events_lock_;
  std::deque<Pending> events_;
  Reserve reserve_;
};

}  // namespace workbench
