#include "backends/stream_progress.h"

#include <charconv>
#include <string>

#include "core/errors.h"

namespace workbench {

Completion Completion::parse(std::string_view text) {
  if (text == "recorded") return {Kind::kRecorded, 0};
  if (text == "immediate") return {Kind::kImmediate, 0};
  if (text == "never") return {Kind::kNever, 0};
  constexpr std::string_view kDelayPrefix = "delay:";
  if (text.starts_with(kDelayPrefix)) {
    const std::string_view number = text.substr(kDelayPrefix.size());
    std::int64_t delay = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), delay);
    if (error == std::errc() && end == number.data() + number.size() && delay >= 0) {
      return {Kind::kDelay, delay};
    }
  }
  throw InputError("completion '" + std::string(text) +
                   "' is unknown; use recorded, immediate, never or delay:EVENTS");
}

}  // namespace workbench
