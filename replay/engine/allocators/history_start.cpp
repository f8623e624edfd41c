// The starting state of a recorded history, made again; and what it says was released.
#include <algorithm>
#include <iterator>

#include "allocators/history_check.h"
#include "core/errors.h"

namespace workbench::caching {
namespace {

std::string at(std::uint64_t address) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (; address != 0 || text.empty(); address >>= 4)
    text.insert(text.begin(), kDigits[address & 15]);
  return "at 0x" + text;
}

// Stretches of addresses, neighbours joined.
class Stretches {
 public:
  void add(std::uint64_t begin, std::uint64_t end) {
    auto next = ends_.lower_bound(begin);
    if (next != ends_.begin() && std::prev(next)->second >= begin) {
      --next;
      begin = next->first;
      end = std::max(end, next->second);
    }
    while (next != ends_.end() && next->first <= end) {
      end = std::max(end, next->second);
      next = ends_.erase(next);
    }
    ends_[begin] = end;
  }
  // False, and nothing done, where not all of it is there.
  bool remove(std::uint64_t begin, std::uint64_t end) {
    auto holding = ends_.upper_bound(begin);
    if (holding == ends_.begin()) return false;
    --holding;
    const auto [first, last] = *holding;
    if (end > last) return false;
    ends_.erase(holding);
    if (first < begin) ends_[first] = begin;
    if (end < last) ends_[end] = last;
    return true;
  }
  bool empty() const { return ends_.empty(); }
  std::uint64_t begin() const { return ends_.begin()->first; }

 private:
  std::map<std::uint64_t, std::uint64_t> ends_;
};

// Where the range of addresses of each stream and pool began that had memory before the first
// entry: the lowest address in it that ever got memory. A range that loses all of it is given back,
// and what comes after is in another.
Bases range_bases(const History& history) {
  std::map<std::pair<StreamId, bool>, Stretches> mapped;
  for (const RecordedSegment& segment : history.segments) {
    if (!segment.is_expandable) continue;
    mapped[{segment.stream, segment.is_small}].add(
        segment.address, segment.address + static_cast<std::uint64_t>(segment.size));
  }
  Bases bases;
  for (const auto& [key, stretches] : mapped) bases[key] = stretches.begin();
  std::vector<const RecordedEntry*> waiting;  // pieces mapped for a request still to come
  for (const RecordedEntry& entry : history.entries) {
    if (mapped.empty()) break;
    const std::uint64_t end = entry.address + static_cast<std::uint64_t>(entry.size);
    if (entry.action == Action::kSegmentMap) {
      waiting.push_back(&entry);
    } else if (entry.action == Action::kSegmentUnmap) {
      for (const bool is_small : {false, true}) {
        const auto found = mapped.find({entry.stream, is_small});
        if (found == mapped.end() || !found->second.remove(entry.address, end)) continue;
        if (found->second.empty()) mapped.erase(found);
        break;
      }
    } else if (requests(entry.action)) {
      for (const RecordedEntry* const piece : waiting) {
        const auto found = mapped.find({piece->stream, entry.size <= kLargestSmall});
        if (found == mapped.end()) continue;
        found->second.add(piece->address, piece->address + static_cast<std::uint64_t>(piece->size));
        std::uint64_t& base = bases[found->first];
        base = std::min(base, piece->address);
      }
      waiting.clear();
    }
  }
  return bases;
}

}  // namespace

Lane& HistoryCheck::lane(StreamId stream, bool is_small) {
  Lane& found = allocator_.lane_of(allocator_.pools_[is_small ? 1 : 0], stream);
  found.is_private = stream >= history_.first_private;
  return found;
}

void HistoryCheck::restore() {
  const Bases bases = range_bases(history_);
  of_recorded_.resize(history_.segments.size());
  for (std::size_t place = 0; place < history_.segments.size(); ++place) {
    const RecordedSegment& recorded = history_.segments[place];
    if (recorded.is_expandable) continue;
    Lane& of_lane = lane(recorded.stream, recorded.is_small);
    Segment& segment = allocator_.add_segment(of_lane, recorded.address, recorded.size, false);
    segment.mapped = recorded.size;
    before_[segment.number] = place;
    of_recorded_[place] = &segment;
    allocator_.add(*of_lane.pool, &PoolCounters::segment, 1);
    allocator_.add(*of_lane.pool, &PoolCounters::reserved_bytes, recorded.size);
    carve(*segment.first, recorded.is_small, false);
  }
  restore_expandable(bases);
  if (held_.size() != history_.blocks.size()) {
    throw InputError(std::to_string(history_.blocks.size() - held_.size()) +
                     " of the blocks that were in use before the first entry lie outside the "
                     "segments");
  }
}

