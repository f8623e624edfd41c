// What PYTORCH_ALLOC_CONF says to the caching pinned-host allocator. Rules: docs/allocators.md.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "core/settings.h"
#include "core/units.h"

namespace workbench {

struct HostPinnedSettings {
  static constexpr Bytes kNoLimit = std::numeric_limits<Bytes>::max();

  bool best_fit = false;           // as older releases did
  Bytes max_round = kNoLimit;      // a larger request is not rounded
  Bytes max_cached = kNoLimit;     // a larger block is not cached
  Bytes reserve = 0;               // bytes of the reserve segment; 0: none
  bool background_events = false;  // a thread of its own looks whether CUDA events have completed
  bool registers = false;          // memory is taken from the system, and pinned by the driver then
  // One sentence each: settings that do nothing here, or are known to hurt.
  std::vector<std::string> warnings;

  // Throws InputError for a value that PyTorch refuses, or would read as another. `is_hardware`:
  // whether a driver pins the memory.
  HostPinnedSettings(const Settings& settings, bool is_hardware);
};

const std::vector<SettingHelp>& host_pinned_settings_help();

}  // namespace workbench
