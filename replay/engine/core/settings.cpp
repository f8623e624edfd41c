#include "core/settings.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/errors.h"

namespace workbench {
namespace {

std::string known_keys(const std::vector<SettingHelp>& known) {
  if (known.empty()) return "it takes no settings";
  std::string text = "its settings are ";
  for (const SettingHelp& setting : known) {
    if (&setting != &known.front()) text += ", ";
    text += setting.key;
  }
  return text;
}

}  // namespace

Settings::Settings(std::string_view text, std::string_view allocator,
                   const std::vector<SettingHelp>& known)
    : allocator_(allocator) {
  // They would cut an error's sentence short, or write over it.
  const auto control = std::find_if(text.begin(), text.end(), [](char letter) {
    return static_cast<unsigned char>(letter) < ' ' || letter == '\x7f';
  });
  if (control != text.end()) {
    throw InputError("the settings of " + allocator_ + " hold a control character, at position " +
                     std::to_string(control - text.begin()) + "; write key:value,key:value");
  }
  std::string rest(text);
  std::erase(rest, ' ');
  std::size_t start = 0;
  while (start < rest.size()) {
    std::size_t end = start;
    for (int depth = 0; end < rest.size() && (rest[end] != ',' || depth > 0); ++end) {
      if (rest[end] == '[') ++depth;
      if (rest[end] == ']') --depth;
    }
    const std::string part = rest.substr(start, end - start);
    start = end + 1;
    const std::size_t colon = part.find(':');
    if (colon == std::string::npos || colon == 0) {
      throw InputError((part.empty()
                            ? "a setting of " + allocator_ + " is empty"
                            : "setting '" + part + "' of " + allocator_ + " has no colon") +
                       "; write key:value,key:value");
    }
    Entry entry{part.substr(0, colon), part.substr(colon + 1)};
    if (std::none_of(known.begin(), known.end(),
                     [&](const SettingHelp& setting) { return setting.key == entry.key; })) {
      throw InputError("unknown setting '" + entry.key + "' of " + allocator_ + "; " +
                       known_keys(known));
    }
    if (find(entry.key)) {
      throw InputError("setting '" + entry.key + "' of " + allocator_ +
                       " is given twice; give it once");
    }
    entries_.push_back(std::move(entry));
  }
}

std::optional<std::string_view> Settings::find(std::string_view key) const {
  for (const Entry& entry : entries_) {
    if (entry.key == key) return entry.value;
  }
  return std::nullopt;
}

std::optional<std::int64_t> Settings::whole_number(std::string_view key,
                                                   std::int64_t lowest) const {
  const std::optional<std::string_view> text = find(key);
  if (!text) return std::nullopt;
  const std::optional<std::int64_t> value = parse_whole_number(*text);
  if (!value || *value < lowest) {
    refuse(key, "give a whole number of at least " + std::to_string(lowest));
  }
  return value;
}

std::optional<double> Settings::number(std::string_view key) const {
  const std::optional<std::string_view> text = find(key);
  if (!text) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  const bool is_read = error == std::errc() && end == text->data() + text->size();
  // PyTorch reads no number that a double holds only roughly, such as 1e-320.
  if (!is_read || !(std::isnormal(value) || value == 0)) {
    refuse(key, "give a number");
  }
  return value;
}

std::optional<bool> Settings::boolean(std::string_view key) const {
  const std::optional<std::string_view> text = find(key);
  if (!text) return std::nullopt;
  if (*text != "True" && *text != "False") refuse(key, "give True or False");
  return *text == "True";
}

void Settings::refuse(std::string_view key, const std::string& remedy) const {
  throw InputError("setting '" + std::string(key) + "' of " + allocator_ + " is '" +
                   std::string(find(key).value_or("")) + "'; " + remedy);
}

std::optional<std::int64_t> Settings::parse_whole_number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace workbench
