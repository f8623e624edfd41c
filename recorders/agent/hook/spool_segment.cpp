#include "spool_segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <new>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace workbench::spool {
namespace {

// Zeros are there already, but written in large pieces they make large folios in the page cache,
// and mapping those costs a fifth of what page faults on an empty file do.
int write_zeros(int file, std::size_t bytes) {
  static std::byte zeros[std::size_t{64} << 10];  // only read, so never more than one zero page
  iovec pieces[16];
  for (iovec& piece : pieces) piece = {zeros, sizeof zeros};
  for (std::size_t at = 0; at < bytes;) {
    const std::size_t count =
        std::clamp((bytes - at) / sizeof zeros, std::size_t{1}, std::size_t{16});
    if (count == 1) pieces[0].iov_len = std::min(bytes - at, sizeof zeros);
    const ssize_t written = pwritev(file, pieces, static_cast<int>(count), static_cast<off_t>(at));
    if (written <= 0) return written < 0 ? errno : ENOSPC;
    at += static_cast<std::size_t>(written);
  }
  return 0;
}

// Page faults on a file are dear: take them here, in one go, not one by one in the program's path.
void prefault(std::byte* base, std::size_t bytes) {
  if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0) return;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (std::size_t at = 0; at < bytes; at += page)
    *static_cast<volatile std::byte*>(base + at) = {};
}

}  // namespace

void* map_file(int in_folder, const char* name, std::size_t bytes, int* error) {
  const int file = openat(in_folder, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) {
    *error = errno;
    return nullptr;
  }
  // Allocated, not only made longer: a full disk is an error here, not a SIGBUS at a store later.
  *error = posix_fallocate(file, 0, static_cast<off_t>(bytes));
  if (*error == 0) *error = write_zeros(file, bytes);
  void* base = MAP_FAILED;
  if (*error == 0) {
    base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED) *error = errno;
  }
  close(file);
  if (base != MAP_FAILED) {
    prefault(static_cast<std::byte*>(base), bytes);
    return base;
  }
  unlinkat(in_folder, name, 0);
  return nullptr;
}

Segment* make_segment(int in_folder, std::uint64_t number, std::size_t bytes, StopReason* reason) {
  char name[32];
  snprintf(name, sizeof name, "events-%llu", static_cast<unsigned long long>(number));
  int error = 0;
  auto* const base = static_cast<std::byte*>(map_file(in_folder, name, bytes, &error));
  if (base == nullptr) {
    *reason = error == ENOSPC || error == EDQUOT ? StopReason::kDiskFull : StopReason::kOther;
    return nullptr;
  }
  auto* const segment = new (std::nothrow) Segment{};
  if (segment == nullptr) {
    munmap(base, bytes);
    *reason = StopReason::kOther;
    return nullptr;
  }
  segment->base = base;
  segment->bytes = bytes;
  segment->next = reinterpret_cast<Record*>(base + sizeof(SegmentHeader));
  SegmentHeader* const header = header_of(segment);
  header->version = kVersion;
  header->thread = ~0U;
  header->sequence = number;
  return segment;
}

Record* end_of(const Segment* segment) {
  const std::size_t records = (segment->bytes - sizeof(SegmentHeader)) / sizeof(Record);
  return reinterpret_cast<Record*>(segment->base + sizeof(SegmentHeader)) + records;
}

SegmentHeader* header_of(const Segment* segment) {
  return reinterpret_cast<SegmentHeader*>(segment->base);
}

void finish(Segment* segment) {
  std::atomic_ref(header_of(segment)->closed).store(1, std::memory_order_release);
  drop(segment);
}

void drop(Segment* segment) {
  munmap(segment->base, segment->bytes);
  delete segment;
}

}  // namespace workbench::spool
