#include "allocators/history_check.h"

#include <algorithm>
#include <limits>

#include "core/errors.h"

namespace workbench::caching {
bool RecordedDevice::next_is(Action action, Bytes size) {
  asked = size;
  return !due.empty() && due.front().action == action && due.front().size == size;
}

std::uint64_t RecordedDevice::take(Bytes size) {
  if (!next_is(Action::kSegmentAlloc, size)) return 0;
  const std::uint64_t address = due.front().address;
  due = due.subspan(1);
  return address;
}

// A new range is first given memory at its beginning.
std::uint64_t RecordedDevice::take_range(Bytes, Bytes) {
  return due.empty() || due.front().action != Action::kSegmentMap ? 0 : due.front().address;
}

bool RecordedDevice::map_piece(std::uint64_t address, Bytes size) {
  if (!next_is(Action::kSegmentMap, size) || due.front().address != address) return false;
  due = due.subspan(1);
  return true;
}

HistoryCheck::HistoryCheck(const History& history, const std::string& settings, Learning learning,
                           std::optional<std::size_t> state_at)
    : history_(history),
      learning_(learning),
      state_at_(state_at.value_or(history.entries.size() - 1)),
      allocator_(device_, Settings(settings, "caching", caching_settings_help())) {
  allocator_.told_lanes_ = history.lanes;
  check_memory();
  restore();
  if (learns()) learn_slacks();
}

HistoryResult HistoryCheck::run() {
  const std::size_t count = history_.entries.size();
  result_.reserved.reserve(count);
  result_.allocated.reserve(count);
  try {
    std::size_t entry = 0;
    while (entry < count) {
      const std::size_t next = step(entry);
      for (; entry < next; ++entry) {
        result_.reserved.push_back(allocator_.reserved());
        result_.allocated.push_back(allocator_.all_.allocated_bytes.current);
        if (entry == state_at_) list_state();
      }
    }
    if (state_at_ >= count) list_state();
  } catch (const Stop&) {
  }
  return std::move(result_);
}

std::size_t HistoryCheck::step(std::size_t entry) {
  const Action action = history_.entries[entry].action;
  if (releases(action)) return release(entry);
  if (takes(action)) {
    if (due_begin_ == due_end_) due_begin_ = entry;
    due_end_ = entry + 1;
    return entry + 1;
  }
  if (action == Action::kAlloc) {
    allocate(entry);
  } else if (action == Action::kOom) {
    run_out(entry);
  } else {
    return action == Action::kFreeRequested ? free(entry) : complete(entry);
  }
  just_released_ = false;
  return entry + 1;
}

std::size_t HistoryCheck::free(std::size_t entry) {
  const RecordedEntry& recorded = history_.entries[entry];
  const auto found = held_.find(recorded.address);
  if (found == held_.end() || !found->second.first->allocated) {
    differ(entry, "frees a block that is not there");
  }
  Block& block = *found->second.first;
  check_free(entry, block);
  just_released_ = may_have_begun_ = false;
  const bool at_once = entry + 1 < history_.entries.size() &&
                       history_.entries[entry + 1].action == Action::kFreeCompleted &&
                       history_.entries[entry + 1].address == recorded.address;
  if (!at_once) {
    block.used_streams.clear();
    allocator_.remove(*block.segment->lane->pool, &PoolCounters::allocation, 1);
    allocator_.remove(*block.segment->lane->pool, &PoolCounters::allocated_bytes, block.size);
    block.allocated = false;
    block.pending_events = 1;
    return entry + 1;
  }
  check_free(entry + 1, block);
  // Unless it was delayed, and the next request waited for it.
  look_ahead(entry + 1);
  found_after_free_ = missed_ == completions_end_;
  held_.erase(found);
  untold_.erase(&block);
  allocator_.free(&block, 0);
  return entry + 2;
}

void HistoryCheck::check_free(std::size_t entry, const Block& block) {
  const RecordedEntry& recorded = history_.entries[entry];
  if (recorded.size != block.requested) {
    differ(entry, "frees another size than was allocated", block.address, block.requested);
  }
  if (told(recorded.stream).stream != block.segment->lane->stream) {
    differ(entry, "names another stream than the block's");
  }
}

void HistoryCheck::take_due(std::size_t entry, StreamId stream) {
  device_.due = std::span(history_.entries).subspan(due_begin_, due_end_ - due_begin_);
  due_begin_ = due_end_ = 0;
  for (const RecordedEntry& due : device_.due) {
    if (told(due.stream).stream != told(stream).stream) {
      differ(entry, "takes memory from the device for another stream");
    }
  }
}

std::size_t HistoryCheck::complete(std::size_t entry) {
  const auto found = held_.find(history_.entries[entry].address);
  if (found == held_.end()) differ(entry, "completes the free of a block that is not there");
  Block& block = *found->second.first;
  check_free(entry, block);
  if (entry >= completions_end_) look_ahead(entry);
  if (due_begin_ < due_end_) refuse_rest(entry);
  just_released_ = false;
  held_.erase(found);
  untold_.erase(&block);
  if (block.allocated) {
    allocator_.free(&block, 0);
  } else {
    block.pending_events = 0;
    allocator_.become_free(block);
  }
  return entry + 1;
}

void HistoryCheck::look_ahead(std::size_t entry) {
  found_after_free_ = false;
  const std::vector<RecordedEntry>& entries = history_.entries;
  std::size_t& end = completions_end_;
  for (end = entry; end < entries.size(); ++end) {
    const Action action = entries[end].action;
    if (action != Action::kFreeCompleted && !takes(action) && !releases(action)) break;
  }
  if (end == entries.size() || !requests(entries[end].action)) return;
  const RecordedEntry& request = entries[end];
  if (request.size <= 0 || request.size >= kEiB) return;
  const Bytes size = allocator_.round_request(request.size);
  if (just_released_ ||
      allocator_.best_fit(lane(request.stream, size <= kLargestSmall), size) == nullptr) {
    missed_ = end;
  }
}

void HistoryCheck::allocate(std::size_t entry) {
  const RecordedEntry& recorded = history_.entries[entry];
  if (recorded.size <= 0 || recorded.size >= kEiB) differ(entry, "asks for no size there is");
  if (held_.contains(recorded.address)) differ(entry, "allocates a block that is in use");
  const Bytes size = allocator_.round_request(recorded.size);
  Lane& of_lane = lane(recorded.stream, size <= kLargestSmall);
  take_due(entry, recorded.stream);
  // After a release, memory came from the device without another look at what is free.
  const bool fresh =
      !device_.due.empty() && (just_released_ || (missed_ == entry && !found_after_free_));
  Block* block = fresh ? nullptr : allocator_.best_fit(of_lane, size);
  if (std::exchange(may_have_begun_, false) && !fresh) {
    block = begun_before(recorded.address, block, of_lane, size);
  }
  const bool may_retry = device_.due.empty() && (just_released_ || missed_ == entry);
  Block* const grown = may_retry && (block == nullptr || block->address != recorded.address)
                           ? grown_in_place(recorded.address, of_lane, size)
                           : nullptr;
  if (grown != nullptr) {
    block = grown;
  } else if (block != nullptr) {
    block = &fitting(entry, block, of_lane, size);
    of_lane.free.remove(*block);
  } else {
    const bool wanted_new = !device_.due.empty();
    block = allocator_.new_segment(of_lane, size);
    if (block == nullptr) {
      differ(entry, wanted_new ? "takes another size from the device" : "finds a free block", 0,
             device_.asked);
    }
  }
  if (!block->segment->expandable) fixed_[block->segment->address] = block->segment;
  if (!device_.due.empty()) differ(entry, "takes more from the device");
  if (block->address != recorded.address) {
    differ(entry, "is given another address", block->address, size);
  }
  allocator_.hand_out(*block, size, recorded.size);
  held_[recorded.address] = {block, static_cast<std::int64_t>(entry)};
}

Block* HistoryCheck::begun_before(std::uint64_t address, Block* found, Lane& of_lane, Bytes size) {
  if (!device_.due.empty()) {
    if (found != nullptr) result_.begins_in_request = true;
    return nullptr;
  }
  if (found != nullptr && found->address == address) return found;
  for (Block* block = of_lane.free.find(size); block != nullptr;
       block = of_lane.free.next(*block)) {
    if (block->address != address) continue;
    const bool is_new = block->segment->expandable ||
                        (!block->is_split() && block->size == allocator_.segment_size(size));
    if (!is_new) break;
    result_.begins_in_request = true;
    return block;
  }
  return found;
}

Block* HistoryCheck::grown_in_place(std::uint64_t address, Lane& of_lane, Bytes size) {
  if (!allocator_.settings_.expandable_segments) return nullptr;
  Block* const block = allocator_.grow_segment(of_lane, size);
  if (block == nullptr || block->address == address) return block;
  allocator_.add_to_free(*block);
  return nullptr;
}

Block& HistoryCheck::fitting(std::size_t entry, Block* found, Lane& of_lane, Bytes size) {
  const RecordedEntry& recorded = history_.entries[entry];
  Block* block = found;
  while (learns() && block != nullptr &&
         (!device_.due.empty() || block->address != recorded.address)) {
    if (device_.due.empty()) {
      if (learning_ == Learning::kSize && is_tied(*block, recorded.address, of_lane) &&
          take_slack(*block, block->size - size + kSmallestBlock)) {
        block = allocator_.best_fit(of_lane, size);
        continue;
      }
      if (Block* const other = tied(*block, recorded.address, of_lane)) return *other;
      if (Block* const other = shifted(recorded.address, of_lane, size)) {
        block = allocator_.best_fit(of_lane, size);
        if (block == other) return *block;
        continue;
      }
    }
    // It cannot have been that large, or it would have been taken.
    if (!take_slack(*block, block->size - size + kSmallestBlock)) break;
    block = allocator_.best_fit(of_lane, size);
    if (block == nullptr && !device_.due.empty()) {
      block = allocator_.new_segment(of_lane, size);
      if (block == nullptr) differ(entry, "takes another size from the device", 0, device_.asked);
      allocator_.add_to_free(*block);
      return *block;
    }
  }
  if (block == nullptr) differ(entry, "finds a free block");
  if (!device_.due.empty()) {
    differ(entry, "takes memory from the device", block->address, block->size);
  }
  if (block->address != recorded.address) {
    differ(entry, "is given another address", block->address, size);
  }
  return *block;
}

bool HistoryCheck::is_tied(const Block& found, std::uint64_t address, const Lane& of_lane) {
  const Block* block = &found;
  while (block != nullptr && block->size == found.size && block->address != address) {
    block = of_lane.free.next(*block);
  }
  return block != nullptr && block->size == found.size;
}

Block* HistoryCheck::tied(Block& found, std::uint64_t address, Lane& of_lane) {
  if (allocator_.settings_.address_order) return nullptr;
  std::vector<const Segment*> passed;
  for (Block* block = &found; block != nullptr && block->size == found.size;
       block = of_lane.free.next(*block)) {
    if (block->address == address) {
      if (block->room() != found.room() || !before_.contains(block->segment->number)) {
        return nullptr;
      }
      for (const Segment* const segment : passed) {
        if (segment == block->segment || !before_.contains(segment->number)) return nullptr;
      }
      for (const Segment* const segment : passed) note_order(*block->segment, *segment);
      return block;
    }
    passed.push_back(block->segment);
  }
  return nullptr;
}

void HistoryCheck::note_order(const Segment& first, const Segment& second) {
  result_.created_before.emplace(before_.at(first.number), before_.at(second.number));
}

Block* HistoryCheck::shifted(std::uint64_t address, Lane& of_lane, Bytes size) {
  for (Block* block = of_lane.free.find(size); block != nullptr;
       block = of_lane.free.next(*block)) {
    if (block->address < address &&
        address - block->address < static_cast<std::uint64_t>(block->size)) {
      return take_slack(*block, static_cast<Bytes>(address - block->address)) ? block : nullptr;
    }
  }
  return nullptr;
}

bool HistoryCheck::take_slack(Block& behind, Bytes bytes) {
  Block* const owner = behind.before;
  const Segment& segment = *behind.segment;
  if (!learns() || owner == nullptr || segment.expandable || segment.lane->pool->is_small) {
    return false;
  }
  const auto found = untold_.find(owner);
  if (found == untold_.end()) return false;
  const std::size_t place = found->second;
  const Bytes slack =
      owner->size - allocator_.round_request(history_.blocks[place].requested) + bytes;
  // A split leaves more than this, and blocks that are not split hold at most this more.
  if (slack > kLargestSmall || behind.size - bytes <= kLargestSmall) return false;
  FreeBlocks<Block>& free = segment.lane->free;
  free.remove(behind);
  owner->size += bytes;
  behind.size -= bytes;
  behind.address += static_cast<std::uint64_t>(bytes);
  behind.position += static_cast<std::uint64_t>(bytes);
  free.add(behind);
  result_.slacks[place] = slack;
  return true;
}

void HistoryCheck::run_out(std::size_t entry) {
  const RecordedEntry& recorded = history_.entries[entry];
  if (recorded.size <= 0 || recorded.size >= kEiB) differ(entry, "asks for no size there is");
  const Bytes size = allocator_.round_request(recorded.size);
  Lane& of_lane = lane(recorded.stream, size <= kLargestSmall);
  take_due(entry, recorded.stream);
  if (!just_released_ && missed_ != entry) {
    Block* block = allocator_.best_fit(of_lane, size);
    if (std::exchange(may_have_begun_, false) && block != nullptr) {
      result_.begins_in_request = true;
      block = nullptr;
    }
    while (block != nullptr && take_slack(*block, block->size - size + kSmallestBlock)) {
      block = allocator_.best_fit(of_lane, size);
    }
    if (block != nullptr) {
      differ(entry, "runs out of memory where a free block serves", block->address, block->size);
    }
  }
  if (allocator_.new_segment(of_lane, size) != nullptr || !device_.due.empty()) {
    differ(entry, "runs out of memory after taking enough from the device");
  }
}

void HistoryCheck::differ(std::size_t entry, std::string problem, std::uint64_t address,
                          Bytes size) {
  const RecordedEntry& recorded = history_.entries[entry];
  result_.difference = Difference{static_cast<std::int64_t>(entry),
                                  std::move(problem),
                                  recorded.address,
                                  recorded.size,
                                  address,
                                  size};
  throw Stop();
}

std::size_t HistoryCheck::next_request(std::size_t entry) const {
  while (entry < history_.entries.size() && !requests(history_.entries[entry].action)) ++entry;
  return entry;
}

void HistoryCheck::list_state() {
  for (const Segment* segment = allocator_.first_segment_; segment != nullptr;
       segment = segment->after) {
    bool runs_on = false;  // of an expandable one, each run of memory is a segment
    for (const Block* block = segment->first; block != nullptr; block = block->after) {
      if (block->mapped && !runs_on) {
        const Lane& lane = *segment->lane;
        result_.segments.push_back({block->address,
                                    0,
                                    {lane.stream, lane.private_number()},
                                    lane.pool->is_small,
                                    segment->expandable});
      }
      runs_on = block->mapped;
      if (!block->mapped) continue;
      result_.segments.back().size += block->size;
      const BlockState state = block->allocated   ? BlockState::kActiveAllocated
                               : block->is_free() ? BlockState::kInactive
                                                  : BlockState::kActivePendingFree;
      const std::int64_t entry = block->is_free() ? -1 : held_.at(block->address).second;
      result_.blocks.push_back(
          {block->address, block->size, block->is_free() ? 0 : block->requested, state, entry});
    }
  }
}

}  // namespace workbench::caching
