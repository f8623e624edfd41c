#include "allocators/caching.h"

#include <algorithm>

#include "core/events.h"

namespace workbench::caching {
Caching::Caching(Backend& backend, const Settings& settings)
    : Replayed(backend),
      settings_(settings),
      pools_{{{false, settings_.expandable_segments ? kSmallestBlock : kLargestSmall + 1},
              {true, kSmallestBlock}}} {
  limit_to(settings_.memory_fraction);
}

Caching::~Caching() {
  for (const Segment* segment = first_segment_; segment != nullptr; segment = segment->after) {
    if (segment->expandable) {
      if (segment->mapped > 0) give_back_mapped(*segment);
      backend_.unreserve(segment->address, segment->size);
    } else {
      backend_.release(segment->address, segment->size);
    }
  }
}

Allocation Caching::allocate(Bytes requested, StreamId stream, ThreadId) {
  if (requested == 0) return Allocation::nothing();
  cause_ = Cause::kServedFromCache;
  if (requested >= kEiB) [[unlikely]]
    return Allocation::refused();
  if (events_due_) process_events(stream);
  const Bytes size = round_request(requested);
  Pool& pool = pools_[size <= kLargestSmall ? 1 : 0];  // rule 2
  Lane& lane = lane_of(pool, stream);
  Block* block = best_fit(lane, size);
  if (block != nullptr) [[likely]] {
    ++hits_;
    lane.free.remove(*block);
  } else {
    ++misses_;
    block = fresh_block(lane, size);
    if (block == nullptr) return Allocation::refused();
  }
  hand_out(*block, size, requested);
  return {block->address, block};
}

void Caching::hand_out(Block& block, Bytes size, Bytes requested) {
  Pool& pool = *block.segment->lane->pool;
  const bool was_split = block.is_split() && !block.segment->expandable;
  if (should_split(pool, size, block.size - size)) {
    Block& rest = split(block, size);
    count_split(pool, block, rest, was_split);
    if (cause_ == Cause::kServedFromCache) cause_ = Cause::kSplit;
  } else if (was_split) {
    remove(pool, &PoolCounters::inactive_split, 1);
    remove(pool, &PoolCounters::inactive_split_bytes, block.size);
  }
  block.allocated = true;
  block.requested = requested;
  add(pool, &PoolCounters::allocation, 1);
  add(pool, &PoolCounters::allocated_bytes, block.size);
  add(pool, &PoolCounters::active, 1);
  add(pool, &PoolCounters::active_bytes, block.size);
  add(pool, &PoolCounters::requested_bytes, requested);
  if (block.size >= settings_.max_split) shared_.oversize_allocations.add(1);
}

void Caching::free(void* handle, ThreadId) {
  Block& block = *static_cast<Block*>(handle);
  cause_ = Cause::kServedFromCache;
  block.allocated = false;
  remove(*block.segment->lane->pool, &PoolCounters::allocation, 1);
  remove(*block.segment->lane->pool, &PoolCounters::allocated_bytes, block.size);
  if (block.size >= settings_.max_split) shared_.oversize_allocations.remove(1);
  if (block.used_streams.empty()) {
    become_free(block);
  } else {
    cause_ = Cause::kEventProcessing;
    free_later(block);
  }
}

void Caching::record_stream(void* handle, StreamId stream) {
  Block& block = *static_cast<Block*>(handle);
  cause_ = Cause::kServedFromCache;
  std::vector<StreamId>& streams = block.used_streams;
  if (stream == block.segment->lane->stream) return;
  if (std::find(streams.begin(), streams.end(), stream) == streams.end()) {
    streams.push_back(stream);
  }
  if (capturing()) note_used_in_capture(block, stream);
}

void Caching::empty_cache() {
  cause_ = Cause::kDriverCall;
  release_cached();
}

void Caching::set_fraction(std::int64_t millionths) {
  limit_to(static_cast<double>(millionths) / static_cast<double>(kWholeFraction));
}

void Caching::prepare(const Events& events) {
  told_lanes_.assign(events.lanes.begin(), events.lanes.end());
}

Lane& Caching::add_lane(Pool& pool, std::int32_t number) {
  const auto index = static_cast<std::size_t>(number);
  if (index >= pool.lanes.size()) pool.lanes.resize(index + 1);
  const PoolStream of = told(number);
  PrivatePool* const owner = of.pool == kDefaultPool ? nullptr : &private_pool(of.pool);
  lanes_.push_back(std::make_unique<Lane>(Lane{&pool, of.stream, {}, nullptr, owner}));
  pool.lanes[index] = lanes_.back().get();
  return *lanes_.back();
}

Block* Caching::best_fit(Lane& lane, Bytes size) {
  if (collects_garbage_ && lane.private_pool == nullptr) ++lane.pool->look_ups;
  Block* block = lane.free.find(size);
  if (block == nullptr) return nullptr;
  if (settings_.expandable_segments) {
    for (Block* next = lane.free.next(*block); next != nullptr && next->room() < block->room();
         next = lane.free.next(*block)) {
      block = next;
    }
  }
  const bool refused = size < settings_.max_split
                           ? block->size >= settings_.max_split
                           : block->size - size >= settings_.max_non_split_rounding;
  return refused ? nullptr : block;
}

Block& Caching::split(Block& block, Bytes size) {
  Block& rest = cut(block, size);
  add_to_free(rest);
  return rest;
}

void Caching::count_split(Pool& pool, const Block& block, const Block& rest, bool was_split) {
  if (block.segment->expandable) return;
  if (was_split) {
    remove(pool, &PoolCounters::inactive_split_bytes, block.size);
  } else {
    add(pool, &PoolCounters::inactive_split, 1);
    add(pool, &PoolCounters::inactive_split_bytes, rest.size);
  }
}

void Caching::become_free(Block& freed) {
  Segment& segment = *freed.segment;
  const Bytes size = freed.size;
  const Bytes requested = freed.requested;
  Bytes merged_bytes = 0;
  std::int64_t merged = 0;
  Block* block = &freed;
  if (can_merge(block->after)) {
    merged_bytes += block->after->size;
    ++merged;
    segment.lane->free.remove(*block->after);
    absorb_next(*block);
  }
  if (can_merge(block->before)) {
    merged_bytes += block->before->size;
    ++merged;
    block = block->before;
    segment.lane->free.remove(*block);
    absorb_next(*block);
  }
  add_to_free(*block);
  const bool counts_split = !segment.expandable;
  const bool is_split = block->is_split();
  remove(*segment.lane->pool, &PoolCounters::active, 1);
  remove(*segment.lane->pool, &PoolCounters::active_bytes, size);
  remove(*segment.lane->pool, &PoolCounters::requested_bytes, requested);
  if (counts_split) {
    change(*segment.lane->pool, &PoolCounters::inactive_split, (is_split ? 1 : 0) - merged);
    change(*segment.lane->pool, &PoolCounters::inactive_split_bytes,
           (is_split ? block->size : 0) - merged_bytes);
  }
}

void Caching::wait_for_streams(Block& block) {
  for (const StreamId stream : block.used_streams) {
    const auto index = static_cast<std::size_t>(stream);
    if (index >= pending_.size()) pending_.resize(index + 1);
    if (pending_[index].empty()) {
      pending_streams_.insert(
          std::upper_bound(pending_streams_.begin(), pending_streams_.end(), index), index);
    }
    pending_[index].push({backend_.record_event(stream), &block});
    ++block.pending_events;
  }
  block.used_streams.clear();
  events_due_ = true;
}

void Caching::process_events(std::int32_t lane) {
  if (capturing()) {
    if (settings_.reuses_in_capture) end_safe_deferrals(told(lane).stream);
    return;
  }
  if (!deferred_.empty()) end_deferrals();
  bool emptied = false;
  for (const std::size_t stream : pending_streams_) {
    PendingQueue& queue = pending_[stream];
    while (!queue.empty() && backend_.completed(queue.front().event)) {
      complete_first(queue);
      cause_ = Cause::kEventProcessing;
    }
    emptied |= queue.empty();
  }
  if (emptied) {
    std::erase_if(pending_streams_, [&](std::size_t stream) { return pending_[stream].empty(); });
  }
  events_due_ = !pending_streams_.empty();
}

void Caching::synchronize_events() {
  ++shared_.synchronizations;
  end_deferrals();
  for (const std::size_t stream : pending_streams_) {
    PendingQueue& queue = pending_[stream];
    while (!queue.empty()) {
      backend_.wait(queue.front().event);
      complete_first(queue);
    }
  }
  pending_streams_.clear();
  events_due_ = false;
}

void Caching::complete_first(PendingQueue& queue) {
  Block& block = *queue.front().block;
  queue.pop();
  end_wait(block);
}

void Caching::end_wait(Block& block) {
  if (--block.pending_events > 0) return;
  const Lane& lane = *block.segment->lane;
  write_journal(Action::kFreeCompleted, block.address, block.requested, lane.stream,
                lane.private_number());
  become_free(block);
}

namespace {

const bool registered = allocator_registry().add({
    .name = "caching",
    .summary = "PyTorch's CUDA caching allocator (c10/cuda/CUDACachingAllocator)",
    .kind = AllocatorKind::kDevice,
    .create = [](Backend& backend,
                 const Settings& settings) { return std::make_unique<Caching>(backend, settings); },
    .settings = caching_settings_help(),
    .also_tested_with =
        {"expandable_segments:True", "max_split_size_mb:20", "large_segment_size_mb:32",
         "roundup_power2_divisions:[1:4,8:2,>:1]",
         "garbage_collection_threshold:0.5,per_process_memory_fraction:0.9",
         "expandable_segments:True,max_split_size_mb:20,roundup_power2_divisions:8,"
         "large_segment_size_mb:12,max_non_split_rounding_mb:16",
         "throw_on_cudamalloc_oom:True,max_split_size_mb:64,max_non_split_rounding_mb:64"},
});

}  // namespace
}  // namespace workbench::caching
