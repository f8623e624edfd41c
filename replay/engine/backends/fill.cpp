#include "backends/fill.h"

#include <algorithm>
#include <cstring>

namespace workbench {
namespace {

// The pattern begins again after as many bytes as this has.
std::array<unsigned char, 256> pattern_of(const FilledBlock& block) {
  std::array<unsigned char, 256> bytes;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<unsigned char>(block.first_byte() + i * kFillStep);
  }
  return bytes;
}

}  // namespace

void fill_bytes(const FilledBlock& block) {
  auto* const bytes = reinterpret_cast<unsigned char*>(block.address);
  const auto size = static_cast<std::size_t>(block.size);
  const auto wanted = pattern_of(block);
  for (std::size_t i = 0; i < size; i += wanted.size()) {
    std::memcpy(bytes + i, wanted.data(), std::min(wanted.size(), size - i));
  }
}

std::optional<Damage> find_damage(const FilledBlock& block) {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(block.address);
  const auto size = static_cast<std::size_t>(block.size);
  const auto wanted = pattern_of(block);
  for (std::size_t i = 0; i < size; i += wanted.size()) {
    const std::size_t length = std::min(wanted.size(), size - i);
    if (std::memcmp(bytes + i, wanted.data(), length) == 0) continue;
    const auto* const differs = std::mismatch(bytes + i, bytes + i + length, wanted.data()).first;
    return Damage{block, differs - bytes};
  }
  return std::nullopt;
}

}  // namespace workbench
