#include "allocators/caching_settings.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include "core/errors.h"

namespace workbench::caching {
namespace {

constexpr std::string_view kDivisions = "roundup_power2_divisions";
// What the driver maps is a multiple of this.
constexpr Bytes kDriverPage = 2 * kMiB;

Bytes mebibytes(std::int64_t count) { return std::min(count, kEiB / kMiB) * kMiB; }

bool is_power_of_two(std::int64_t value) {
  return value > 0 && std::has_single_bit(static_cast<std::uint64_t>(value));
}

std::size_t log2_of(std::int64_t value) {
  return static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(value))) - 1;
}

class Divisions {
 public:
  explicit Divisions(const Settings& settings) : settings_(settings) {}

  std::array<Bytes, 16> read(std::string_view text) {
    if (!text.starts_with('[')) {
      slots_.fill(number(text));
      if (!is_power_of_two(slots_[0])) refuse("the divisions must be a power of two");
      return slots_;
    }
    if (!text.ends_with(']')) refuse("the list has no ] at its end");
    text = text.substr(1, text.size() - 2);
    while (!text.empty()) {
      const std::size_t comma = std::min(text.find(','), text.size());
      entry(text.substr(0, comma));
      text.remove_prefix(std::min(comma + 1, text.size()));
    }
    return slots_;
  }

 private:
  void entry(std::string_view text) {
    const std::size_t colon = text.find(':');
    if (colon == std::string_view::npos) refuse("an entry of the list has no colon");
    const std::string_view interval = text.substr(0, colon);
    const Bytes divisions = number(text.substr(colon + 1));
    if (divisions != 0 && !is_power_of_two(divisions)) {
      refuse("divisions must be a power of two, or 0 for none");
    }
    if (interval == ">") {
      std::fill(slots_.begin() + static_cast<std::ptrdiff_t>(last_ + 1), slots_.end(), divisions);
      return;
    }
    const std::int64_t size = number(interval);
    if (!is_power_of_two(size)) refuse("sizes must be powers of two, in MiB");
    const std::size_t slot = std::min(log2_of(size), slots_.size() - 1);
    if (is_first_) std::fill_n(slots_.begin(), slot, divisions);
    is_first_ = false;
    slots_[slot] = divisions;
    last_ = slot;
  }

  std::int64_t number(std::string_view text) const {
    const auto value = Settings::parse_whole_number(text);
    if (!value || *value < 0) refuse("'" + std::string(text) + "' is not a whole number");
    return *value;
  }

  [[noreturn]] void refuse(const std::string& problem) const {
    settings_.refuse(kDivisions,
                     problem + "; write a power of two, or [MB:divisions,…,>:divisions]");
  }

  const Settings& settings_;
  std::array<Bytes, 16> slots_{};
  std::size_t last_ = 0;  // the slot of the last entry that names a size
  bool is_first_ = true;
};

}  // namespace

