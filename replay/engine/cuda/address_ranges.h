// Ranges of addresses that are given memory page by page.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/lock.h"
#include "core/units.h"
#include "cuda/calls.h"

namespace workbench::cuda {

class AddressRanges {
 public:
  AddressRanges(Calls& calls, int device, bool several_threads);
  // Gives back what is left of them.
  ~AddressRanges();
  AddressRanges(const AddressRanges&) = delete;
  AddressRanges& operator=(const AddressRanges&) = delete;

  // Address of a range without memory, to be mapped in multiples of `page`; 0 where there is no
  // room. Throws UnavailableError where the driver cannot.
  std::uint64_t reserve(Bytes size, Bytes page);
  void unreserve(std::uint64_t address);
  // Each page has memory of its own, so that any can be taken away again; false, and nothing
  // mapped, where there is no room for all.
  bool map(std::uint64_t address, Bytes size);
  void unmap(std::uint64_t address, Bytes size);

 private:
  struct Range {
    Bytes size;  // as reserved
    Bytes page;
    std::vector<CUmemGenericAllocationHandle> pages;  // 0: not mapped
  };
  struct Place {
    std::uint64_t start;
    Range* range;
    std::size_t first;  // page
    std::size_t count;
  };

  Place find(std::uint64_t address, Bytes size);
  bool map_page(const Place& place, std::size_t page);
  void unmap_page(const Place& place, std::size_t page);
  void allow_access(const Place& place);

  Calls& calls_;
  const int device_;
  Bytes granularity_ = 0;  // 0: not asked for yet
  Lock lock_;              // around what follows; a range itself is one thread's
  std::map<std::uint64_t, Range> ranges_;
};

}  // namespace workbench::cuda
