// A running 64-bit hash of decisions: equal decisions in equal order give equal digests.
#pragma once

#include <cstdint>
#include <string>

namespace workbench {

class Digest {
 public:
  void add(std::uint64_t value) {
    // The mixing of splitmix64, chained.
    std::uint64_t x = state_ + value + 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    state_ = x ^ (x >> 27);
  }

  // 16 hexadecimal digits.
  std::string hex() const {
    std::string text(16, '0');
    for (int i = 0; i < 16; ++i)
      text[15 - static_cast<unsigned>(i)] = "0123456789abcdef"[(state_ >> (4 * i)) & 15];
    return text;
  }

 private:
  std::uint64_t state_ = 0;
};

}  // namespace workbench
