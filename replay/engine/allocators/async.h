// PyTorch's stream-ordered allocator (backend:cudaMallocAsync): a thin layer over the driver's
// memory pool. Its rules: docs/allocators.md, "async".
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "allocators/memory_pool.h"
#include "allocators/pool_model.h"
#include "allocators/recycled.h"
#include "allocators/walk.h"
#include "core/lock.h"

namespace workbench {

struct AsyncSettings {
  explicit AsyncSettings(const Settings& settings);

  PoolModel pool;
  std::vector<std::string> of_model;  // settings that the driver's pool does not know
  double memory_fraction = -1;        // below 0: not set, and nothing is limited
};

class Async final : public Replayed<Async> {
 public:
  Async(Backend& backend, const AsyncSettings& settings);
  // Over any pool; `describes_pool` is a sentence for the warnings, empty for none.
  Async(Backend& backend, std::unique_ptr<MemoryPool> pool, double memory_fraction,
        std::string describes_pool);

  Allocation allocate(Bytes size, StreamId stream, ThreadId thread) override;
  void free(void* handle, ThreadId thread) override;
  void record_stream(void* handle, StreamId stream) override;
  void empty_cache() override;

  void event_record(std::size_t event, StreamId stream) override;
  void event_wait(std::size_t event, StreamId stream) override;
  void synchronized(StreamId stream) override;
  void capture_begin(StreamId stream) override;
  void capture_end(StreamId stream) override;
  void set_fraction(std::int64_t millionths) override;
  void program_begins() override { is_programs_ = true; }
  void program_ends() override;

  Location locate(const void* handle) const override;
  void visit(const std::function<void(const BlockView&)>& visitor) const override;
  Bytes largest_free() const override { return pool_->largest_free(); }
  Statistics statistics() const override;
  std::vector<std::pair<std::string, std::int64_t>> torch_statistics() const override;
  std::string refusal() const override { return refusal_; }
  Reported reported() const override;
  std::vector<std::string> warnings() const override;
  bool delays_free(const void* handle) const override;

  // Bytes of the device, and the largest request that is served now (`cache_info`): found by
  // allocating and freeing, so that what the pool reserves may grow.
  struct CacheInfo {
    Bytes total;
    Bytes largest;
  };
  CacheInfo cache_info(StreamId stream);
  // Sets the high-water marks of used and reserved bytes to their current values.
  void reset_peaks();
  Bytes limit() const { return limit_; }

 private:
  // An allocation of the program's.
  struct Pointer {
    void* block;  // the pool's
    Bytes size;   // as requested
    StreamId made_on;
    bool captured;
    bool deferred;
    std::vector<StreamId> recorded;
    Pointer* before;  // among the live ones
    Pointer* after;
  };

  void visit_pointers(const std::function<void(const BlockView&)>& visitor) const;
  Allocation refuse(Bytes size);
  void free_now(Pointer& pointer);
  void free_deferred();
  static void add_once(std::vector<StreamId>& streams, StreamId stream);
  Bytes share(double fraction) const;

  mutable Lock lock_;
  const std::unique_ptr<MemoryPool> pool_;
  const std::string describes_pool_;
  const bool is_drivers_;  // the pool
  const StreamId unifying_;
  Bytes limit_;
  Bytes used_ = 0;  // requested bytes
  std::int64_t live_ = 0;
  Recycled<Pointer> pointers_;
  Pointer* first_ = nullptr;

  int captures_ = 0;                           // under way; more than one is the program's fault
  std::vector<Pointer*> deferred_;             // uncaptured, freed during a capture
  std::vector<StreamId> freed_in_capture_on_;  // streams
  bool is_programs_ = true;                    // what is freed now, the program frees

  std::string refusal_;
  std::int64_t hits_ = 0;
  std::int64_t misses_ = 0;
  std::int64_t ooms_ = 0;
  std::int64_t own_stream_records_ = 0;
  std::int64_t deferred_frees_ = 0;
  std::int64_t captured_frees_ = 0;
  std::int64_t nested_captures_ = 0;
};

}  // namespace workbench
