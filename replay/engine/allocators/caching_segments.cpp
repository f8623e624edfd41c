// What the caching allocator takes from the device, and when it gives it back.
#include <algorithm>

#include "allocators/caching.h"

namespace workbench::caching {

Block* Caching::fresh_block(Lane& lane, Bytes size) {
  if (collects_garbage_) collect_garbage();
  rejected_ = false;
  Block* block = new_segment(lane, size);
  if (rejected_) return nullptr;
  if (cause_ != Cause::kGarbageCollection) cause_ = backend_cause();
  if (block != nullptr) return block;
  cause_ = Cause::kRetryAfterFlush;
  if (release_available(lane, size)) block = new_segment(lane, size);
  if (block == nullptr && !rejected_ && !capturing()) {
    release_cached();
    ++shared_.retries;
    block = new_segment(lane, size);
  }
  if (block == nullptr && !rejected_) ++shared_.ooms;
  return block;
}

Block* Caching::new_segment(Lane& lane, Bytes size) {
  const Bytes bytes = segment_size(size);
  if (fraction_ < 1 && reserved() + bytes > limit_) return nullptr;
  if (settings_.throw_on_oom && reserved() + bytes > share_of_device(settings_.memory_fraction)) {
    ++shared_.rejections;
    rejected_ = true;
    return nullptr;
  }
  if (settings_.expandable_segments) return grow_segment(lane, size);
  const std::uint64_t address = backend_.allocate(bytes);
  if (address == 0) return nullptr;
  Segment& segment = add_segment(lane, address, bytes, false);
  segment.mapped = bytes;
  add(*lane.pool, &PoolCounters::segment, 1);
  add_reserved(lane, bytes);
  if (bytes >= settings_.max_split) shared_.oversize_segments.add(1);
  ++shared_.device_allocs;
  write_journal(Action::kSegmentAlloc, address, bytes, lane.stream, lane.private_number());
  return segment.first;
}

Segment& Caching::add_segment(Lane& lane, std::uint64_t address, Bytes size, bool expandable) {
  Segment& segment = segments_.take();
  segment = {.number = next_number_++,
             .address = address,
             .position = settings_.address_order ? address : next_position_,
             .size = size,
             .mapped = 0,
             .lane = &lane,
             .first = nullptr,
             .before = last_segment_,
             .after = nullptr,
             .expandable = expandable};
  next_position_ += static_cast<std::uint64_t>(size);
  (last_segment_ == nullptr ? first_segment_ : last_segment_->after) = &segment;
  last_segment_ = &segment;
  segment.first = &new_block(0, size, segment);
  return segment;
}

void Caching::remove_segment(Segment& segment) {
  (segment.before == nullptr ? first_segment_ : segment.before->after) = segment.after;
  (segment.after == nullptr ? last_segment_ : segment.after->before) = segment.before;
  blocks_.give(*segment.first);
  segments_.give(segment);
}

void Caching::release_segment(Block& block) {
  Segment& segment = *block.segment;
  segment.lane->free.remove(block);
  backend_.release(segment.address, segment.size);
  remove(*segment.lane->pool, &PoolCounters::segment, 1);
  remove_reserved(*segment.lane, segment.size);
  if (block.size >= settings_.max_split) shared_.oversize_segments.remove(1);
  ++shared_.device_frees;
  write_journal(Action::kSegmentFree, segment.address, segment.size, segment.lane->stream,
                segment.lane->private_number());
  remove_segment(segment);
}

void Caching::collect_garbage() {
  const auto threshold =
      static_cast<Bytes>(settings_.garbage_collection_threshold * static_cast<double>(limit_));
  if (reserved() <= threshold) return;
  const Bytes target = reserved() - threshold;
  std::vector<Block*> whole;
  double total_age = 0;
  for (Lane* const lane : pools_[0].lanes) {
    if (lane == nullptr || lane->private_pool != nullptr) continue;
    for (Block* block = lane->free.first(); block != nullptr; block = lane->free.next(*block)) {
      if (block->is_split()) continue;
      whole.push_back(block);
      total_age += age(*block);
    }
  }
  Bytes released = 0;
  bool released_any = true;
  while (released < target && released_any && !whole.empty()) {
    const double mean = total_age / static_cast<double>(whole.size());
    released_any = false;
    std::erase_if(whole, [&](Block* block) {
      if (age(*block) < mean) return false;
      released_any = true;
      released += block->size;
      total_age -= age(*block);
      release_segment(*block);
      return true;
    });
  }
  if (released > 0) cause_ = Cause::kGarbageCollection;
}

bool Caching::release_available(Lane& lane, Bytes size) {
  if (settings_.max_split == kNoLimit || settings_.expandable_segments) return false;
  const Bytes need = std::max(size, settings_.max_split);
  if (Block* const block = lane.free.find(need)) {
    release_segment(*block);
    return true;
  }
  Bytes released = 0;
  for (Block* block = lane.free.last();
       block != nullptr && block->size >= settings_.max_split && released < need;) {
    Block* const smaller = lane.free.previous(*block);
    released += block->size;
    release_segment(*block);
    block = smaller;
  }
  return released >= need;
}

void Caching::release_cached() {
  if (!capturing()) {
    synchronize_events();
    for (Pool& pool : pools_) {
      for (Lane* const lane : pool.lanes) {
        if (lane != nullptr && lane->private_pool == nullptr) release_free(*lane);
      }
    }
  }
  for (const auto& [number, owner] : private_pools_) {
    if (owner.uses > 0) continue;
    for (Pool* const pool : {&pools_[1], &pools_[0]}) {
      for (Lane* const lane : pool->lanes) {
        if (lane != nullptr && lane->private_pool == &owner) release_free(*lane);
      }
    }
  }
}

void Caching::release_free(Lane& lane) {
  std::vector<Block*> chosen;
  for (Block* block = lane.free.first(); block != nullptr; block = lane.free.next(*block)) {
    if (block->segment->expandable || !block->is_split()) chosen.push_back(block);
  }
  for (Block* const block : chosen) {
    if (block->segment->expandable) {
      unmap_pages(*block);
    } else {
      release_segment(*block);
    }
  }
}

}  // namespace workbench::caching
