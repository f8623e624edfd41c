#include "replayer/fill_pattern.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "core/errors.h"

namespace workbench {
namespace {

// Differs between neighbouring events and between neighbouring offsets; begins again after as many
// bytes as it has.
std::array<unsigned char, 256> pattern(std::size_t event) {
  const auto first = static_cast<unsigned char>(event * 0x9e3779b97f4a7c15ULL >> 56);
  std::array<unsigned char, 256> bytes;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<unsigned char>(first + i * 7);
  }
  return bytes;
}

}  // namespace

void FillPattern::fill(const Allocation& allocation, Bytes size, std::size_t event) {
  auto* const bytes = reinterpret_cast<unsigned char*>(allocation.address);
  const Filled block = {bytes, static_cast<std::size_t>(size), event};
  const auto wanted = pattern(event);
  for (std::size_t i = 0; i < block.size; i += wanted.size()) {
    std::memcpy(bytes + i, wanted.data(), std::min(wanted.size(), block.size - i));
  }
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
  const auto wanted = pattern(block.event);
  for (std::size_t i = 0; i < block.size; i += wanted.size()) {
    const std::size_t length = std::min(wanted.size(), block.size - i);
    if (std::memcmp(block.bytes + i, wanted.data(), length) == 0) continue;
    const auto* const differs =
        std::mismatch(block.bytes + i, block.bytes + i + length, wanted.data()).first;
    throw DamagedBlockError("the block allocated by event " + std::to_string(block.event) +
                            " is damaged at offset " + std::to_string(differs - block.bytes) +
                            " of " + std::to_string(block.size) + " bytes");
  }
}

}  // namespace workbench
