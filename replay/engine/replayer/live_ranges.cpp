#include "replayer/live_ranges.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>

#include "core/errors.h"

namespace workbench {
namespace {

std::string hexadecimal(std::uint64_t address) {
  char text[2 + 16 + 1];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(address));
  return text;
}

}  // namespace

void LiveRanges::add(const Allocation& allocation, Bytes size, Bytes alignment, std::size_t event) {
  const std::uint64_t start = allocation.address;
  const std::uint64_t end = start + static_cast<std::uint64_t>(std::max<Bytes>(size, 1));
  const std::string what =
      "the " + std::to_string(size) + " bytes of event " + std::to_string(event);
  if (start % static_cast<std::uint64_t>(alignment) != 0) {
    throw LibraryFaultError("misaligned memory: " + what + " begin at " + hexadecimal(start) +
                            ", which is no multiple of " + std::to_string(alignment));
  }
  const auto overlaps = [&](const auto& other) {
    const std::string whose = " of event " + std::to_string(other.second.event);
    if (other.first == start) {
      throw LibraryFaultError("memory handed out twice: " + what + " begin where the live block" +
                              whose + " does");
    }
    throw LibraryFaultError("overlapping memory: " + what + " lie at " + hexadecimal(start) +
                            ", in the live block" + whose + " at " + hexadecimal(other.first));
  };
  const auto next = live_.lower_bound(start);
  if (next != live_.end() && next->first < end) overlaps(*next);
  if (next != live_.begin() && std::prev(next)->second.end > start) overlaps(*std::prev(next));
  live_.emplace_hint(next, start, Range{end, event});
}

void LiveRanges::remove(std::uint64_t address) { live_.erase(address); }

}  // namespace workbench
