// Time stamps for records: processor ticks where they can be trusted, else CLOCK_MONOTONIC.
#pragma once

#include <time.h>

#include <cstdint>

#include "spool_format.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <fcntl.h>
#include <unistd.h>
#include <x86intrin.h>

#include <cstring>
#endif

namespace workbench::spool {

__attribute__((cold, noinline)) inline std::uint64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000ULL +
         static_cast<std::uint64_t>(now.tv_nsec);
}

#if defined(__x86_64__)

// The counter must run at one rate, through sleep states, alike on all cores: the processor says
// the first two, and the kernel leaves the sources named here when it finds cores that disagree.
inline bool ticks_are_a_clock() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & (1U << 8))) return false;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(d & (1U << 27))) return false;  // rdtscp
  const int file = open("/sys/devices/system/clocksource/clocksource0/current_clocksource",
                        O_RDONLY | O_CLOEXEC);
  if (file < 0) return true;  // no such file in many containers; the processor's word stands
  char source[32] = {};
  const auto length = read(file, source, sizeof source - 1);
  close(file);
  return length <= 0 || std::strncmp(source, "tsc", 3) == 0 ||
         std::strncmp(source, "kvm-clock", 9) == 0 || std::strncmp(source, "hyperv", 6) == 0 ||
         std::strncmp(source, "xen", 3) == 0;
}

// Before memory is given back. A plain read suffices: it cannot retire later than the stores that
// make the memory available to others, so its value is never later than the release.
inline std::uint64_t ticks_before_release() { return __rdtsc(); }

// After memory was obtained. A plain read may run ahead of the loads that obtained it, so that the
// allocation would seem earlier than the other thread's free it depends on; rdtscp waits for them.
inline std::uint64_t ticks_after_acquire() {
  unsigned processor;
  return __rdtscp(&processor);
}

#elif defined(__aarch64__)

inline bool ticks_are_a_clock() { return true; }  // the architecture says so

inline std::uint64_t ticks_before_release() {
  std::uint64_t value;
  asm volatile("mrs %0, cntvct_el0" : "=r"(value)::"memory");
  return value;
}

// isb: else the counter may be read ahead of the loads that obtained the memory.
inline std::uint64_t ticks_after_acquire() {
  std::uint64_t value;
  asm volatile("isb; mrs %0, cntvct_el0" : "=r"(value)::"memory");
  return value;
}

#else

inline bool ticks_are_a_clock() { return false; }
inline std::uint64_t ticks_before_release() { return monotonic_ns(); }
inline std::uint64_t ticks_after_acquire() { return monotonic_ns(); }

#endif

// Both clocks at one moment: of a few readings the one with least time between.
inline ClockPair read_both_clocks(bool use_ticks) {
  ClockPair best{};
  std::uint64_t best_gap = ~0ULL;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const std::uint64_t before = ticks_after_acquire();
    const std::uint64_t now = monotonic_ns();
    const std::uint64_t gap = ticks_after_acquire() - before;
    if (gap < best_gap) {
      best_gap = gap;
      best = {use_ticks ? before + gap / 2 : now, now};
    }
  }
  return best;
}

}  // namespace workbench::spool
