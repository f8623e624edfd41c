// What the system says about this process's memory.
#pragma once

#include <cstdint>

#include "core/units.h"

namespace workbench {

struct PageFaults {
  std::int64_t minor;
  std::int64_t major;
};

// Page faults so far of the calling thread, or of all threads of the process.
PageFaults page_faults(bool all_threads);

struct LockedMemory {
  Bytes bytes;  // that this process has locked
  Bytes limit;  // RLIMIT_MEMLOCK; the greatest number where there is none
};

LockedMemory locked_memory();

// Growth of the resident set since an object was made.
class ResidentGrowth {
 public:
  ResidentGrowth();
  // The most bytes by which the resident set has been larger than at the start. Where the system
  // lets nobody reset its high-water mark, growth below an earlier peak of the process is not seen.
  Bytes peak() const;

 private:
  Bytes start_;
};

}  // namespace workbench