void HistoryCheck::restore_expandable(const Bases& bases) {
  for (const auto& [key, base] : bases) {
    const auto& [stream, is_small] = key;
    Lane& of_lane = lane(stream, is_small);
    const Bytes page = allocator_.page_of(of_lane);
    const Bytes range = round_up(device_.total() + device_.total() / 8, page);
    Segment& segment = allocator_.add_segment(of_lane, base, range, true);
    std::vector<const RecordedSegment*> pieces;
    for (const RecordedSegment& piece : history_.segments) {
      if (piece.is_expandable && piece.stream == stream && piece.is_small == is_small) {
        pieces.push_back(&piece);
      }
    }
    std::sort(pieces.begin(), pieces.end(),
              [](auto* a, auto* b) { return a->address < b->address; });
    Block* rest = segment.first;
    rest->mapped = false;
    for (const RecordedSegment* const piece : pieces) {
      const auto gap = static_cast<Bytes>(piece->address - rest->address);
      if (gap >= rest->size || piece->size >= rest->size - gap) {
        throw InputError("the expandable segment " + at(piece->address) +
                         " is too far from the others of its stream");
      }
      if (gap > 0) {
        Block& next = allocator_.cut(*rest, gap);
        UnmappedTree::add(of_lane.unmapped, *rest);
        rest = &next;
      }
      Block& next = allocator_.cut(*rest, piece->size);
      rest->mapped = true;
      segment.mapped += piece->size;
      allocator_.add(*of_lane.pool, &PoolCounters::reserved_bytes, piece->size);
      Block* const mapped = rest;
      rest = &next;
      carve(*mapped, is_small, true);
    }
    UnmappedTree::add(of_lane.unmapped, *rest);
  }
}

void HistoryCheck::carve(Block& whole, bool is_small, bool is_expandable) {
  Lane& of_lane = *whole.segment->lane;
  const auto begin = std::lower_bound(
      history_.blocks.begin(), history_.blocks.end(), whole.address,
      [](const RecordedBlock& block, std::uint64_t address) { return block.address < address; });
  const std::uint64_t end = whole.address + static_cast<std::uint64_t>(whole.size);
  Block* rest = &whole;
  for (auto recorded = begin; recorded != history_.blocks.end() && recorded->address < end;
       ++recorded) {
    if (rest == nullptr || recorded->address < rest->address) {
      throw InputError("blocks overlap " + at(recorded->address));
    }
    if (const auto gap = static_cast<Bytes>(recorded->address - rest->address); gap > 0) {
      Block& next = allocator_.cut(*rest, gap);
      allocator_.add_to_free(*rest);
      rest = &next;
    }
    const auto after = recorded + 1;
    const Bytes room = after != history_.blocks.end() && after->address < end
                           ? static_cast<Bytes>(after->address - recorded->address)
                           : static_cast<Bytes>(end - recorded->address);
    const Bytes size = recorded_size(*recorded, room, !is_small && !is_expandable);
    if (size <= 0 || size > room) throw InputError("blocks overlap " + at(recorded->address));
    Block* const next = size < rest->size ? &allocator_.cut(*rest, size) : nullptr;
    Pool& pool = *of_lane.pool;
    rest->requested = recorded->requested;
    rest->allocated = !recorded->pending;
    rest->pending_events = recorded->pending ? 1 : 0;
    rest->used_streams.clear();
    const auto place = static_cast<std::size_t>(recorded - history_.blocks.begin());
    held_[rest->address] = {rest, -1 - static_cast<std::int64_t>(place)};
    if (recorded->size == 0) untold_[rest] = place;
    if (rest->allocated) {
      allocator_.add(pool, &PoolCounters::allocation, 1);
      allocator_.add(pool, &PoolCounters::allocated_bytes, rest->size);
    }
    allocator_.add(pool, &PoolCounters::active, 1);
    allocator_.add(pool, &PoolCounters::active_bytes, rest->size);
    allocator_.add(pool, &PoolCounters::requested_bytes, rest->requested);
    rest = next;
  }
  if (rest != nullptr) allocator_.add_to_free(*rest);
}

Bytes HistoryCheck::recorded_size(const RecordedBlock& recorded, Bytes room, bool may_have_slack) {
  if (recorded.size != 0) return recorded.size;
  if (recorded.requested >= kEiB) return 0;
  const Bytes rounded = allocator_.round_request(recorded.requested);
  const Bytes size = rounded + recorded.slack;
  // No split leaves so little: it is the block's own. And what is too large to be split has its
  // segment to itself.
  const bool is_whole = rounded >= allocator_.settings_.max_split;
  const bool has_slack =
      may_have_slack && room > size && (is_whole || room - size <= kLargestSmall);
  if (has_slack) ++result_.deduced;
  return has_slack ? room : size;
}

