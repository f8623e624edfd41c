// Writes records into memory-mapped segments; knows nothing of torch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "clock.h"
#include "hook_face.h"
#include "spool_format.h"

namespace workbench::spool {

// What records are stamped with. One thread's own records keep their order without help; only
// between threads must a stamp wait for what came before it, at twice the price.
enum class Clock : std::uint32_t { kNanoseconds, kTicksOfOneThread, kTicks };

// Where a thread writes next. Plain data, so that no constructor or destructor runs at a bad
// moment.
struct Cursor {
  Record* next;
  Record* end;
  std::uint32_t scope;  // put into every record of this thread
  Clock clock;
  std::uint64_t session;  // the recording that `next` belongs to
  struct Segment* segment;
};

// A program computes for microseconds between two events, so that all that an event touches has
// left the caches: recording costs what it misses in them, not what it executes. Hence one cache
// line with all that most events need, which are those of one thread, that which began to record.
struct alignas(64) Hot {
  alignas(8) std::byte room_for_the_hook[24];  // see cpu_hook.cpp
  // The thread pointer of that thread while it may write without asking; null while it may not:
  // nothing is recorded, stacks are, or there is no clock to read without a call.
  std::atomic<void*> quick_thread;
  Cursor cursor;  // its own; only the first three words are looked at without asking
};
static_assert(offsetof(Hot, cursor) + offsetof(Cursor, session) <= 64);
extern constinit Hot hot;

// The number of the recording in progress: 0 when there is none, kLosing when it had to stop and
// events are only counted.
inline constexpr std::uint64_t kLosing = ~0ULL;
extern std::atomic<std::uint64_t> active_session;
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

// The calling thread's cursor.
Cursor& own_cursor();
// For each allocation `finder` says which stack made it; null: nobody does.
void set_stack_finder(std::uint32_t (*finder)());

inline bool recording() { return active_session.load(std::memory_order_relaxed) != 0; }

// For a thread that has to ask.
__attribute__((noinline)) void record_slowly(Kind kind, std::uint64_t address, std::uint64_t value);

// An event of a device, which takes two records; see HookFace.
OpenCall record_device(const DeviceEvent& event, bool has_stack);
void call_ended(const OpenCall& call);
// The clock of the records, read after what came before.
std::uint64_t now();

inline void put(Cursor& cursor, std::uint64_t ticks, Kind kind, std::uint64_t address,
                std::uint64_t value, std::uint32_t stack) {
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

// A free before the memory is given back, all else after what it tells of.
inline void record(Kind kind, std::uint64_t address, std::uint64_t value) {
  const bool is_quick =
      __builtin_thread_pointer() == hot.quick_thread.load(std::memory_order_relaxed) &&
      hot.cursor.next != hot.cursor.end;
  if (__builtin_expect(!is_quick, 0)) return record_slowly(kind, address, value);
  const bool waits = kind != Kind::kFree && hot.cursor.clock != Clock::kTicksOfOneThread;
  put(hot.cursor, waits ? ticks_after_acquire() : ticks_before_release(), kind, address, value, 0);
}

}  // namespace workbench::spool
