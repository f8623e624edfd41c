// What the stream-ordered allocator asks of the driver's memory pool: a model (simulated_pool.h)
// where there is no driver, the pool itself (cuda/driver_pool.h) where there is one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "allocators/allocator.h"
#include "core/units.h"

namespace workbench {

class MemoryPool {
 public:
  virtual ~MemoryPool() = default;

  // cudaMallocAsync: a block of `size` > 0 bytes for work on `stream`; the handle is what `free`
  // takes. Refused where there is no memory.
  virtual Allocation allocate(Bytes size, StreamId stream) = 0;
  // cudaFreeAsync: work on `stream` so far is the last that uses the block.
  virtual void free(void* handle, StreamId stream) = 0;

  // A stream of the allocator's own, whose number no stream of the program has.
  virtual StreamId make_stream() = 0;
  // Creates a CUDA event, records it on `on`, has `waiter` wait for it, and destroys it.
  virtual void join(StreamId waiter, StreamId on) = 0;
  // The program's own CUDA events, numbered from 0.
  virtual void event_record(std::size_t event, StreamId stream) = 0;
  virtual void event_wait(std::size_t event, StreamId stream) = 0;
  // The program waited on the host for `stream` (kAllStreams: for every one).
  virtual void synchronized(StreamId stream) = 0;

  // Waits on the host for all work of the device.
  virtual void synchronize() = 0;
  // Gives unused memory back until at most `bytes` are held.
  virtual void trim_to(Bytes bytes) = 0;

  // cudaMemPoolAttr…MemCurrent and …MemHigh; resetting a peak sets it to the current value.
  virtual Bytes used() const = 0;
  virtual Bytes reserved() const = 0;
  virtual Bytes peak_used() const = 0;
  virtual Bytes peak_reserved() const = 0;
  virtual void reset_peaks() = 0;

  // Whether the last allocate() needed memory from the device, or waited for another stream.
  virtual Cause cause() const = 0;

  // Whether it is the driver's own, which does not tell what follows; its handles are addresses.
  virtual bool is_drivers() const { return false; }
  // For reports: where a block lies, what there is, chunks taken and given back so far.
  virtual Location locate(const void* handle) const = 0;
  virtual void visit(const std::function<void(const BlockView&)>& visitor) const = 0;
  virtual Bytes largest_free() const = 0;
  virtual std::int64_t chunks_taken() const = 0;
  virtual std::int64_t chunks_given_back() const = 0;
};

}  // namespace workbench
