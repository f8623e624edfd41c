// The user's own allocator: any shared library.
#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "allocators/library_calls.h"
#include "allocators/shared_library.h"
#include "allocators/walk.h"
#include "core/errors.h"
#include "core/lock.h"

namespace workbench {
namespace {

// `Calls` is one of those in library_calls.h.
template <class Calls>
class Pluggable final : public Replayed<Pluggable<Calls>> {
 public:
  Pluggable(Backend& backend, const SharedLibrary& library, const Settings& settings)
      : Replayed<Pluggable>(backend),
        calls_(library, backend, settings),
        shard_mask_(backend.several_threads() ? kMostShards - 1 : 0) {
    for (std::size_t i = 0; i <= shard_mask_; ++i) {
      shards_.push_back(std::make_unique<Shard>(backend.several_threads()));
    }
  }

  Allocation allocate(Bytes size, StreamId stream, ThreadId thread) override {
    if (size == 0 && !Calls::kPassesNothingOn) return Allocation::nothing();
    void* const memory =
        call_library("allocate", [&] { return calls_.allocate(size, stream, thread); });
    Allocator::cause_ = Cause::kServedFromCache;
    if (memory == nullptr) [[unlikely]] {
      if (size == 0) return Allocation::nothing();
      ++ooms_;
      return Allocation::refused();
    }
    Shard& shard = shard_of(thread);
    const std::lock_guard guard(shard.lock);
    Block& block = shard.take();
    block.memory = memory;
    block.size = size;
    block.stream = stream;
    block.live = true;
    shard.requested += size;
    ++shard.live;
    return {reinterpret_cast<std::uint64_t>(memory), &block};
  }

  void free(void* handle, ThreadId thread) override {
    Block& block = *static_cast<Block*>(handle);
    call_library("free",
                 [&] { calls_.deallocate(block.memory, block.size, block.stream, thread); });
    Allocator::cause_ = Cause::kServedFromCache;
    Shard& shard = shard_of(thread);
    const std::lock_guard guard(shard.lock);
    block.live = false;
    shard.give(block);
    shard.requested -= block.size;
    --shard.live;
  }

  void record_stream(void* handle, StreamId stream) override {
    call_library("record_stream",
                 [&] { calls_.record_stream(static_cast<Block*>(handle)->memory, stream); });
  }
  void empty_cache() override {
    call_library("empty_cache", [&] { calls_.empty_cache(); });
  }
  void capture_begin(StreamId stream) override {
    call_library("capture_begin", [&] { calls_.capture_begin(stream); });
  }
  void capture_end(StreamId stream) override {
    call_library("capture_end", [&] { calls_.capture_end(stream); });
  }
  void pool_begin(PoolId pool) override {
    call_library("pool_begin", [&] { calls_.pool_begin(pool); });
  }
  void pool_end(PoolId pool) override {
    call_library("pool_end", [&] { calls_.pool_end(pool); });
  }
  void pool_release(PoolId pool) override {
    call_library("pool_release", [&] { calls_.pool_release(pool); });
  }
  bool takes_lanes() const override { return calls_.takes_lanes(); }
  void set_fraction(std::int64_t millionths) override {
    call_library("set_fraction", [&] { calls_.set_fraction(millionths); });
  }
  void synchronized(StreamId stream) override {
    call_library("synchronized", [&] { calls_.synchronized(stream); });
  }

  void free_at(std::uint64_t address, ThreadId thread) override {
    bool was_ours = false;
    for (const std::unique_ptr<Shard>& shard : shards_) {
      for (Block& block : shard->blocks) {
        if (reinterpret_cast<std::uint64_t>(block.memory) != address) continue;
        if (block.live) return free(&block, thread);
        was_ours = true;
      }
    }
    const std::string text = "free of address " + std::to_string(address);
    if (was_ours) throw DoubleFreeError(text + ", which is free already");
    throw ForeignPointerError(text + ", which is no live block of " + calls_.path());
  }

  // A library does not tell where its blocks lie.
  Location locate(const void*) const override { return {0, 0}; }
  void visit(const std::function<void(const BlockView&)>&) const override {}
  Bytes largest_free() const override { return calls_.statistics().largest_free; }

  Statistics statistics() const override {
    const LibraryStatistics library = calls_.statistics();
    Statistics told = library.values;
    for (const std::unique_ptr<Shard>& shard : shards_) {
      if (!library.tells_requested) told.requested += shard->requested;
      told.n_alloc += shard->live;
    }
    if (!library.tells_ooms) told.ooms = ooms_;
    if (!library.tells_device_calls) {
      const DriverCalls& calls = this->backend_.driver_calls();
      told.device_allocs = calls.alloc + calls.map;
      told.device_frees = calls.free + calls.unmap;
    }
    told.ignored_record_streams = calls_.ignored_record_streams;
    return told;
  }
  Reported reported() const override { return calls_.reported(); }
  Bytes alignment(Bytes size) const override { return calls_.alignment(size); }
  bool starts_afresh() const override { return Calls::kStartsAfresh; }
  std::vector<std::string> warnings() const override { return calls_.warnings(); }

