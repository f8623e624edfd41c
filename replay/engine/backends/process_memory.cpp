#include "backends/process_memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace workbench {
namespace {

// A field of /proc/self/status in bytes; 0 where it is missing.
Bytes status_field(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) * kKiB;
  }
  return 0;
}

}  // namespace

PageFaults page_faults(bool all_threads) {
  rusage usage{};
  getrusage(all_threads ? RUSAGE_SELF : RUSAGE_THREAD, &usage);
  return {usage.ru_minflt, usage.ru_majflt};
}

LockedMemory locked_memory() {
  constexpr Bytes kGreatest = std::numeric_limits<Bytes>::max();
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  return {status_field("VmLck"),
          limit.rlim_cur == RLIM_INFINITY
              ? kGreatest
              : static_cast<Bytes>(std::min<rlim_t>(limit.rlim_cur, kGreatest))};
}

ResidentGrowth::ResidentGrowth() {
  // 5 resets the high-water mark of the resident set to its present size.
  std::ofstream("/proc/self/clear_refs") << "5";
  start_ = status_field("VmRSS");
}

Bytes ResidentGrowth::peak() const { return std::max<Bytes>(0, status_field("VmHWM") - start_); }

}  // namespace workbench
