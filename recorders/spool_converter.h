// Turns merged records into rows of a trace: addresses become ids, ticks become nanoseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <vector>

#include "flat_map.h"
#include "spool_merge.h"

namespace workbench {

// The line from ticks to nanoseconds since recording began.
struct ClockLine {
  std::uint64_t first_ticks = 0;
  double nanoseconds_per_tick = 1.0;

  std::int64_t operator()(std::uint64_t ticks) const;
};

enum class RowEvent : std::uint8_t { kAlloc = 0, kFree = 1, kMark = 2 };

// Rows as columns of equal length.
struct RowColumns {
  std::vector<std::int64_t> time_ns;
  std::vector<std::uint8_t> event;  // RowEvent
  std::vector<std::int64_t> id;
  std::vector<std::int64_t> size;
  std::vector<std::int32_t> thread;
  std::vector<std::int32_t> step;
  std::vector<std::uint8_t> phase;   // spool::Phase
  std::vector<std::int32_t> scope;   // place in SpoolConverter::scopes(); -1 = none
  std::vector<std::uint32_t> stack;  // number in `names`; 0 = none
  std::vector<std::int64_t> label;   // number in `names`; -1 = none

  void Reserve(std::size_t rows);
};

class SpoolConverter {
 public:
  SpoolConverter(const std::filesystem::path& process_folder, ClockLine clock, bool steps_seen)
      : merge_(process_folder), clock_(clock), steps_seen_(steps_seen) {}

  // At least `rows` further rows (one more at most), or fewer at the end of the spool.
  RowColumns NextRows(std::size_t rows);

  const SpoolMerge& merge() const { return merge_; }
  // Scope numbers as the records carry them, in order of first use.
  const std::vector<std::uint32_t>& scopes() const { return scopes_; }
  // Frees of addresses that were not live: allocated before recording began, or lost.
  std::uint64_t unmatched_frees() const { return unmatched_frees_; }
  // Allocations at an address that was still live: its free was never seen.
  std::uint64_t reused_addresses() const { return reused_addresses_; }

 private:
  struct Live {
    std::int64_t id;
    std::int64_t size;
  };

  bool Take(MergedRecord* merged);
  void Convert(const MergedRecord& merged, RowColumns* rows);
  void Allocate(const MergedRecord& merged, RowColumns* rows);
  void Emit(RowEvent event, const MergedRecord& merged, std::uint64_t ticks, Live block,
            RowColumns* rows);
  bool TakeLateFree(const MergedRecord& alloc, MergedRecord* late);
  std::int32_t ScopePlace(std::uint32_t scope);

  SpoolMerge merge_;
  ClockLine clock_;
  bool steps_seen_;
  std::deque<MergedRecord> ahead_;  // taken from the merge while looking for a late free
  FlatMap<Live> live_;
  FlatMap<std::int32_t> scope_places_;
  std::vector<std::uint32_t> scopes_;
  std::int64_t next_id_ = 0;
  std::int64_t last_time_ = 0;
  std::int32_t step_ = 0;
  std::uint8_t phase_ = 0;
  std::uint64_t unmatched_frees_ = 0;
  std::uint64_t reused_addresses_ = 0;
};

}  // namespace workbench
