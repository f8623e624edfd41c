// The library torch-host-pinned: at::CachingHostAllocatorImpl behind the engine's C interface.
//
// The original is a template; what of it is CUDA's (taking memory, CUDA events, the reserve
// segment) is put in here, over the workbench's memory and streams.
#include <ATen/core/CachingHostAllocator.h>
#include <workbench_allocator.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "original.h"

namespace reference {
namespace {

using Event = std::uint64_t;
using Block = at::HostBlock<c10::Stream>;

c10::Stream stream_of(std::int32_t number) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::DeviceType::CUDA, 0), number);
}

// From the address of memory to its block: in PyTorch a tensor's storage keeps the block, here only
// the address comes back. Looked up without a lock: it must not be what threads wait for.
class Blocks {
 public:
  Blocks() { grow(64); }

  Block* find(const void* memory) const {
    const Table& table = *current_.load(std::memory_order_acquire);
    for (std::size_t at = table.start(memory);; ++at) {
      const Entry& entry = table.entries[at & table.mask];
      const void* const key = entry.memory.load(std::memory_order_acquire);
      if (key == memory) return entry.block.load(std::memory_order_acquire);
      if (key == nullptr) return nullptr;
    }
  }

  // A block that is no more keeps its place, for the next at its address.
  void set(const void* memory, Block* block) {
    const std::lock_guard guard(mutex_);
    if (used_ * 2 > current_.load()->mask) grow(2 * (current_.load()->mask + 1));
    put(*current_.load(), memory, block);
  }

 private:
  struct Entry {
    std::atomic<const void*> memory = nullptr;
    std::atomic<Block*> block = nullptr;
  };

  struct Table {
    explicit Table(std::size_t length) : mask(length - 1), entries(new Entry[length]) {}

    std::size_t start(const void* memory) const {
      const auto bits = reinterpret_cast<std::uint64_t>(memory) * 0x9e3779b97f4a7c15ULL;
      return static_cast<std::size_t>(bits >> 32);
    }

    const std::size_t mask;
    const std::unique_ptr<Entry[]> entries;
  };

  void put(Table& table, const void* memory, Block* block) {
    for (std::size_t at = table.start(memory);; ++at) {
      Entry& entry = table.entries[at & table.mask];
      const void* const key = entry.memory.load();
      if (key != nullptr && key != memory) continue;
      // The block first: who finds the address finds it too.
      entry.block.store(block, std::memory_order_release);
      entry.memory.store(memory, std::memory_order_release);
      used_ += key == nullptr ? 1 : 0;
      return;
    }
  }

  void grow(std::size_t length) {
    const Table* const old = current_.load();
    tables_.push_back(std::make_unique<Table>(length));
    used_ = 0;
    if (old != nullptr) {
      for (std::size_t i = 0; i <= old->mask; ++i) {
        Block* const block = old->entries[i].block.load();
        if (block != nullptr) put(*tables_.back(), old->entries[i].memory.load(), block);
      }
    }
    current_.store(tables_.back().get(), std::memory_order_release);
  }

  std::atomic<Table*> current_ = nullptr;
  std::vector<std::unique_ptr<Table>> tables_;  // older ones may still be read
  std::size_t used_ = 0;
  std::mutex mutex_;
};

struct Options {
  std::uint64_t max_round = SIZE_MAX;
  std::uint64_t max_cached = SIZE_MAX;
  std::uint64_t reserve = 0;

  // False, and says why, where the text will not do.
  bool read(std::string_view text, char* error, std::size_t error_size) {
    constexpr std::uint64_t kMost = UINT64_MAX >> 20;
    while (!text.empty()) {
      const std::string_view entry = text.substr(0, text.find(','));
      text.remove_prefix(std::min(entry.size() + 1, text.size()));
      const std::string_view key = entry.substr(0, entry.find(':'));
      const std::string value(entry.substr(std::min(key.size() + 1, entry.size())));
      std::uint64_t* const option = key == "pinned_max_round_threshold_mb"    ? &max_round
                                    : key == "pinned_max_cached_size_mb"      ? &max_cached
                                    : key == "pinned_reserve_segment_size_mb" ? &reserve
                                                                              : nullptr;
      const bool is_number = !value.empty() && value.size() < 20 &&
                             value.find_first_not_of("0123456789") == value.npos;
      if (option == nullptr || !is_number) {
        std::snprintf(error, error_size,
                      "%s: it takes pinned_max_round_threshold_mb, pinned_max_cached_size_mb and "
                      "pinned_reserve_segment_size_mb, each with a number of MiB",
                      std::string(entry).c_str());
        return false;
      }
      *option = std::min<std::uint64_t>(std::strtoull(value.c_str(), nullptr, 10), kMost) << 20;
    }
    return true;
  }
};

class Original final : public at::CachingHostAllocatorImpl<c10::Stream, Event> {
 public:
  Original(const wb_host& host, const Options& options) : host_(host), options_(options) {}

  // Leaves nothing behind: what is pending counts as complete.
  void end() {
    ends_ = true;
    empty_cache();
    if (reserve_.has_value()) give(reserve_->start_, reserve_->size_);
  }

