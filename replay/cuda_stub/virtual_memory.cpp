// Ranges of addresses that are given memory piece by piece: the driver's cuMem… functions.
#include <sys/mman.h>

#include "device.h"

namespace cuda_stub {
namespace {

// Memory without an address, as cuMemCreate makes it. What `is_counted` is the host's to count.
struct Handle {
  std::uint64_t bytes;
  int device;
  bool is_mapped;
  bool is_released;  // given back as soon as it is unmapped
};

struct Piece {
  std::uint64_t bytes;
  Handle* handle;
  bool is_accessible;
};

std::map<std::uintptr_t, std::uint64_t> ranges;
std::map<std::uintptr_t, Piece> pieces;
std::uint64_t promised = 0;  // bytes of handles that the host does not know of yet

bool create(std::uint64_t bytes, int device) {
  if (host() == nullptr) return claim(bytes, device);
  const std::uint64_t used = used_bytes(device) + promised;
  if (bytes > host()->capacity || used > host()->capacity - bytes) return false;
  promised += bytes;
  return true;
}

void destroy(Handle* handle) {
  if (host() == nullptr) {
    unclaim(handle->bytes, handle->device);
  } else {
    promised -= handle->bytes;
  }
  delete handle;
}

// Puts memory behind a piece: with a host it is only here that there is any.
bool make_accessible(std::uintptr_t address, Piece& piece) {
  if (piece.is_accessible) return true;
  auto* const memory = reinterpret_cast<void*>(address);
  if (host() != nullptr) {
    if (host()->map(host()->context, memory, piece.bytes) == 0) return false;
    promised -= piece.bytes;
  } else if (device().has_memory && mprotect(memory, piece.bytes, PROT_READ | PROT_WRITE) != 0) {
    return false;
  }
  piece.is_accessible = true;
  return true;
}

void unmap(std::uintptr_t address, Piece& piece) {
  auto* const memory = reinterpret_cast<void*>(address);
  if (piece.is_accessible && host() != nullptr) {
    host()->unmap(host()->context, memory, piece.bytes);
    promised += piece.bytes;
  } else if (piece.is_accessible && device().has_memory) {
    mmap(memory, piece.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
  }
  piece.handle->is_mapped = false;
  if (piece.handle->is_released) destroy(piece.handle);
}

std::uintptr_t reserve(std::uint64_t bytes) {
  if (host() != nullptr) {
    return reinterpret_cast<std::uintptr_t>(host()->reserve(host()->context, bytes));
  }
  if (!device().has_memory) return next_addresses(bytes);
  // Aligned to pages: more is taken, and what is too much given back.
  void* const memory =
      mmap(nullptr, bytes + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return 0;
  const auto taken = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t start = round_up(taken, kPage);
  if (start > taken) munmap(memory, start - taken);
  const std::uint64_t rest = taken + kPage - start;
  if (rest > 0) munmap(reinterpret_cast<void*>(start + bytes), rest);
  return start;
}

// Calls `visit` for each piece in bytes from `address` on; false where they are not wholly covered.
template <class Visit>
bool for_each_piece(CUdeviceptr address, size_t bytes, Visit visit) {
  std::uintptr_t next = address;
  while (next < address + bytes) {
    const auto found = pieces.find(next);
    if (found == pieces.end() || found->second.bytes > address + bytes - next) return false;
    next += found->second.bytes;
    if (!visit(found)) return false;
  }
  return true;
}

}  // namespace

void forget_ranges() {
  for (const auto& [address, piece] : pieces) delete piece.handle;
  pieces.clear();
  ranges.clear();
  promised = 0;
}

}  // namespace cuda_stub

using namespace cuda_stub;

extern "C" {

size_t wb_cuda_stub_ranges() {
  const std::lock_guard guard(mutex());
  return ranges.size();
}

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr,
                             unsigned long long) {
  CUDA_STUB_ENTER();
  if (bytes == 0 || bytes % kPage != 0) return CUDA_ERROR_INVALID_VALUE;
  *address = reserve(bytes);
  if (*address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  ranges[*address] = bytes;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  CUDA_STUB_ENTER();
  const auto found = ranges.find(address);
  if (found == ranges.end() || found->second != bytes) return CUDA_ERROR_INVALID_VALUE;
  const auto piece = pieces.lower_bound(address);
  if (piece != pieces.end() && piece->first < address + bytes) return CUDA_ERROR_INVALID_VALUE;
  auto* const memory = reinterpret_cast<void*>(static_cast<std::uintptr_t>(address));
  if (host() != nullptr) {
    host()->unreserve(host()->context, memory, bytes);
  } else if (device().has_memory) {
    munmap(memory, bytes);
  }
  ranges.erase(found);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                     const CUmemAllocationProp* properties, unsigned long long) {
  CUDA_STUB_ENTER();
  if (bytes == 0 || bytes % kPage != 0) return CUDA_ERROR_INVALID_VALUE;
  if ((properties->requestedHandleTypes & CU_MEM_HANDLE_TYPE_FABRIC) != 0) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  const int on = properties->location.id;
  if (on < 0 || on >= kMostDevices) return CUDA_ERROR_INVALID_DEVICE;
  if (!create(bytes, on)) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = reinterpret_cast<CUmemGenericAllocationHandle>(new Handle{bytes, on, false, false});
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  CUDA_STUB_ENTER();
  auto* const released = reinterpret_cast<Handle*>(handle);
  released->is_released = true;
  if (!released->is_mapped) destroy(released);
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long) {
  CUDA_STUB_ENTER();
  auto* const mapped = reinterpret_cast<Handle*>(handle);
  // A handle is mapped once and whole here.
  if (offset != 0 || bytes != mapped->bytes || mapped->is_mapped) return CUDA_ERROR_NOT_SUPPORTED;
  auto range = ranges.upper_bound(address);
  if (range == ranges.begin()) return CUDA_ERROR_INVALID_VALUE;
  --range;
  if (address + bytes > range->first + range->second) return CUDA_ERROR_INVALID_VALUE;
  auto after = pieces.lower_bound(address);
  if (after != pieces.end() && after->first < address + bytes) return CUDA_ERROR_INVALID_VALUE;
  if (after != pieces.begin()) {
    --after;
    if (after->first + after->second.bytes > address) return CUDA_ERROR_INVALID_VALUE;
  }
  pieces[address] = {bytes, mapped, false};
  mapped->is_mapped = true;
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc*, size_t) {
  CUDA_STUB_ENTER();
  bool has_room = true;
  const bool covered = for_each_piece(address, bytes, [&](auto piece) {
    has_room = make_accessible(piece->first, piece->second);
    return has_room;
  });
  if (!has_room) return CUDA_ERROR_OUT_OF_MEMORY;
  return covered ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  CUDA_STUB_ENTER();
  const bool covered = for_each_piece(address, bytes, [&](auto piece) {
    unmap(piece->first, piece->second);
    pieces.erase(piece);
    return true;
  });
  return covered ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*,
                                       CUmemAllocationGranularity_flags) {
  CUDA_STUB_ENTER();
  *bytes = kPage;
  return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange(CUdeviceptr* start, size_t* bytes, CUdeviceptr address) {
  CUDA_STUB_ENTER();
  auto range = ranges.upper_bound(address);
  if (range == ranges.begin()) return CUDA_ERROR_NOT_FOUND;
  --range;
  if (address >= range->first + range->second) return CUDA_ERROR_NOT_FOUND;
  if (start != nullptr) *start = range->first;
  if (bytes != nullptr) *bytes = range->second;
  return CUDA_SUCCESS;
}

}  // extern "C"
