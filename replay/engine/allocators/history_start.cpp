// The starting state of a recorded history, made again.
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

constexpr Bytes kMostReserved = Bytes{1} << 46;  // no device has 64 TiB
constexpr StreamId kMostLanes = 1 << 22;

void check_stream(StreamId stream, const std::vector<PoolStream>& lanes) {
  const auto most = lanes.empty() ? kMostLanes : static_cast<StreamId>(lanes.size());
  if (stream < 0 || stream >= most) {
    throw InputError("stream " + std::to_string(stream) + " is none of the first " +
                     std::to_string(most));
  }
}

// The memory there is, by where it begins: its end, and whether it is a segment of its own.
class Memory {
 public:
  void add(std::uint64_t address, Bytes size, bool is_fixed) {
    if (size <= 0 || size > kMostReserved || address == 0) {
      throw InputError("the segment " + at(address) + " has a size or a place that none can have");
    }
    const auto units = static_cast<std::uint64_t>(kSmallestBlock);
    const std::uint64_t end = address + static_cast<std::uint64_t>(size);
    if (address % units != 0 || end % units != 0 || end < address) {
      throw InputError("the segment " + at(address) + " does not lie on multiples of 512 bytes");
    }
    const auto next = parts_.lower_bound(address);
    const bool overlaps = (next != parts_.end() && next->first < end) ||
                          (next != parts_.begin() && std::prev(next)->second.first > address);
    if (overlaps) throw InputError("segments overlap " + at(address));
    parts_[address] = {end, is_fixed};
    reserved_ += size;
    if (reserved_ > kMostReserved) throw InputError("more memory is reserved than any device has");
  }
  // What is not there is left to the check of the history.
  void remove(std::uint64_t address, Bytes size, bool is_fixed) {
    const std::uint64_t end = address + static_cast<std::uint64_t>(size);
    auto part = parts_.upper_bound(address);
    if (part == parts_.begin() || size <= 0 || end < address) return;
    --part;
    while (part != parts_.end() && part->first < end) {
      const auto [begin, last] = std::pair(part->first, part->second.first);
      if (part->second.second != is_fixed || last <= address) {
        ++part;
        continue;
      }
      part = parts_.erase(part);
      reserved_ -= static_cast<Bytes>(std::min(last, end) - std::max(begin, address));
      if (begin < address) parts_[begin] = {address, is_fixed};
      if (last > end) parts_[end] = {last, is_fixed};
    }
  }

 private:
  std::map<std::uint64_t, std::pair<std::uint64_t, bool>> parts_;
  Bytes reserved_ = 0;
};

}  // namespace

void HistoryCheck::check_memory() const {
  Memory memory;
  for (const RecordedSegment& segment : history_.segments) {
    check_stream(segment.stream, history_.lanes);
    memory.add(segment.address, segment.size, !segment.is_expandable);
  }
  for (const RecordedBlock& block : history_.blocks) {
    const auto size = static_cast<std::uint64_t>(block.size | block.slack);
    if ((block.address | size) % static_cast<std::uint64_t>(kSmallestBlock) != 0) {
      throw InputError("the block " + at(block.address) +
                       " does not lie on multiples of 512 bytes");
    }
    if (block.size < 0 || block.slack < 0 || block.requested < 0 ||
        std::max({block.size, block.slack, block.requested}) > kMostReserved) {
      throw InputError("the block " + at(block.address) + " has a size that none can have");
    }
    if (block.size != 0 && block.size < block.requested) {
      throw InputError("the block " + at(block.address) + " holds less than was asked for");
    }
  }
  for (const RecordedEntry& entry : history_.entries) {
    check_stream(entry.stream, history_.lanes);
    if (takes(entry.action)) {
      memory.add(entry.address, entry.size, entry.action == Action::kSegmentAlloc);
    } else if (releases(entry.action)) {
      memory.remove(entry.address, entry.size, entry.action == Action::kSegmentFree);
    }
  }
}

Lane& HistoryCheck::lane(StreamId stream, bool is_small) {
  return allocator_.lane_of(allocator_.pools_[is_small ? 1 : 0], stream);
}

void HistoryCheck::restore() {
  const Bases bases = range_bases(history_);
  for (std::size_t place = 0; place < history_.segments.size(); ++place) {
    const RecordedSegment& recorded = history_.segments[place];
    if (recorded.is_expandable) continue;
    Lane& of_lane = lane(recorded.stream, recorded.is_small);
    Segment& segment = allocator_.add_segment(of_lane, recorded.address, recorded.size, false);
    segment.mapped = recorded.size;
    before_[segment.number] = place;
    fixed_[segment.address] = &segment;
    allocator_.add(*of_lane.pool, &PoolCounters::segment, 1);
    allocator_.add_reserved(of_lane, recorded.size);
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
      if (gap < 0 || gap >= rest->size || piece->size >= rest->size - gap) {
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
      allocator_.add_reserved(of_lane, piece->size);
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
    check_size(*recorded, is_small, is_expandable);
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

void HistoryCheck::check_size(const RecordedBlock& recorded, bool is_small,
                              bool is_expandable) const {
  if (recorded.requested >= kEiB) return;  // refused already
  const Bytes rounded = allocator_.round_request(recorded.requested);
  if ((rounded <= kLargestSmall) != is_small) {
    throw InputError("the block " + at(recorded.address) + " is of the wrong pool for its request");
  }
  if (recorded.size == 0) return;
  const Bytes more = recorded.size - rounded;
  const Bytes most = is_small || is_expandable ? 0
                     : rounded >= allocator_.settings_.max_split
                         ? allocator_.settings_.max_non_split_rounding
                         : kLargestSmall;
  if (more < 0 || more > most) {
    throw InputError("the block " + at(recorded.address) + " holds " +
                     std::to_string(recorded.size) + " bytes for a request of " +
                     std::to_string(recorded.requested));
  }
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

}  // namespace workbench::caching
