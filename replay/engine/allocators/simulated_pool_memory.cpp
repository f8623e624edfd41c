// The pool's memory: chunks, the ranges of addresses they are mapped into, and blocks in them.
#include <algorithm>

#include "allocators/simulated_pool.h"
#include "core/errors.h"

namespace workbench {

SimulatedPool::~SimulatedPool() {
  for (const Range* range = first_range_; range != nullptr; range = range->after) {
    // Runs of blocks without gaps, each in one piece.
    for (const Block* block = range->first; block != nullptr;) {
      const Block* last = block;
      while (last->after != nullptr && last->after->position == last->end()) last = last->after;
      backend_.unmap(block->address(), static_cast<Bytes>(last->end() - block->position));
      block = last->after;
    }
    backend_.unreserve(range->address, range->size);
  }
}

SimulatedPool::Block* SimulatedPool::add_memory(Lane& lane, Bytes size, bool of_any_stream) {
  const Bytes wanted = round_up(size, model_.chunk);
  std::vector<Block*> holders;
  Bytes remapped = 0;
  if (model_.remap) {
    for (Block* const holder : chunk_holders(lane, of_any_stream)) {
      if (remapped == wanted) break;
      holders.push_back(holder);
      remapped = std::min(
          wanted, remapped + static_cast<Bytes>(chunks_end(*holder) - first_chunk(*holder)));
    }
  }
  if (of_any_stream && remapped == 0) return nullptr;  // it has been tried without
  const std::uint64_t address = backend_.reserve(wanted);
  if (address == 0) return nullptr;
  const auto fresh_address = address + static_cast<std::uint64_t>(remapped);
  if (wanted > remapped && !backend_.map(fresh_address, wanted - remapped)) {
    backend_.unreserve(address, wanted);
    return nullptr;
  }
  // Only here is nothing in the way any more.
  cause_ = backend_.last_faulted() ? Cause::kPageFault : Cause::kDriverCall;
  chunks_taken_ += (wanted - remapped) / model_.chunk;
  reserved_ += wanted - remapped;
  peak_reserved_ = std::max(peak_reserved_, reserved_);

  bool is_anyones = true;
  std::uint64_t next = address;
  for (Block* holder : holders) {
    is_anyones = is_anyones && is_common(*holder->lane);
    if (holder->lane != &lane && !is_common(*holder->lane) && !is_ordered_before(*holder, lane)) {
      order_.join_only(index_of(lane.stream), index_of(holder->lane->stream),
                       holder->freed.sequence);
    }
    for (std::uint64_t chunk = first_chunk(*holder), end = chunks_end(*holder);
         chunk != end && next != fresh_address; chunk += static_cast<std::uint64_t>(model_.chunk)) {
      holder = take_chunk(*holder, chunk).after;
      if (!backend_.map(next, model_.chunk)) {
        throw EngineError("the system refused memory that was given back just before");
      }
      next += static_cast<std::uint64_t>(model_.chunk);
    }
  }
  Range& range = add_range(address, wanted);
  Block& block = new_block(range, range.position, wanted, nullptr);
  if (is_anyones) {
    add(common_, block, nullptr);
  } else {
    block.freed = backend_.progress().record(lane.stream);
    add(lane, block, lane.newest);
  }
  return &block;
}

std::vector<SimulatedPool::Block*> SimulatedPool::chunk_holders(const Lane& lane,
                                                                bool of_any_stream) const {
  std::vector<Block*> holders;
  add_chunk_holders(common_, holders);
  for (const auto& other : lanes_) {
    if (other == nullptr) continue;
    const std::size_t before = holders.size();
    add_chunk_holders(*other, holders);
    if (of_any_stream || other.get() == &lane) continue;
    const auto unusable = [&](const Block* block) {
      return !model_.follow_event_dependencies || !is_ordered_before(*block, lane);
    };
    holders.erase(std::remove_if(holders.begin() + static_cast<std::ptrdiff_t>(before),
                                 holders.end(), unusable),
                  holders.end());
  }
  std::sort(holders.begin(), holders.end(),
            [](const Block* a, const Block* b) { return a->position < b->position; });
  return holders;
}

void SimulatedPool::add_chunk_holders(const Lane& lane, std::vector<Block*>& holders) const {
  for (Block* block = lane.free.last(); block != nullptr && block->size >= model_.chunk;
       block = lane.free.previous(*block)) {
    if (first_chunk(*block) < chunks_end(*block)) holders.push_back(block);
  }
}

// Ranges are whole chunks, and so are their positions.
std::uint64_t SimulatedPool::first_chunk(const Block& block) const {
  const auto chunk = static_cast<std::uint64_t>(model_.chunk);
  return (block.position + chunk - 1) / chunk * chunk;
}

std::uint64_t SimulatedPool::chunks_end(const Block& block) const {
  const auto chunk = static_cast<std::uint64_t>(model_.chunk);
  return std::max(block.end() / chunk * chunk, first_chunk(block));
}

SimulatedPool::Rests SimulatedPool::take_chunk(Block& block, std::uint64_t position) {
  Range& range = *block.range;
  Lane& lane = *block.lane;
  Block* const earlier = block.earlier;
  const CudaEvent freed = block.freed;
  const std::uint64_t end = block.end();
  const std::uint64_t chunk_end = position + static_cast<std::uint64_t>(model_.chunk);
  remove(block);
  Rests rests = {nullptr, nullptr};
  if (chunk_end < end) {
    rests.after = &new_block(range, chunk_end, static_cast<Bytes>(end - chunk_end), &block);
    rests.after->freed = freed;
    add(lane, *rests.after, earlier);
  }
  if (block.position < position) {
    block.size = static_cast<Bytes>(position - block.position);
    add(lane, block, earlier);
    rests.before = &block;
  } else {
    drop(block);
  }
  backend_.unmap(range.address + (position - range.position), model_.chunk);
  range.mapped -= model_.chunk;
  drop_range_if_empty(range);
  return rests;
}

void SimulatedPool::trim_to(Bytes bytes) {
  collect_completed();
  std::vector<Block*> holders;
  add_chunk_holders(common_, holders);
  std::sort(holders.begin(), holders.end(),
            [](const Block* a, const Block* b) { return a->position > b->position; });
  for (Block* holder : holders) {
    const std::uint64_t first = first_chunk(*holder);
    for (std::uint64_t end = chunks_end(*holder); end != first && reserved_ > bytes;) {
      end -= static_cast<std::uint64_t>(model_.chunk);
      holder = take_chunk(*holder, end).before;
      reserved_ -= model_.chunk;
      ++chunks_given_back_;
    }
  }
}

SimulatedPool::Range& SimulatedPool::add_range(std::uint64_t address, Bytes size) {
  Range& range = ranges_.take();
  range = {next_range_++, address, next_position_, size, size, nullptr, last_range_, nullptr};
  next_position_ += static_cast<std::uint64_t>(size);
  (last_range_ == nullptr ? first_range_ : last_range_->after) = &range;
  last_range_ = &range;
  return range;
}

void SimulatedPool::drop_range_if_empty(Range& range) {
  if (range.mapped > 0) return;
  backend_.unreserve(range.address, range.size);
  (range.before == nullptr ? first_range_ : range.before->after) = range.after;
  (range.after == nullptr ? last_range_ : range.after->before) = range.before;
  ranges_.give(range);
}

SimulatedPool::Block& SimulatedPool::new_block(Range& range, std::uint64_t position, Bytes size,
                                               Block* before) {
  Block& block = blocks_.take();
  block.size = size;
  block.position = position;
  block.range = &range;
  block.lane = nullptr;
  block.freed = {};
  block.before = before;
  block.after = before == nullptr ? range.first : before->after;
  (before == nullptr ? range.first : before->after) = &block;
  if (block.after != nullptr) block.after->before = &block;
  return block;
}

void SimulatedPool::drop(Block& block) {
  (block.before == nullptr ? block.range->first : block.before->after) = block.after;
  if (block.after != nullptr) block.after->before = block.before;
  blocks_.give(block);
}

void SimulatedPool::add(Lane& lane, Block& block, Block* earlier) {
  block.lane = &lane;
  lane.free.add(block);
  if (is_common(lane)) return;
  block.earlier = earlier;
  block.later = earlier == nullptr ? lane.oldest : earlier->later;
  (earlier == nullptr ? lane.oldest : earlier->later) = &block;
  (block.later == nullptr ? lane.newest : block.later->earlier) = &block;
}

void SimulatedPool::remove(Block& block) {
  Lane& lane = *block.lane;
  lane.free.remove(block);
  block.lane = nullptr;
  if (is_common(lane)) return;
  (block.earlier == nullptr ? lane.oldest : block.earlier->later) = block.later;
  (block.later == nullptr ? lane.newest : block.later->earlier) = block.earlier;
}

bool SimulatedPool::merges(const Block* block, const Lane& lane) const {
  return block != nullptr && (block->lane == &lane || block->lane == &common_);
}

SimulatedPool::Block& SimulatedPool::merge(const Lane& lane, Block& freed) {
  Block* block = &freed;
  if (merges(block->after, lane) && block->after->position == block->end()) {
    Block& after = *block->after;
    remove(after);
    block->size += after.size;
    drop(after);
  }
  if (merges(block->before, lane) && block->before->end() == block->position) {
    Block& before = *block->before;
    remove(before);
    before.size += block->size;
    drop(*block);
    block = &before;
  }
  return *block;
}

}  // namespace workbench
