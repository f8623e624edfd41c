// Any bytes as a recorded history. Made of bytes alone, it is refused in words or found to differ;
// written by the allocator itself it is reproduced, and changed or cut it does no harm.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "allocators/allocator.h"
#include "allocators/history_check.h"
#include "core/errors.h"
#include "fuzz.h"

namespace {

using namespace workbench;
using caching::History;
using caching::HistoryCheck;
using caching::HistoryResult;
using caching::Learning;
using caching::RecordedEntry;

constexpr std::uint64_t kBase = 0x7f0000000000;
constexpr const char* kSettings[] = {
    "",
    "rules:address-order",
    "expandable_segments:True",
    "max_split_size_mb:20,max_non_split_rounding_mb:32",
    "roundup_power2_divisions:4",
    "garbage_collection_threshold:0.5,per_process_memory_fraction:0.5",
    "expandable_segments:True,max_split_size_mb:22,rules:address-order",
    "large_segment_size_mb:12",
};

// Reads the input from its front; zeros follow its end.
class Bytestream {
 public:
  Bytestream(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  bool ended() const { return size_ == 0; }
  unsigned next() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  // Segments begin every 2 MiB, blocks anywhere between, and some things where nothing can be.
  std::uint64_t address() {
    const unsigned where = next();
    if (where >= 250) return (where - 253) * kBase + next();
    const std::uint64_t segment = kBase + where % 32 * static_cast<std::uint64_t>(2 * kMiB);
    return segment + (where < 128 ? 0 : next() * std::uint64_t{1} << (9 + where % 3 * 4));
  }
  Bytes size() {
    const unsigned what = next();
    if (what > 250) return (Bytes{1} << (what - 251) * 15) - static_cast<Bytes>(next());
    if (what >= 128) return static_cast<Bytes>(what - 127) * 2 * kMiB;
    return static_cast<Bytes>(what + 1) * (512 << next() % 16);
  }
  StreamId stream() {
    const unsigned which = next();
    return which < 250 ? static_cast<StreamId>(which % 3)
                       : static_cast<StreamId>(which - 252) << 24;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

RecordedEntry entry_of(Bytestream& bytes) {
  const auto action = static_cast<Action>(bytes.next() % kActionNames.size());
  const std::uint64_t address = bytes.address();
  const Bytes size = bytes.size();
  return {action, address, size, bytes.stream()};
}

History of_bytes(Bytestream& bytes) {
  History history;
  for (unsigned count = bytes.next() % 8; count > 0; --count) {
    const unsigned kind = bytes.next();
    history.segments.push_back(
        {bytes.address(), bytes.size(), bytes.stream(), (kind & 1) != 0, (kind & 6) == 6});
  }
  for (unsigned count = bytes.next() % 8; count > 0; --count) {
    const unsigned kind = bytes.next();
    history.blocks.push_back({bytes.address(), (kind & 1) != 0 ? bytes.size() : 0, bytes.size(),
                              (kind & 2) != 0, (kind & 28) == 28 ? bytes.size() : 0});
  }
  std::ranges::sort(history.blocks, {}, &caching::RecordedBlock::address);
  while (!bytes.ended()) history.entries.push_back(entry_of(bytes));
  return history;
}

// What the allocator writes while a program runs.
History of_program(Bytestream& bytes, const std::string& settings) {
  const Bytes capacity = bytes.next() % 2 == 0 ? kUnlimited : 64 * kMiB;
  const auto backend = backend_registry().get("simulated").create({.capacity = capacity});
  const auto allocator = make_allocator("caching", settings, *backend);
  Journal journal;
  allocator->keep_journal(&journal);
  History history;
  std::vector<std::pair<void*, RecordedEntry>> live;
  const auto written = [&](Action action, const RecordedEntry& entry) {
    journal.add(action, entry.address, entry.size, entry.stream, kDefaultPool);
  };
  for (unsigned count = bytes.next(); count > 0; --count) {
    const unsigned op = bytes.next();
    if (op % 16 == 15) {
      allocator->empty_cache();
    } else if (op % 2 == 0 || live.empty()) {
      const Bytes size = std::clamp<Bytes>(bytes.size(), 1, 64 * kMiB);
      const StreamId stream = static_cast<StreamId>(op / 16) % 3;
      const Allocation made = allocator->allocate(size, stream, 0);
      const RecordedEntry entry = {Action::kAlloc, made.address, size, stream};
      written(made.handle == nullptr ? Action::kOom : Action::kAlloc, entry);
      if (made.handle != nullptr) live.emplace_back(made.handle, entry);
    } else {
      const auto which = live.begin() + static_cast<std::ptrdiff_t>(op / 16 % live.size());
      written(Action::kFreeRequested, which->second);
      written(Action::kFreeCompleted, which->second);
      allocator->free(which->first, 0);
      live.erase(which);
    }
  }
  allocator->keep_journal(nullptr);
  for (const auto& [handle, entry] : live) allocator->free(handle, 0);
  for (const JournalEntry& entry : journal.entries()) {
    history.entries.push_back({entry.action, entry.address, entry.size, entry.stream});
  }
  return history;
}

std::optional<HistoryResult> check(const History& history, const std::string& settings,
                                   Learning learning) {
  try {
    HistoryResult result = HistoryCheck(history, settings, learning, std::nullopt).run();
    if (result.difference) {
      REQUIRE(!result.difference->problem.empty());
      REQUIRE(result.difference->entry < static_cast<std::int64_t>(history.entries.size()));
      return result;
    }
    REQUIRE(result.reserved.size() == history.entries.size());
    Bytes reserved = 0;
    Bytes filled = 0;
    for (const caching::HeldSegment& segment : result.segments) reserved += segment.size;
    for (const caching::HeldBlock& block : result.blocks) {
      REQUIRE(block.size > 0 && block.requested <= block.size);
      filled += block.size;
    }
    REQUIRE(reserved == filled);
    return result;
  } catch (const InputError& error) {
    REQUIRE(std::string_view(error.what()).size() > 20);
    return std::nullopt;
  }
}

}  // namespace

std::vector<std::string_view> fuzz_dictionary() { return {}; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytestream bytes(data, size);
  const unsigned kind = bytes.next();
  const std::string settings = kSettings[kind / 4 % std::size(kSettings)];
  const Learning learning = (kind & 2) == 0    ? Learning::kOrder
                            : (kind & 64) == 0 ? Learning::kSize
                                               : Learning::kNothing;
  if ((kind & 1) == 0) {
    History history = of_bytes(bytes);
    if ((kind & 128) != 0) history.lanes = {{0, 0}, {1, 0}, {0, 1}};
    check(history, settings, learning);
    return 0;
  }
  History history = of_program(bytes, settings);
  const auto whole = check(history, settings, learning);
  REQUIRE(whole && !whole->difference);
  std::vector<RecordedEntry>& entries = history.entries;
  while (!bytes.ended() && !entries.empty()) {
    const unsigned what = bytes.next();
    const auto place = entries.begin() + static_cast<std::ptrdiff_t>(
                                             (bytes.next() * 256 + bytes.next()) % entries.size());
    if (what % 4 == 0) {
      *place = entry_of(bytes);
    } else if (what % 4 == 1) {
      entries.insert(place, entry_of(bytes));
    } else if (what % 4 == 2) {
      entries.erase(place);
    } else {
      std::swap(*place, entries[what / 4 % entries.size()]);
    }
    check(history, settings, learning);
  }
  return 0;
}