  void* allocate_at(std::uint64_t bytes) {
    is_fresh_ = false;
    void* memory = nullptr;
    void* block = nullptr;
    try {
      std::tie(memory, block) = allocate(bytes);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
    if (is_fresh_) blocks_.set(memory, static_cast<Block*>(block));
    return memory;
  }

  Block* block_at(const void* memory) const { return blocks_.find(memory); }

  void report(wb_statistics& to) const {
    to.active = 0;
    for (const auto& of_size : stats_.active_bytes_bucket_stats) to.active += of_size.current;
    to.reserved = taken_;
    to.segments = segments_;
    to.misses = misses_;
  }

 private:
  void* take(std::uint64_t bytes) {
    ++misses_;
    void* const memory = host_.take_pinned(host_.context, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    taken_ += static_cast<std::int64_t>(bytes);
    ++segments_;
    return memory;
  }

  void give(void* memory, std::uint64_t bytes) {
    host_.give_pinned(host_.context, memory, bytes);
    taken_ -= static_cast<std::int64_t>(bytes);
    --segments_;
  }

  // As in ATen/cuda: the reserve segment first, which is taken with the first request.
  void allocate_host_memory(std::size_t size, void** memory) override {
    is_fresh_ = true;
    if (options_.reserve > 0) {
      {
        const std::lock_guard guard(reserve_mutex_);
        if (!reserve_.has_value()) {
          void* const start = take(options_.reserve);
          --misses_;
          reserve_.emplace(start, options_.reserve);
        }
      }
      *memory = reserve_->allocate(size);
      if (*memory != nullptr) return;
    }
    *memory = take(size);
  }

  void free_block(Block* block) override {
    blocks_.set(block->ptr_, nullptr);
    if (!reserve_.has_value() || !reserve_->owns(block->ptr_)) give(block->ptr_, block->size_);
  }

  void record_stream(std::optional<std::vector<Event>>& events, c10::Stream stream) override {
    events->push_back(host_.event_record(host_.context, static_cast<std::int32_t>(stream.id())));
  }
  bool query_event(Event& event) override {
    return ends_ || host_.event_query(host_.context, event) != 0;
  }

  c10::Stream get_current_stream() const override { return stream_of(0); }
  bool stream_is_capturing(c10::Stream) const override { return false; }
  bool pinned_use_background_threads() override { return false; }
  std::size_t pinned_max_round_threshold() const override { return options_.max_round; }
  std::size_t pinned_max_cached_size() const override { return options_.max_cached; }

  static thread_local bool is_fresh_;  // whether the block of this thread's last call is new
  const wb_host host_;
  const Options options_;
  Blocks blocks_;
  std::mutex reserve_mutex_;
  std::optional<at::PinnedReserveSegment> reserve_;
  std::atomic<std::int64_t> taken_ = 0;
  std::atomic<std::int64_t> segments_ = 0;
  std::atomic<std::int64_t> misses_ = 0;
  bool ends_ = false;
};

thread_local bool Original::is_fresh_ = false;

// With the round threshold below the cached size a free list holds blocks of different sizes, and
// the original does not ask for theirs.
constexpr char kDefect[] =
    "PyTorch's own at::CachingHostAllocatorImpl hands out blocks smaller than asked where "
    "pinned_max_round_threshold_mb is below pinned_max_cached_size_mb, and a program that writes "
    "to "
    "them writes past their end; give both the same value, or replay host-pinned, which is without "
    "the defect\n";

struct Instance {
  Original original;
  const bool counts;  // timed passes measure the original alone
  std::atomic<std::int64_t> calls = 0;
  std::atomic<std::int64_t> allocated = 0;
  std::optional<TellsOfTheDefect> told;
};

Instance& self(void* allocator) { return *static_cast<Instance*>(allocator); }

void* create(const wb_host* host, const char* configuration, char* error, std::size_t error_size) {
  Options options;
  if (!options.read(configuration, error, error_size)) return nullptr;
  auto* const instance = new Instance{{*host, options}, host->counts != 0};
  if (options.max_round < options.max_cached) instance->told.emplace(kDefect);
  return instance;
}

void destroy(void* allocator) {
  self(allocator).original.end();
  delete &self(allocator);
}

void* allocate(void* allocator, std::uint64_t bytes, std::int32_t, std::int32_t) {
  Instance& instance = self(allocator);
  void* const memory = instance.original.allocate_at(bytes);
  if (instance.counts) {
    ++instance.calls;
    if (memory != nullptr) {
      const Block* const block = instance.original.block_at(memory);
      instance.allocated += static_cast<std::int64_t>(block->size_);
    }
  }
  return memory;
}

void deallocate(void* allocator, void* memory, std::uint64_t, std::int32_t, std::int32_t) {
  Instance& instance = self(allocator);
  Block* const block = instance.original.block_at(memory);
  if (instance.counts) instance.allocated -= static_cast<std::int64_t>(block->size_);
  instance.original.free(block);
}

void record_stream(void* allocator, void* memory, std::int32_t stream) {
  Original& original = self(allocator).original;
  original.record_event(memory, original.block_at(memory), stream_of(stream));
}

void empty_cache(void* allocator) { self(allocator).original.empty_cache(); }

void statistics(void* allocator, wb_statistics* to) {
  const Instance& instance = self(allocator);
  instance.original.report(*to);
  to->allocated = instance.allocated;
  to->hits = instance.calls - to->misses;
  to->retries = 0;
}

const wb_interface interface = {
    .size = sizeof(wb_interface),
    .version = WB_VERSION,
    .name = "torch-host-pinned",
    .create = create,
    .destroy = destroy,
    .allocate = allocate,
    .deallocate = deallocate,
    .record_stream = record_stream,
    .empty_cache = empty_cache,
    .statistics = statistics,
    .prepare = nullptr,
    .program_begins = nullptr,
    .program_ends = nullptr,
};

}  // namespace
}  // namespace reference

extern "C" __attribute__((visibility("default"))) const wb_interface* workbench_allocator(
    std::uint32_t version) {
  return version >= WB_VERSION ? &reference::interface : nullptr;
}
