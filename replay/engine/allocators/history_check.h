// Holds the caching allocator against a recorded history: the same requests from the same starting
// state must be given the same addresses, and make and release the same segments at the same
// moments.
//
// What a history does not tell of its starting state — in which order segments were made, how large
// blocks really were that the program freed later — is learned where the record shows it, and
// handed back, so that a second check from the beginning can start with it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "allocators/caching.h"
#include "backends/backend.h"
#include "core/journal.h"

namespace workbench::caching {

// A segment there was before, or a piece of an expandable one that had memory.
struct RecordedSegment {
  std::uint64_t address;
  Bytes size;
  StreamId stream;  // or lane
  bool is_small;
  bool is_expandable;
};

struct RecordedBlock {
  std::uint64_t address;
  Bytes size;  // 0: not told; then what the request rounds to, and `slack`
  Bytes requested;
  bool pending;
  Bytes slack;  // how much more it holds
};

struct RecordedEntry {
  Action action;
  std::uint64_t address;
  Bytes size;
  StreamId stream;  // or lane
};

struct History {
  std::vector<RecordedSegment> segments;  // in order of their creation
  std::vector<RecordedBlock> blocks;      // in order of addresses
  std::vector<RecordedEntry> entries;
  std::vector<PoolStream> lanes;  // by what the others call a stream; empty: they are streams
};

// Where the record and the allocator part. Addresses and sizes are 0 where there are none.
struct Difference {
  std::int64_t entry;  // −1: before the first
  std::string problem;
  std::uint64_t recorded_address;
  Bytes recorded_size;
  std::uint64_t address;
  Bytes size;
};

struct HeldBlock {
  std::uint64_t address;
  Bytes size;
  Bytes requested;
  BlockState state;
  std::int64_t entry;  // that allocated it; −1 − place in History::blocks where it was there before
};

struct HeldSegment {
  std::uint64_t address;
  Bytes size;
  PoolStream lane;
  bool is_small;
  bool is_expandable;
};

struct HistoryResult {
  std::optional<Difference> difference;
  // Places in History::segments: the first was created before the second.
  std::set<std::pair<std::size_t, std::size_t>> created_before;
  // Places in History::blocks, and the slack that the record shows them to have.
  std::map<std::size_t, Bytes> slacks;
  std::int64_t deduced = 0;           // blocks that must hold the little that is free behind them
  std::vector<HeldSegment> segments;  // at the end, or at `state_at`
  std::vector<HeldBlock> blocks;      // the free ones too
  std::vector<Bytes> reserved;        // after each entry
  std::vector<Bytes> allocated;
  std::vector<std::int64_t> flushes;  // entries at which all cached segments began to be released
  std::int64_t collected = 0;         // segments released as garbage collection would
  std::int64_t pool_releases = 0;     // segments of private pools that were given back
  bool begins_in_request = false;     // the first entries are of a request that was under way
};

// By stream and whether the pool is the small one: where its range of addresses begins.
using Bases = std::map<std::pair<StreamId, bool>, std::uint64_t>;

// Gives out what the record says, and nothing else.
class RecordedDevice final : public Backend {
 public:
  // More than any device has.
  RecordedDevice() : Backend({.capacity = Bytes{1} << 46}) {}

  bool is_device() const override { return true; }
  bool has_memory() const override { return false; }

  std::span<const RecordedEntry> due;  // what the next request took from the device
  Bytes asked = 0;                     // the last size asked for

 private:
  bool next_is(Action action, Bytes size);
  std::uint64_t take(Bytes size) override;
  void give(std::uint64_t, Bytes) override {}
  std::uint64_t take_range(Bytes, Bytes) override;
  void give_range(std::uint64_t, Bytes) override {}
  bool map_piece(std::uint64_t address, Bytes size) override;
  void unmap_piece(std::uint64_t, Bytes) override {}
  Bytes total_if_unlimited() const override { return Bytes{1} << 46; }
  Bytes footprint(Bytes size) const override { return size; }
};

// What is learned where one of two blocks as good as each other was taken, and the size of the
// other is not certain: that its segment was made later, or that it was smaller.
enum class Learning { kNothing, kOrder, kSize };

class HistoryCheck {
 public:
  // `learning`: takes the record's word where the starting state leaves room for it. `state_at`:
  // the entry after which to list segments and blocks; the last by default. Throws InputError for a
  // starting state that contradicts itself, and for settings.
  HistoryCheck(const History& history, const std::string& settings, Learning learning,
               std::optional<std::size_t> state_at);

  HistoryResult run();

 private:
  struct Stop {};  // thrown once result_.difference is set

