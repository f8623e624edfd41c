// Measures what the driver's calls cost on this device, and by which rules its memory pool works.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "backends/cuda.h"
#include "cuda/calls.h"

namespace workbench::cuda {

// The device, with streams of the measurement's own; everything is given back.
class Bench {
 public:
  explicit Bench(Bytes capacity);
  ~Bench();
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  Calls& calls() { return calls_; }
  // Bytes that may be taken at once.
  Bytes capacity() const { return capacity_; }
  cudaStream_t first() const { return streams_[0]; }
  cudaStream_t second() const { return streams_[1]; }
  void settle() { calls_.require("cudaDeviceSynchronize", cudaDeviceSynchronize()); }
  // Throws EngineError where a call failed.
  void require(const char* call, cudaError_t error) { calls_.require(call, error); }

  void describe(CalibrationSink& sink);

 private:
  Calls calls_{/*timed=*/false, /*several_threads=*/false};
  Bytes capacity_;
  cudaStream_t streams_[2] = {};
};

// A pool of the measurement's own.
class Pool {
 public:
  // No rule of reuse between streams but `rule`, where that is one; `most` bytes at most, 0 for all
  // there are.
  Pool(Bench& bench, const cudaMemPoolAttr* rule, bool keeps_memory, Bytes most = 0);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Null where there is no room.
  void* allocate(Bytes size, cudaStream_t stream);
  void free(void* memory, cudaStream_t stream);
  void trim();
  Bytes reserved();

 private:
  Bench& bench_;
  cudaMemPool_t pool_ = nullptr;
};

// Every call in every round, in random order, so that whatever drifts meets all of them alike.
class Prices {
 public:
  Prices(Bench& bench, CalibrationSink& sink);
  void measure(std::size_t rounds);

 private:
  using Step = std::function<void()>;

  // Calls about memory and those about streams, one step for each size.
  void add_device_memory();
  void add_host_memory();
  void add_address_ranges();
  void add_pool();
  void add_events();

  template <class Call>
  cudaError_t timed(DriverCall kind, Bytes size, Call&& call);
  std::vector<Bytes> sizes(Bytes first, Bytes last) const;

  Bench& bench_;
  CalibrationSink& sink_;
  Pool pool_;
  bool warm_ = false;  // what comes before is thrown away: nothing is loaded yet
  std::vector<Step> steps_;
  std::map<std::pair<DriverCall, Bytes>, std::vector<std::uint64_t>> samples_;
};

// The pool's chunk, and for each rule whether it works: each by an experiment of its own.
void find_pool_rules(Bench& bench, CalibrationSink& sink);

}  // namespace workbench::cuda
