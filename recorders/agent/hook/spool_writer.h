// Writes records into memory-mapped segments; knows nothing of torch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "clock.h"
#include "spool_format.h"

namespace workbench::spool {

// A program computes for microseconds between two events, so that all that an event touches has
// left the caches: recording costs what it misses, not what it executes. Hence one cache line for
// what a thread has, and one for what all share.

// Where a thread writes next. Plain data in the static thread block, so that reaching it is one
// instruction and no constructor or destructor runs at a bad moment.
struct alignas(64) Cursor {
  Record* next;
  Record* end;
  std::uint64_t session;  // the recording that `next` belongs to; see `Shared`
  std::uint32_t scope;    // put into every record of this thread
  std::uint32_t unused;
  struct Segment* segment;
};

extern thread_local constinit Cursor cursor __attribute__((tls_model("initial-exec")));

// The number of the recording in progress: 0 when there is none, kLosing when it had to stop and
// events are only counted. A thread whose cursor has the same number may write without asking.
inline constexpr std::uint64_t kLosing = ~0ULL;

// What records are stamped with. One thread's own records keep their order without help; only
// between threads must a stamp wait for what came before it, at twice the price.
enum class Clock : std::uint8_t { kNanoseconds, kTicksOfOneThread, kTicks };

struct alignas(64) Shared {
  std::atomic<std::uint64_t> active_session;
  std::atomic<Clock> clock;
  alignas(8) std::byte room_for_the_hook[48];  // what it needs for each event: see cpu_hook.cpp
};
extern constinit Shared shared;
extern ControlPage* control;  // of the recording in progress or the last one; null before the first

struct SessionOptions {
  const char* folder;
  std::uint64_t limit_bytes;      // of all segments together
  std::uint64_t keep_free_bytes;  // recording stops before the disk has less than this
  bool count_forks;               // in ControlPage::forked_children
};

// Begins a recording into `folder`, which exists and is empty. Returns 0 or an errno.
int start_session(const SessionOptions& options);
// Ends it; other threads may still be about to write, so nothing of theirs is unmapped.
void end_session();
// Holds the recording, and goes on with it: the gap is not counted as lost.
void pause_session();
void resume_session();
// Gives `text` a number and writes it to `names`; 0 when no session is open or the disk is full.
std::uint32_t define_name(const char* kind, const char* text);

// Makes room: attaches the thread, or takes the next segment. False: nothing is being recorded, or
// this event cannot be, and is counted as lost.
__attribute__((cold)) bool make_room();

inline std::uint64_t stamp_before_release() {
  const Clock clock = shared.clock.load(std::memory_order_relaxed);
  return __builtin_expect(clock != Clock::kNanoseconds, 1) ? ticks_before_release()
                                                           : monotonic_ns();
}
inline std::uint64_t stamp_after_acquire() {
  const Clock clock = shared.clock.load(std::memory_order_relaxed);
  if (clock == Clock::kTicksOfOneThread) return ticks_before_release();
  return __builtin_expect(clock == Clock::kTicks, 1) ? ticks_after_acquire() : monotonic_ns();
}

inline bool recording() { return shared.active_session.load(std::memory_order_relaxed) != 0; }

inline bool have_room() {
  return cursor.session == shared.active_session.load(std::memory_order_relaxed) &&
         cursor.next != cursor.end;
}

// The caller has made sure that there is room.
inline void put(Kind kind, std::uint64_t ticks, std::uint64_t address, std::uint64_t value,
                std::uint32_t stack) {
  Record* const record = cursor.next;
  record->ticks = ticks;
  record->address = address;
  record->scope = cursor.scope;
  record->stack = stack;
  // Last, and not moved ahead by the compiler: a writer killed in between leaves kNone. The order
  // in which other processors see the stores does not matter, the reader comes after the death.
  std::atomic_signal_fence(std::memory_order_release);
  *static_cast<volatile std::uint64_t*>(&record->kind_and_value) =
      value << 8 | static_cast<std::uint64_t>(kind);
  cursor.next = record + 1;
}

}  // namespace workbench::spool
