// What PYTORCH_ALLOC_CONF says to the caching allocator. Rules: docs/allocators.md.
#pragma once

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "core/settings.h"
#include "core/units.h"

namespace workbench::caching {

inline constexpr Bytes kNoLimit = std::numeric_limits<Bytes>::max();

struct CachingSettings {
  Bytes large_segment = 20 * kMiB;
  Bytes max_split = kNoLimit;
  Bytes max_non_split_rounding = 20 * kMiB;
  double garbage_collection_threshold = 0;  // 0: off
  double memory_fraction = 1;
  // By slot of a size: floor(log2(bytes)) − 20, clamped; 0 or 1: sizes are not rounded further.
  std::array<Bytes, 16> roundup_divisions{};
  bool expandable_segments = false;
  bool throw_on_oom = false;
  bool reuses_in_capture = false;
  // Before mid-2026 PyTorch broke ties between free blocks of a size by their addresses, and not
  // by the numbers of their segments.
  bool address_order = false;
  // One sentence each: settings that do nothing here, or are known to hurt.
  std::vector<std::string> warnings;

  // Throws InputError for a value that PyTorch refuses, or that it would read as another than was
  // written (128.5 as 128).
  explicit CachingSettings(const Settings& settings);

  bool rounds_up() const { return rounds_up_; }
  Bytes divisions_of(Bytes size) const;

 private:
  bool rounds_up_ = false;  // whether any slot has more than one division
};

const std::vector<SettingHelp>& caching_settings_help();

}  // namespace workbench::caching
