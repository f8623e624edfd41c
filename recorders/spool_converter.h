// Turns merged records into rows of a trace: addresses become ids, ticks become nanoseconds.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <vector>

#include "flat_map.h"
#include "spool_merge.h"
#include "spool_state.h"

namespace workbench {

// The line from ticks to nanoseconds since recording began.
struct ClockLine {
  std::uint64_t first_ticks = 0;
  double nanoseconds_per_tick = 1.0;

  std::int64_t operator()(std::uint64_t ticks) const;
  // Nanoseconds of `ticks` of the clock.
  std::int64_t Span(std::uint64_t ticks) const;
};

// Rows as columns of equal length.
struct RowColumns {
  std::vector<std::int64_t> time_ns;
  std::vector<std::uint8_t> event;  // spool::Event
  std::vector<std::int64_t> id;
  std::vector<std::int64_t> size;
  std::vector<std::uint16_t> device;  // spool::Device
  std::vector<std::int32_t> stream;
  std::vector<std::int32_t> thread;
  std::vector<std::int32_t> pool;
  std::vector<std::int32_t> step;
  std::vector<std::uint8_t> phase;        // spool::Phase
  std::vector<std::int32_t> scope;        // place in SpoolConverter::scopes(); -1 = none
  std::vector<std::uint32_t> stack;       // number in `names`; 0 = none
  std::vector<std::int64_t> duration_ns;  // -1 = none
  std::vector<std::int64_t> value;        // -1 = none
  std::vector<std::int64_t> label;        // number in `names`; -1 = none

  void Reserve(std::size_t rows);
};

// When a conversion stops.
struct Until {
  static constexpr std::uint64_t kNever = ~std::uint64_t{0};

  std::uint64_t ticks = kNever;        // no row of a later record
  std::uint64_t known_ticks = kNever;  // all earlier records are in the spool by now
};

class SpoolConverter {
 public:
  // Goes on from `state`, an empty one at first. `key_frame`: begins with a row for each block that
  // is live there, as if nothing were known of before.
  SpoolConverter(const std::filesystem::path& process_folder, ClockLine clock, bool steps_seen,
                 SpoolState state, Until until, bool key_frame);

  // At least `rows` further rows (one more at most), or fewer at the end of the spool.
  RowColumns NextRows(std::size_t rows);

  // Where it stands after the rows given so far.
  SpoolState State() const;

  const SpoolMerge& merge() const { return merge_; }
  // Scope numbers as the records carry them, in order of first use.
  const std::vector<std::uint32_t>& scopes() const { return scopes_; }
  // Frees of addresses that were not live: allocated before recording began, or lost.
  std::uint64_t unmatched_frees() const { return unmatched_frees_; }
  // Allocations at an address that was still live: its free was never seen.
  std::uint64_t reused_addresses() const { return reused_addresses_; }
  // Rows of the spool before those that are given here.
  std::int64_t rows_before() const { return rows_before_; }

 private:
  using Space = FlatMap<Block>;  // by address
  using Spaces = std::array<Space, spool::kFirstCuda + 1>;

  bool Take(MergedRecord* merged);
  bool Merge(MergedRecord* merged);
  void Convert(const MergedRecord& merged, RowColumns* rows);
  void ConvertDevice(const MergedRecord& merged, RowColumns* rows);
  void Allocate(const MergedRecord& merged, RowColumns* rows);
  void Free(const MergedRecord& merged, RowColumns* rows);
  void Emit(spool::Event event, const MergedRecord& merged, std::uint64_t ticks, const Block& block,
            RowColumns* rows);
  void EmitKeyFrame(RowColumns* rows);
  bool TakeLateFree(const MergedRecord& alloc, MergedRecord* late);
  std::int32_t ScopePlace(std::uint32_t scope);
  static Space& At(Spaces& spaces, std::uint16_t device);
  void Restore(const SpoolState& state, bool key_frame);

  SpoolMerge merge_;
  ClockLine clock_;
  bool steps_seen_;
  Until until_;
  std::deque<MergedRecord> ahead_;  // taken from the merge while looking for a late free
  Spaces live_;
  Spaces freed_;  // those whose free may complete later
  std::vector<Block> key_frame_;
  FlatMap<std::int32_t> scope_places_;
  std::vector<std::uint32_t> scopes_;
  std::vector<SegmentProgress> begun_;  // by place in `begun_places_`
  FlatMap<std::uint32_t> begun_places_;
  std::uint32_t last_begun_ = 0;
  FinishedSegments finished_;
  std::vector<TakenRecord> taken_;  // and their places not yet passed
  std::int64_t next_id_ = 0;
  std::int64_t last_time_ = 0;
  std::int64_t rows_before_ = 0;
  std::int64_t rows_ = 0;
  std::int32_t step_ = 0;
  std::uint8_t phase_ = 0;
  std::uint64_t unmatched_frees_ = 0;
  std::uint64_t reused_addresses_ = 0;
};

}  // namespace workbench
