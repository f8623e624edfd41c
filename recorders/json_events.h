// Cuts a Chrome trace that arrives in pieces into whole events, without reading them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace workbench {

// The trace is a JSON object with a list under the key "traceEvents". Whether what is cut out is
// JSON is for a parser to say: the cuts are right where the whole is, and bounded where it is not.
class JsonEvents {
 public:
  // Takes the next piece; gives a JSON list of the events that are complete by now ("[]" if none
  // are). Throws std::invalid_argument with what is wrong and at which byte.
  std::string Feed(std::string_view piece);

  // To be called after the last piece: the trace without its events. Throws where the end is
  // missing or there is no list of events.
  std::string Finish();

  // The byte of the whole at which the last list of events begins.
  [[nodiscard]] std::uint64_t events_at() const { return events_at_; }

 private:
  [[noreturn]] static void Fail(const std::string& what, std::uint64_t at);
  void Open(char bracket, std::uint64_t at);
  void Close(std::uint64_t at);

  std::uint64_t position_ = 0;
  std::uint64_t events_at_ = 0;
  std::size_t depth_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
  bool in_events_ = false;    // inside the list
  bool events_next_ = false;  // its key was the last
  bool events_seen_ = false;
  bool first_ = true;             // no event was given out yet
  std::string key_;               // the last string of the outermost object, or its beginning
  std::string outside_;           // the trace without its events
  std::string events_;            // those not given out yet
  std::uint64_t pending_at_ = 0;  // where `events_` begins in the whole
  std::size_t complete_ = 0;      // bytes of `events_` up to the end of the last whole event
};

}  // namespace workbench
