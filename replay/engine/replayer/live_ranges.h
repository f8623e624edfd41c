// Holds what an allocator hands out to what memory must be: aligned, and nobody else's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "allocators/allocator.h"
#include "core/units.h"

namespace workbench {

class LiveRanges {
 public:
  // Throws LibraryFaultError, naming events.
  void add(const Allocation& allocation, Bytes size, Bytes alignment, std::size_t event);
  void remove(std::uint64_t address);

 private:
  struct Range {
    std::uint64_t end;
    std::size_t event;
  };
  std::map<std::uint64_t, Range> live_;  // by first address
};

}  // namespace workbench
