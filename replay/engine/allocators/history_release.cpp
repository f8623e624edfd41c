// What a recorded history says was released: which rule released it, and whether in its order.
#include <algorithm>

#include "allocators/history_check.h"

namespace workbench::caching {

void HistoryCheck::refuse_rest(std::size_t entry) {
  static constexpr char kProblem[] = "comes in the middle of a request that was served";
  const std::vector<RecordedEntry>& entries = history_.entries;
  const std::size_t request = next_request(entry);
  if (request == entries.size()) differ(entry, kProblem);
  const RecordedEntry& recorded = entries[request];
  if (recorded.size <= 0 || recorded.size >= kEiB) differ(entry, kProblem);
  const Bytes size = allocator_.round_request(recorded.size);
  take_due(entry, recorded.stream);
  Lane& of_lane = lane(recorded.stream, size <= kLargestSmall);
  if (allocator_.new_segment(of_lane, size) != nullptr || !device_.due.empty()) {
    differ(entry, kProblem);
  }
}

std::size_t HistoryCheck::release(std::size_t begin) {
  const std::vector<RecordedEntry>& entries = history_.entries;
  std::size_t end = begin;
  while (end < entries.size() && releases(entries[end].action)) ++end;
  if (due_begin_ < due_end_) refuse_rest(begin);
  std::vector<RecordedEntry> run;
  for (std::size_t entry = begin; entry < end; ++entry) {
    if (told(entries[entry].stream).pool == kDefaultPool) {
      run.push_back(entries[entry]);
    } else if (collect({&entries[entry], 1}) || unmap_private(entries[entry])) {
      ++result_.pool_releases;
    } else {
      differ(entry, "releases a segment that is not wholly free");
    }
  }
  if (!run.empty() && !release_all(run, begin)) {
    if (allocator_.settings_.garbage_collection_threshold > 0 && collect(run)) {
      result_.collected += static_cast<std::int64_t>(run.size());
    } else if (!release_some(run, begin, next_request(end))) {
      differ(begin, "releases other segments");
    }
  }
  for (const RecordedEntry& entry : run) fixed_.erase(entry.address);
  just_released_ = true;
  return end;
}

std::pair<std::uint64_t, Bytes> HistoryCheck::whole_pages(const Block& block) const {
  const Segment& segment = *block.segment;
  const Bytes page = allocator_.page_of(*segment.lane);
  const auto offset = static_cast<Bytes>(block.address - segment.address);
  const Bytes first = round_up(offset, page);
  const Bytes last = (offset + block.size) / page * page;
  return {segment.address + static_cast<std::uint64_t>(first), std::max<Bytes>(last - first, 0)};
}

bool HistoryCheck::release_all(std::span<const RecordedEntry> run, std::size_t begin) {
  struct Part {
    std::uint64_t address;
    Bytes size;
    const Block* block;
  };
  std::vector<Part> parts;
  for (Pool& pool : allocator_.pools_) {
    for (Lane* const of_lane : pool.lanes) {
      if (of_lane == nullptr || of_lane->private_pool != nullptr) continue;
      for (Block* block = of_lane->free.first(); block != nullptr;
           block = of_lane->free.next(*block)) {
        const Segment& segment = *block->segment;
        if (!segment.expandable) {
          if (!block->is_split()) parts.push_back({segment.address, segment.size, block});
          continue;
        }
        const auto [address, size] = whole_pages(*block);
        if (size > 0) parts.push_back({address, size, block});
      }
    }
  }
  if (parts.size() != run.size()) return false;
  std::unordered_map<std::uint64_t, std::size_t> place;
  for (std::size_t i = 0; i < parts.size(); ++i) place[parts[i].address] = i;
  bool in_order = true;
  for (std::size_t i = 0; i < run.size(); ++i) {
    const auto found = place.find(run[i].address);
    if (found == place.end() || parts[found->second].size != run[i].size) return false;
    const Lane& of_lane = *parts[found->second].block->segment->lane;
    if (told(run[i].stream).stream != of_lane.stream) return false;
    if (found->second == i) continue;
    in_order = false;
    // Only blocks that are as good as each other may change places.
    const Block& here = *parts[i].block;
    const Block& there = *parts[found->second].block;
    const bool equal = here.size == there.size && here.segment->lane == there.segment->lane;
    if (!learns() || !equal || allocator_.settings_.address_order) return false;
  }
  for (std::size_t i = 0; !in_order && i + 1 < run.size(); ++i) {
    const Segment& first = *parts[place[run[i].address]].block->segment;
    const Segment& second = *parts[place[run[i + 1].address]].block->segment;
    const bool tie =
        first.lane == second.lane && run[i].size == run[i + 1].size && first.number > second.number;
    if (!tie) continue;
    if (!before_.contains(first.number) || !before_.contains(second.number)) return false;
    note_order(first, second);
  }
  allocator_.release_cached();
  result_.flushes.push_back(static_cast<std::int64_t>(begin));
  return true;
}

bool HistoryCheck::release_some(std::span<const RecordedEntry> run, std::size_t begin,
                                std::size_t request) {
  const CachingSettings& settings = allocator_.settings_;
  if (settings.max_split == kNoLimit || settings.expandable_segments) return false;
  if (request == history_.entries.size()) return false;
  const RecordedEntry& recorded = history_.entries[request];
  if (recorded.size <= 0 || recorded.size >= kEiB) return false;
  const Bytes size = allocator_.round_request(recorded.size);
  const Bytes need = std::max(size, settings.max_split);
  FreeBlocks<Block>& free = lane(recorded.stream, size <= kLargestSmall).free;
  auto rest = run;
  if (Block* const smallest = free.find(need)) {
    Block* const block = released_as(rest.front(), smallest, free, true);
    if (block == nullptr) return false;
    allocator_.release_segment(*block);
    rest = rest.subspan(1);
  } else {
    Bytes released = 0;
    for (Block* largest = free.last();
         largest != nullptr && largest->size >= settings.max_split && released < need;
         largest = free.last()) {
      Block* const block = rest.empty() ? nullptr : released_as(rest.front(), largest, free, false);
      if (block == nullptr && may_have_begun_) {
        result_.begins_in_request = true;  // and what it released first is not known
        break;
      }
      if (block == nullptr) return false;
      released += block->size;
      allocator_.release_segment(*block);
      rest = rest.subspan(1);
    }
  }
  return rest.size() < run.size() && (rest.empty() || release_all(rest, begin));
}

Block* HistoryCheck::released_as(const RecordedEntry& entry, Block* found,
                                 const FreeBlocks<Block>& free, bool first_of_equals) {
  std::vector<const Segment*> passed;
  const Bytes size = found->size;
  for (; found != nullptr && found->size == size;
       found = first_of_equals ? free.next(*found) : free.previous(*found)) {
    const Segment& segment = *found->segment;
    if (segment.expandable || found->is_split()) return nullptr;
    if (segment.address == entry.address && segment.size == entry.size) break;
    if (!learns() || allocator_.settings_.address_order) return nullptr;
    passed.push_back(&segment);
  }
  if (found == nullptr || found->size != size) return nullptr;
  const auto was_before = [&](const Segment* one) { return before_.contains(one->number); };
  if (passed.empty()) return found;
  if (!was_before(found->segment) || !std::ranges::all_of(passed, was_before)) return nullptr;
  for (const Segment* const other : passed) {
    first_of_equals ? note_order(*found->segment, *other) : note_order(*other, *found->segment);
  }
  return found;
}

bool HistoryCheck::unmap_private(const RecordedEntry& entry) {
  for (const bool is_small : {true, false}) {
    const FreeBlocks<Block>& free = lane(entry.stream, is_small).free;
    for (Block* block = free.first(); block != nullptr; block = free.next(*block)) {
      const auto [address, size] = whole_pages(*block);
      if (!block->segment->expandable || address != entry.address || size != entry.size) continue;
      allocator_.unmap_pages(*block);
      return true;
    }
  }
  return false;
}

bool HistoryCheck::collect(std::span<const RecordedEntry> run) {
  std::set<Block*> whole;
  for (const RecordedEntry& entry : run) {
    const auto found = fixed_.find(entry.address);
    if (found == fixed_.end() || found->second->size != entry.size) return false;
    Block* const block = found->second->first;
    if (!block->is_free() || block->is_split() || !whole.insert(block).second) return false;
  }
  for (const RecordedEntry& entry : run) {
    const auto found = fixed_.find(entry.address);
    allocator_.release_segment(*found->second->first);
    fixed_.erase(found);
  }
  return true;
}

}  // namespace workbench::caching
