// What backends promise: memory that is really there, given back, and counted.
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "check.h"
#include "cuda_kernels.h"

namespace {

using namespace workbench;

std::unique_ptr<Backend> make(const char* name, Bytes capacity = kUnlimited) {
  return backend_registry().get(name).create({.capacity = capacity});
}

// The permissions of the page at an address, as in rw-p; empty where nothing is mapped.
std::string permissions(std::uint64_t address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::size_t dash = 0;
    const std::uint64_t begin = std::stoull(line, &dash, 16);
    std::size_t space = 0;
    const std::uint64_t end = std::stoull(line.substr(dash + 1), &space, 16);
    if (begin <= address && address < end) return line.substr(dash + 1 + space + 1, 4);
  }
  return "";
}

// Pages of a range that the system holds memory for.
std::size_t resident_pages(std::uint64_t address, Bytes size) {
  const auto length = static_cast<std::size_t>(size);
  std::vector<unsigned char> pages(length / static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) + 1);
  if (mincore(reinterpret_cast<void*>(address), length, pages.data()) != 0) return 0;
  std::size_t count = 0;
  for (const unsigned char page : pages) count += page & 1;
  return count;
}

TEST(host_memory_can_be_used_where_it_is_mapped_and_nowhere_else) {
  const auto host = make("host");
  constexpr Bytes kRange = 64 * kMiB;
  constexpr Bytes kPage = 2 * kMiB;
  const std::uint64_t range = host->reserve(kRange);
  CHECK(range != 0 && host->used() == 0);
  CHECK(permissions(range) == "---p" && permissions(range + kRange - 1) == "---p");

  const std::uint64_t piece = range + 4 * kPage;
  CHECK(host->map(piece, 2 * kPage));
  CHECK(host->used() == 2 * kPage && host->last_faulted());
  CHECK(permissions(piece) == "rw-p" && permissions(piece + 2 * kPage - 1) == "rw-p");
  CHECK(permissions(piece - 1) == "---p" && permissions(piece + 2 * kPage) == "---p");
  // It is there already: a program does not meet page faults that a device would not have.
  const auto pages = static_cast<std::size_t>(2 * kPage / sysconf(_SC_PAGESIZE));
  CHECK(resident_pages(piece, 2 * kPage) == pages);
  auto* const bytes = reinterpret_cast<volatile unsigned char*>(piece);
  for (Bytes i = 0; i < 2 * kPage; ++i) bytes[i] = static_cast<unsigned char>(i * 7);
  bool all_kept = true;
  for (Bytes i = 0; i < 2 * kPage; ++i) all_kept &= bytes[i] == static_cast<unsigned char>(i * 7);
  CHECK(all_kept);

  // Half of it goes; the other half keeps its bytes.
  host->unmap(piece, kPage);
  CHECK(host->used() == kPage);
  CHECK(permissions(piece) == "---p" && permissions(piece + kPage) == "rw-p");
  CHECK(resident_pages(piece, kPage) == 0);
  CHECK(bytes[kPage + 3] == static_cast<unsigned char>((kPage + 3) * 7));
  // What comes back is fresh.
  CHECK(host->map(piece, kPage));
  CHECK(bytes[0] == 0 && bytes[kPage - 1] == 0);

  host->unmap(piece, 2 * kPage);
  host->unreserve(range, kRange);
  CHECK(host->used() == 0);
  CHECK(permissions(piece) != "rw-p");
  const DriverCalls& calls = host->driver_calls();
  CHECK(calls.map == 2 && calls.unmap == 2 && calls.alloc == 0 && calls.refused == 0);
}

TEST(host_memory_that_is_released_is_the_systems_again) {
  const auto host = make("host");
  const std::uint64_t address = host->allocate(8 * kMiB);
  CHECK(address % kHostAlignment == 0 && permissions(address) == "rw-p");
  reinterpret_cast<volatile char*>(address)[8 * kMiB - 1] = 1;
  host->release(address, 8 * kMiB);
  CHECK(permissions(address) != "rw-p" || resident_pages(address, 8 * kMiB) == 0);
}

TEST(a_piece_is_mapped_entirely_or_not_at_all) {
  for (const BackendEntry& entry : backend_registry().entries()) {
    if (!entry.unavailable().empty()) continue;
    const auto backend = make(entry.name.c_str(), 10 * kMiB);
    const std::uint64_t range =
        backend->reserve(64 * kMiB);  // may pass the capacity: only addresses
    CHECK(range != 0);
    CHECK(backend->map(range, 8 * kMiB));
    CHECK(!backend->map(range + 8 * kMiB, 4 * kMiB));
    CHECK(backend->used() == 8 * kMiB && backend->driver_calls().refused == 1);
    if (backend->has_memory()) {
      CHECK(permissions(range + static_cast<std::uint64_t>(8 * kMiB)) == "---p");
    }
    CHECK(backend->map(range + 8 * kMiB, 2 * kMiB));
    CHECK(backend->allocate(2 * kMiB) == 0);
    backend->unmap(range, 10 * kMiB);
    CHECK(backend->used() == 0 && backend->total() == 10 * kMiB);
    backend->unreserve(range, 64 * kMiB);
  }
}

TEST(a_simulated_device_gives_out_2_MiB_at_a_time_and_no_address_twice) {
  const auto device = make("simulated", 8 * kMiB);
  const std::uint64_t first = device->allocate(3 * kMiB);
  CHECK(first % kDeviceAlignment == 0 && device->used() == 4 * kMiB);
  device->release(first, 3 * kMiB);
  CHECK(device->used() == 0);
  const std::uint64_t second = device->allocate(512);
  CHECK(second >= first + 4 * kMiB && device->used() == 512);
  const std::uint64_t range = device->reserve(64 * kMiB);
  CHECK(range > second && range % kDeviceAlignment == 0);
  CHECK(device->allocate(2 * kMiB) >= range + 64 * kMiB);
  CHECK(device->allocate(8 * kMiB) == 0 && device->driver_calls().refused == 1);
  CHECK(device->reserve(kEiB) == 0);
}

}  // namespace

int main() { return check::run(); }
