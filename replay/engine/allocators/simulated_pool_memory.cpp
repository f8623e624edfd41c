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
  std::vector<FreeRun> holders;
  Bytes remapped = 0;
  if (model_.remap) {
    for (const FreeRun& run : free_runs(lane, of_any_stream)) {
      if (remapped == wanted) break;
      if (first_chunk(run) == chunks_end(run)) continue;
      holders.push_back(run);
      remapped =
          std::min(wanted, remapped + static_cast<Bytes>(chunks_end(run) - first_chunk(run)));
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
  for (const FreeRun& run : holders) {
    Block* holder = run.first;
    for (std::uint64_t chunk = first_chunk(run), end = chunks_end(run);
         chunk != end && next != fresh_address; chunk += static_cast<std::uint64_t>(model_.chunk)) {
      while (holder->end() <= chunk) holder = holder->after;
      const std::uint64_t chunk_end = chunk + static_cast<std::uint64_t>(model_.chunk);
      for (Block* part = holder; part != nullptr && part->position < chunk_end;
           part = part->after) {
        is_anyones = is_anyones && is_common(*part->lane);
        wait_for(lane, *part);
      }
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
    block.freed = backend_.mark(lane.stream);
    add(lane, block, lane.newest);
  }
  return &block;
}

std::vector<SimulatedPool::FreeRun> SimulatedPool::free_runs(const Lane& lane,
                                                             bool of_any_stream) const {
  std::vector<FreeRun> runs;
  for (const Range* range = first_range_; range != nullptr; range = range->after) {
    bool open = false;  // whether a block may join the last run
    for (Block* block = range->first; block != nullptr; block = block->after) {
      if (block->lane == nullptr || !(of_any_stream || may_have(lane, *block))) {
        open = false;
      } else if (open && runs.back().end == block->position) {
        runs.back().end = block->end();
      } else {
        runs.push_back({block, block->end()});
        open = true;
      }
    }
  }
  return runs;
}

// Ranges are whole chunks, and so are their positions.
std::uint64_t SimulatedPool::first_chunk(const FreeRun& run) const {
  const auto chunk = static_cast<std::uint64_t>(model_.chunk);
  return (run.first->position + chunk - 1) / chunk * chunk;
}

std::uint64_t SimulatedPool::chunks_end(const FreeRun& run) const {
  const auto chunk = static_cast<std::uint64_t>(model_.chunk);
  return std::max(run.end / chunk * chunk, first_chunk(run));
}

SimulatedPool::Rests SimulatedPool::take_chunk(Block& block, std::uint64_t position) {
  Range& range = *block.range;
  const std::uint64_t chunk_end = position + static_cast<std::uint64_t>(model_.chunk);
  Rests rests = {nullptr, &block};
  if (block.position < position) rests = {&block, &split(block, position)};
  while (rests.after != nullptr && rests.after->position < chunk_end) {
    Block& part = *rests.after;
    if (part.end() > chunk_end) split(part, chunk_end);
    rests.after = part.after;
    remove(part);
    drop(part);
  }
  backend_.unmap(range.address + (position - range.position), model_.chunk);
  range.mapped -= model_.chunk;
  drop_range_if_empty(range);
  return rests;
}

void SimulatedPool::trim_to(Bytes bytes) {
  collect_completed();
  std::vector<FreeRun> holders;
  for (Block* block = common_.free.last(); block != nullptr && block->size >= model_.chunk;
       block = common_.free.previous(*block)) {
    holders.push_back({block, block->end()});
  }
  std::sort(holders.begin(), holders.end(), [](const FreeRun& a, const FreeRun& b) {
    return a.first->position > b.first->position;
  });
  for (const FreeRun& run : holders) {
    Block* holder = run.first;
    const std::uint64_t first = first_chunk(run);
    for (std::uint64_t end = chunks_end(run); end != first && reserved_ > bytes;) {
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

SimulatedPool::Block& SimulatedPool::split(Block& block, std::uint64_t position) {
  Lane& lane = *block.lane;
  Block* const earlier = block.earlier;
  remove(block);
  Block& rest = cut_rest(block, static_cast<Bytes>(position - block.position), lane, earlier);
  add(lane, block, earlier);
  return rest;
}

SimulatedPool::Block& SimulatedPool::cut_rest(Block& block, Bytes size, Lane& lane,
                                              Block* earlier) {
  Block& rest = new_block(*block.range, block.position + static_cast<std::uint64_t>(size),
                          block.size - size, &block);
  rest.freed = block.freed;
  block.size = size;
  add(lane, rest, earlier);
  return rest;
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

SimulatedPool::Block& SimulatedPool::merge(const Lane& lane, Block& freed) {
  Block* block = &freed;
  const auto merges = [&](const Block* neighbour) {
    return neighbour != nullptr && neighbour->lane == &lane;
  };
  if (merges(block->after) && block->after->position == block->end()) {
    Block& after = *block->after;
    remove(after);
    block->size += after.size;
    drop(after);
  }
  if (merges(block->before) && block->before->end() == block->position) {
    Block& before = *block->before;
    remove(before);
    before.size += block->size;
    drop(*block);
    block = &before;
  }
  return *block;
}

}  // namespace workbench
