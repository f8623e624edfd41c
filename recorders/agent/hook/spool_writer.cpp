#include "spool_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <string>
#include <unordered_map>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace workbench::spool {

struct Segment {
  std::byte* base;
  std::size_t bytes;
  Record* next;  // where the next owner goes on, while it has none
  std::uint64_t session;
  std::uint32_t thread;
  std::uint64_t thread_id;
  Segment* link;
};

thread_local constinit Cursor cursor __attribute__((tls_model("initial-exec"))) = {};
constinit Shared shared = {};
ControlPage* control = nullptr;

namespace {

constexpr std::size_t kFirstSegmentBytes = std::size_t{64} << 10;
constexpr std::size_t kLargestSegmentBytes = std::size_t{4} << 20;

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
int names_file = -1;
std::uint64_t bytes_left = 0;  // of the spool limit
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

using Numbers = std::unordered_map<std::string, std::uint32_t>;

// Numbers by kind and text; each kind counts for itself.
std::unordered_map<std::string, Numbers>& names() {
  static auto* const table = new std::unordered_map<std::string, Numbers>;
  return *table;
}

std::uint64_t thread_id() { return static_cast<std::uint64_t>(syscall(SYS_gettid)); }

void count(std::uint64_t& counter) { std::atomic_ref(counter).fetch_add(1); }

// Zeros are there already, but written in large pieces they make large folios in the page cache,
// and mapping those costs a fifth of what page faults on an empty file do.
int write_zeros(int file, std::size_t bytes) {
  static std::byte zeros[std::size_t{64} << 10];  // only read, so never more than one zero page
  iovec pieces[16];
  for (iovec& piece : pieces) piece = {zeros, sizeof zeros};
  for (std::size_t at = 0; at < bytes;) {
    const std::size_t count =
        std::clamp((bytes - at) / sizeof zeros, std::size_t{1}, std::size_t{16});
    if (count == 1) pieces[0].iov_len = std::min(bytes - at, sizeof zeros);
    const ssize_t written = pwritev(file, pieces, static_cast<int>(count), static_cast<off_t>(at));
    if (written <= 0) return written < 0 ? errno : ENOSPC;
    at += static_cast<std::size_t>(written);
  }
  return 0;
}

// Page faults on a file are dear: take them here, in one go, not one by one in the program's path.
void prefault(std::byte* base, std::size_t bytes) {
  if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0) return;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (std::size_t at = 0; at < bytes; at += page)
    *static_cast<volatile std::byte*>(base + at) = {};
}

// A new file of zeros in RAM, mapped.
void* map_file(int in_folder, const char* name, std::size_t bytes, int* error) {
  const int file = openat(in_folder, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) {
    *error = errno;
    return nullptr;
  }
  // Allocated, not only made longer: a full disk is an error here, not a SIGBUS at a store later.
  *error = posix_fallocate(file, 0, static_cast<off_t>(bytes));
  if (*error == 0) *error = write_zeros(file, bytes);
  void* base = MAP_FAILED;
  if (*error == 0) {
    base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED) *error = errno;
  }
  close(file);
  if (base != MAP_FAILED) {
    prefault(static_cast<std::byte*>(base), bytes);
    return base;
  }
  unlinkat(in_folder, name, 0);
  return nullptr;
}

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
  if (bytes > bytes_left || !leaves_room_for_the_program(bytes)) {
    *reason = StopReason::kSpoolLimit;
    return false;
  }
  bytes_left -= bytes;
  *ticket = {segments_made++, bytes};
  return true;
}

