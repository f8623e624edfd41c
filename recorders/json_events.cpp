#include "json_events.h"

#include <stdexcept>

namespace workbench {
namespace {

constexpr std::size_t kDeepest = 64;
constexpr std::size_t kLongestEvent = 16 << 20;
constexpr std::size_t kLongestOutside = 64 << 20;
constexpr std::string_view kKey = "traceEvents";

bool IsSpace(char letter) {
  return letter == ' ' || letter == '\n' || letter == '\r' || letter == '\t';
}

}  // namespace

void JsonEvents::Fail(const std::string& what, std::uint64_t at) {
  throw std::invalid_argument(what + " at byte " + std::to_string(at));
}

void JsonEvents::Open(char bracket, std::uint64_t at) {
  if (++depth_ > kDeepest) Fail("is nested more than " + std::to_string(kDeepest) + " deep", at);
  if (depth_ == 2 && bracket == '[' && events_next_) {
    if (events_seen_) Fail("has a second list of events", at);
    in_events_ = events_seen_ = true;
  }
}

void JsonEvents::Close(std::uint64_t at) {
  if (depth_ == 0) Fail("closes a bracket that was not opened", at);
  --depth_;
}

std::string JsonEvents::Feed(std::string_view piece) {
  if (events_.empty()) pending_at_ = position_;
  std::size_t from = 0;  // what was not yet copied
  const auto copy = [&](std::size_t until) {
    (in_events_ ? events_ : outside_).append(piece, from, until - from);
    from = until;
  };
  for (std::size_t i = 0; i < piece.size(); ++i) {
    const char letter = piece[i];
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (letter == '\\') {
        escaped_ = true;
      } else if (letter == '"') {
        in_string_ = false;
        continue;
      }
      if (depth_ == 1 && key_.size() <= kKey.size()) key_ += letter;
      continue;
    }
    switch (letter) {
      case '"':
        in_string_ = true;
        if (depth_ == 1) key_.clear();
        break;
      case ':':
        if (depth_ == 1) events_next_ = key_ == kKey;
        break;
      case ',':
        if (depth_ == 1) events_next_ = false;
        break;
      case '[':
      case '{':
        Open(letter, position_ + i);
        if (in_events_ && depth_ == 2) {
          in_events_ = false;
          copy(i + 1);
          in_events_ = true;
          pending_at_ = position_ + i + 1;
        }
        break;
      case ']':
      case '}':
        Close(position_ + i);
        if (!in_events_) break;
        if (depth_ == 2) complete_ = events_.size() + (i + 1 - from);
        if (depth_ == 1) {
          copy(i);
          complete_ = events_.size();
          in_events_ = false;
        }
        break;
      default:
        break;
    }
  }
  copy(piece.size());
  position_ += piece.size();
  if (outside_.size() > kLongestOutside) Fail("has over 64 MB before its events", position_);

  std::size_t start = 0;
  while (start < complete_ && IsSpace(events_[start])) ++start;
  // The comma that parts what comes now from what was given out before.
  if (!first_ && start < complete_ && events_[start] == ',') ++start;
  std::string found = "[" + events_.substr(start, complete_ - start) + "]";
  if (start < complete_) first_ = false;
  events_at_ = pending_at_ + start - 1;
  pending_at_ += complete_;
  events_.erase(0, complete_);
  complete_ = 0;
  if (events_.size() > kLongestEvent) Fail("has an event of over 16 MB", pending_at_);
  return found;
}

std::string JsonEvents::Finish() {
  if (depth_ != 0 || in_string_ || in_events_) Fail("is cut short: its end is missing", position_);
  if (!events_seen_) throw std::invalid_argument("has no list of events under \"traceEvents\"");
  return std::move(outside_);
}

}  // namespace workbench
