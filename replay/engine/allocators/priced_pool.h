// A memory pool that adds up what the calls to it would cost a program.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>

#include "allocators/memory_pool.h"
#include "backends/priced_calls.h"

namespace workbench {

// Around any pool; what that asks the backend for is the driver's own work, and in the price.
class PricedPool final : public MemoryPool {
 private:
  template <class Call>
  decltype(auto) inside(Call&& call) {
    const PricedCalls::InPool pool(calls_);
    return call();
  }

 public:
  PricedPool(std::unique_ptr<MemoryPool> pool, PricedCalls& calls)
      : pool_(std::move(pool)), calls_(calls) {}

  Allocation allocate(Bytes size, StreamId stream) override {
    const Allocation got = inside([&] { return pool_->allocate(size, stream); });
    if (got.is_refused()) return got;
    const Cause cause = pool_->cause();
    const bool grown = cause == Cause::kDriverCall || cause == Cause::kPageFault;
    calls_.add(grown ? DriverCall::kPoolAllocGrown : DriverCall::kPoolAlloc, size);
    sizes_[got.handle] = size;
    return got;
  }
  void free(void* handle, StreamId stream) override {
    inside([&] { pool_->free(handle, stream); });
    const auto found = sizes_.find(handle);
    calls_.add(DriverCall::kPoolFree, found->second);
    sizes_.erase(found);
  }

  StreamId make_stream() override { return pool_->make_stream(); }
  void join(StreamId waiter, StreamId on) override { pool_->join(waiter, on); }
  void event_record(std::size_t event, StreamId stream) override {
    pool_->event_record(event, stream);
  }
  void event_wait(std::size_t event, StreamId stream) override { pool_->event_wait(event, stream); }
  void synchronized(StreamId stream) override {
    inside([&] { pool_->synchronized(stream); });
  }

  void synchronize() override {
    inside([&] { pool_->synchronize(); });
  }
  void trim_to(Bytes bytes) override {
    inside([&] { pool_->trim_to(bytes); });
  }

  Bytes used() const override { return pool_->used(); }
  Bytes reserved() const override { return pool_->reserved(); }
  Bytes peak_used() const override { return pool_->peak_used(); }
  Bytes peak_reserved() const override { return pool_->peak_reserved(); }
  void reset_peaks() override { pool_->reset_peaks(); }

  Cause cause() const override { return pool_->cause(); }
  bool is_drivers() const override { return pool_->is_drivers(); }

  Location locate(const void* handle) const override { return pool_->locate(handle); }
  void visit(const std::function<void(const BlockView&)>& visitor) const override {
    pool_->visit(visitor);
  }
  Bytes largest_free() const override { return pool_->largest_free(); }
  std::int64_t chunks_taken() const override { return pool_->chunks_taken(); }
  std::int64_t chunks_given_back() const override { return pool_->chunks_given_back(); }

 private:
  const std::unique_ptr<MemoryPool> pool_;
  PricedCalls& calls_;
  std::unordered_map<const void*, Bytes> sizes_;
};

}  // namespace workbench