// Needs no lock.
Segment* make_segment(const Ticket& ticket, int in_folder, StopReason* reason) {
  char name[32];
  snprintf(name, sizeof name, "events-%llu", static_cast<unsigned long long>(ticket.number));
  int error = 0;
  auto* const base = static_cast<std::byte*>(map_file(in_folder, name, ticket.bytes, &error));
  if (base == nullptr) {
    *reason = error == ENOSPC || error == EDQUOT ? StopReason::kDiskFull : StopReason::kOther;
    return nullptr;
  }
  auto* const segment = new (std::nothrow) Segment{};
  if (segment == nullptr) {
    munmap(base, ticket.bytes);
    *reason = StopReason::kOther;
    return nullptr;
  }
  segment->base = base;
  segment->bytes = ticket.bytes;
  segment->next = reinterpret_cast<Record*>(base + sizeof(SegmentHeader));
  auto* const header = reinterpret_cast<SegmentHeader*>(base);
  header->version = kVersion;
  header->thread = ~0U;
  header->sequence = ticket.number;
  return segment;
}

// For a thread that cannot wait for the helper.
Segment* make_segment_now(std::size_t bytes, StopReason* reason) {
  Ticket ticket;
  if (!reserve(bytes, &ticket, reason)) return nullptr;
  Segment* const segment = make_segment(ticket, folder, reason);
  if (segment != nullptr) segment->session = last_session;
  return segment;
}

Record* end_of(const Segment* segment) {
  const std::size_t records = (segment->bytes - sizeof(SegmentHeader)) / sizeof(Record);
  return reinterpret_cast<Record*>(segment->base + sizeof(SegmentHeader)) + records;
}

void drop(Segment* segment) {
  munmap(segment->base, segment->bytes);
  delete segment;
}

void stop_recording(StopReason reason) {
  control->stop_reason = reason;
  shared.active_session.store(kLosing, std::memory_order_relaxed);
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
    Segment* const segment = reserved ? make_segment(ticket, in_folder, &reason) : nullptr;
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

void give_back_segment() {
  Segment* const segment = cursor.segment;
  Record* const next = cursor.next;
  cursor.segment = nullptr;
  cursor.next = cursor.end = nullptr;
  cursor.session = 0;
  if (segment == nullptr) return;
  if (segment->session == last_session && end_of(segment) - next >= 2) {
    segment->next = next;
    segment->link = reusable;
    reusable = segment;
  } else {
    drop(segment);
  }
}

void at_thread_exit(void*) {
  const Locked locked;
  give_back_segment();
}

void before_fork() { pthread_mutex_lock(&lock); }
void after_fork_in_parent() { pthread_mutex_unlock(&lock); }

// The child shares the parent's pages: one more record would overwrite one of the parent's.
void after_fork_in_child() {
  if (shared.active_session.load() != 0 && count_forks) count(control->forked_children);
  shared.active_session.store(0);
  paused_session = 0;
  helper_runs = false;
  spare = reusable = nullptr;
  spare_bytes = 0;
  cursor.segment = nullptr;
  cursor.next = cursor.end = nullptr;
  cursor.session = 0;
  pthread_cond_init(&spare_wanted, nullptr);
  pthread_mutex_init(&lock, nullptr);
}

void at_process_exit() {
  // Frees may still come, from destructors that run after this: they are recorded, too.
  if (control == nullptr || shared.active_session.load() == 0) return;
  control->last = read_both_clocks(use_ticks);
  control->ended = 1;
}

void use_segment(Segment* segment) {
  cursor.segment = segment;
  cursor.next = segment->next;
  cursor.end = end_of(segment);
  cursor.session = segment->session;
}

// A new owner says who it is: in the header of a new segment, else in a record.
void sign_segment(Segment* segment, std::uint32_t number, std::uint64_t id) {
  auto* const header = reinterpret_cast<SegmentHeader*>(segment->base);
  segment->thread = number;
  segment->thread_id = id;
  if (header->thread == ~0U) {
    header->thread = number;
    header->thread_id = id;
    std::atomic_signal_fence(std::memory_order_release);
    memcpy(header->magic, kMagic, sizeof kMagic);
    return;
  }
  put(Kind::kThread, stamp_after_acquire(), id, number, 0);
}

bool attach_thread() {
  if (cursor.segment != nullptr) give_back_segment();  // of an earlier recording
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
  use_segment(segment);
  // Before the thread's first record: from then on memory that it freed may reach the other.
  if (threads_seen == 1 && use_ticks) shared.clock.store(Clock::kTicks);
  sign_segment(segment, threads_seen++, thread_id());
  return true;
}

bool take_next_segment() {
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
  use_segment(next);
  sign_segment(next, full->thread, full->thread_id);
  control->last = read_both_clocks(use_ticks);
  if (helper_runs && spare == nullptr) {
    spare_bytes = std::min(wanted * 4, kLargestSegmentBytes);
    pthread_cond_signal(&spare_wanted);
  }
  drop(full);
  return true;
}

void append_escaped(std::string& line, const char* text) {
  for (const char* at = text; *at != '\0'; ++at) {
    const auto value = static_cast<unsigned char>(*at);
    if (value == '"' || value == '\\') {
      line += '\\';
      line += *at;
    } else if (value < 0x20) {
      char code[8];
      snprintf(code, sizeof code, "\\u%04x", value);
      line += code;
    } else {
      line += *at;
    }
  }
}

void set_up_process() {
  if (process_is_set_up) return;
  process_is_set_up = true;
  use_ticks = ticks_are_a_clock();
  pthread_key_create(&thread_exit_key, at_thread_exit);
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  atexit(at_process_exit);
}

}  // namespace

