// Bytes that tell whose block they are, and what became of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "core/units.h"

namespace workbench {

// A block of the program's that is filled.
struct FilledBlock {
  std::uint64_t address;
  Bytes size;         // as requested
  std::size_t event;  // of the trace, that allocated it

  // Byte i of the pattern is this + i · kFillStep, modulo 256: it differs between neighbouring
  // events and between neighbouring offsets.
  unsigned char first_byte() const {
    return static_cast<unsigned char>(event * 0x9e3779b97f4a7c15ULL >> 56);
  }
};
inline constexpr unsigned kFillStep = 7;

// A byte that is not what was filled in.
struct Damage {
  FilledBlock block;
  Bytes offset;  // of the first
};

// Where the processor can write and read.
void fill_bytes(const FilledBlock& block);
std::optional<Damage> find_damage(const FilledBlock& block);

}  // namespace workbench
