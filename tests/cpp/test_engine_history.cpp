// The check of recorded histories: what it reproduces, what it learns, what it refuses.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "allocators/history_check.h"
#include "check.h"
#include "core/errors.h"

namespace {

using namespace workbench;
using caching::History;
using caching::HistoryCheck;
using caching::HistoryResult;
using caching::Learning;

constexpr std::uint64_t kBase = 0x7f0000000000;

// In units of 1 MiB behind kBase, since all is about places in segments.
constexpr std::uint64_t at(double mib) { return kBase + static_cast<std::uint64_t>(mib * kMiB); }
constexpr Bytes mib(double count) { return static_cast<Bytes>(count * kMiB); }

HistoryResult run(const History& history, const std::string& settings = "",
                  Learning learning = Learning::kOrder) {
  return HistoryCheck(history, settings, learning, std::nullopt).run();
}

void free_at_once(History& history, std::uint64_t address, Bytes size) {
  history.entries.push_back({Action::kFreeRequested, address, size, 0});
  history.entries.push_back({Action::kFreeCompleted, address, size, 0});
}

// Takes 20 MiB, uses some, frees and uses them again: what is left of 5 MiB is too little to split.
History by_hand() {
  History history;
  history.entries = {
      {Action::kSegmentAlloc, at(0), mib(20), 0}, {Action::kAlloc, at(0), mib(5), 0},
      {Action::kAlloc, at(5), mib(3) - 100, 0},   {Action::kFreeRequested, at(0), mib(5), 0},
      {Action::kFreeCompleted, at(0), mib(5), 0}, {Action::kAlloc, at(0), mib(4), 0},
      {Action::kSegmentAlloc, at(40), mib(2), 0}, {Action::kAlloc, at(40), 1000, 0},
  };
  return history;
}

TEST(a_history_by_hand_is_reproduced_with_its_blocks_and_bytes) {
  History history = by_hand();
  const HistoryResult result = run(history);
  CHECK(!result.difference);
  CHECK(result.slacks.empty() && result.created_before.empty() && !result.begins_in_request);
  CHECK(result.segments.size() == 2 && result.blocks.size() == 5);
  CHECK(result.reserved.size() == history.entries.size());
  CHECK(result.reserved[0] == 0);  // taken for a request that comes next
  CHECK(result.reserved[1] == mib(20) && result.reserved.back() == mib(22));
  CHECK(result.allocated.back() == mib(8) + 1024);
  CHECK(result.blocks[0].address == at(0) && result.blocks[0].entry == 5);
  CHECK(result.blocks[0].requested == mib(4));
}

TEST(pending_frees_stay_active_until_they_complete) {
  History history = by_hand();
  history.entries.push_back({Action::kFreeRequested, at(5), mib(3) - 100, 0});
  HistoryResult result = run(history);
  CHECK(!result.difference);
  CHECK(result.blocks[1].state == BlockState::kActivePendingFree);
  history.entries.push_back({Action::kAlloc, at(8), mib(3), 0});
  history.entries.push_back({Action::kFreeCompleted, at(5), mib(3) - 100, 0});
  result = run(history);
  CHECK(!result.difference);
}

TEST(each_contradiction_is_reported_at_its_entry) {
  const auto problem_at = [](std::size_t entry, caching::RecordedEntry changed) {
    History history = by_hand();
    history.entries[entry] = changed;
    const HistoryResult result = run(history);
    return result.difference ? result.difference->entry : -1;
  };
  CHECK(problem_at(1, {Action::kAlloc, at(1), mib(5), 0}) == 1);
  CHECK(problem_at(2, {Action::kAlloc, at(6), mib(3), 0}) == 2);
  CHECK(problem_at(2, {Action::kAlloc, at(5), mib(3), 1}) == 2);
  CHECK(problem_at(2, {Action::kAlloc, at(0), mib(3), 0}) == 2);
  CHECK(problem_at(2, {Action::kAlloc, at(5), 0, 0}) == 2);
  CHECK(problem_at(2, {Action::kAlloc, at(5), -5, 0}) == 2);
  CHECK(problem_at(2, {Action::kAlloc, at(5), kEiB, 0}) == 2);
  CHECK(problem_at(2, {Action::kFreeRequested, at(5), mib(3), 0}) == 2);
  CHECK(problem_at(2, {Action::kFreeCompleted, at(9), mib(3), 0}) == 2);
  CHECK(problem_at(2, {Action::kOom, 0, mib(3), 0}) == 2);
  CHECK(problem_at(6, {Action::kSegmentAlloc, at(40), mib(20), 0}) == 7);
  CHECK(problem_at(6, {Action::kSegmentFree, at(0), mib(20), 0}) == 6);
  CHECK(problem_at(6, {Action::kSegmentMap, at(40), mib(20), 0}) == 7);
  CHECK(problem_at(6, {Action::kSegmentUnmap, at(0), mib(20), 0}) == 6);
}

// Three equal segments, free, of which the first request takes the last.
History tied() {
  History history;
  for (const double place : {0, 20, 40}) {
    history.segments.push_back({at(place), mib(20), 0, false, false});
  }
  history.entries = {{Action::kFreeRequested, at(80), 512, 0},
                     {Action::kFreeCompleted, at(80), 512, 0},
                     {Action::kAlloc, at(40), mib(12), 0}};
  history.segments.push_back({at(80), mib(2), 0, true, false});
  history.blocks = {{at(80), 512, 512, false, 0}};
  return history;
}

TEST(the_order_of_segments_is_learned_from_a_tie) {
  const HistoryResult result = run(tied());
  CHECK(!result.difference);
  CHECK(result.created_before == (std::set<std::pair<std::size_t, std::size_t>>{{2, 0}, {2, 1}}));
  CHECK(run(tied(), "", Learning::kNothing).difference.has_value());
  CHECK(run(tied(), "rules:address-order").difference.has_value());
}

// 20 MiB: a block of 8 MiB that holds 0.5 MiB more, then 11.5 MiB.
History with_slack() {
  History history;
  history.segments = {{at(0), mib(20), 0, false, false}, {at(40), mib(22), 0, false, false}};
  history.blocks = {{at(0), 0, mib(8), false, 0}};
  return history;
}

TEST(a_tie_may_also_mean_that_a_block_was_smaller) {
  History history = with_slack();
  history.segments[1] = {at(40), mib(12), 0, false, false};
  history.entries = {{Action::kFreeRequested, at(60), 512, 0},
                     {Action::kFreeCompleted, at(60), 512, 0},
                     {Action::kAlloc, at(40), mib(12), 0}};
  history.segments.push_back({at(60), mib(2), 0, true, false});
  history.blocks.push_back({at(60), 512, 512, false, 0});
  HistoryResult result = run(history);
  CHECK(!result.difference && result.slacks.empty());
  CHECK((result.created_before == std::set<std::pair<std::size_t, std::size_t>>{{1, 0}}));
  result = run(history, "", Learning::kSize);
  CHECK(!result.difference && result.created_before.empty());
  CHECK((result.slacks == std::map<std::size_t, Bytes>{{0, 512}}));
}

TEST(the_order_of_segments_is_learned_from_their_release) {
  History history = tied();
  history.entries.resize(2);
  for (const double place : {20, 0, 40}) {
    history.entries.push_back({Action::kSegmentFree, at(place), mib(20), 0});
  }
  history.entries.push_back({Action::kSegmentFree, at(80), mib(2), 0});
  HistoryResult result = run(history);
  CHECK(!result.difference);
  CHECK(result.created_before == (std::set<std::pair<std::size_t, std::size_t>>{{1, 0}}));
  CHECK(result.flushes == std::vector<std::int64_t>{2});
  CHECK(result.segments.empty() && result.reserved.back() == 0);
  std::swap(history.entries[2], history.entries[5]);  // small ones come last
  CHECK(run(history).difference->entry == 2);
}

TEST(the_first_allocation_behind_a_block_tells_its_size) {
  History history = with_slack();
  history.entries = {{Action::kAlloc, at(8.5), mib(3), 0}};
  free_at_once(history, at(0), mib(8));
  history.entries.push_back({Action::kAlloc, at(0), mib(8.5), 0});
  const HistoryResult result = run(history);
  CHECK(!result.difference);
  CHECK((result.slacks == std::map<std::size_t, Bytes>{{0, mib(0.5)}}));
}

TEST(a_free_block_that_was_passed_over_must_have_been_too_small) {
  History history = with_slack();
  history.entries = {{Action::kFreeRequested, at(40), mib(2), 0}};
  history.blocks.push_back({at(40), mib(2), mib(2), false, 0});
  history.entries.push_back({Action::kFreeCompleted, at(40), mib(2), 0});
  history.entries.push_back({Action::kAlloc, at(40), mib(11.8), 0});
  const HistoryResult result = run(history);
  CHECK(!result.difference);
  CHECK((result.slacks == std::map<std::size_t, Bytes>{{0, mib(0.2) / 512 * 512 + 512}}));
  history.entries.back().size = mib(10);  // then it held 2 MiB more: no block does
  CHECK(run(history).difference.has_value());
}

TEST(what_a_split_would_have_left_belongs_to_the_block) {
  History history = with_slack();
  history.blocks.push_back({at(9), mib(11), mib(11), false, 0});
  HistoryResult result = run(history);
  CHECK(!result.difference && result.deduced == 1);
  CHECK(result.blocks.size() == 3 && result.blocks[0].size == mib(9));
  history.blocks[1] = {at(9.5), mib(10.5), mib(10.5), false, 0};
  result = run(history);
  CHECK(result.deduced == 0 && result.blocks[0].size == mib(8));
  // Too large to be split: all of its segment.
  history.segments[0].size = mib(40) / 2;
  history.blocks = {{at(40), 0, mib(20), false, 0}};
  result = run(history, "max_split_size_mb:20");
  CHECK(result.deduced == 1);
  CHECK(std::any_of(result.blocks.begin(), result.blocks.end(),
                    [](const auto& block) { return block.size == mib(22); }));
}

TEST(a_history_may_begin_in_the_middle_of_a_request) {
  // The segment at 20 was made for it; before, the one at 0 was not seen as free.
  History history = tied();
  history.blocks.clear();
  history.entries = {{Action::kAlloc, at(20), mib(20), 0}};
  HistoryResult result = run(history);
  CHECK(!result.difference && result.begins_in_request);
  CHECK(result.created_before.empty());
  history.entries = {{Action::kOom, 0, mib(12), 0}};
  result = run(history);
  CHECK(!result.difference && result.begins_in_request);
  history.entries.push_back({Action::kOom, 0, mib(12), 0});
  CHECK(run(history).difference->entry == 1);
}

TEST(segments_of_private_pools_are_not_cached_ones) {
  History history = tied();
  history.lanes = {{0, 0}, {0, 1}};
  history.segments[1].stream = 1;
  history.entries.resize(2);
  history.entries.push_back({Action::kSegmentFree, at(0), mib(20), 0});
  history.entries.push_back({Action::kSegmentFree, at(40), mib(20), 0});
  history.entries.push_back({Action::kSegmentFree, at(80), mib(2), 0});
  HistoryResult result = run(history);
  CHECK(!result.difference && result.pool_releases == 0 && result.segments.size() == 1);
  history.entries.push_back({Action::kSegmentFree, at(20), mib(20), 1});
  result = run(history);
  CHECK(!result.difference && result.pool_releases == 1 && result.segments.empty());
  history.entries.push_back({Action::kSegmentFree, at(20), mib(20), 1});
  CHECK(run(history).difference->entry == 6);
}

TEST(garbage_collection_is_believed_where_it_is_on) {
  History history = tied();
  history.entries.resize(2);
  history.entries.push_back({Action::kSegmentFree, at(20), mib(20), 0});
  history.entries.push_back({Action::kSegmentAlloc, at(100), mib(30), 0});
  history.entries.push_back({Action::kAlloc, at(100), mib(30), 0});
  CHECK(run(history).difference->entry == 2);
  const HistoryResult result =
      run(history, "garbage_collection_threshold:0.5,per_process_memory_fraction:0.5");
  CHECK(!result.difference && result.collected == 1);
}

TEST(frees_and_segments_name_what_they_are_of) {
  History history = with_slack();
  history.blocks.push_back({at(40), mib(2), mib(2), false, 0});
  history.entries = {{Action::kFreeRequested, at(40), mib(2), 0},
                     {Action::kFreeCompleted, at(40), mib(2), 0},
                     {Action::kSegmentAlloc, at(100), mib(30), 0},
                     {Action::kAlloc, at(100), mib(30), 0}};
  CHECK(!run(history).difference);
  for (const std::size_t entry : {std::size_t{0}, std::size_t{1}, std::size_t{2}}) {
    History changed = history;
    changed.entries[entry].stream = 1;
    CHECK(run(changed).difference.has_value());
  }
  history.entries[0].size = 512;
  CHECK(run(history).difference->entry == 0);
  history.blocks[1].requested = 512;
  CHECK_THROWS(InputError, run(history));
  history.blocks[1].requested = mib(1.5);
  history.blocks[1].size = mib(3);
  CHECK_THROWS(InputError, run(history));
}

TEST(starting_states_that_none_can_have_are_refused) {
  const auto refused = [](auto&& change, const char* what) {
    History history = with_slack();
    change(history);
    try {
      run(history);
    } catch (const InputError& error) {
      return std::string_view(error.what()).find(what) != std::string_view::npos;
    }
    return false;
  };
  const std::uint64_t top = ~std::uint64_t{0} - 511;
  CHECK(refused([](History& h) { h.segments[1].address = at(10); }, "overlap"));
  CHECK(refused([](History& h) { h.segments[1].size = 0; }, "size"));
  CHECK(refused([](History& h) { h.segments[1].size = -512; }, "size"));
  CHECK(refused([](History& h) { h.segments[1].size = kEiB; }, "size"));
  CHECK(refused([](History& h) { h.segments[1].size = mib(2) + 1; }, "multiples"));
  CHECK(refused([&](History& h) { h.segments[1].address = top; }, "multiples"));
  CHECK(refused([](History& h) { h.segments[1].stream = -1; }, "stream"));
  CHECK(refused([](History& h) { h.segments[1].stream = 1 << 30; }, "stream"));
  CHECK(refused([](History& h) { h.blocks[0].requested = mib(21); }, "overlap"));
  CHECK(refused([](History& h) { h.blocks[0].size = mib(21); }, "overlap"));
  CHECK(refused([](History& h) { h.blocks[0].size = -512; }, "size"));
  CHECK(refused([](History& h) { h.blocks[0].size = mib(7); }, "less"));
  CHECK(refused([](History& h) { h.blocks[0].requested = kEiB; }, "size"));
  CHECK(refused([](History& h) { h.blocks[0].slack = kEiB; }, "size"));
  CHECK(refused([](History& h) { h.blocks[0].address += 1; }, "multiples"));
  CHECK(refused([](History& h) { h.blocks[0].address = at(30); }, "outside"));
  CHECK(refused([&](History& h) { h.blocks[0].address = top; }, "outside"));
  CHECK(refused([](History& h) { h.blocks.push_back({at(4), 512, 512, false, 0}); }, "overlap"));
  CHECK(refused([](History& h) { h.entries = {{Action::kSegmentAlloc, at(4), mib(20), 0}}; },
                "overlap"));
  CHECK(refused([](History& h) { h.entries = {{Action::kAlloc, at(8), 512, -3}}; }, "stream"));
  CHECK(refused([&](History& h) { h.entries = {{Action::kSegmentMap, top, mib(20), 0}}; },
                "multiples"));
  CHECK(refused(
      [](History& h) {
        h.segments[0].is_expandable = true;
        h.segments.push_back({std::uint64_t{1} << 60, mib(20), 0, false, true});
      },
      "too far"));
  CHECK(refused(
      [](History& h) {
        for (std::uint64_t i = 1; i < 9; ++i) {
          h.segments.push_back({i << 50, Bytes{1} << 45, 0, false, false});
        }
      },
      "more memory"));
  CHECK_THROWS(InputError, run(History{}, "no_such_setting:1"));
}

TEST(many_streams_and_many_segments_are_a_matter_of_moments) {
  History history;
  for (std::int32_t i = 0; i < 65536; ++i) {
    const std::uint64_t address = at(2.0 * i);
    history.entries.push_back({Action::kSegmentAlloc, address, mib(2), i});
    history.entries.push_back({Action::kAlloc, address, 1000, i});
  }
  HistoryResult result = run(history);
  CHECK(!result.difference && result.segments.size() == 65536);
  history = {};
  history.lanes = {{0, 0}, {0, 1}};
  for (std::int32_t i = 0; i < 100000; ++i) {
    history.segments.push_back({at(2.0 * i), mib(2), 1, true, false});
  }
  for (std::int32_t i = 0; i < 100000; ++i) {  // each a run of its own
    history.entries.push_back({Action::kSegmentFree, at(2.0 * i), mib(2), 1});
    history.entries.push_back({Action::kOom, 0, mib(2), 0});
  }
  result = run(history);
  CHECK(!result.difference && result.pool_releases == 100000);
}

TEST(an_empty_history_is_its_starting_state) {
  const HistoryResult result = run(with_slack());
  CHECK(!result.difference && result.segments.size() == 2 && result.blocks.size() == 3);
  CHECK(result.reserved.empty());
}

}  // namespace

int main() { return check::run(); }