  // What no allocator can have written must not reach this one. Throws InputError.
  void check_memory() const;
  Lane& lane(StreamId stream, bool is_small);
  void restore();
  void restore_expandable(const Bases& bases);
  // Fills a block in no tree with the recorded ones inside it, and adds what is free.
  void carve(Block& whole, bool is_small, bool is_expandable);
  // Throws InputError where no rule gives a block of that size to the request it holds.
  void check_size(const RecordedBlock& recorded, bool is_small, bool is_expandable) const;
  Bytes recorded_size(const RecordedBlock& recorded, Bytes room, bool may_have_slack);

  // What is free behind a block is used from its beginning: the first allocation there tells where
  // the block ended, as long as it lived.
  void learn_slacks();

  std::size_t step(std::size_t entry);
  std::size_t free(std::size_t entry);
  // A free names the size that was asked for, and the block's own stream.
  void check_free(std::size_t entry, const Block& block);
  // What a request takes from the device is for its stream.
  void take_due(std::size_t entry, StreamId stream);
  PoolStream told(std::int32_t lane) const {
    if (history_.lanes.empty()) return {lane, kDefaultPool};
    return history_.lanes[static_cast<std::size_t>(lane)];
  }
  std::size_t complete(std::size_t entry);
  void allocate(std::size_t entry);
  // `found`, or what the first request got, had it looked for a free block before the history
  // began.
  Block* begun_before(std::uint64_t address, Block* found, Lane& of_lane, Bytes size);
  // At the first of a run of completed frees. A request that the device refuses waits for all
  // pending frees, and does not look again at what is free then.
  void look_ahead(std::size_t entry);
  void run_out(std::size_t entry);
  // The device gave some of what a request needed, and no more. The rest of the request comes
  // later.
  void refuse_rest(std::size_t entry);
  // A run of released segments and unmapped pages; where the next entry is.
  std::size_t release(std::size_t begin);
  // The pages that lie wholly inside a block of an expandable segment: where they begin, and bytes.
  std::pair<std::uint64_t, Bytes> whole_pages(const Block& block) const;
  // Of a private pool, whose use nobody has any more.
  bool unmap_private(const RecordedEntry& entry);
  bool release_all(std::span<const RecordedEntry> run, std::size_t begin);
  // Rule 9, for the request behind the run; and then perhaps all.
  bool release_some(std::span<const RecordedEntry> run, std::size_t begin, std::size_t request);
  // The recorded one of the blocks as large as `found`, which rule 9 would take; null where it is
  // none of them.
  Block* released_as(const RecordedEntry& entry, Block* found, const FreeBlocks<Block>& free,
                     bool first_of_equals);
  bool collect(std::span<const RecordedEntry> run);
  std::size_t next_request(std::size_t entry) const;

  // Tried again after a release, a request looks for a run of free blocks first, and such a run may
  // have memory already. In no tree; null where it begins elsewhere.
  Block* grown_in_place(std::uint64_t address, Lane& of_lane, Bytes size);

  Block& fitting(std::size_t entry, Block* found, Lane& of_lane, Bytes size);
  static bool is_tied(const Block& found, std::uint64_t address, const Lane& of_lane);
  // Among blocks as good as `found`, the recorded one; null where it is not one of them.
  Block* tied(Block& found, std::uint64_t address, Lane& of_lane);
  // The free block that begins in front of a recorded address, cut to begin there.
  Block* shifted(std::uint64_t address, Lane& of_lane, Bytes size);
  bool take_slack(Block& behind, Bytes bytes);
  bool learns() const { return learning_ != Learning::kNothing; }
  void note_order(const Segment& first, const Segment& second);

  [[noreturn]] void differ(std::size_t entry, std::string problem, std::uint64_t address = 0,
                           Bytes size = 0);
  void list_state();

  const History& history_;
  const Learning learning_;
  const std::size_t state_at_;
  RecordedDevice device_;
  Caching allocator_;
  HistoryResult result_;
  std::unordered_map<std::uint64_t, std::pair<Block*, std::int64_t>> held_;  // by address
  std::unordered_map<const Block*, std::size_t> untold_;   // blocks whose size was not told
  std::unordered_map<std::uint64_t, Segment*> fixed_;      // segments that do not grow, by address
  std::unordered_map<std::uint64_t, std::size_t> before_;  // segments there were, by their numbers
  std::size_t due_begin_ = 0;
  std::size_t due_end_ = 0;
  bool just_released_ = false;       // right before this entry
  bool may_have_begun_ = true;       // nothing so far shows that no request was under way
  std::size_t completions_end_ = 0;  // behind a run of completed frees
  bool found_after_free_ = false;    // `missed_`, but for what the program freed right before
  std::size_t missed_ = SIZE_MAX;    // a request that found nothing free before such a run
};

}  // namespace workbench::caching
