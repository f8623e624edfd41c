// Bytes that tell whose block they are, to find out whether anyone else wrote to it.
#pragma once

#include <cstddef>
#include <unordered_map>

#include "allocators/allocator.h"
#include "core/units.h"

namespace workbench {

class FillPattern {
 public:
  // Fills the block's requested bytes with a pattern of the event that allocated it.
  void fill(const Allocation& allocation, Bytes size, std::size_t event);
  // The event that a filled block was allocated by.
  std::size_t event_of(const void* handle) const { return filled_.at(handle).event; }
  // Throws DamagedBlockError, naming event and offset, where a byte is not what fill() wrote.
  void check(const void* handle);
  // Checks every block that is still filled.
  void check_all() const;

 private:
  struct Filled {
    unsigned char* bytes;
    std::size_t size;
    std::size_t event;
  };
  static void check(const Filled& block);

  std::unordered_map<const void*, Filled> filled_;
};

}  // namespace workbench
