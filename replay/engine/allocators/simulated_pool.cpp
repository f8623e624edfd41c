#include "allocators/simulated_pool.h"

#include <algorithm>

#include "core/events.h"

namespace workbench {

SimulatedPool::SimulatedPool(Backend& backend, const PoolModel& model)
    : backend_(backend), model_(model) {
  common_.stream = kAllStreams;
}

SimulatedPool::Lane& SimulatedPool::lane_of(StreamId stream) {
  const std::size_t index = index_of(stream);
  if (index >= lanes_.size()) lanes_.resize(index + 1);
  if (lanes_[index] == nullptr) {
    lanes_[index] = std::make_unique<Lane>();
    lanes_[index]->stream = stream;
  }
  return *lanes_[index];
}

Allocation SimulatedPool::allocate(Bytes size, StreamId stream) {
  if (size >= kEiB) return Allocation::refused();
  const Bytes held = round_up(size, kPoolAlignment);
  Lane& own = lane_of(stream);
  cause_ = Cause::kServedFromCache;
  Block* found = own_or_common(own, held);
  if (found == nullptr) [[unlikely]] {
    found = find(own, held);
    if (found == nullptr) return Allocation::refused();
  }
  Block& block = *found;
  if (block.lane != nullptr) {
    Lane& lane = *block.lane;
    Block* const earlier = block.earlier;
    remove(block);
    if (block.size > held) {
      cut_rest(block, held, lane, earlier);
      if (cause_ == Cause::kServedFromCache) cause_ = Cause::kSplit;
    }
  }
  block.made_on = stream;
  used_ += held;
  peak_used_ = std::max(peak_used_, used_);
  return {block.address(), &block};
}

void SimulatedPool::free(void* handle, StreamId stream) {
  Block& block = *static_cast<Block*>(handle);
  used_ -= block.size;
  Lane& lane = lane_of(stream);
  const CudaEvent freed = backend_.mark(stream);
  if (stream == kOwnStream) {
    // Which it waits for on the host's side too: pool_model.h.
    std::erase_if(own_waits_,
                  [&](const CudaEvent& event) { return event.stream == block.made_on; });
    own_frees_.push_back({freed.sequence, std::move(own_waits_)});
    own_waits_.clear();
  }
  Block& whole = merge(lane, block);
  whole.freed = freed;
  add(lane, whole, lane.newest);
}

namespace {

// The smaller of two blocks, the lower of equals; either may be null.
template <class Block>
Block* better(Block* a, Block* b) {
  if (a == nullptr || b == nullptr) return a == nullptr ? b : a;
  if (a->size != b->size) return a->size < b->size ? a : b;
  return a->position < b->position ? a : b;
}

}  // namespace

SimulatedPool::Block* SimulatedPool::own_or_common(const Lane& lane, Bytes size) const {
  Block* const own = lane.free.find(size);
  return common_.free.empty() ? own : better(own, common_.free.find(size));
}

bool SimulatedPool::is_ordered_before(const Block& block, const Lane& lane) const {
  return block.freed.sequence <= order_.after(index_of(lane.stream), index_of(block.lane->stream));
}

SimulatedPool::Block* SimulatedPool::ordered_before(const Lane& lane, Bytes size) const {
  if (!order_.knows(index_of(lane.stream))) return nullptr;
  Block* best = nullptr;
  for (const auto& other : lanes_) {
    // The oldest first: where that is too young, all are.
    if (other == nullptr || other.get() == &lane || other->oldest == nullptr ||
        !is_ordered_before(*other->oldest, lane)) {
      continue;
    }
    Block* block = other->free.find(size);
    while (block != nullptr && !is_ordered_before(*block, lane)) block = other->free.next(*block);
    best = better(best, block);
  }
  return best;
}

// When none of the stream's own and none of anyone's will do: the rules of reuse in their order.
SimulatedPool::Block* SimulatedPool::find(Lane& lane, Bytes size) {
  Block* block = model_.follow_event_dependencies ? ordered_before(lane, size) : nullptr;
  if (block != nullptr) return block;
  if (model_.allow_opportunistic && collect_completed()) {
    cause_ = Cause::kEventProcessing;
    block = own_or_common(lane, size);
    if (block != nullptr) return block;
  }
  block = take_side_by_side(lane, size, false);
  if (block == nullptr) block = add_memory(lane, size, false);
  if (block == nullptr && model_.allow_internal_dependencies) block = wait_for_another(lane, size);
  return block;
}

SimulatedPool::Block* SimulatedPool::wait_for_another(Lane& lane, Bytes size) {
  Block* best = nullptr;
  for (const auto& other : lanes_) {
    if (other != nullptr) best = better(best, other->free.find(size));
  }
  if (best != nullptr) {
    wait_for(lane, *best);
    cause_ = Cause::kEventProcessing;
    return best;
  }
  best = take_side_by_side(lane, size, true);
  if (best == nullptr) return add_memory(lane, size, true);
  cause_ = Cause::kEventProcessing;
  return best;
}

SimulatedPool::Block* SimulatedPool::take_side_by_side(const Lane& lane, Bytes size,
                                                       bool of_any_stream) {
  const FreeRun* best = nullptr;
  const std::vector<FreeRun> runs = free_runs(lane, of_any_stream);
  for (const FreeRun& run : runs) {
    if (run.size() >= size && (best == nullptr || run.size() < best->size())) best = &run;
  }
  if (best == nullptr) return nullptr;
  Block& block = *best->first;
  wait_for(lane, block);
  remove(block);
  while (block.size < size) {
    Block& next = *block.after;
    wait_for(lane, next);
    if (block.size + next.size > size) {
      split(next, block.position + static_cast<std::uint64_t>(size));
      if (cause_ == Cause::kServedFromCache) cause_ = Cause::kSplit;
    }
    remove(next);
    block.size += next.size;
    drop(next);
  }
  return &block;
}

bool SimulatedPool::may_have(const Lane& lane, const Block& block) const {
  return block.lane == &lane || is_common(*block.lane) ||
         (model_.follow_event_dependencies && is_ordered_before(block, lane));
}

void SimulatedPool::wait_for(const Lane& lane, const Block& block) {
  if (block.lane == &lane || is_common(*block.lane) || is_ordered_before(block, lane)) return;
  order_.join_only(index_of(lane.stream), index_of(block.lane->stream), block.freed.sequence);
}

bool SimulatedPool::completed(const Block& block) {
  if (block.freed.stream != kOwnStream) return backend_.completed(block.freed);
  while (!own_frees_.empty() &&
         std::all_of(own_frees_.front().waits.begin(), own_frees_.front().waits.end(),
                     [&](const CudaEvent& event) { return backend_.completed(event); })) {
    own_done_ = own_frees_.front().sequence;
    own_frees_.pop_front();
  }
  return block.freed.sequence <= own_done_;
}

bool SimulatedPool::collect_completed() {
  bool any = false;
  for (const auto& lane : lanes_) {
    while (lane != nullptr && lane->oldest != nullptr && completed(*lane->oldest)) {
      Block& block = *lane->oldest;
      remove(block);
      add(common_, merge(common_, block), nullptr);
      any = true;
    }
  }
  return any;
}

void SimulatedPool::join(StreamId waiter, StreamId on) {
  backend_.count(&DriverCalls::event_create);
  const CudaEvent event = backend_.record_event(on);
  backend_.count(&DriverCalls::stream_wait);
  backend_.count(&DriverCalls::event_destroy);
  order_.join(index_of(waiter), index_of(on), event.sequence);
  if (waiter == kOwnStream) own_waits_.push_back(event);
}

void SimulatedPool::event_record(std::size_t event, StreamId stream) {
  order_.record(event, index_of(stream), backend_.sequence());
}

void SimulatedPool::event_wait(std::size_t event, StreamId stream) {
  order_.wait(event, index_of(stream));
}

void SimulatedPool::synchronized(StreamId) {
  if (reserved_ > model_.release_threshold) trim_to(model_.release_threshold);
}

void SimulatedPool::synchronize() {
  backend_.count(&DriverCalls::synchronize);
  for (const auto& lane : lanes_) {
    if (lane != nullptr && lane->stream != kOwnStream) {
      backend_.finish({lane->stream, backend_.sequence(), 0});
    }
  }
  for (const OwnFree& free : own_frees_) {
    for (const CudaEvent& event : free.waits) backend_.finish(event);
  }
}

void SimulatedPool::reset_peaks() {
  peak_used_ = used_;
  peak_reserved_ = reserved_;
}

Location SimulatedPool::locate(const void* handle) const {
  const Block& block = *static_cast<const Block*>(handle);
  return {block.range->number, block.position - block.range->position};
}

void SimulatedPool::visit(const std::function<void(const BlockView&)>& visitor) const {
  for (const Range* range = first_range_; range != nullptr; range = range->after) {
    for (const Block* block = range->first; block != nullptr; block = block->after) {
      const bool is_free = block->lane != nullptr;
      const StreamId stream = is_free ? block->lane->stream : block->made_on;
      visitor({range->number, range->address, range->mapped,
               stream == kOwnStream ? kAllStreams : stream, "", true,
               block->position - range->position, block->size, 0,
               is_free ? BlockState::kInactive : BlockState::kActiveAllocated, block});
    }
  }
}

Bytes SimulatedPool::largest_free() const {
  const auto largest = [](const Lane& lane) {
    const Block* const last = lane.free.last();
    return last == nullptr ? 0 : last->size;
  };
  Bytes found = largest(common_);
  for (const auto& lane : lanes_) {
    if (lane != nullptr) found = std::max(found, largest(*lane));
  }
  return found;
}

}  // namespace workbench
