// Our kernels as functions of this machine, for the stand-in for the CUDA runtime that has its
// memory here: loading this library registers them.
#include <cuda_stub.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace {

template <class Value>
Value argument(void** arguments, std::size_t number) {
  Value value;
  std::memcpy(&value, arguments[number], sizeof value);
  return value;
}

// 256 bytes after which the pattern begins again.
std::array<unsigned char, 256> pattern(unsigned first, unsigned step) {
  std::array<unsigned char, 256> bytes;
  for (unsigned i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<unsigned char>(first + i * step);
  }
  return bytes;
}

void fill(void** arguments, const std::uint32_t*, const std::uint32_t*) {
  auto* const bytes = argument<unsigned char*>(arguments, 0);
  const auto size = argument<std::uint64_t>(arguments, 1);
  const auto wanted = pattern(argument<unsigned>(arguments, 2), argument<unsigned>(arguments, 3));
  for (std::uint64_t i = 0; i < size; i += wanted.size()) {
    std::memcpy(bytes + i, wanted.data(), std::min<std::uint64_t>(wanted.size(), size - i));
  }
}

void verify(void** arguments, const std::uint32_t*, const std::uint32_t*) {
  const auto* const bytes = argument<const unsigned char*>(arguments, 0);
  const auto size = argument<std::uint64_t>(arguments, 1);
  const auto wanted = pattern(argument<unsigned>(arguments, 2), argument<unsigned>(arguments, 3));
  auto& damaged = *argument<std::uint64_t*>(arguments, 4);
  for (std::uint64_t i = 0; i < size; i += wanted.size()) {
    const std::uint64_t length = std::min<std::uint64_t>(wanted.size(), size - i);
    if (std::memcmp(bytes + i, wanted.data(), length) == 0) continue;
    const auto* const differs = std::mismatch(bytes + i, bytes + i + length, wanted.data()).first;
    damaged = std::min(damaged, static_cast<std::uint64_t>(differs - bytes));
    return;
  }
}

// Time does not pass on a device that is not there.
void busy(void**, const std::uint32_t*, const std::uint32_t*) {}

template <std::size_t kCount>
void add(const char* name, wb_cuda_stub_run run, const std::size_t (&sizes)[kCount]) {
  wb_cuda_stub_kernel(name, run, sizes, kCount);
}

const bool registered = [] {
  add("wb_fill", fill, {8, 8, 4, 4});
  add("wb_verify", verify, {8, 8, 4, 4, 8});
  add("wb_busy", busy, {8});
  return true;
}();

}  // namespace
