// The records of all segments of one process, in order of time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "agent/hook/spool_format.h"

namespace workbench {

// One record in its place among all threads' records.
struct MergedRecord {
  spool::Record record;  // `ticks` never lower than before in the same segment
  std::int32_t thread;
  std::uint64_t segment;  // sequence number of its segment

  spool::Kind kind() const { return static_cast<spool::Kind>(record.kind_and_value & 0xFF); }
  std::uint64_t value() const { return record.kind_and_value >> 8; }
};

// What could not be read; anything above zero makes the recording incomplete.
struct SpoolLosses {
  std::uint64_t unreadable_records = 0;  // of unknown kind, and all after one in its segment
  std::uint64_t broken_segments = 0;     // with a broken header, cut short, or failing to read
  std::uint64_t missing_segments = 0;    // gaps in the numbers of the files
};

// Reads one segment piece by piece. The file is open only while a piece is read: thousands of
// threads must not run into the limit of open files.
class SegmentReader {
 public:
  SegmentReader(std::filesystem::path path, const spool::SegmentHeader& header)
      : path_(std::move(path)),
        thread_(static_cast<std::int32_t>(header.thread)),
        sequence_(header.sequence) {}

  // Moves on to the next record; false at the end.
  bool Advance(SpoolLosses* losses);

  const spool::Record& record() const { return current_; }
  std::int32_t thread() const { return thread_; }
  std::uint64_t sequence() const { return sequence_; }

 private:
  bool Refill(SpoolLosses* losses);
  bool NextRaw(spool::Record* record, SpoolLosses* losses);

  std::filesystem::path path_;
  std::int32_t thread_;
  std::uint64_t sequence_;
  std::uint64_t offset_ = sizeof(spool::SegmentHeader);
  std::vector<spool::Record> buffer_;
  std::size_t next_ = 0;
  spool::Record current_{};
};

class SpoolMerge {
 public:
  // Looks through the segments of `process_folder` without reading them.
  explicit SpoolMerge(const std::filesystem::path& process_folder);

  // Takes the next record of all segments; false when there are no more.
  bool Next(MergedRecord* merged);

  std::uint64_t total_records() const { return total_records_; }
  std::uint64_t records_read() const { return records_read_; }
  const SpoolLosses& losses() const { return losses_; }

  // Thread number → the operating system's thread id, as far as seen.
  const std::vector<std::pair<std::int32_t, std::uint64_t>>& threads() const { return threads_; }

 private:
  struct Waiting {
    std::filesystem::path path;
    spool::SegmentHeader header;
    std::uint64_t first_ticks;
  };

  void Look(const std::filesystem::path& path);
  void Start();
  void NameThread(std::int32_t number, std::uint64_t thread_id);
  bool Later(std::size_t left, std::size_t right) const;
  void SiftDown(std::size_t place);

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
