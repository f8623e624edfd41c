// Fills blocks and reads them again as work of streams.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backends/fill.h"
#include "core/lock.h"
#include "cuda/calls.h"
#include "cuda/streams.h"

namespace workbench::cuda {

// Nobody waits for what is read: a kernel notes the first damaged offset on the device, in a place
// for each block, and the places are looked through when all are taken. To wait each time would
// order what the allocator has left unordered.
class Filler {
 public:
  Filler(Calls& calls, Streams& streams, bool several_threads);
  ~Filler();
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;

  void fill(const FilledBlock& block, StreamId stream);
  std::optional<Damage> verify(const FilledBlock& block, StreamId stream);
  void keep_busy(StreamId stream, std::uint64_t nanoseconds);
  // The first damage of all that was verified; waits for the device.
  std::optional<Damage> collect();
  // Waits for what was put into streams: before memory goes that it uses.
  void settle();

 private:
  void prepare();
  std::optional<Damage> look_through();
  void synchronize();

  Calls& calls_;
  Streams& streams_;
  Lock lock_;                          // around what follows
  std::uint64_t* offsets_ = nullptr;   // on the device; null before the first is verified
  std::vector<std::uint64_t> copies_;  // of them
  std::vector<FilledBlock> blocks_;    // verified, one for each place that is taken
  bool working_ = false;               // since the device was last waited for
};

}  // namespace workbench::cuda