void HistoryCheck::learn_slacks() {
  struct Gap {
    std::uint64_t end;
    const Block* owner;
  };
  std::map<std::uint64_t, Gap> gaps;  // by where they begin
  for (const auto& [block, place] : untold_) {
    const Block* const behind = block->after;
    if (behind == nullptr || !behind->is_free() || behind->segment->expandable) continue;
    if (behind->segment->lane->pool->is_small) continue;
    const std::uint64_t end = behind->address + static_cast<std::uint64_t>(behind->size);
    gaps.emplace(behind->address, Gap{end, block});
  }
  for (const RecordedEntry& entry : history_.entries) {
    if (gaps.empty()) break;
    if (entry.action == Action::kFreeCompleted) {
      const auto found = held_.find(entry.address);
      if (found == held_.end()) continue;
      // Addresses are used again: only the first free is this block's, and then it has no gap.
      const Block* const owner = found->second.first;
      gaps.erase(owner->address + static_cast<std::uint64_t>(owner->size));
    } else if (entry.action == Action::kAlloc) {
      auto gap = gaps.upper_bound(entry.address);
      if (gap == gaps.begin() || entry.address >= std::prev(gap)->second.end) continue;
      --gap;
      const Block* const owner = gap->second.owner;
      const auto bytes = static_cast<Bytes>(entry.address - gap->first);
      gaps.erase(gap);
      if (bytes > 0 && !take_slack(*owner->after, bytes)) continue;
      untold_.erase(owner);
    }
  }
}

std::size_t HistoryCheck::release(std::size_t begin) {
  const std::vector<RecordedEntry>& entries = history_.entries;
  std::size_t end = begin;
  while (end < entries.size() && releases(entries[end].action)) ++end;
  if (due_begin_ < due_end_) {
    // What was mapped before the device refused the rest.
    const std::size_t request = next_request(end);
    if (request == entries.size()) differ(begin, "releases memory in the middle of a request");
    const Bytes size = allocator_.round_request(entries[request].size);
    device_.due = std::span(entries).subspan(due_begin_, due_end_ - due_begin_);
    due_begin_ = due_end_ = 0;
    Lane& of_lane = lane(entries[request].stream, size <= kLargestSmall);
    if (allocator_.new_segment(of_lane, size) != nullptr || !device_.due.empty()) {
      differ(begin, "releases memory in the middle of a request");
    }
  }
  std::vector<RecordedEntry> run;
  for (std::size_t entry = begin; entry < end; ++entry) {
    if (entries[entry].stream < history_.first_private) {
      run.push_back(entries[entry]);
    } else if (collect({&entries[entry], 1})) {
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
  just_released_ = true;
  return end;
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
      if (of_lane == nullptr || of_lane->is_private) continue;
      for (Block* block = of_lane->free.first(); block != nullptr;
           block = of_lane->free.next(*block)) {
        const Segment& segment = *block->segment;
        if (!segment.expandable) {
          if (!block->is_split()) parts.push_back({segment.address, segment.size, block});
          continue;
        }
        const Bytes page = allocator_.page_of(*of_lane);
        const auto offset = static_cast<Bytes>(block->address - segment.address);
        const Bytes first = round_up(offset, page);
        const Bytes last = (offset + block->size) / page * page;
        if (first < last) {
          parts.push_back(
              {segment.address + static_cast<std::uint64_t>(first), last - first, block});
        }
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
    if (found->second == i) continue;
    in_order = false;
    // Only blocks that are as good as each other may change places.
    const Block& here = *parts[i].block;
    const Block& there = *parts[found->second].block;
    const bool equal = here.size == there.size && here.segment->lane == there.segment->lane;
    if (!learns_ || !equal || allocator_.settings_.address_order) return false;
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
    if (!learns_ || allocator_.settings_.address_order) return nullptr;
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

bool HistoryCheck::collect(std::span<const RecordedEntry> run) {
  std::vector<Block*> whole;
  for (const RecordedEntry& entry : run) {
    Block* found = nullptr;
    for (Segment* segment = allocator_.first_segment_; segment != nullptr && found == nullptr;
         segment = segment->after) {
      Block* const block = segment->first;
      const bool is_it = segment->address == entry.address && segment->size == entry.size;
      if (is_it && !segment->expandable && block->is_free() && !block->is_split()) found = block;
    }
    if (found == nullptr) return false;
    whole.push_back(found);
  }
  for (Block* const block : whole) allocator_.release_segment(*block);
  return true;
}

}  // namespace workbench::caching
