// Runs the threads of a pass.
#pragma once

#include <cstddef>
#include <functional>

namespace workbench {

struct ThreadWork {
  std::size_t threads;
  // Called in thread `number` of 0 … threads − 1, for all of them at once.
  std::function<void(std::size_t number)> work;
  // Has every thread's work come to its end soon; called where one of them threw.
  std::function<void()> stop;
  // Called now and then by the calling thread, while the others work. May throw.
  std::function<void()> checkpoint;
};

// Nanoseconds from their start to the end of the last; starting the threads is not in it.
// Throws, after all have ended, what was thrown first.
double run_threads(const ThreadWork& work);

}  // namespace workbench
