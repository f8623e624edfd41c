// Any bytes as settings, a device and a program of caching. After each operation its state is held
// against itself, and before each allocation rule 5 says which free block it has to get.
#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "allocators/allocator.h"
#include "allocators/caching_settings.h"
#include "core/errors.h"
#include "fuzz.h"

namespace {

using namespace workbench;
using caching::CachingSettings;
using caching::kNoLimit;

constexpr StreamId kStreams = 3;

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
  Bytes number(int bytes) {
    Bytes value = 0;
    for (; bytes > 0; --bytes) value = value << 8 | next();
    return value;
  }
  // Small and large, on the rules' limits and beside them.
  Bytes size() {
    const unsigned shape = next();
    const Bytes near = static_cast<Bytes>(next()) - 128;
    switch (shape % 4) {
      case 0:
        return std::max<Bytes>(0, (Bytes{1} << shape / 4 % 27) + near);
      case 1:
        return std::max<Bytes>(0, shape / 4 * kMiB + near);
      case 2:
        return number(2);
      default:
        return number(3) * 4;
    }
  }
  template <class T, std::size_t kCount>
  T one_of(const T (&choices)[kCount]) {
    return choices[next() % kCount];
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

std::string read_settings(Bytestream& bytes) {
  const unsigned which = bytes.next();
  const unsigned more = bytes.next();
  const Bytes large = (which & 1) != 0 ? 11 + bytes.next() % 24 : 20;
  std::string text = "large_segment_size_mb:" + std::to_string(large);
  const auto add = [&](const char* key, const std::string& value) {
    text += std::string(",") + key + ":" + value;
  };
  if (which & 2) add("max_split_size_mb", std::to_string(large + bytes.next() % 20));
  if (which & 4) add("max_non_split_rounding_mb", std::to_string(large + bytes.next() % 20));
  if (which & 8) add("expandable_segments", "True");
  if (which & 16) {
    add("garbage_collection_threshold", "0." + std::to_string(1 + bytes.next() % 9));
    add("per_process_memory_fraction", "0." + std::to_string(bytes.next()));
  }
  if (which & 32) add("per_process_memory_fraction", bytes.next() % 2 == 0 ? "1" : "0");
  if (which & 64) add("roundup_power2_divisions", std::to_string(1U << bytes.next() % 16));
  if (which & 128) add("throw_on_cudamalloc_oom", "True");
  if (more % 4 == 1) {
    const auto divisions = [&] { return std::to_string(1U << bytes.next() % 16); };
    add("roundup_power2_divisions", "[" + std::to_string(1U << bytes.next() % 8) + ":" +
                                        divisions() + ",16:" + divisions() + ",>:" + divisions() +
                                        "]");
  }
  return text;
}

class Fuzzed {
 public:
  Fuzzed(const std::string& settings, const BackendOptions& options)
      : conf_(Settings(settings, "caching", caching::caching_settings_help())),
        backend_(backend_registry().get("simulated").create(options)),
        allocator_(make_allocator("caching", settings, *backend_)) {}

  ~Fuzzed() {
    while (!live_.empty()) free(0);
    allocator_.reset();
    REQUIRE(backend_->used() == 0);
  }

  void operation(Bytestream& bytes, std::int64_t number) {
    backend_->set_now(number);
    const unsigned op = bytes.next();
    const std::size_t index = live_.empty() ? 0 : op / 16 % live_.size();
    const StreamId stream = static_cast<StreamId>(op / 16) % kStreams;
    switch (op % 16) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
      case 6:
        allocate(bytes.size(), stream);
        break;
      case 7:
      case 8:
      case 9:
      case 10:
        if (!live_.empty()) free(live_.size() - 1 - index);
        break;
      case 11:
      case 12:
        if (!live_.empty()) record_stream(live_.size() - 1 - index, bytes.next());
        break;
      case 13:
        backend_->synchronize(stream);
        break;
      case 14:
        backend_->complete_recorded(stream, backend_->sequence() / 2);
        break;
      default:
        allocator_->empty_cache();
        no_block_is_pending_ = true;
        break;
    }
    check(number % 32 == 31);  // 130 names take their time
  }

 private:
  struct Live {
    Allocation allocation;
    Bytes requested;
    StreamId stream;
  };
  struct Found {
    std::uint64_t address;
    Bytes size;
    std::uint64_t segment;
    std::uint64_t offset;
    Bytes room;
  };

  Bytes rounded(Bytes size) const {
    if (size < 512) return 512;
    const Bytes divisions = conf_.divisions_of(size);
    if (divisions <= 1 || size <= 512 * divisions) return round_up(size, 512);
    const auto floor = static_cast<Bytes>(std::bit_floor(static_cast<std::uint64_t>(size)));
    if (size == floor) return size;
    return floor < divisions ? 2 * floor : round_up(size, floor / divisions);
  }

  // The free blocks of a pool and stream in best-fit order.
  std::vector<Found> free_blocks(bool small, StreamId stream) const {
    const Bytes page = small ? 2 * kMiB : conf_.large_segment;
    const Bytes total = backend_->total();
    const Bytes range = round_up(total + (total + 7) / 8, page);
    std::vector<Found> found;
    bool follows = false;  // whether this block's segment is that of the last one found
    allocator_->visit([&](const BlockView& block) {
      if (follows && found.back().segment == block.segment) {
        // What is between two blocks with memory has none.
        found.back().room = static_cast<Bytes>(block.offset - found.back().offset);
      }
      follows = block.state == BlockState::kInactive && block.stream == stream &&
                (block.pool == "small") == small;
      if (!follows) return;
      const Bytes rest = block.expandable ? range - static_cast<Bytes>(block.offset) : block.size;
      found.push_back(
          {block.segment_address + block.offset, block.size, block.segment, block.offset, rest});
    });
    std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
      return std::tie(a.size, a.segment, a.offset) < std::tie(b.size, b.segment, b.offset);
    });
    return found;
  }

  // Rule 5: the address an allocation gets from the cache; nothing where it gets none.
  std::optional<std::uint64_t> expected(Bytes size, StreamId stream) const {
    const std::vector<Found> free = free_blocks(size <= kMiB, stream);
    auto best = std::find_if(free.begin(), free.end(), [&](auto& f) { return f.size >= size; });
    if (best == free.end()) return std::nullopt;
    if (conf_.expandable_segments) {
      while (best + 1 != free.end() && (best + 1)->room < best->room) ++best;
    }
    if (size < conf_.max_split ? best->size >= conf_.max_split
                               : best->size >= size + conf_.max_non_split_rounding) {
      return std::nullopt;
    }
    return best->address;
  }

  void allocate(Bytes requested, StreamId stream) {
    if (live_.size() >= 64) return;
    const Statistics before = allocator_->statistics();
    const Bytes size = rounded(requested);
    const auto address = expected(size, stream);
    const Allocation got = allocator_->allocate(requested, stream, 0);
    const Statistics after = allocator_->statistics();
    if (requested == 0) {
      REQUIRE(got.handle == nullptr && !got.is_refused() && after.n_alloc == before.n_alloc);
      return;
    }
    // CUDA events that complete free further blocks first.
    if (no_block_is_pending_ || before.n_active == before.n_alloc) {
      no_block_is_pending_ = true;
      REQUIRE(after.hits - before.hits == (address ? 1 : 0));
      if (address) REQUIRE(got.address == *address);
    }
    REQUIRE(after.hits + after.misses == before.hits + before.misses + 1);
    if (got.is_refused()) {
      REQUIRE(after.allocated == before.allocated && after.ooms >= before.ooms);
      return;
    }
    REQUIRE(got.handle != nullptr && got.address % kDeviceAlignment == 0);
    REQUIRE(after.allocated - before.allocated >= size);
    live_.push_back({got, requested, stream});
  }

  void free(std::size_t index) {
    const Live freed = live_[index];
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(index));
    allocator_->free(freed.allocation.handle, 0);
    const Statistics now = allocator_->statistics();
    no_block_is_pending_ = now.n_active == now.n_alloc;
  }

  void record_stream(std::size_t index, unsigned choice) {
    allocator_->record_stream(live_[index].allocation.handle,
                              static_cast<StreamId>(choice % kStreams));
  }

  // What visit() shows is whole, and the statistics are its sums.
  void check(bool with_torch) const {
    struct Sums {
      std::int64_t active = 0, split = 0, segments = 0;
      Bytes requested = 0, allocated = 0, active_bytes = 0, reserved = 0, split_bytes = 0;
    };
    Sums all;
    Sums small;
    Sums large;
    std::map<const void*, const BlockView*> allocated;
    std::map<std::uint64_t, std::uint64_t> ranges;
    std::vector<BlockView> blocks;
    allocator_->visit([&](const BlockView& block) { blocks.push_back(block); });
    Bytes largest = 0;
    std::uint64_t end = 0;
    Bytes with_memory = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const BlockView& block = blocks[i];
      const bool first = i == 0 || blocks[i - 1].segment != block.segment;
      const bool last = i + 1 == blocks.size() || blocks[i + 1].segment != block.segment;
      const bool is_free = block.state == BlockState::kInactive;
      REQUIRE(block.size > 0 && block.size % 512 == 0);
      REQUIRE(first || block.segment_size == blocks[i - 1].segment_size);
      if (first) {
        REQUIRE(i == 0 || blocks[i - 1].segment < block.segment);
        end = with_memory = 0;
      }
      REQUIRE(block.expandable ? block.offset >= end : block.offset == end);
      // Free neighbours are merged.
      REQUIRE(first || !is_free || block.offset > end ||
              blocks[i - 1].state != BlockState::kInactive);
      end = block.offset + static_cast<std::uint64_t>(block.size);
      with_memory += block.size;
      if (last) {
        REQUIRE(with_memory == block.segment_size);
        ranges[block.segment_address] = block.segment_address + end;
      }
      if (is_free) {
        REQUIRE(block.requested == 0);
        largest = std::max(largest, block.size);
      } else {
        REQUIRE(block.requested > 0 && block.requested <= block.size);
      }
      if (block.state == BlockState::kActiveAllocated) allocated[block.handle] = &block;
      for (Sums* const sum : {&all, block.pool == "small" ? &small : &large}) {
        sum->reserved += block.size;
        if (!block.expandable && last) ++sum->segments;
        if (is_free) {
          const bool split = !block.expandable && !(first && last);
          sum->split += split ? 1 : 0;
          sum->split_bytes += split ? block.size : 0;
          continue;
        }
        ++sum->active;
        sum->active_bytes += block.size;
        sum->requested += block.requested;
        if (block.state == BlockState::kActiveAllocated) sum->allocated += block.size;
      }
    }
    std::uint64_t previous_end = 0;
    for (const auto& [start, range_end] : ranges) {
      REQUIRE(start >= previous_end);
      previous_end = range_end;
    }

    REQUIRE(allocated.size() == live_.size());
    for (const Live& live : live_) {
      const auto found = allocated.find(live.allocation.handle);
      REQUIRE(found != allocated.end());
      const BlockView& block = *found->second;
      REQUIRE(block.segment_address + block.offset == live.allocation.address);
      REQUIRE(block.requested == live.requested && block.stream == live.stream);
      const Location place = allocator_->locate(block.handle);
      REQUIRE(place.segment == block.segment && place.offset == block.offset);
    }

    const Statistics now = allocator_->statistics();
    REQUIRE(now.requested == all.requested && now.allocated == all.allocated);
    REQUIRE(now.active == all.active_bytes && now.reserved == all.reserved);
    REQUIRE(now.inactive_split == all.split_bytes && now.n_inactive_split == all.split);
    REQUIRE(now.n_alloc == static_cast<std::int64_t>(live_.size()));
    REQUIRE(now.n_active == all.active && now.n_segment == all.segments);
    REQUIRE(now.stranded ==
            (conf_.expandable_segments ? now.reserved - now.active : now.inactive_split));
    REQUIRE(allocator_->largest_free() == largest);
    REQUIRE(now.reserved <= backend_->used() && backend_->used() <= backend_->capacity());
    REQUIRE(conf_.expandable_segments || now.device_allocs - now.device_frees == now.n_segment);
    const DriverCalls& calls = backend_->driver_calls();
    REQUIRE(now.device_allocs == calls.alloc + calls.map);
    REQUIRE(now.device_frees == calls.free + calls.unmap);
    if (!with_torch) return;
    const auto numbers = allocator_->torch_statistics();
    for (const auto& [name, value] : numbers) REQUIRE(value >= 0 || name == "max_split_size");
    check_torch(numbers, all, "all");
    check_torch(numbers, small, "small_pool");
    check_torch(numbers, large, "large_pool");
  }

  template <class Numbers, class Sums>
  static void check_torch(const Numbers& numbers, const Sums& sum, const std::string& pool) {
    const auto current = [&](const std::string& name) {
      const std::string full = name + "." + pool + ".";
      const auto found = std::lower_bound(numbers.begin(), numbers.end(),
                                          std::pair(full + "allocated", std::int64_t{-1}));
      // In order of their names: allocated, current, freed, peak.
      REQUIRE(numbers.end() - found >= 4);
      REQUIRE(found[1].first == full + "current" && found[3].first == full + "peak");
      REQUIRE(found[0].second - found[2].second == found[1].second);
      REQUIRE(found[1].second <= found[3].second && found[3].second <= found[0].second);
      return found[1].second;
    };
    REQUIRE(current("active") == sum.active && current("active_bytes") == sum.active_bytes);
    REQUIRE(current("allocated_bytes") == sum.allocated);
    REQUIRE(current("requested_bytes") == sum.requested);
    REQUIRE(current("reserved_bytes") == sum.reserved);
    REQUIRE(current("segment") == sum.segments);
    REQUIRE(current("inactive_split") == sum.split);
    REQUIRE(current("inactive_split_bytes") == sum.split_bytes);
  }

  const CachingSettings conf_;
  const std::unique_ptr<Backend> backend_;
  std::unique_ptr<Allocator> allocator_;
  std::vector<Live> live_;
  bool no_block_is_pending_ = true;
};

}  // namespace

std::vector<std::string_view> fuzz_dictionary() { return {}; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytestream bytes(data, size);
  const std::string settings = read_settings(bytes);
  const Bytes capacity = 1 + bytes.number(1) * kMiB + bytes.number(1) * 7919;
  const Completion completion = bytes.one_of({Completion{Completion::Kind::kRecorded},
                                              {Completion::Kind::kImmediate},
                                              {Completion::Kind::kNever},
                                              {Completion::Kind::kDelay, 3}});
  std::optional<Fuzzed> fuzzed;
  try {
    fuzzed.emplace(settings, BackendOptions{.capacity = capacity, .completion = completion});
  } catch (const InputError&) {
    return 0;  // a setting twice
  }
  for (std::int64_t number = 0; !bytes.ended() && number < 300; ++number) {
    fuzzed->operation(bytes, number);
  }
  return 0;
}
