// A model of the driver's memory pool, over any backend. Its parameters: pool_model.h.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "allocators/free_blocks.h"
#include "allocators/memory_pool.h"
#include "allocators/pool_model.h"
#include "allocators/recycled.h"
#include "allocators/stream_order.h"
#include "backends/backend.h"
#include "core/events.h"

namespace workbench {

class SimulatedPool final : public MemoryPool {
 public:
  SimulatedPool(Backend& backend, const PoolModel& model);
  ~SimulatedPool() override;

  Allocation allocate(Bytes size, StreamId stream) override;
  void free(void* handle, StreamId stream) override;

  StreamId make_stream() override { return kOwnStream; }
  void join(StreamId waiter, StreamId on) override;
  void event_record(std::size_t event, StreamId stream) override;
  void event_wait(std::size_t event, StreamId stream) override;
  void synchronized(StreamId stream) override;

  void synchronize() override;
  void trim_to(Bytes bytes) override;

  Bytes used() const override { return used_; }
  Bytes reserved() const override { return reserved_; }
  Bytes peak_used() const override { return peak_used_; }
  Bytes peak_reserved() const override { return peak_reserved_; }
  void reset_peaks() override;
  Cause cause() const override { return cause_; }

  Location locate(const void* handle) const override;
  void visit(const std::function<void(const BlockView&)>& visitor) const override;
  Bytes largest_free() const override;
  std::int64_t chunks_taken() const override { return chunks_taken_; }
  std::int64_t chunks_given_back() const override { return chunks_given_back_; }

 private:
  // Above all streams of a trace.
  static constexpr StreamId kOwnStream = kMostStreams;

  struct Block;
  struct Lane;

  // A range of addresses, made of whole chunks of which some may have been taken out again.
  struct Range {
    std::uint64_t number;
    std::uint64_t address;
    std::uint64_t position;  // the same in every process; above all that came before
    Bytes size;
    Bytes mapped;
    Block* first;
    Range* before;
    Range* after;
  };

  // Neighbours in `before` and `after` are those of the same range; a gap may lie between them.
  struct Block {
    // What FreeBlocks asks for.
    Bytes size;
    std::uint64_t position;
    caching::TreeLinks<Block> links;

    Range* range;
    Block* before;
    Block* after;
    Lane* lane;  // of a free block; else null
    // Of a free block of a stream: its place among those freed there.
    Block* earlier;
    Block* later;
    CudaEvent freed;  // the last work that may use it
    StreamId made_on;

    std::uint64_t end() const { return position + static_cast<std::uint64_t>(size); }
    std::uint64_t address() const { return range->address + (position - range->position); }
  };

  // Free blocks of one stream in the order they were freed, or those that are anyone's.
  struct Lane {
    StreamId stream;
    caching::FreeBlocks<Block> free;
    Block* oldest = nullptr;
    Block* newest = nullptr;
  };

  // A free on the pool's own stream, and what it waits for.
  struct OwnFree {
    std::uint64_t sequence;
    std::vector<CudaEvent> waits;
  };

  static std::size_t index_of(StreamId stream) {
    return stream == kOwnStream ? 0 : static_cast<std::size_t>(stream) + 1;
  }
  Lane& lane_of(StreamId stream);
  bool is_common(const Lane& lane) const { return &lane == &common_; }

  // simulated_pool.cpp: free blocks that serve a request of `size` on a lane's stream; null where
  // there are none.
  Block* own_or_common(const Lane& lane, Bytes size) const;
  Block* ordered_before(const Lane& lane, Bytes size) const;
  Block* find(Lane& lane, Bytes size);
  Block* wait_for_another(Lane& lane, Bytes size);
  // The first `size` bytes of the smallest run that has them, in no lane; null where none has.
  Block* take_side_by_side(const Lane& lane, Bytes size, bool of_any_stream);
  bool is_ordered_before(const Block& block, const Lane& lane) const;
  // Whether a free block is of use to `lane` without waiting.
  bool may_have(const Lane& lane, const Block& block) const;
  // Has `lane` wait for the stream of a free block that it may not have yet.
  void wait_for(const Lane& lane, const Block& block);
  // Moves the free blocks whose frees have completed to those that are anyone's; whether any was.
  bool collect_completed();
  bool completed(const Block& block);

  // simulated_pool_memory.cpp: chunks.
  // A free block of `size` in whole chunks side by side, remapped and fresh ones; null where the
  // device has no room. `of_any_stream`: also what the stream has to wait for.
  Block* add_memory(Lane& lane, Bytes size, bool of_any_stream);
  // Free blocks side by side that `lane` may have (`of_any_stream`: that it may wait for), as many
  // as there are; lowest first.
  struct FreeRun {
    Block* first;
    std::uint64_t end;  // a position
    Bytes size() const { return static_cast<Bytes>(end - first->position); }
  };
  std::vector<FreeRun> free_runs(const Lane& lane, bool of_any_stream) const;
  std::uint64_t first_chunk(const FreeRun& run) const;
  std::uint64_t chunks_end(const FreeRun& run) const;
  // Takes the chunk at `position` out of the free block in which it begins and those after it, with
  // its memory. What is before and after it in the blocks that it was in; null where nothing is.
  struct Rests {
    Block* before;
    Block* after;
  };
  Rests take_chunk(Block& block, std::uint64_t position);
  Range& add_range(std::uint64_t address, Bytes size);
  void drop_range_if_empty(Range& range);

  // simulated_pool_memory.cpp: blocks.
  Block& new_block(Range& range, std::uint64_t position, Bytes size, Block* before);
  void drop(Block& block);
  // Parts a free block in two; the second begins at `position`.
  Block& split(Block& block, std::uint64_t position);
  // Likewise of a block in no lane, which keeps `size`; the rest goes into `lane`, as with add().
  Block& cut_rest(Block& block, Bytes size, Lane& lane, Block* earlier);
  // Puts a free block into a lane; where that is a stream's, behind `earlier`.
  void add(Lane& lane, Block& block, Block* earlier);
  void remove(Block& block);
  // `block`, in no lane, together with its free neighbours of `lane`.
  Block& merge(const Lane& lane, Block& block);

  Backend& backend_;
  const PoolModel model_;
  StreamOrder order_;  // by index_of
  Lane common_{};
  std::vector<std::unique_ptr<Lane>> lanes_;  // by index_of; null where never freed on
  std::deque<OwnFree> own_frees_;             // not known to have completed
  std::vector<CudaEvent> own_waits_;          // since the last of them
  std::uint64_t own_done_ = 0;                // frees up to this one have completed
  Recycled<Block> blocks_;
  Recycled<Range> ranges_;
  Range* first_range_ = nullptr;
  Range* last_range_ = nullptr;
  std::uint64_t next_range_ = 0;
  std::uint64_t next_position_ = 0;

  Bytes used_ = 0;
  Bytes reserved_ = 0;
  Bytes peak_used_ = 0;
  Bytes peak_reserved_ = 0;
  std::int64_t chunks_taken_ = 0;
  std::int64_t chunks_given_back_ = 0;
  Cause cause_ = Cause::kServedFromCache;
};

}  // namespace workbench
