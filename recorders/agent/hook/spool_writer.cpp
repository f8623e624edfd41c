#include "spool_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "spool_names.h"
#include "spool_segment.h"

namespace workbench::spool {

constinit Hot hot = {};
std::atomic<std::uint64_t> active_session{0};
ControlPage* control = nullptr;

namespace {

constexpr std::size_t kFirstSegmentBytes = std::size_t{64} << 10;
constexpr std::size_t kLargestSegmentBytes = std::size_t{4} << 20;

// Of all threads but the first that recorded.
thread_local constinit Cursor thread_cursor __attribute__((tls_model("initial-exec"))) = {};
// Set once, for a thread's cursor must stay where it is; null again when that thread has ended.
std::atomic<void*> first_thread{nullptr};
std::atomic<std::uint32_t (*)()> find_stack{nullptr};

// Everything below is guarded by `lock`. It is plain data, or never destroyed: events still arrive
// while the process tears down its static objects.
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t spare_wanted = PTHREAD_COND_INITIALIZER;
pthread_key_t thread_exit_key;
bool process_is_set_up = false;
bool use_ticks = false;
bool helper_runs = false;
bool count_forks = true;
std::uint64_t last_session = 0;  // counts recordings
std::uint64_t paused_session = 0;
int folder = -1;
std::uint64_t limit = 0;       // bytes of all segments
std::uint64_t bytes_made = 0;  // of segments, since the recording began
std::uint64_t keep_free = 0;   // of the disk, for the program
std::uint64_t segments_made = 0;
std::uint32_t threads_seen = 0;
Segment* reusable = nullptr;  // left half-filled by threads that ended
Segment* spare = nullptr;     // prepared ahead by the helper
std::size_t spare_bytes = 0;  // what the helper is to prepare; 0: nothing

class Locked {
 public:
  Locked() { pthread_mutex_lock(&lock); }
  ~Locked() { pthread_mutex_unlock(&lock); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;
};

std::uint64_t thread_id() { return static_cast<std::uint64_t>(syscall(SYS_gettid)); }

void count(std::uint64_t& counter) { std::atomic_ref(counter).fetch_add(1); }

bool leaves_room_for_the_program(std::size_t bytes) {
  struct statvfs disk;
  if (keep_free == 0 || fstatvfs(folder, &disk) != 0) return true;
  return static_cast<std::uint64_t>(disk.f_bavail) * disk.f_frsize >= keep_free + bytes;
}

// A number for a new segment, and its bytes taken from what is left.
struct Ticket {
  std::uint64_t number;
  std::size_t bytes;
};

bool reserve(std::size_t bytes, Ticket* ticket, StopReason* reason) {
  // What another process has taken away meanwhile is room again.
  const std::uint64_t removed = std::atomic_ref(control->removed_bytes).load();
  if (bytes_made - std::min(removed, bytes_made) + bytes > limit ||
      !leaves_room_for_the_program(bytes)) {
    *reason = StopReason::kSpoolLimit;
    return false;
  }
  bytes_made += bytes;
  *ticket = {segments_made++, bytes};
  return true;
}

// For a thread that cannot wait for the helper.
Segment* make_segment_now(std::size_t bytes, StopReason* reason) {
  Ticket ticket;
  if (!reserve(bytes, &ticket, reason)) return nullptr;
  Segment* const segment = make_segment(folder, ticket.number, ticket.bytes, reason);
  if (segment != nullptr) segment->session = last_session;
  return segment;
}

bool has_room(const Cursor& cursor, std::ptrdiff_t records) {
  return cursor.session == active_session.load(std::memory_order_relaxed) &&
         cursor.end - cursor.next >= records;
}

std::uint64_t stamp(const Cursor& cursor, Kind kind) {
  if (cursor.clock == Clock::kNanoseconds) return monotonic_ns();
  return kind == Kind::kFree || cursor.clock == Clock::kTicksOfOneThread ? ticks_before_release()
                                                                         : ticks_after_acquire();
}

// After a change of anything that it depends on.
void settle_quick_thread() {
  const std::uint64_t session = active_session.load(std::memory_order_relaxed);
  const bool may = session != 0 && session == hot.cursor.session && use_ticks &&
                   find_stack.load(std::memory_order_relaxed) == nullptr;
  hot.quick_thread.store(may ? first_thread.load(std::memory_order_relaxed) : nullptr,
                         std::memory_order_relaxed);
}

void stop_recording(StopReason reason) {
  control->stop_reason = reason;
  active_session.store(kLosing, std::memory_order_relaxed);
  settle_quick_thread();
}

// Prepares the next large segment, so that the program's thread does not wait for the disk.
void* run_helper(void*) {
  pthread_mutex_lock(&lock);
  for (;;) {
    while (spare_bytes == 0) pthread_cond_wait(&spare_wanted, &lock);
    // Where this fails, the thread that needs the segment meets the same and stops the recording.
    StopReason reason = StopReason::kNone;
    Ticket ticket;
    const bool reserved = reserve(spare_bytes, &ticket, &reason);
    const std::uint64_t session = last_session;
    const int in_folder = fcntl(folder, F_DUPFD_CLOEXEC, 0);  // a new session closes the other
    spare_bytes = 0;
    pthread_mutex_unlock(&lock);
    Segment* const segment =
        reserved ? make_segment(in_folder, ticket.number, ticket.bytes, &reason) : nullptr;
    if (segment != nullptr) segment->session = session;
    close(in_folder);
    pthread_mutex_lock(&lock);
    if (segment == nullptr) continue;
    if (session == last_session && spare == nullptr) {
      spare = segment;
    } else {
      drop(segment);
    }
  }
  return nullptr;
}

void start_helper() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the program's signals are the program's
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, std::size_t{256} << 10);
  pthread_t helper;
  helper_runs = pthread_create(&helper, &attributes, run_helper, nullptr) == 0;
  if (helper_runs) pthread_setname_np(helper, "wb-spool");
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void forget_segment(Cursor& cursor) {
  cursor.segment = nullptr;
  cursor.next = cursor.end = nullptr;
  cursor.session = 0;
}

void give_back_segment(Cursor& cursor) {
  Segment* const segment = cursor.segment;
  Record* const next = cursor.next;
  forget_segment(cursor);
  settle_quick_thread();
  if (segment == nullptr) return;
  if (segment->session == last_session && end_of(segment) - next >= 4) {
    segment->next = next;
    segment->link = reusable;
    reusable = segment;
  } else {
    finish(segment);
  }
}

void at_thread_exit(void*) {
  const Locked locked;
  give_back_segment(own_cursor());
  // Another thread may come to live at the same place.
  if (__builtin_thread_pointer() == first_thread.load()) first_thread.store(nullptr);
}

void before_fork() { pthread_mutex_lock(&lock); }
void after_fork_in_parent() { pthread_mutex_unlock(&lock); }

// The child shares the parent's pages: one more record would overwrite one of the parent's.
void after_fork_in_child() {
  if (active_session.load() != 0 && count_forks) count(control->forked_children);
  active_session.store(0);
  paused_session = 0;
  helper_runs = false;
  spare = reusable = nullptr;
  spare_bytes = 0;
  forget_segment(hot.cursor);
  forget_segment(thread_cursor);
  settle_quick_thread();
  pthread_cond_init(&spare_wanted, nullptr);
  pthread_mutex_init(&lock, nullptr);
}

void at_process_exit() {
  // Frees may still come, from destructors that run after this: they are recorded, too.
  if (control == nullptr || active_session.load() == 0) return;
  control->last = read_both_clocks(use_ticks);
  control->ended = 1;
}

void use_segment(Cursor& cursor, Segment* segment) {
  cursor.segment = segment;
  cursor.next = segment->next;
  cursor.end = end_of(segment);
  cursor.session = segment->session;
  settle_quick_thread();
}

// A new owner says who it is: in the header of a new segment, else in a record.
void sign_segment(Cursor& cursor, Segment* segment, std::uint32_t number, std::uint64_t id) {
  SegmentHeader* const header = header_of(segment);
  segment->thread = number;
  segment->thread_id = id;
  if (header->thread == ~0U) {
    header->thread = number;
    header->thread_id = id;
    std::atomic_signal_fence(std::memory_order_release);
    memcpy(header->magic, kMagic, sizeof kMagic);
    return;
  }
  put(cursor, stamp(cursor, Kind::kThread), Kind::kThread, id, number, 0);
}

bool attach_thread(Cursor& cursor) {
  if (cursor.segment != nullptr) give_back_segment(cursor);  // of an earlier recording
  pthread_setspecific(thread_exit_key, &cursor);
  Segment* segment = reusable;
  if (segment != nullptr) {
    reusable = segment->link;
  } else {
    StopReason reason = StopReason::kNone;
    segment = make_segment_now(kFirstSegmentBytes, &reason);
    if (segment == nullptr) {
      stop_recording(reason);
      return false;
    }
  }
  use_segment(cursor, segment);
  // Before the thread's first record: from then on memory that it freed may reach the other.
  if (threads_seen == 1 && use_ticks) hot.cursor.clock = Clock::kTicks;
  const bool is_alone = threads_seen == 0 && &cursor == &hot.cursor;
  cursor.clock = !use_ticks ? Clock::kNanoseconds
                 : is_alone ? Clock::kTicksOfOneThread
                            : Clock::kTicks;
  sign_segment(cursor, segment, threads_seen++, thread_id());
  return true;
}

bool take_next_segment(Cursor& cursor) {
  Segment* const full = cursor.segment;
  const std::size_t wanted = std::min(full->bytes * 4, kLargestSegmentBytes);
  Segment* next = nullptr;
  if (spare != nullptr && spare->bytes >= wanted) {
    next = spare;
    spare = nullptr;
  } else {
    StopReason reason = StopReason::kNone;
    next = make_segment_now(wanted, &reason);
    if (next == nullptr) {
      stop_recording(reason);
      return false;
    }
  }
  use_segment(cursor, next);
  sign_segment(cursor, next, full->thread, full->thread_id);
  control->last = read_both_clocks(use_ticks);
  if (helper_runs && spare == nullptr) {
    spare_bytes = std::min(wanted * 4, kLargestSegmentBytes);
    pthread_cond_signal(&spare_wanted);
  }
  finish(full);
  return true;
}

// Attaches the thread, or takes its next segment. False: nothing is being recorded, or this event
// cannot be, and is counted as lost.
bool make_room(Cursor& cursor, std::ptrdiff_t records) {
  const Locked locked;
  const std::uint64_t session = active_session.load(std::memory_order_relaxed);
  if (session == 0) return false;
  if (session != kLosing) {
    if (cursor.session != session ? attach_thread(cursor)
                                  : has_room(cursor, records) || take_next_segment(cursor)) {
      return true;
    }
  }
  count(control->lost_events);
  return false;
}

std::uint32_t stack_number() {
  auto* const finder = find_stack.load(std::memory_order_relaxed);
  return finder != nullptr ? finder() : 0;
}

void set_up_process() {
  if (process_is_set_up) return;
  process_is_set_up = true;
  use_ticks = ticks_are_a_clock();
  pthread_key_create(&thread_exit_key, at_thread_exit);
  first_thread.store(__builtin_thread_pointer());
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  atexit(at_process_exit);
}

}  // namespace

int start_session(const SessionOptions& options) {
  const Locked locked;
  set_up_process();
  if (folder >= 0) close(folder);
  names().clear();
  folder = open(options.folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return errno;
  int error = 0;
  auto* const page = static_cast<ControlPage*>(map_file(folder, "control", 4096, &error));
  if (page == nullptr) return error;
  page->version = kVersion;
  page->process_id = static_cast<std::uint32_t>(getpid());
  page->clock_kind = use_ticks ? ClockKind::kTicks : ClockKind::kNanoseconds;
  page->first = page->last = read_both_clocks(use_ticks);
  memcpy(page->magic, kMagic, sizeof kMagic);
  control = page;  // the page of an earlier recording stays mapped: a late thread may count there
  limit = options.limit_bytes;
  bytes_made = 0;
  keep_free = options.keep_free_bytes;
  count_forks = options.count_forks;
  segments_made = 0;
  threads_seen = 0;
  while (reusable != nullptr) {
    Segment* const segment = reusable;
    reusable = segment->link;
    drop(segment);
  }
  if (spare != nullptr) drop(spare);
  spare = nullptr;
  spare_bytes = 0;
  ++last_session;
  if (!helper_runs) start_helper();
  // No room even for the first segment: what the program does is counted as lost from here on.
  if (attach_thread(own_cursor())) {
    active_session.store(last_session, std::memory_order_release);
    settle_quick_thread();
  }
  return 0;
}

void end_session() {
  const Locked locked;
  if (control == nullptr) return;
  active_session.store(0, std::memory_order_relaxed);
  settle_quick_thread();
  paused_session = 0;
  control->last = read_both_clocks(use_ticks);
  control->ended = 1;
}

void pause_session() {
  const Locked locked;
  paused_session = active_session.exchange(0, std::memory_order_relaxed);
  settle_quick_thread();
}

void resume_session() {
  const Locked locked;
  if (paused_session != 0) active_session.store(paused_session, std::memory_order_relaxed);
  settle_quick_thread();
}

Cursor& own_cursor() {
  const bool is_first = __builtin_thread_pointer() == first_thread.load(std::memory_order_relaxed);
  return is_first ? hot.cursor : thread_cursor;
}

void set_stack_finder(std::uint32_t (*finder)()) {
  const Locked locked;
  find_stack.store(finder, std::memory_order_relaxed);
  settle_quick_thread();
}

void record_slowly(Kind kind, std::uint64_t address, std::uint64_t value) {
  if (!recording()) return;
  // First: it may run Python code, whose frees take the room that is found next.
  const std::uint32_t stack = kind == Kind::kAlloc ? stack_number() : 0;
  Cursor& cursor = own_cursor();
  if (!has_room(cursor, 1) && !make_room(cursor, 1)) return;
  put(cursor, stamp(cursor, kind), kind, address, value, stack);
}

std::uint64_t now() { return use_ticks ? ticks_after_acquire() : monotonic_ns(); }

OpenCall record_device(const DeviceEvent& event, bool has_stack) {
  if (!recording()) return {};
  const std::uint32_t stack = has_stack ? stack_number() : 0;
  Cursor& cursor = own_cursor();
  if (!has_room(cursor, 2) && !make_room(cursor, 2)) return {};
  const std::uint64_t ticks = now();
  auto* const detail = reinterpret_cast<Detail*>(cursor.next++);
  const bool has_value = event.value >= 0;
  *detail = {
      .ticks = event.began == 0 || event.began >= ticks ? 0 : ticks - event.began,
      .stream = event.stream,
      .pool = event.pool,
      .device = event.device,
      .event = event.event,
      .has_value = has_value,
      .kind_and_value = (has_value ? static_cast<std::uint64_t>(event.value) << 8 : 0) |
                        static_cast<std::uint64_t>(Kind::kDetail),
  };
  put(cursor, ticks, Kind::kDevice, event.address, event.bytes, stack);
  return {detail, header_of(cursor.segment)->sequence, ticks};
}

void call_ended(const OpenCall& call) {
  if (call.detail == nullptr) return;
  const Cursor& cursor = own_cursor();
  // Elsewhere by now, and the memory of the detail unmapped: how long it took stays unknown.
  if (cursor.segment == nullptr || header_of(cursor.segment)->sequence != call.segment) return;
  call.detail->ticks = now() - call.began;
}

std::uint32_t define_name(const char* kind, const char* text) {
  const Locked locked;
  if (!recording() && paused_session == 0) return 0;
  return names().define(folder, kind, text);
}

}  // namespace workbench::spool
