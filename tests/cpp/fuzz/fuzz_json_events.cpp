// Any bytes as a Chrome trace: the same events whether they come whole or in pieces.
#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "fuzz.h"
#include "json_events.h"

namespace {

// All that was cut out, without what may differ between cuts; nothing where the trace is refused.
std::optional<std::string> events_of(std::string_view trace, std::size_t piece) {
  workbench::JsonEvents cutter;
  std::string all;
  try {
    for (std::size_t at = 0; at < trace.size(); at += piece) {
      const std::string events = cutter.Feed(trace.substr(at, piece));
      REQUIRE(events.front() == '[' && events.back() == ']');
      all += events.substr(1, events.size() - 2);
    }
    all += '|' + cutter.Finish();
  } catch (const std::invalid_argument& error) {
    REQUIRE(std::string_view(error.what()).size() > 5);
    return std::nullopt;
  }
  std::erase_if(all, [](char letter) {
    return letter == ',' || letter == ' ' || letter == '\n' || letter == '\r' || letter == '\t';
  });
  return all;
}

}  // namespace

std::vector<std::string_view> fuzz_dictionary() {
  return {"{\"traceEvents\":[",
          "\"traceEvents\"",
          "{\"a\":1},",
          "\"\\\"\"",
          "]}",
          "[",
          "]",
          "{",
          "}",
          ":",
          ",",
          "\\",
          "\""};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t piece = 1 + data[0] % 16;
  const std::string_view trace(reinterpret_cast<const char*>(data) + 1, size - 1);
  REQUIRE(events_of(trace, std::max<std::size_t>(trace.size(), 1)) == events_of(trace, piece));
  return 0;
}
