// Whether a pickle holds plain data and nothing else, found out without making any of it.
#pragma once

#include <cstdint>
#include <string_view>

namespace workbench {

// Throws std::invalid_argument with what is wrong and at which byte, unless `pickle` is one of
// protocol 2 to 5 that makes only dictionaries, lists, tuples, strings, bytes, numbers, true, false
// and None, in memory in proportion to its own length: no calls, no lengths or memo places out of
// thin air, no keys that are not plain, nothing that holds itself, nothing deeper than
// `kDeepestPickle`.
void CheckPickle(std::string_view pickle);

inline constexpr std::uint32_t kDeepestPickle = 64;

}  // namespace workbench
