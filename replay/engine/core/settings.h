// Settings in the syntax of PYTORCH_ALLOC_CONF: key:value,key:value.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/plan.h"

namespace workbench {

struct SettingHelp {
  std::string key;
  std::string help;
};

class Settings {
 public:
  // Spaces are ignored, a trailing comma is fine; a comma inside [ ] belongs to the value. A value
  // in double quotes is taken as it is, without them.
  // Throws InputError for an empty setting, one without a colon, a control character, a quote that
  // does not end, a key given twice, or a key not in `known`.
  Settings(std::string_view text, std::string_view allocator,
           const std::vector<SettingHelp>& known);

  std::optional<std::string_view> find(std::string_view key) const;
  // These throw InputError for a value that is not one: a whole number of at least `lowest`; a
  // finite number; True or False, spelt so.
  std::optional<std::int64_t> whole_number(std::string_view key, std::int64_t lowest) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;

  // Throws InputError: the value of `key` will not do, and what would.
  [[noreturn]] void refuse(std::string_view key, const std::string& remedy) const;

  // Of an allocator that runs one (AllocatorEntry::runs_plan); null where there is none.
  const std::shared_ptr<const Plan>& plan() const { return plan_; }
  void set_plan(std::shared_ptr<const Plan> plan) { plan_ = std::move(plan); }
  // Whether the allocator will be asked for statistics; not so in timed passes.
  bool counts() const { return counts_; }
  void set_counts(bool counts) { counts_ = counts; }

  // Nothing where the text is anything else.
  static std::optional<std::int64_t> parse_whole_number(std::string_view text);

 private:
  struct Entry {
    std::string key;
    std::string value;
  };
  std::string allocator_;
  std::vector<Entry> entries_;
  std::shared_ptr<const Plan> plan_;
  bool counts_ = true;
};

}  // namespace workbench
