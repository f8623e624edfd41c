// Streams of the device and CUDA events in them, which complete as the trace says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "backends/stream_progress.h"
#include "core/lock.h"
#include "cuda/calls.h"
#include "cuda/gates.h"

namespace workbench::cuda {

// StreamProgress decides when a CUDA event is complete, on hardware as elsewhere, so that the same
// decisions follow. Here the device is made to keep to it, from both sides: before each CUDA event
// a gate is closed in its stream, which opens when the event is to complete; and who is told that
// an event is complete is told so after the device has come to it. With --completion immediate
// there are no gates.
class Streams {
 public:
  Streams(Calls& calls, const StreamProgress& progress, bool several_threads);
  // Opens all gates and waits for what is under way.
  ~Streams();
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  // Whether work is held back.
  bool gated() const { return gated_; }
  // The stream of that number, made when it is first asked for.
  cudaStream_t at(StreamId stream);
  // Puts a CUDA event into its stream.
  void record(const CudaEvent& event);
  // Asks the device; where the event is `due`, until it is there.
  bool reaches(const CudaEvent& event, bool due);
  void await(const CudaEvent& event);

  // Has work that comes to `stream` from now on wait until what has the number `sequence` is to
  // complete there. Nothing where it is held back at least as far, or without gates.
  void hold(StreamId stream, std::uint64_t sequence);
  // Has work that comes to `stream` from now on wait for what `before` has.
  void order(StreamId before, StreamId stream);
  // Opens gates as far as StreamProgress says.
  void follow();
  // Opens all: before calls that wait for the device.
  void open_all();
  // A piece of work was put into `stream`: a stream holds only so many.
  void submitted(StreamId stream);

  // How often a gate was opened, or left out, before its time.
  std::int64_t early() const;

 private:
  struct Pending {
    std::uint64_t sequence;
    cudaEvent_t event;
  };
  struct Stream {
    cudaStream_t handle = nullptr;
    std::deque<Pending> pending;  // in the order of their numbers
    std::uint64_t arrived = 0;    // the device has come this far
    std::uint64_t closed = 0;     // it was told to wait for this,
    std::uint64_t opened = 0;     // and may go this far
    int gates = 0;                // closed ones in it
    int behind = 0;               // pieces of work behind the first of them
  };

  Stream& find(StreamId stream);
  void hold(StreamId number, Stream& stream, std::uint64_t sequence);
  void open(StreamId number, Stream& stream, std::uint64_t sequence);
  void submitted(StreamId number, Stream& stream);
  void open_held();
  // Waits until the device has come to `pending`; takes what came before out of the stream.
  void arrive(StreamId number, Stream& stream, const CudaEvent& event, DriverCall kind);
  cudaError_t poll(cudaEvent_t event);
  cudaEvent_t take_event();

  // By number; a deque keeps them where they are. Only those that are used are there.
  Calls& calls_;
  const StreamProgress& progress_;
  const bool gated_;
  Lock lock_;  // around what follows
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<StreamId> used_;
  std::vector<cudaEvent_t> unused_events_;
  std::unique_ptr<Gates> gates_;   // null without
  int held_ = 0;                   // streams with closed gates
  std::deque<CudaEvent> delayed_;  // what is held back for a number of events, by number
  std::int64_t left_out_ = 0;
};

}  // namespace workbench::cuda
