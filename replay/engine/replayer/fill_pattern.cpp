#include "replayer/fill_pattern.h"

#include <string>

#include "core/errors.h"

namespace workbench {
namespace {

// Differs between neighbouring events and between neighbouring offsets.
unsigned char pattern(std::size_t event, std::size_t offset) {
  return static_cast<unsigned char>((event * 0x9e3779b97f4a7c15ULL >> 56) + offset * 7);
}

}  // namespace

void FillPattern::fill(const Allocation& allocation, Bytes size, std::size_t event) {
  auto* const bytes = reinterpret_cast<unsigned char*>(allocation.address);
  const Filled block = {bytes, static_cast<std::size_t>(size), event};
  for (std::size_t i = 0; i < block.size; ++i) bytes[i] = pattern(event, i);
  filled_[allocation.handle] = block;
}

void FillPattern::check(const void* handle) {
  const auto found = filled_.find(handle);
  check(found->second);
  filled_.erase(found);
}

void FillPattern::check_all() const {
  for (const auto& [handle, block] : filled_) check(block);
}

void FillPattern::check(const Filled& block) {
  for (std::size_t i = 0; i < block.size; ++i) {
    if (block.bytes[i] != pattern(block.event, i)) {
      throw DamagedBlockError("the block allocated by event " + std::to_string(block.event) +
                              " is damaged at offset " + std::to_string(i) + " of " +
                              std::to_string(block.size) + " bytes");
    }
  }
}

}  // namespace workbench
