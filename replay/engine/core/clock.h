// The time-stamp counter, and what a tick and a reading of it cost.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#else
#include <chrono>
#endif

namespace workbench {

#if defined(__x86_64__)
// Read before a call: nothing of the call starts before the reading.
inline std::uint64_t ticks_before() {
  const std::uint64_t ticks = __rdtsc();
  _mm_lfence();
  return ticks;
}
// Read after a call: rdtscp waits until the call's instructions are done.
inline std::uint64_t ticks_after() {
  unsigned processor;
  return __rdtscp(&processor);
}
#else
inline std::uint64_t ticks_before() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}
inline std::uint64_t ticks_after() { return ticks_before(); }
#endif

struct ClockCosts {
  double ns_per_tick;
  double pair_ns;  // one reading before and one after, with nothing between them
};

// Measured once in a process, in about 20 ms.
const ClockCosts& clock_costs();

}  // namespace workbench
