// A static plan that is run: the profile-guided allocator of c10/mobile/CPUProfilingAllocator.
// Rules: docs/allocators.md.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "allocators/walk.h"
#include "core/free_ranges.h"
#include "core/plan.h"

namespace workbench {

class PlanAllocator final : public Replayed<PlanAllocator> {
 public:
  struct Options {
    bool falls_back = false;  // serve a mismatch from raw memory instead of stopping
    bool rearms = false;      // restart the ids whenever the plan's steps have passed
  };

  // Without a plan all memory is raw.
  PlanAllocator(Backend& backend, std::shared_ptr<const Plan> plan, Options options);
  ~PlanAllocator() override;

  // Both throw PlanMismatchError on a mismatch, unless it is to fall back.
  Allocation allocate(Bytes size, StreamId stream, ThreadId thread) override;
  void free(void* handle, ThreadId thread) override;

  // Takes an arena where the last is too small, and restarts the ids.
  // Throws EngineError where blocks of the last plan are alive.
  void set_plan(std::shared_ptr<const Plan> plan);

  void program_begins() override;
  void program_ends() override;
  void step_begins(std::int32_t step) override;

  Location locate(const void* handle) const override;
  void visit(const std::function<void(const BlockView&)>& visitor) const override;
  Bytes largest_free() const override;
  Statistics statistics() const override;
  const PlanStatistics* plan_statistics() const override { return &counts_; }
  std::vector<std::string> warnings() const override;

 private:
  enum class State : std::uint8_t {
    kIdle,
    kLive,
    kOverdue,  // planned, and alive past its planned end
  };
  enum class Source : std::uint8_t { kArena, kRaw, kFallback };

  struct Block {
    std::uint64_t address = 0;
    Bytes requested = 0;
    Bytes held = 0;
    PlanTime end = kUnmanaged;
    // Of a planned block its offset; of a raw one its serial number.
    std::int64_t place = 0;
    // Frees that are planned up to the moment before this allocation.
    std::int64_t frees_before = 0;
    State state = State::kIdle;
    Source source = Source::kRaw;
    Block* next_unused = nullptr;
  };

  Block& at(PlanTime id) { return planned_[static_cast<std::size_t>(id)]; }
  PlanTime id_of(const Block& block) const { return &block - planned_.data(); }
  void load(std::shared_ptr<const Plan> plan);
  void begin_plan();
  void arm();
  void take_arena();
  void give_arena();
  Allocation take_raw(Bytes size, Source source);
  void give_raw(Block& block);
  // Counts a mismatch, or throws.
  void mismatch(PlanTime id, const std::string& expected, const std::string& got);
  // From the first mismatch until the plan begins again: who is alive past its end is looked up.
  void begin_doubt();
  void look_for_overdue(PlanTime now);
  void become_overdue(Block& block, const std::string& got);
  bool overlaps_overdue(const Block& block) const;
  void count(const Block& block, std::int64_t sign);

  std::shared_ptr<const Plan> plan_;
  const Options options_;
  std::vector<Block> planned_;        // by id
  std::vector<std::int64_t> by_end_;  // ids in order of their ends, for times of doubt

  bool armed_ = false;
  bool doubt_ = false;
  bool stopped_ = false;    // by a mismatch, or because the program has ended: frees are unchecked
  PlanTime now_ = 0;        // the next id
  std::int64_t freed_ = 0;  // planned blocks that were freed in time
  std::size_t looked_at_ = 0;       // of by_end_
  std::map<Bytes, Bytes> overdue_;  // offset → end of blocks that are alive past their ends
  std::int32_t armed_step_ = 0;

  std::uint64_t arena_ = 0;
  Bytes arena_size_ = 0;
  bool arena_refused_ = false;
  bool has_addresses_ = false;  // the planned blocks
  std::int64_t live_planned_ = 0;
  Bytes live_planned_bytes_ = 0;
  // Kept from the first time it is asked for.
  mutable std::optional<FreeRanges> free_ranges_;

  std::deque<Block> raw_;
  Block* unused_ = nullptr;
  std::int64_t serial_ = 1;
  Bytes live_fallback_ = 0;
  PlanStatistics counts_;
};

}  // namespace workbench
