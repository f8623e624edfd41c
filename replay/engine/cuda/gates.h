// Holds streams back, so that work completes on the device no earlier than the trace says.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

#include "cuda/calls.h"

namespace workbench::cuda {

// One number for each stream, in pinned memory, that only rises. A stream that was told to wait for
// a number goes on when the host has raised its gate that far.
//
// A gate that stays closed would stop for good whatever waits for the device, above all calls of
// the driver that do so without saying. A thread of its own watches: where no call ends for a
// while, it opens all gates. What completes early by that is counted; what the host is told of CUDA
// events does not depend on it.
class Gates {
 public:
  Gates(Calls& calls, std::size_t count);
  // Opens all.
  ~Gates();
  Gates(const Gates&) = delete;
  Gates& operator=(const Gates&) = delete;

  // Puts a wait for `value` into a stream.
  cudaError_t close(std::size_t gate, cudaStream_t stream, std::uint64_t value);
  void open(std::size_t gate, std::uint64_t value) { raise(numbers_[gate], value); }
  // Opens all gates as far as any was told to wait.
  void open_all();
  // How often a gate was opened for want of progress.
  std::int64_t opened_early() const { return opened_early_.load(); }

 private:
  static void raise(std::uint64_t& number, std::uint64_t value);
  void watch();

  Calls& calls_;
  std::uint64_t* numbers_ = nullptr;        // pinned
  std::atomic<std::size_t> used_ = 0;       // gates above this were never closed
  std::atomic<std::uint64_t> highest_ = 0;  // value that any stream was told to wait for
  std::atomic<std::int64_t> opened_early_ = 0;

  std::mutex mutex_;  // around what follows
  std::condition_variable ends_;
  bool ending_ = false;
  std::thread watch_;  // started with the first gate that is closed
};

}  // namespace workbench::cuda
