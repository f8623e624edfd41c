#include "spool_names.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

namespace workbench::spool {
namespace {

void append_escaped(std::string& line, const char* text) {
  for (const char* at = text; *at != '\0'; ++at) {
    const auto value = static_cast<unsigned char>(*at);
    if (value == '"' || value == '\\') {
      line += '\\';
      line += *at;
    } else if (value < 0x20) {
      char code[8];
      snprintf(code, sizeof code, "\\u%04x", value);
      line += code;
    } else {
      line += *at;
    }
  }
}

}  // namespace

std::uint32_t Names::define(int in_folder, const char* kind, const char* text) {
  Numbers& numbers = numbers_[kind];
  const auto known = numbers.find(text);
  if (known != numbers.end()) return known->second;
  if (file_ < 0) {
    file_ = openat(in_folder, "names", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file_ < 0) return 0;
  }
  const auto number = static_cast<std::uint32_t>(numbers.size() + 1);
  std::string line = R"({"kind": ")" + std::string(kind) + R"(", "id": )" + std::to_string(number) +
                     R"(, "text": ")";
  append_escaped(line, text);
  line += "\"}\n";
  const auto written = write(file_, line.data(), line.size());
  if (written != static_cast<ssize_t>(line.size())) {
    // What is there of the line would join the next one.
    if (written > 0) (void)!write(file_, "\n", 1);
    return 0;
  }
  numbers.emplace(text, number);
  return number;
}

void Names::clear() {
  numbers_.clear();
  if (file_ >= 0) close(file_);
  file_ = -1;
}

Names& names() {
  static auto* const table = new Names;
  return *table;
}

}  // namespace workbench::spool
