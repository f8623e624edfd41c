// Where a Chrome trace may be cut.
#include <stdexcept>
#include <string>
#include <string_view>

#include "check.h"
#include "json_events.h"

namespace {

using workbench::JsonEvents;

std::string said(std::string_view trace) {
  JsonEvents cutter;
  try {
    cutter.Feed(trace);
    cutter.Finish();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return {};
}

bool says(std::string_view trace, std::string_view words) {
  return said(trace).find(words) != std::string::npos;
}

}  // namespace

TEST(events_come_when_they_are_complete) {
  JsonEvents cutter;
  CHECK(cutter.Feed("{\"a\":[{}],\"traceEvents\": [ {\"n\":") == "[]");
  CHECK(cutter.Feed("1}, {\"n\"") == "[{\"n\":1}]");
  CHECK(cutter.events_at() == 26);
  CHECK(cutter.Feed(":2},") == "[ {\"n\":2}]");
  CHECK(cutter.Feed(" {\"n\":3} ") == "[ {\"n\":3}]");
  CHECK(cutter.Feed("], \"z\":1}") == "[]");
  CHECK(cutter.Finish() == "{\"a\":[{}],\"traceEvents\": [], \"z\":1}");
}

TEST(brackets_in_strings_do_not_count) {
  JsonEvents cutter;
  const std::string event = R"({"n":"}, {\"]\\"})";
  CHECK(cutter.Feed("{\"traceEvents\":[" + event + "]}") == "[" + event + "]");
  CHECK(cutter.Finish() == "{\"traceEvents\":[]}");
}

TEST(only_the_outermost_key_counts) {
  CHECK(says("{\"a\":{\"traceEvents\":[{}]}}", "no list of events"));
  CHECK(says("{\"a\":\"traceEvents\"}", "no list of events"));
  CHECK(says("{\"traceEvents\":{},\"b\":[]}", "no list of events"));
  CHECK(says("[{}]", "no list of events"));
}

TEST(what_is_broken_is_refused) {
  CHECK(says("{\"traceEvents\":[{}", "cut short"));
  CHECK(says("{\"traceEvents\":[{}]", "cut short"));
  CHECK(says("{\"traceEvents\":[\"", "cut short"));
  CHECK(says("{\"traceEvents\":[]}]", "not opened at byte 18"));
  CHECK(says("{\"traceEvents\":[],\"traceEvents\":[]}", "second list"));
  CHECK(says("{\"traceEvents\":" + std::string(100'000, '['), "nested more than 64 deep"));
  CHECK(says("{\"traceEvents\":[" + std::string(20 << 20, ' '), "over 16 MB"));
  CHECK(says("{\"a\":\"" + std::string(65 << 20, ' '), "over 64 MB"));
}

int main() { return check::run(); }