CachingSettings::CachingSettings(const Settings& settings) {
  // Before the others: they are held against it.
  if (const auto megabytes = settings.whole_number("large_segment_size_mb", 11)) {
    large_segment = mebibytes(*megabytes);
  }
  max_non_split_rounding = large_segment;
  const std::int64_t lowest = large_segment / kMiB;
  if (const auto megabytes = settings.whole_number("max_split_size_mb", lowest)) {
    max_split = mebibytes(*megabytes);
  }
  if (const auto megabytes = settings.whole_number("max_non_split_rounding_mb", lowest)) {
    max_non_split_rounding = mebibytes(*megabytes);
  }
  if (const auto value = settings.number("garbage_collection_threshold")) {
    if (!(*value > 0 && *value < 1)) {
      settings.refuse("garbage_collection_threshold",
                      "give a number between 0 and 1, without them");
    }
    garbage_collection_threshold = *value;
  }
  if (const auto value = settings.number("per_process_memory_fraction")) {
    if (!(*value >= 0 && *value <= 1)) {
      settings.refuse("per_process_memory_fraction", "give a number from 0 to 1");
    }
    memory_fraction = *value;
  }
  if (const auto text = settings.find(kDivisions)) {
    roundup_divisions = Divisions(settings).read(*text);
    rounds_up_ = std::any_of(roundup_divisions.begin(), roundup_divisions.end(),
                             [](Bytes divisions) { return divisions > 1; });
  }
  expandable_segments = settings.boolean("expandable_segments").value_or(false);
  throw_on_oom = settings.boolean("throw_on_cudamalloc_oom").value_or(false);
  if (const auto rules = settings.find("rules")) {
    address_order = *rules == "address-order";
    if (!address_order && *rules != "2.13") settings.refuse("rules", "give 2.13 or address-order");
  }
  settings.boolean("release_lock_on_cudamalloc");
  reuses_in_capture = settings.boolean("graph_capture_record_stream_reuse").value_or(false);
  if (const auto backend = settings.find("backend")) {
    if (*backend == "cudaMallocAsync") {
      settings.refuse("backend", "that is the allocator async, not this one");
    }
    if (*backend != "native") settings.refuse("backend", "give native");
  }

  if (garbage_collection_threshold > 0 && memory_fraction >= 1) {
    warnings.push_back(
        "garbage_collection_threshold does nothing without per_process_memory_fraction below 1, "
        "as in PyTorch");
  }
  if (throw_on_oom && memory_fraction < 1) {
    warnings.push_back(
        "throw_on_cudamalloc_oom does nothing with per_process_memory_fraction below 1, as in "
        "PyTorch");
  }
  if (expandable_segments && large_segment % kDriverPage != 0) {
    warnings.push_back(
        "large_segment_size_mb is odd: the driver maps expandable segments in multiples of 2 MiB, "
        "so PyTorch would end with its error");
  }
  if (expandable_segments && max_split != kNoLimit) {
    warnings.push_back(
        "max_split_size_mb with expandable_segments:True refuses large free blocks to small "
        "requests and splits them all the same: reserved memory can grow several times over");
  }
  if (max_split == large_segment && !expandable_segments) {
    warnings.push_back(
        "max_split_size_mb is no more than the large segment size: segments made for requests "
        "below "
        "10 MiB are that large, and once wholly free no smaller request may use them again");
  }
  if (max_non_split_rounding != large_segment && max_split == kNoLimit) {
    warnings.push_back("max_non_split_rounding_mb does nothing without max_split_size_mb");
  }
  for (const SettingHelp& known : caching_settings_help()) {
    if (known.key.starts_with("pinned_") && settings.find(known.key)) {
      if (known.key.starts_with("pinned_use_")) {
        settings.boolean(known.key);
      } else {
        settings.whole_number(known.key, 0);
      }
      warnings.push_back(known.key + " concerns pinned host memory: it does nothing here");
    }
  }
}

// Rule 1.
Bytes CachingSettings::divisions_of(Bytes size) const {
  const std::size_t log = log2_of(size);
  return roundup_divisions[std::min(log - std::min(log, std::size_t{20}),
                                    roundup_divisions.size() - 1)];
}

const std::vector<SettingHelp>& caching_settings_help() {
  static const std::vector<SettingHelp> help = {
      {"large_segment_size_mb",
       "segment size of requests from 1 to 10 MiB, and page of large expandable segments: above "
       "10; 20 by default"},
      {"max_split_size_mb",
       "blocks of this size and more are never split: at least the large segment size; no limit "
       "by default"},
      {"max_non_split_rounding_mb",
       "how much larger than a request above the split limit its block may be: at least the large "
       "segment size, which it is by default"},
      {"garbage_collection_threshold",
       "share of the allowed memory above which old cached segments are released: between 0 and 1; "
       "needs per_process_memory_fraction below 1"},
      {"per_process_memory_fraction",
       "share of the device that may be reserved: 0 to 1; 1 by default"},
      {std::string(kDivisions),
       "steps between powers of two that sizes are rounded up to: a power of two, or "
       "[MB:divisions,…,>:divisions]"},
      {"expandable_segments", "True: segments grow in place, page by page; False by default"},
      {"throw_on_cudamalloc_oom",
       "True: fail at once where a new segment would pass the device's memory; False by default"},
      {"release_lock_on_cudamalloc", "True or False; moves no bytes"},
      {"graph_capture_record_stream_reuse",
       "True: blocks that other streams used are free for their own stream before a capture ends, "
       "once it has waited for those; False by default"},
      {"backend", "native"},
      {"rules",
       "of ours, not PyTorch's: 2.13, or address-order for releases before mid-2026, which broke "
       "ties between equal free blocks by address; 2.13 by default"},
      {"pinned_use_cuda_host_register", "of host-pinned; does nothing here"},
      {"pinned_num_register_threads", "of host-pinned; does nothing here"},
      {"pinned_use_background_threads", "of host-pinned; does nothing here"},
      {"pinned_reserve_segment_size_mb", "of host-pinned; does nothing here"},
      {"pinned_max_round_threshold_mb", "of host-pinned; does nothing here"},
      {"pinned_max_cached_size_mb", "of host-pinned; does nothing here"},
  };
  return help;
}

}  // namespace workbench::caching
