// Private pools, and what a capture of a CUDA graph changes.
#include <algorithm>

#include "allocators/caching.h"

namespace workbench::caching {

PrivatePool& Caching::private_pool(PoolId number) {
  // Whoever began to use it did so before anything was told.
  return private_pools_.try_emplace(number, PrivatePool{number, 1, true}).first->second;
}

void Caching::pool_begin(PoolId number) {
  // Older releases took allocating in a private pool for a capture, and nothing else.
  if (settings_.address_order) ++captures_;
  const auto [found, is_new] = private_pools_.try_emplace(number, PrivatePool{number, 1, false});
  if (!is_new) ++found->second.uses;
}

void Caching::pool_end(PoolId number) {
  if (settings_.address_order) end_capture();
  if (!settings_.reuses_in_capture) return;
  std::erase_if(deferred_, [&](const Deferred& deferred) {
    if (deferred.block->segment->lane->private_number() != number) return false;
    end_deferral(*deferred.block);
    return true;
  });
}

void Caching::pool_release(PoolId number) {
  std::int64_t& uses = private_pool(number).uses;
  uses = std::max<std::int64_t>(uses - 1, 0);
}

void Caching::capture_begin(StreamId stream) {
  if (!settings_.address_order) ++captures_;
  if (settings_.reuses_in_capture) captured_streams_.insert(stream);
}

void Caching::capture_end(StreamId) {
  if (!settings_.address_order) end_capture();
}

void Caching::end_capture() {
  captures_ = std::max<std::int64_t>(captures_ - 1, 0);
  if (captures_ > 0) return;
  captured_streams_.clear();
  captured_events_.clear();
  captured_order_ = {};
}

void Caching::event_record(std::size_t event, StreamId stream) {
  captured_events_.erase(event);
  if (!is_captured(stream)) return;
  captured_events_.insert(event);
  captured_order_.record(event, static_cast<std::size_t>(stream), ++captured_position_);
}

// A stream that waits for captured work is captured from there on.
void Caching::event_wait(std::size_t event, StreamId stream) {
  if (!captured_events_.contains(event)) return;
  captured_streams_.insert(stream);
  captured_order_.wait(event, static_cast<std::size_t>(stream));
}

void Caching::program_begins() {
  for (auto& [number, pool] : private_pools_) pool.uses = pool.was_there ? 1 : 0;
}

void Caching::program_ends() {
  captures_ = 0;
  end_capture();
  for (auto& [number, pool] : private_pools_) pool.uses = 0;
  end_deferrals();
}

void Caching::note_used_in_capture(const Block& block, StreamId stream) {
  std::vector<StreamId>& streams = used_in_capture_[&block];
  if (std::find(streams.begin(), streams.end(), stream) == streams.end()) {
    streams.push_back(stream);
  }
}

void Caching::free_later(Block& block) {
  if (capturing()) return defer(block);
  if (!used_in_capture_.empty()) used_in_capture_.erase(&block);
  wait_for_streams(block);
}

void Caching::defer(Block& block) {
  Deferred deferred = {&block, is_captured(block.segment->lane->stream), {}};
  for (const StreamId stream : block.used_streams) {
    deferred.is_captured &= is_captured(stream);
    deferred.used_up_to.emplace_back(stream, ++captured_position_);
  }
  block.pending_events = 1;
  deferred_.push_back(std::move(deferred));
  events_due_ = true;
}

void Caching::end_safe_deferrals(StreamId stream) {
  if (!is_captured(stream)) return;
  const auto own = static_cast<std::size_t>(stream);
  std::erase_if(deferred_, [&](const Deferred& deferred) {
    Block& block = *deferred.block;
    const bool is_safe =
        deferred.is_captured && block.segment->lane->stream == stream &&
        std::all_of(deferred.used_up_to.begin(), deferred.used_up_to.end(), [&](const auto& use) {
          return captured_order_.after(own, static_cast<std::size_t>(use.first)) >= use.second;
        });
    if (!is_safe) return false;
    used_in_capture_.erase(&block);
    block.used_streams.clear();
    end_wait(block);
    return true;
  });
}

void Caching::end_deferral(Block& block) {
  // By the end of a capture what it captured needs no waiting for: nothing of it has run.
  if (const auto found = used_in_capture_.find(&block); found != used_in_capture_.end()) {
    std::erase_if(block.used_streams, [&](StreamId stream) {
      return std::find(found->second.begin(), found->second.end(), stream) != found->second.end();
    });
    used_in_capture_.erase(found);
  }
  if (block.used_streams.empty()) {
    end_wait(block);
  } else {
    block.pending_events = 0;
    wait_for_streams(block);
  }
}

void Caching::end_deferrals() {
  for (const Deferred& deferred : deferred_) end_deferral(*deferred.block);
  deferred_.clear();
}

}  // namespace workbench::caching
