// Bytes, and the roundings of them that allocators use.
#pragma once

#include <cstdint>

namespace workbench {

using Bytes = std::int64_t;
using StreamId = std::int32_t;
using ThreadId = std::int32_t;
using PoolId = std::int32_t;

inline constexpr Bytes kKiB = Bytes{1} << 10;
inline constexpr Bytes kMiB = Bytes{1} << 20;
inline constexpr Bytes kGiB = Bytes{1} << 30;
inline constexpr Bytes kEiB = Bytes{1} << 60;

// Every block on a device is a multiple of this, and starts at one.
inline constexpr Bytes kDeviceAlignment = 512;
// A device maps memory in pages of this.
inline constexpr Bytes kDevicePage = 2 * kMiB;
// PyTorch's alignment of CPU memory.
inline constexpr Bytes kHostAlignment = 64;

// `size` up to a multiple of `unit`; `size` + `unit` must not pass 2^63.
constexpr Bytes round_up(Bytes size, Bytes unit) { return (size + unit - 1) / unit * unit; }

}  // namespace workbench
