// The records of all segments of one process, in order of time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "agent/hook/spool_format.h"

namespace workbench {

// One record in its place among all threads' records.
struct MergedRecord {
  spool::Record record;  // `ticks` never lower than before in the same segment
  std::int32_t thread;
  std::uint64_t segment;  // sequence number of its segment
  std::uint64_t end;      // records of the segment up to and with this one
  spool::Detail detail;   // of a kDevice; of others, device 0

  spool::Kind kind() const { return static_cast<spool::Kind>(record.kind_and_value & 0xFF); }
  std::uint64_t value() const { return record.kind_and_value >> 8; }
};

// What could not be read; anything above zero makes the recording incomplete.
struct SpoolLosses {
  std::uint64_t unreadable_records = 0;  // of unknown kind, and all after one in its segment
  std::uint64_t broken_segments = 0;     // with a broken header, cut short, or failing to read
  std::uint64_t missing_segments = 0;    // gaps in the numbers of the files
};

// How far a segment has been read: what a reading that goes on later needs to know of it.
struct SegmentProgress {
  std::uint64_t sequence;
  std::uint64_t records;  // read, details included
  std::uint64_t ticks;    // of the last one
  std::int32_t thread;
};

// Which segments are read to their end, to be counted neither as missing nor again.
struct FinishedSegments {
  std::uint64_t below = 0;  // all with lower numbers
  std::vector<std::uint64_t> others;

  bool Holds(std::uint64_t sequence) const;
  void Add(std::uint64_t sequence);
};

// Reads one segment piece by piece. The file is open only while a piece is read: thousands of
// threads must not run into the limit of open files.
class SegmentReader {
 public:
  SegmentReader(std::filesystem::path path, const SegmentProgress& from)
      : path_(std::move(path)),
        thread_(from.thread),
        sequence_(from.sequence),
        offset_(sizeof(spool::SegmentHeader) + from.records * sizeof(spool::Record)),
        end_(from.records) {
    current_.ticks = from.ticks;
  }

  // Moves on to the next record; false at the end.
  bool Advance(SpoolLosses* losses);

  const spool::Record& record() const { return current_; }
  const spool::Detail& detail() const { return detail_; }
  std::uint64_t end() const { return end_; }
  std::int32_t thread() const { return thread_; }
  std::uint64_t sequence() const { return sequence_; }

 private:
  bool Refill(SpoolLosses* losses);
  bool NextRaw(spool::Record* record, SpoolLosses* losses);

  std::filesystem::path path_;
  std::int32_t thread_;
  std::uint64_t sequence_;
  std::uint64_t offset_;  // of what is not yet in the buffer
  std::uint64_t end_;
  std::vector<spool::Record> buffer_;
  std::size_t next_ = 0;
  spool::Record current_{};
  spool::Detail detail_{};
};

class SpoolMerge {
 public:
  // Looks through the segments of `process_folder` without reading them. Records later than `until`
  // are left for another time.
  SpoolMerge(const std::filesystem::path& process_folder, std::vector<SegmentProgress> begun,
             FinishedSegments finished, std::uint64_t until);

  // Takes the next record of all segments; false when there are no more.
  bool Next(MergedRecord* merged);

  // How many records each segment that will not grow any more holds, by its number.
  const std::unordered_map<std::uint64_t, std::uint64_t>& closed() const { return closed_; }

  std::uint64_t total_records() const { return total_records_; }
  std::uint64_t records_read() const { return records_read_; }
  const SpoolLosses& losses() const { return losses_; }

  void NameThread(std::int32_t number, std::uint64_t thread_id);
  // Thread number → the operating system's thread id, as far as seen.
  const std::vector<std::pair<std::int32_t, std::uint64_t>>& threads() const { return threads_; }

 private:
  struct Waiting {
    std::filesystem::path path;
    SegmentProgress from;
    std::uint64_t first_ticks;
  };

  void Look(const std::filesystem::path& path, const std::vector<SegmentProgress>& begun);
  void Start();
  bool Later(std::size_t left, std::size_t right) const;
  void SiftDown(std::size_t place);

  std::uint64_t until_;
  std::unordered_map<std::uint64_t, std::uint64_t> closed_;
  std::vector<Waiting> waiting_;  // latest first: the next to start is at the back
  std::vector<SegmentReader> readers_;
  std::vector<std::size_t> heap_;  // numbers of readers, the earliest record on top
  std::vector<std::size_t> spare_;
  std::vector<std::pair<std::int32_t, std::uint64_t>> threads_;
  SpoolLosses losses_;
  std::uint64_t total_records_ = 0;
  std::uint64_t records_read_ = 0;
};

}  // namespace workbench
