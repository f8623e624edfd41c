#include "allocators/host_pinned_settings.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <string_view>

#include "core/errors.h"

namespace workbench {
namespace {

constexpr std::string_view kRound = "pinned_max_round_threshold_mb";
constexpr std::string_view kCached = "pinned_max_cached_size_mb";
constexpr std::string_view kReserve = "pinned_reserve_segment_size_mb";
constexpr std::string_view kBackground = "pinned_use_background_threads";
constexpr std::string_view kRegister = "pinned_use_cuda_host_register";
constexpr std::string_view kRegisterThreads = "pinned_num_register_threads";
constexpr std::int64_t kMostRegisterThreads = 128;

std::optional<Bytes> mebibytes(const Settings& settings, std::string_view key,
                               std::int64_t lowest) {
  const auto count = settings.whole_number(key, lowest);
  if (!count) return std::nullopt;
  return std::min(*count, kEiB / kMiB) * kMiB;
}

}  // namespace

HostPinnedSettings::HostPinnedSettings(const Settings& settings, bool is_hardware) {
  if (const auto policy = settings.find("policy")) {
    best_fit = *policy == "best-fit";
    if (!best_fit && *policy != "power-of-two") {
      settings.refuse("policy", "give power-of-two or best-fit");
    }
  }
  max_round = mebibytes(settings, kRound, 0).value_or(kNoLimit);
  max_cached = mebibytes(settings, kCached, 0).value_or(kNoLimit);
  reserve = mebibytes(settings, kReserve, 1).value_or(0);
  background_events = settings.boolean(kBackground).value_or(false);
  registers = settings.boolean(kRegister).value_or(false);
  if (const auto threads = settings.whole_number(kRegisterThreads, 1)) {
    if (*threads > kMostRegisterThreads ||
        !std::has_single_bit(static_cast<std::uint64_t>(*threads))) {
      settings.refuse(kRegisterThreads, "give a power of two from 1 to 128");
    }
  }

  if (settings.find(kRegister) && !is_hardware) {
    warnings.push_back(std::string(kRegister) +
                       " says how CUDA's driver pins memory, which this backend does not do: it "
                       "does nothing");
  }
  if (settings.find(kRegisterThreads)) {
    warnings.push_back(std::string(kRegisterThreads) +
                       " says how many threads touch memory before it is pinned, which here is the "
                       "system's work: it does nothing");
  }
  if (best_fit) {
    for (const std::string_view key : {kRound, kCached, kReserve, kBackground}) {
      if (settings.find(key)) {
        warnings.push_back(std::string(key) +
                           " does nothing with policy:best-fit: the releases that had it knew no "
                           "such setting");
      }
    }
    max_round = max_cached = kNoLimit;
    reserve = 0;
    background_events = false;
  } else if (max_round < max_cached) {
    warnings.push_back(
        "pinned_max_round_threshold_mb below pinned_max_cached_size_mb makes PyTorch 2.13 hand out "
        "cached blocks that are smaller than the request; here they are never");
  }
}

const std::vector<SettingHelp>& host_pinned_settings_help() {
  static const std::vector<SettingHelp> help = {
      {"policy",
       "of ours, not PyTorch's: power-of-two, as torch 2.13, or best-fit for older releases; "
       "power-of-two by default"},
      {std::string(kRound),
       "in MiB; larger requests are not rounded to a power of two; no limit by default"},
      {std::string(kCached), "in MiB; larger blocks are not cached; no limit by default"},
      {std::string(kReserve),
       "in MiB; pinned at once with the first request, to serve the others from: 1 or more; none "
       "by "
       "default"},
      {std::string(kBackground),
       "True: a thread of its own looks whether CUDA events have completed; False by default"},
      {std::string(kRegister),
       "True or False; with True, on the backend cuda, memory is taken from the system and "
       "registered"},
      {std::string(kRegisterThreads), "a power of two up to 128; does nothing here"},
  };
  return help;
}

}  // namespace workbench
