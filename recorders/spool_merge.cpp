#include "spool_merge.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <iterator>
#include <limits>
#include <set>

namespace workbench {
namespace {

constexpr std::size_t kRecordsPerRead = 2048;  // 64 KiB: little even with a thousand threads

class File {
 public:
  explicit File(const std::filesystem::path& path)
      : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Bytes read, fewer than asked only at the end of the file; -1 when reading fails.
  std::ptrdiff_t Read(void* to, std::size_t bytes, std::uint64_t offset) const {
    std::size_t done = 0;
    while (done < bytes) {
      const ssize_t got = pread(fd_, static_cast<char*>(to) + done, bytes - done,
                                static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return -1;
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    return static_cast<std::ptrdiff_t>(done);
  }

 private:
  int fd_;
};

spool::Kind KindOf(const spool::Record& record) {
  return static_cast<spool::Kind>(record.kind_and_value & 0xFF);
}

constexpr std::uint64_t kLargestThread = std::numeric_limits<std::int32_t>::max();

bool IsKnown(const spool::Record& record, const spool::Detail& detail) {
  const spool::Kind kind = KindOf(record);
  if (kind > spool::Kind::kDevice) return false;
  if (kind == spool::Kind::kThread) return record.kind_and_value >> 8 <= kLargestThread;
  if (kind == spool::Kind::kDevice) {
    if (detail.device == spool::kCpu || detail.device >= spool::kDevices || detail.stream < -1 ||
        detail.pool > kLargestThread || detail.event >= spool::Event::kCount) {
      return false;
    }
  }
  return record.address != std::numeric_limits<std::uint64_t>::max();
}

// How many records are written, by bisection: written ones come first, the rest reads as zeros.
std::uint64_t CountRecords(const File& file, std::uint64_t file_bytes, std::uint64_t read) {
  std::uint64_t low = read;
  std::uint64_t high = (file_bytes - sizeof(spool::SegmentHeader)) / sizeof(spool::Record);
  while (low < high) {  // a file that was cut short may hold fewer than were read
    const std::uint64_t middle = low + (high - low) / 2;
    spool::Record record{};
    file.Read(&record, sizeof record,
              sizeof(spool::SegmentHeader) + middle * sizeof(spool::Record));
    if (KindOf(record) == spool::Kind::kNone) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

bool AllZero(const char* bytes, std::size_t count) {
  return std::all_of(bytes, bytes + count, [](char byte) { return byte == 0; });
}

}  // namespace

bool FinishedSegments::Holds(std::uint64_t sequence) const {
  return sequence < below || std::binary_search(others.begin(), others.end(), sequence);
}

void FinishedSegments::Add(std::uint64_t sequence) {
  if (Holds(sequence)) return;
  others.insert(std::lower_bound(others.begin(), others.end(), sequence), sequence);
  auto first = others.begin();
  for (; first != others.end() && *first == below; ++first) ++below;
  others.erase(others.begin(), first);
}

bool SegmentReader::Refill(SpoolLosses* losses) {
  buffer_.resize(kRecordsPerRead);
  next_ = 0;
  const File file(path_);
  const std::ptrdiff_t got =
      file.Read(buffer_.data(), kRecordsPerRead * sizeof(spool::Record), offset_);
  if (got < 0) {
    ++losses->broken_segments;
    buffer_.clear();
    return false;
  }
  // A torn record at the very end of a file is one that was never completed.
  buffer_.resize(static_cast<std::size_t>(got) / sizeof(spool::Record));
  offset_ += buffer_.size() * sizeof(spool::Record);
  return !buffer_.empty();
}

bool SegmentReader::NextRaw(spool::Record* record, SpoolLosses* losses) {
  if (next_ == buffer_.size() && !Refill(losses)) return false;
  *record = buffer_[next_++];
  return KindOf(*record) != spool::Kind::kNone;
}

bool SegmentReader::Advance(SpoolLosses* losses) {
  spool::Record record{};
  spool::Detail detail{};
  std::uint64_t read = 0;
  do {
    if (!NextRaw(&record, losses)) return false;  // a detail of nothing is of an event never told
    ++read;
    if (KindOf(record) != spool::Kind::kDetail) break;
    detail = std::bit_cast<spool::Detail>(record);
  } while (true);
  if (!IsKnown(record, detail)) {
    // What follows a broken record in its segment cannot be believed; it is counted.
    do {
      ++losses->unreadable_records;
    } while (NextRaw(&record, losses));
    return false;
  }
  end_ += read;
  record.ticks = std::max(record.ticks, current_.ticks);
  current_ = record;
  detail_ = detail;
  if (KindOf(record) == spool::Kind::kThread) {
    thread_ = static_cast<std::int32_t>(record.kind_and_value >> 8);
  }
  return true;
}

SpoolMerge::SpoolMerge(const std::filesystem::path& process_folder,
                       std::vector<SegmentProgress> begun, FinishedSegments finished,
                       std::uint64_t until)
    : until_(until) {
  const std::string prefix = "events-";
  std::set<std::uint64_t> numbers;
  for (const auto& entry : std::filesystem::directory_iterator(process_folder)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(prefix, 0) != 0) continue;
    std::uint64_t number = 0;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + prefix.size(), end, number);
    if (parsed.ec != std::errc{} || parsed.ptr != end) continue;
    if (finished.Holds(number)) continue;
    numbers.insert(number);
    Look(entry.path(), begun);
  }
  for (const SegmentProgress& segment : begun) {
    // Counted, not guessed at: it was there before.
    if (numbers.insert(segment.sequence).second) ++losses_.missing_segments;
  }
  numbers.insert(finished.others.begin(), finished.others.end());
  if (!numbers.empty()) {
    const std::uint64_t first = finished.below == 0 ? *numbers.begin() : finished.below;
    losses_.missing_segments +=
        *numbers.rbegin() + 1 - std::min(first, *numbers.rbegin() + 1) -
        static_cast<std::uint64_t>(std::distance(numbers.lower_bound(first), numbers.end()));
  }
  std::sort(waiting_.begin(), waiting_.end(), [](const Waiting& left, const Waiting& right) {
    return std::pair(left.first_ticks, left.from.sequence) >
           std::pair(right.first_ticks, right.from.sequence);
  });
}

void SpoolMerge::Look(const std::filesystem::path& path,
                      const std::vector<SegmentProgress>& begun) {
  struct {
    spool::SegmentHeader header;
    spool::Record first;
  } start{};
  const File file(path);
  const std::ptrdiff_t got = file.Read(&start, sizeof start, 0);
  // The magic is written last: without it, and without a record, this is a segment made ahead
  // that no thread came to use.
  if (got >= 0 && AllZero(start.header.magic, sizeof start.header.magic) &&
      KindOf(start.first) == spool::Kind::kNone) {
    return;
  }
  if (got < static_cast<std::ptrdiff_t>(sizeof start.header) ||
      std::memcmp(start.header.magic, spool::kMagic, sizeof spool::kMagic) != 0 ||
      start.header.version != spool::kVersion || start.header.thread > kLargestThread) {
    ++losses_.broken_segments;
    return;
  }
  NameThread(static_cast<std::int32_t>(start.header.thread), start.header.thread_id);
  SegmentProgress from{start.header.sequence, 0, 0, static_cast<std::int32_t>(start.header.thread)};
  for (const SegmentProgress& known : begun) {
    if (known.sequence == from.sequence) from = known;
  }
  if (got < static_cast<std::ptrdiff_t>(sizeof start) ||
      KindOf(start.first) == spool::Kind::kNone) {
    return;
  }
  std::error_code ignored;
  const std::uint64_t records =
      CountRecords(file, std::filesystem::file_size(path, ignored), from.records);
  // The header was read first: what it says to be closed has all its records.
  if (start.header.closed != 0) closed_.emplace(from.sequence, records);
  if (records <= from.records) return;
  total_records_ += records - from.records;
  spool::Record next[2] = {};
  file.Read(next, sizeof next, sizeof(spool::SegmentHeader) + from.records * sizeof(spool::Record));
  // A detail has no time of its own; the record after it has.
  const spool::Record& first = next[KindOf(next[0]) == spool::Kind::kDetail ? 1 : 0];
  waiting_.push_back({path, from, std::max(first.ticks, from.ticks)});
}

void SpoolMerge::NameThread(std::int32_t number, std::uint64_t thread_id) {
  const auto known = std::find_if(threads_.begin(), threads_.end(),
                                  [&](const auto& entry) { return entry.first == number; });
  if (known == threads_.end()) threads_.emplace_back(number, thread_id);
}

bool SpoolMerge::Later(std::size_t left, std::size_t right) const {
  const SegmentReader& a = readers_[left];
  const SegmentReader& b = readers_[right];
  if (a.record().ticks != b.record().ticks) return a.record().ticks > b.record().ticks;
  if (a.thread() != b.thread()) return a.thread() > b.thread();
  return a.sequence() > b.sequence();
}

void SpoolMerge::SiftDown(std::size_t place) {
  for (;;) {
    std::size_t earliest = place;
    for (const std::size_t child : {2 * place + 1, 2 * place + 2}) {
      if (child < heap_.size() && Later(heap_[earliest], heap_[child])) earliest = child;
    }
    if (earliest == place) return;
    std::swap(heap_[place], heap_[earliest]);
    place = earliest;
  }
}

void SpoolMerge::Start() {
  const Waiting& next = waiting_.back();
  SegmentReader reader(next.path, next.from);
  waiting_.pop_back();
  if (!reader.Advance(&losses_)) return;
  std::size_t number = readers_.size();
  if (spare_.empty()) {
    readers_.push_back(std::move(reader));
  } else {
    number = spare_.back();
    spare_.pop_back();
    readers_[number] = std::move(reader);
  }
  heap_.push_back(number);
  for (std::size_t place = heap_.size() - 1; place > 0;) {
    const std::size_t parent = (place - 1) / 2;
    if (!Later(heap_[parent], heap_[place])) break;
    std::swap(heap_[parent], heap_[place]);
    place = parent;
  }
}

bool SpoolMerge::Next(MergedRecord* merged) {
  while (!waiting_.empty() &&
         (heap_.empty() || waiting_.back().first_ticks <= readers_[heap_[0]].record().ticks)) {
    Start();
  }
  if (heap_.empty() || readers_[heap_[0]].record().ticks > until_) return false;
  SegmentReader& reader = readers_[heap_[0]];
  *merged = {reader.record(), reader.thread(), reader.sequence(), reader.end(), reader.detail()};
  records_read_ += merged->kind() == spool::Kind::kDevice ? 2 : 1;
  if (merged->kind() == spool::Kind::kThread) NameThread(merged->thread, merged->record.address);
  if (!reader.Advance(&losses_)) {
    spare_.push_back(heap_[0]);
    heap_[0] = heap_.back();
    heap_.pop_back();
  }
  if (!heap_.empty()) SiftDown(0);
  return true;
}

}  // namespace workbench
