// How long calls of a driver took, by kind.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace workbench {

enum class DriverCall : std::uint8_t {
  kAlloc,
  kFree,
  kHostAlloc,
  kHostFree,
  kReserve,
  kUnreserve,
  kMap,
  kUnmap,
  kEventRecord,
  kEventQuery,
  kEventWait,
  kEventCreate,
  kEventDestroy,
  kStreamWait,
  kPoolAlloc,
  kPoolAllocGrown,  // of which the driver took memory from the device; told of a model only
  kPoolFree,
  kSynchronize,
  kGate,  // no allocator's: what holds a stream back
};

inline constexpr std::array<std::string_view, 19> kDriverCallNames = {
    "alloc",         "free",        "host_alloc", "host_free",
    "reserve",       "unreserve",   "map",        "unmap",
    "event_record",  "event_query", "event_wait", "event_create",
    "event_destroy", "stream_wait", "pool_alloc", "pool_alloc_grown",
    "pool_free",     "synchronize", "gate",
};

// Nanoseconds, kept so closely that a quantile is off by less than 1 % (below 128 ns: exact).
class Durations {
 public:
  void add(std::uint64_t nanoseconds) {
    ++counts_[bucket_of(nanoseconds)];
    ++count_;
    total_ += nanoseconds;
    longest_ = std::max(longest_, nanoseconds);
  }

  std::uint64_t count() const { return count_; }
  std::uint64_t total() const { return total_; }
  std::uint64_t longest() const { return longest_; }
  // The shortest time that at least this share of the calls did not pass; 0 without calls.
  std::uint64_t quantile(double share) const {
    const double wanted = share * static_cast<double>(count_);
    std::uint64_t seen = 0;
    for (std::size_t bucket = 0; bucket < counts_.size(); ++bucket) {
      seen += counts_[bucket];
      if (counts_[bucket] > 0 && static_cast<double>(seen) >= wanted) {
        return std::min(middle_of(bucket), longest_);
      }
    }
    return longest_;
  }

 private:
  // Each power of two is divided into 64 buckets; the first two powers of 64 are exact.
  static constexpr std::uint64_t kParts = 64;
  static std::size_t bucket_of(std::uint64_t value) {
    if (value < 2 * kParts) return value;
    const int shift = static_cast<int>(std::bit_width(value)) - 7;
    return static_cast<std::size_t>(shift) * kParts + (value >> shift);
  }
  static std::uint64_t middle_of(std::size_t bucket) {
    if (bucket < 2 * kParts) return bucket;
    const auto shift = static_cast<int>(bucket / kParts - 1);
    const std::uint64_t low = (bucket - static_cast<std::size_t>(shift) * kParts) << shift;
    return low + (std::uint64_t{1} << shift) / 2;
  }

  std::array<std::uint64_t, 59 * kParts> counts_{};
  std::uint64_t count_ = 0;
  std::uint64_t total_ = 0;
  std::uint64_t longest_ = 0;
};

// By DriverCall; empty where nothing was measured.
using DriverTimes = std::vector<Durations>;

}  // namespace workbench