  void prepare(const Events& events) override { calls_.prepare(events); }
  void program_begins() override { calls_.program_begins(); }
  void program_ends() override { calls_.program_ends(); }

 private:
  struct Block {
    void* memory;
    Bytes size;
    StreamId stream;
    bool live;
    Block* next_unused;
  };

  // What is known of blocks, apart for each of many threads so that they do not wait for each
  // other. A block is made in one shard and may be freed into another.
  struct Shard {
    explicit Shard(bool several_threads) : lock(several_threads) {}

    Block& take() {
      if (unused == nullptr) return blocks.emplace_back();
      Block& block = *unused;
      unused = block.next_unused;
      return block;
    }
    void give(Block& block) {
      block.next_unused = unused;
      unused = &block;
    }

    Lock lock;
    std::deque<Block> blocks;
    Block* unused = nullptr;
    Bytes requested = 0;
    std::int64_t live = 0;
  };
  static constexpr std::size_t kMostShards = 64;

  Shard& shard_of(ThreadId thread) {
    return *shards_[static_cast<std::size_t>(thread) & shard_mask_];
  }

  mutable Calls calls_;
  const std::size_t shard_mask_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<std::int64_t> ooms_ = 0;
};

enum class Abi : std::uint8_t { kWorkbench, kTorch, kMalloc };

std::optional<Abi> abi_of(const Settings& settings) {
  const std::optional<std::string_view> text = settings.find("abi");
  if (!text) {
    const bool names_functions = settings.find("alloc") || settings.find("free");
    return names_functions ? std::optional(Abi::kTorch) : std::nullopt;
  }
  if (*text == "workbench") return Abi::kWorkbench;
  if (*text == "torch") return Abi::kTorch;
  if (*text == "malloc") return Abi::kMalloc;
  settings.refuse("abi", "give workbench, torch or malloc");
}

Abi abi_of(const SharedLibrary& library) {
  if (library.find("workbench_allocator") != nullptr) return Abi::kWorkbench;
  if (library.find("my_malloc") != nullptr) return Abi::kTorch;
  if (library.find("malloc") != nullptr) return Abi::kMalloc;
  throw LibraryFaultError(
      "library " + library.path() +
      " defines neither workbench_allocator nor my_malloc nor malloc; export the first as "
      "workbench_allocator.h says, or name its functions with alloc:NAME,free:NAME");
}

// Throws InputError.
void check(const Settings& settings) {
  if (settings.find("library").value_or("").empty()) {
    throw InputError("pluggable needs a library; name one: pluggable:LIB.so");
  }
  const std::optional<Abi> abi = abi_of(settings);
  for (const char* key :
       {"alloc", "free", "init", "reset", "memory_fraction", "base_alloc", "record_stream",
        "begin_allocate_to_pool", "end_allocate_to_pool", "release_pool"}) {
    const auto name = settings.find(key);
    if (!name) continue;
    if (name->empty()) settings.refuse(key, "give the name of a function");
    if (abi && *abi != Abi::kTorch) settings.refuse(key, "only abi:torch takes names of functions");
  }
  if (settings.find("config") && abi && *abi != Abi::kWorkbench) {
    settings.refuse("config", "only abi:workbench takes a configuration");
  }
}

std::unique_ptr<Allocator> create(Backend& backend, const Settings& settings) {
  check(settings);
  const SharedLibrary library(std::string(*settings.find("library")));
  const std::optional<Abi> abi = abi_of(settings);
  switch (abi ? *abi : abi_of(library)) {
    case Abi::kWorkbench:
      return std::make_unique<Pluggable<WorkbenchCalls>>(backend, library, settings);
    case Abi::kTorch:
      return std::make_unique<Pluggable<TorchCalls>>(backend, library, settings);
    default:
      return std::make_unique<Pluggable<MallocCalls>>(backend, library, settings);
  }
}

const bool registered = allocator_registry().add({
    .name = "pluggable",
    .summary = "the user's own allocator: any shared library",
    .kind = AllocatorKind::kCpu,
    .create = create,
    .settings =
        {{"library", "path of the shared library"},
         {"abi", "workbench, torch or malloc: which functions it has; found where it is left out"},
         {"config", "what workbench_allocator.h passes on as configuration"},
         {"alloc", "abi:torch: name of the function that allocates (my_malloc)"},
         {"free", "abi:torch: name of the function that frees (my_free)"},
         {"init", "abi:torch: name of a function, called with the number of devices"},
         {"reset", "abi:torch: name of a function, called to empty the cache"},
         {"record_stream", "abi:torch: name of a function, told of blocks used on other streams"},
         {"memory_fraction", "abi:torch: name of a function; not called in a replay"},
         {"base_alloc", "abi:torch: name of a function; not called in a replay"},
         {"begin_allocate_to_pool", "abi:torch: name of a function; not called in a replay"},
         {"end_allocate_to_pool", "abi:torch: name of a function; not called in a replay"},
         {"release_pool", "abi:torch: name of a function; not called in a replay"}},
    .locks_itself = true,
    .needs_library = true,
    .check_settings = check,
});

}  // namespace
}  // namespace workbench