int start_session(const SessionOptions& options) {
  const Locked locked;
  set_up_process();
  if (folder >= 0) close(folder);
  if (names_file >= 0) close(names_file);
  names_file = -1;
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
  bytes_left = options.limit_bytes;
  keep_free = options.keep_free_bytes;
  count_forks = options.count_forks;
  segments_made = 0;
  threads_seen = 0;
  shared.clock.store(use_ticks ? Clock::kTicksOfOneThread : Clock::kNanoseconds);
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
  if (attach_thread()) shared.active_session.store(last_session, std::memory_order_release);
  return 0;
}

void end_session() {
  const Locked locked;
  if (control == nullptr) return;
  shared.active_session.store(0, std::memory_order_relaxed);
  paused_session = 0;
  control->last = read_both_clocks(use_ticks);
  control->ended = 1;
}

void pause_session() {
  const Locked locked;
  paused_session = shared.active_session.exchange(0, std::memory_order_relaxed);
}

void resume_session() {
  const Locked locked;
  if (paused_session != 0) shared.active_session.store(paused_session, std::memory_order_relaxed);
}

bool make_room() {
  if (!recording()) return false;
  const Locked locked;
  const std::uint64_t session = shared.active_session.load(std::memory_order_relaxed);
  if (session == 0) return false;
  if (session != kLosing) {
    if (cursor.session != session ? attach_thread() : have_room() || take_next_segment()) {
      return true;
    }
  }
  count(control->lost_events);
  return false;
}

std::uint32_t define_name(const char* kind, const char* text) {
  const Locked locked;
  if (!recording() && paused_session == 0) return 0;
  Numbers& numbers = names()[kind];
  const auto known = numbers.find(text);
  if (known != numbers.end()) return known->second;
  if (names_file < 0) {
    names_file = openat(folder, "names", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (names_file < 0) return 0;
  }
  const auto number = static_cast<std::uint32_t>(numbers.size() + 1);
  std::string line = R"({"kind": ")" + std::string(kind) + R"(", "id": )" + std::to_string(number) +
                     R"(, "text": ")";
  append_escaped(line, text);
  line += "\"}\n";
  const auto written = write(names_file, line.data(), line.size());
  if (written != static_cast<ssize_t>(line.size())) {
    // What is there of the line would join the next one.
    if (written > 0) (void)!write(names_file, "\n", 1);
    return 0;
  }
  numbers.emplace(text, number);
  return number;
}

}  // namespace workbench::spool
