// How the threads of a replay learn from each other which events are done.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

#include "core/thread_events.h"

namespace workbench {

// A meeting belongs to an event that follows another one on its block: the other is `done`, and the
// event's own thread has `come`. In the order handoff a thread waits there for the other; in the
// order free whoever is second makes the event.
class Meetings {
 public:
  using Index = ThreadEvents::Index;

  Meetings(std::size_t count, Order order) : waits_(order == Order::kHandoff), states_(count) {}

  // The event's thread has come to it. False where it is left to another thread, or where the
  // replay stopped while it waited.
  bool come(Index meeting) {
    std::atomic<int>& state = states_[meeting];
    if (!waits_) return (state.fetch_or(kCame) & kDone) != 0;
    int now = state.load(std::memory_order_acquire);
    while (now == 0) {
      state.wait(0, std::memory_order_acquire);
      now = state.load(std::memory_order_acquire);
    }
    return (now & kDone) != 0;
  }

  // The event before it is done. True where the caller is to make the event too.
  bool done(Index meeting) {
    std::atomic<int>& state = states_[meeting];
    const int before = state.fetch_or(kDone);
    if (waits_) state.notify_all();
    return !waits_ && (before & kCame) != 0;
  }

  // Ends the replay: nobody waits any more, and nobody begins another event.
  void stop() {
    stopping_.store(true);
    if (!waits_) return;
    for (std::atomic<int>& state : states_) {
      state.fetch_or(kStopped);
      state.notify_all();
    }
  }
  bool stopping() const { return stopping_.load(std::memory_order_relaxed); }

 private:
  static constexpr int kCame = 1;
  static constexpr int kDone = 2;
  static constexpr int kStopped = 4;

  const bool waits_;
  std::atomic<bool> stopping_ = false;
  std::vector<std::atomic<int>> states_;
};

}  // namespace workbench
