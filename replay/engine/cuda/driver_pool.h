// The driver's own memory pool, behind what the stream-ordered allocator asks of one.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "allocators/memory_pool.h"
#include "backends/backend.h"
#include "cuda/calls.h"
#include "cuda/streams.h"

namespace workbench::cuda {

// A pool made for this object and destroyed with it, and not the device's default pool, which
// PyTorch's original uses: that one belongs to all of the process, keeps what it holds from one
// pass to the next, and would have its rules changed for everybody. The driver treats both alike.
class DriverPool final : public MemoryPool {
 public:
  DriverPool(Backend& backend, Calls& calls, Streams& streams, int device, Bytes capacity,
             const DriverPoolOptions& options, std::function<void()> on_end);
  ~DriverPool() override;

  Allocation allocate(Bytes size, StreamId stream) override;
  void free(void* handle, StreamId stream) override;

  StreamId make_stream() override { return kOwnStream; }
  void join(StreamId waiter, StreamId on) override;
  void event_record(std::size_t event, StreamId stream) override;
  void event_wait(std::size_t event, StreamId stream) override;
  void synchronized(StreamId stream) override;

  void synchronize() override;
  void trim_to(Bytes bytes) override;

  Bytes used() const override { return get(cudaMemPoolAttrUsedMemCurrent); }
  Bytes reserved() const override { return get(cudaMemPoolAttrReservedMemCurrent); }
  Bytes peak_used() const override { return get(cudaMemPoolAttrUsedMemHigh); }
  Bytes peak_reserved() const override { return get(cudaMemPoolAttrReservedMemHigh); }
  void reset_peaks() override;

  Cause cause() const override { return Cause::kDriverCall; }
  // What follows the driver tells nobody.
  bool is_drivers() const override { return true; }
  Location locate(const void*) const override { return {0, 0}; }
  void visit(const std::function<void(const BlockView&)>&) const override {}
  Bytes largest_free() const override { return 0; }
  std::int64_t chunks_taken() const override { return 0; }
  std::int64_t chunks_given_back() const override { return 0; }

 private:
  // Above all streams of a trace.
  static constexpr StreamId kOwnStream = kMostStreams;

  Bytes get(cudaMemPoolAttr attribute) const;
  void set(cudaMemPoolAttr attribute, std::uint64_t value);
  void set_flag(cudaMemPoolAttr attribute, bool value);
  // Notes a stream that is used; with a second one it matters when work completes.
  void use(StreamId stream);

  Backend& backend_;
  Calls& calls_;
  Streams& streams_;
  const std::function<void()> on_end_;
  cudaMemPool_t pool_ = nullptr;
  StreamId first_stream_ = -1;
  bool several_streams_ = false;
  bool joined_ = false;              // since the last free on the stream of its own
  std::vector<cudaEvent_t> events_;  // the program's, by number; null where never recorded
};

}  // namespace workbench::cuda
