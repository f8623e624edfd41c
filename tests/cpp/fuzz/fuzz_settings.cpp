// Any bytes as settings of caching: accepted as the rules say, or refused in words.
#include <algorithm>
#include <bit>
#include <string>

#include "allocators/caching_settings.h"
#include "core/errors.h"
#include "fuzz.h"

namespace {

using namespace workbench;
using caching::caching_settings_help;
using caching::CachingSettings;
using caching::kNoLimit;

CachingSettings read(const std::string& text) {
  return CachingSettings(Settings(text, "caching", caching_settings_help()));
}

void check(const CachingSettings& conf) {
  REQUIRE(conf.large_segment > 10 * kMiB && conf.large_segment % kMiB == 0);
  REQUIRE(conf.max_split >= conf.large_segment);
  REQUIRE(conf.max_non_split_rounding >= conf.large_segment);
  REQUIRE(conf.garbage_collection_threshold >= 0 && conf.garbage_collection_threshold < 1);
  REQUIRE(conf.memory_fraction >= 0 && conf.memory_fraction <= 1);
  for (const Bytes divisions : conf.roundup_divisions) {
    REQUIRE(divisions == 0 || std::has_single_bit(static_cast<std::uint64_t>(divisions)));
  }
  for (int bit = 9; bit < 63; ++bit) {
    const Bytes size = Bytes{1} << bit;
    const auto slot = static_cast<std::size_t>(std::clamp(bit - 20, 0, 15));
    REQUIRE(conf.divisions_of(size) == conf.roundup_divisions[slot]);
    REQUIRE(conf.divisions_of(size + (size - 1)) == conf.roundup_divisions[slot]);
  }
  for (const std::string& warning : conf.warnings) REQUIRE(!warning.empty());
}

std::string megabytes(Bytes bytes) { return std::to_string(bytes / kMiB); }

// Written out in full, the same settings read the same.
void check_written_out(const CachingSettings& conf) {
  std::string text = " large_segment_size_mb :" + megabytes(conf.large_segment) +
                     ",max_non_split_rounding_mb:" + megabytes(conf.max_non_split_rounding) +
                     ",expandable_segments:" + (conf.expandable_segments ? "True" : "False") +
                     ",throw_on_cudamalloc_oom:" + (conf.throw_on_oom ? "True" : "False");
  if (conf.max_split != kNoLimit) text += ",max_split_size_mb:" + megabytes(conf.max_split);
  text += ",roundup_power2_divisions:[";
  for (std::size_t slot = 0; slot < conf.roundup_divisions.size(); ++slot) {
    text += std::to_string(1 << slot) + ":" + std::to_string(conf.roundup_divisions[slot]) + ",";
  }
  text += "],";
  const CachingSettings again = read(text);
  REQUIRE(again.large_segment == conf.large_segment && again.max_split == conf.max_split);
  REQUIRE(again.max_non_split_rounding == conf.max_non_split_rounding);
  REQUIRE(again.roundup_divisions == conf.roundup_divisions);
  REQUIRE(again.expandable_segments == conf.expandable_segments);
  REQUIRE(again.throw_on_oom == conf.throw_on_oom);
}

}  // namespace

std::vector<std::string_view> fuzz_dictionary() {
  std::vector<std::string_view> words = {
      "True", "False", ":",   ",",      "[",      "]",  ">",           "[1:2,64:8,>:4]",     ">:8",
      "20",   "0.5",   "1e3", "native", ":True,", "-1", ":4294967296", "9223372036854775807"};
  for (const SettingHelp& setting : caching_settings_help()) words.push_back(setting.key);
  return words;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const CachingSettings conf = read(text);
    check(conf);
    check_written_out(conf);
  } catch (const InputError& error) {
    REQUIRE(std::string_view(error.what()).size() > 20);
  }
  return 0;
}
