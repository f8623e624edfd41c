// The spool: what the hook writes and the converter reads.
//
// A recording's spool folder, NAME.parquet.spool/, holds one folder for each recorded process:
//
//   process-PID-TICKS/control     one ControlPage, memory-mapped and shared
//   process-PID-TICKS/events-N    a SegmentHeader, then Records until one whose kind is kNone
//   process-PID-TICKS/names       lines of JSON, {"kind": "op" | "module" | "stack" | "label" |
//                                 "device" | "stream" | "pool" | "allocator" | "peaks" | "note",
//                                 "id": N, "text": "..."}: what numbers in records stand for; from
//                                 "device" on, the text is JSON itself, and what it says is in it
//   process-PID-TICKS/process.json  what the process was: program, versions, rank
//
// Files are allocated ahead and read as zeros where nothing was written, and the kernel keeps the
// pages of a killed process: a reader stops at the first record of kind kNone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace workbench::spool {

inline constexpr char kMagic[8] = {'W', 'B', 'S', 'P', 'O', 'O', 'L', '1'};
inline constexpr std::uint32_t kVersion = 1;

enum class Kind : std::uint8_t {
  kNone = 0,     // not written yet
  kAlloc = 1,    // address; value = bytes requested; scope; stack
  kFree = 2,     // address; scope
  kContext = 3,  // address = phase, value = step (48 bits): holds for all threads from here on
  kThread = 4,   // address = the system's thread id, value = thread number: whose records follow
  kMark = 5,     // value = number of the label in `names`
  kDetail = 6,   // a Detail: what the next record, a kDevice, has no room for
  kDevice = 7,   // address; value = bytes; scope; stack; all else in the Detail before it
};

// What a kDevice tells of: the events of a trace (docs/trace-format.md).
enum class Event : std::uint16_t {
  kAlloc = 0,
  kFree,
  kMark,  // these three are what CPU records tell of, too
  kLive,  // made by the converter, never in a spool
  kFreeCompleted,
  kOutOfMemory,
  kRecordStream,
  kSynchronize,
  kEventRecord,
  kEventWait,
  kEmptyCache,
  kSetFraction,
  kPoolBegin,
  kPoolEnd,
  kPoolRelease,
  kCaptureBegin,
  kCaptureEnd,
  kGraphReplay,
  kSegmentAlloc,
  kSegmentFree,
  kSegmentMap,
  kSegmentUnmap,
  kQuery,
  kSample,  // address = number of the label in `names`
  kCount,
};

// Device N of CUDA is kFirstCuda + N. All of them share one range of addresses: a free may name
// any.
enum Device : std::uint16_t { kCpu = 0, kPinned = 1, kFirstCuda = 2, kDevices = kFirstCuda + 256 };

enum class Phase : std::uint8_t { kOther = 0, kForward, kBackward, kOptimizer, kData };

// 32 bytes, two to a cache line. `kind_and_value` is stored last: a record whose writer was killed
// half-way still reads as kNone.
struct Record {
  std::uint64_t ticks;
  std::uint64_t address;
  std::uint32_t scope;           // module number << 16 | operator number; 0 = none
  std::uint32_t stack;           // number in `names`; 0 = none
  std::uint64_t kind_and_value;  // value << 8 | kind
};
static_assert(sizeof(Record) == 32);

// A record of kind kDetail in words of its own. It comes first: a writer killed between the two
// leaves a detail of nothing, and the event is lost whole.
struct Detail {
  std::uint64_t ticks;   // how long the call took; 0 = not known
  std::int32_t stream;   // on its device, in order of first use; 0 = default stream, -1 = all
  std::uint32_t pool;    // on its device, in order of first use; 0 = default pool
  std::uint16_t device;  // a Device
  Event event;
  std::uint32_t has_value;
  std::uint64_t kind_and_value;  // the event's value << 8 | kDetail
};
static_assert(sizeof(Detail) == sizeof(Record));
static_assert(offsetof(Detail, kind_and_value) == offsetof(Record, kind_and_value));

// Fills 64 bytes, so that records keep to cache lines.
struct SegmentHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t thread;     // number of the thread that the segment was made for
  std::uint64_t thread_id;  // the operating system's
  std::uint64_t sequence;   // counts up over the segments of one process
  std::uint64_t closed;     // 1 when nothing will be written any more, while the process runs
  std::uint64_t reserved[3];
};
static_assert(sizeof(SegmentHeader) == 64);

enum class ClockKind : std::uint32_t { kTicks = 0, kNanoseconds = 1 };
enum class StopReason : std::uint32_t { kNone = 0, kDiskFull = 1, kSpoolLimit = 2, kOther = 3 };

// A reading of both clocks at one moment: processor ticks and CLOCK_MONOTONIC nanoseconds.
struct ClockPair {
  std::uint64_t ticks;
  std::uint64_t nanoseconds;
};

struct ControlPage {
  char magic[8];
  std::uint32_t version;
  std::uint32_t process_id;
  ClockKind clock_kind;
  StopReason stop_reason;     // why recording ended before the program did
  ClockPair first;            // when recording began
  ClockPair last;             // renewed at every new segment and at a clean end
  std::uint64_t ended;        // 1 after a clean end, 0 when the process was killed or still runs
  std::uint64_t lost_events;  // seen after `stop_reason` was set, so not in the spool
  std::uint64_t
      zero_byte_allocs;  // requests of 0 bytes: they give a null pointer and make no record
  std::uint64_t forked_children;  // children that stopped recording at the fork
  std::uint64_t steps_seen;       // 1 once an optimizer stepped or a step was marked
  std::uint64_t removed_bytes;    // of segments taken away while the process ran, by who did it
};
static_assert(sizeof(ControlPage) <= 4096);

}  // namespace workbench::spool
