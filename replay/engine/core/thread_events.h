// The events of a trace split among its recorded threads, for replays by as many threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/events.h"

namespace workbench {

// In which order several recorded threads make their calls.
enum class Order : std::uint8_t {
  kGlobal,   // as recorded, all by one thread
  kHandoff,  // each thread its own; it waits where another has had its block before
  kFree,     // each thread its own; nobody waits: an event that comes too early is left to the
             // thread it would have had to wait for
};
inline constexpr std::array<std::string_view, 3> kOrderNames = {"global", "handoff", "free"};

// Throws InputError for any other text.
Order parse_order(std::string_view text);

// How many threads the trace has.
std::size_t thread_count(const Events& events);

class ThreadEvents {
 public:
  using Index = std::uint32_t;
  static constexpr Index kNone = ~Index{0};

  // What an event has to do with others on its block.
  struct Link {
    // Where it meets the event before it: that one is done, and its own thread has come to it.
    // kNone where nobody needs to know.
    Index meeting = kNone;
    // The event after it on the block, where that one has a meeting.
    Index next = kNone;
  };

  struct Part {
    ThreadId thread;
    std::vector<Index> events;  // in their recorded order
  };

  // `order` is not kGlobal. Throws InputError for more events than an Index counts.
  ThreadEvents(const Events& events, Order order);
  ThreadEvents(const ThreadEvents&) = delete;
  ThreadEvents& operator=(const ThreadEvents&) = delete;

  Order order() const { return order_; }
  // The same events; each allocation has a slot of its own, next to the others of its thread.
  const Events& events() const { return events_; }
  // In the order of their first events.
  const std::vector<Part>& parts() const { return parts_; }
  const Link* links() const { return links_.data(); }
  std::size_t meetings() const { return meetings_; }

 private:
  const Order order_;
  std::vector<Part> parts_;
  std::vector<std::int32_t> slots_;
  std::vector<Link> links_;  // by event
  std::size_t meetings_ = 0;
  Events events_;
};

}  // namespace workbench
