#include "cuda/address_ranges.h"

#include <iterator>
#include <mutex>
#include <string>

#include "core/errors.h"

namespace workbench::cuda {
namespace {

CUmemAllocationProp memory_of(int device) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

}  // namespace

AddressRanges::AddressRanges(Calls& calls, int device, bool several_threads)
    : calls_(calls), device_(device), lock_(several_threads) {}

AddressRanges::~AddressRanges() {
  for (auto& [start, range] : ranges_) {
    const Place all = {start, &range, 0, range.pages.size()};
    for (std::size_t page = 0; page < all.count; ++page) unmap_page(all, page);
    calls_.driver().unreserve(start, static_cast<std::size_t>(range.size));
  }
}

std::uint64_t AddressRanges::reserve(Bytes size, Bytes page) {
  const DriverFunctions& driver = calls_.driver();
  if (!driver.maps()) {
    throw UnavailableError(
        "this driver maps no memory into address ranges; replay without expandable segments, or "
        "install a newer driver");
  }
  const std::lock_guard guard(lock_);
  if (granularity_ == 0) {
    const CUmemAllocationProp properties = memory_of(device_);
    std::size_t found = 0;
    calls_.require("cuMemGetAllocationGranularity", calls_.make([&] {
      return driver.granularity(&found, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    }));
    granularity_ = static_cast<Bytes>(found);
  }
  if (page % granularity_ != 0) {
    throw UnavailableError("this device maps pages of " + std::to_string(granularity_) +
                           " bytes, of which " + std::to_string(page) + " is no multiple");
  }
  const Bytes whole = round_up(size, page);
  CUdeviceptr address = 0;
  const cudaError_t error = calls_.make(DriverCall::kReserve, [&] {
    return driver.reserve(&address, static_cast<std::size_t>(whole), 0, 0, 0);
  });
  if (!calls_.found_memory("cuMemAddressReserve", error)) return 0;
  Range& range = ranges_[address];
  range.size = whole;
  range.page = page;
  range.pages.resize(static_cast<std::size_t>(whole / page));
  return address;
}

void AddressRanges::unreserve(std::uint64_t address) {
  const std::lock_guard guard(lock_);
  const auto found = ranges_.find(address);
  calls_.keep("cuMemAddressFree", calls_.make(DriverCall::kUnreserve, [&] {
    return calls_.driver().unreserve(address, static_cast<std::size_t>(found->second.size));
  }));
  ranges_.erase(found);
}

AddressRanges::Place AddressRanges::find(std::uint64_t address, Bytes size) {
  const std::lock_guard guard(lock_);
  auto& [start, range] = *std::prev(ranges_.upper_bound(address));
  const auto page = static_cast<std::uint64_t>(range.page);
  return {start, &range, (address - start) / page,
          static_cast<std::size_t>((size + range.page - 1) / range.page)};
}

bool AddressRanges::map(std::uint64_t address, Bytes size) {
  const Place place = find(address, size);
  bool has_room = true;
  const cudaError_t error = calls_.make(DriverCall::kMap, [&] {
    std::size_t done = 0;
    while (done < place.count && has_room) {
      has_room = map_page(place, place.first + done);
      if (has_room) ++done;
    }
    if (!has_room) {
      while (done > 0) unmap_page(place, place.first + --done);
    } else {
      allow_access(place);
    }
    return cudaSuccess;
  });
  calls_.require("cuMemMap", error);
  return has_room;
}

bool AddressRanges::map_page(const Place& place, std::size_t page) {
  const DriverFunctions& driver = calls_.driver();
  const auto size = static_cast<std::size_t>(place.range->page);
  const CUmemAllocationProp properties = memory_of(device_);
  CUmemGenericAllocationHandle handle = 0;
  const auto created = static_cast<cudaError_t>(driver.create(&handle, size, &properties, 0));
  if (!calls_.found_memory("cuMemCreate", created)) return false;
  const auto mapped =
      static_cast<cudaError_t>(driver.map(place.start + page * size, size, 0, handle, 0));
  if (mapped != cudaSuccess) driver.release(handle);
  if (!calls_.found_memory("cuMemMap", mapped)) return false;
  place.range->pages[page] = handle;
  return true;
}

void AddressRanges::allow_access(const Place& place) {
  const auto page = static_cast<std::size_t>(place.range->page);
  CUmemAccessDesc access = {};
  access.location = memory_of(device_).location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  calls_.require("cuMemSetAccess",
                 static_cast<cudaError_t>(calls_.driver().set_access(
                     place.start + place.first * page, place.count * page, &access, 1)));
}

void AddressRanges::unmap_page(const Place& place, std::size_t page) {
  CUmemGenericAllocationHandle& handle = place.range->pages[page];
  if (handle == 0) return;
  const DriverFunctions& driver = calls_.driver();
  const auto size = static_cast<std::size_t>(place.range->page);
  calls_.keep("cuMemUnmap",
              static_cast<cudaError_t>(driver.unmap(place.start + page * size, size)));
  calls_.keep("cuMemRelease", static_cast<cudaError_t>(driver.release(handle)));
  handle = 0;
}

void AddressRanges::unmap(std::uint64_t address, Bytes size) {
  const Place place = find(address, size);
  calls_.make(DriverCall::kUnmap, [&] {
    for (std::size_t i = 0; i < place.count; ++i) unmap_page(place, place.first + i);
    return cudaSuccess;
  });
}

}  // namespace workbench::cuda
