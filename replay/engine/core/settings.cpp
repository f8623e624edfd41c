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

// Where the setting that begins at `start` ends: at a comma outside quotes and brackets.
std::size_t end_of_setting(std::string_view text, std::size_t start, const std::string& allocator) {
  int depth = 0;
  bool has_colon = false;
  bool value_begins = false;
  std::size_t at = start;
  for (; at < text.size() && (text[at] != ',' || depth > 0); ++at) {
    const char letter = text[at];
    if (letter == '"' && value_begins) {
      const std::size_t end = text.find('"', at + 1);
      const std::size_t next = end == text.npos ? end : text.find_first_not_of(' ', end + 1);
      if (end == text.npos || (next != text.npos && text[next] != ',')) {
        throw InputError("setting '" + std::string(text.substr(start)) + "' of " + allocator +
                         (end == text.npos ? " has a quote that does not end"
                                           : " goes on after its closing quote") +
                         "; write key:\"value\",key:value");
      }
      at = end;
    }
    if (letter == '[') ++depth;
    if (letter == ']') --depth;
    if (letter != ' ') value_begins = letter == ':' && !has_colon;
    has_colon |= letter == ':';
  }
  return at;
}

// Without spaces, and a value in quotes without those.
std::string plain(std::string_view setting) {
  const std::size_t colon = setting.find(':');
  const std::size_t value =
      colon == setting.npos ? colon : setting.find_first_not_of(' ', colon + 1);
  const bool quoted = value != setting.npos && setting[value] == '"';
  std::string text(quoted ? setting.substr(0, value) : setting);
  std::erase(text, ' ');
  if (quoted) text += setting.substr(value + 1, setting.rfind('"') - value - 1);
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
  std::size_t start = 0;
  while ((start = text.find_first_not_of(' ', start)) < text.size()) {
    const std::size_t end = end_of_setting(text, start, allocator_);
    const std::string part = plain(text.substr(start, end - start));
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
