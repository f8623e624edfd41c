#include "allocators/cpu_caching.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

#include "core/errors.h"

namespace workbench {
namespace {

thread_local CpuCaching* current_allocator = nullptr;

std::size_t slot_of(Bytes size, std::size_t table_length) {
  return (static_cast<std::uint64_t>(size) * 0x9e3779b97f4a7c15ULL >> 32) & (table_length - 1);
}

}  // namespace

CpuCachingGuard::CpuCachingGuard(CpuCaching& allocator) : previous_(current_allocator) {
  current_allocator = &allocator;
}

CpuCachingGuard::~CpuCachingGuard() { current_allocator = previous_; }

CpuCaching* CpuCachingGuard::current() { return current_allocator; }

std::shared_ptr<CpuCaching::Shared> CpuCaching::shared_of(Backend& backend) {
  static std::mutex mutex;
  static std::map<Backend*, std::weak_ptr<Shared>> all;
  const std::lock_guard lock(mutex);
  std::erase_if(all, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<Shared>& known = all[&backend];
  std::shared_ptr<Shared> shared = known.lock();
  if (shared == nullptr) known = shared = std::make_shared<Shared>(backend.several_threads());
  return shared;
}

CpuCaching::CpuCaching(Backend& backend, ThreadId guard_thread)
    : Replayed(backend), shared_(shared_of(backend)), guard_thread_(guard_thread), table_(1024) {}

CpuCaching::~CpuCaching() {
  free_cached();
  const std::lock_guard lock(shared_->lock);
  for (Block& block : shared_->blocks) {
    if (block.owner == this) block.owner = nullptr;
  }
}

CpuCaching::Block* CpuCaching::Shared::find(std::uint64_t address) {
  const auto found = std::find_if(blocks.begin(), blocks.end(), [&](const Block& block) {
    return block.address == address && block.where != Where::kNowhere;
  });
  return found == blocks.end() ? nullptr : &*found;
}

Allocation CpuCaching::allocate(Bytes size, StreamId, ThreadId thread) {
  if (size == 0) return Allocation::nothing();
  Block* block = nullptr;
  if (guarded(thread)) {
    Bin& bin = bin_of(size);
    block = bin.top;
    if (block != nullptr) {
      bin.top = block->below;
      cause_ = Cause::kServedFromCache;
      ++statistics_.hits;
    } else {
      ++statistics_.misses;
      block = take(size);
      if (block == nullptr) return Allocation::refused();
      block->bin = &bin;
    }
    block->where = Where::kLive;
  } else {
    ++statistics_.misses;
    block = take(size);
    if (block == nullptr) return Allocation::refused();
    block->where = Where::kLiveUncached;
  }
  count_live(size, 1);
  return {block->address, block};
}

void CpuCaching::free(void* handle, ThreadId thread) {
  Block& block = *static_cast<Block*>(handle);
  if (block.where == Where::kLiveUncached || !guarded(thread)) {
    // Unknown to the cache, or freed by a thread that does not know the cache: to the system.
    if (block.owner != nullptr) block.owner->count_live(block.size, -1);
    give_back(block);
    cause_ = Cause::kDriverCall;
    return;
  }
  if (block.owner != this) adopt(block);
  Bin& bin = *block.bin;
  block.where = Where::kCached;
  block.below = bin.top;
  bin.top = &block;
  if (!bin.in_largest) [[unlikely]] {
    bin.in_largest = true;
    largest_.push(&bin);
  }
  cause_ = Cause::kServedFromCache;
  count_live(block.size, -1);
}

void CpuCaching::free_at(std::uint64_t address, ThreadId thread) {
  Block* block = nullptr;
  {
    const std::lock_guard lock(shared_->lock);
    block = shared_->find(address);
  }
  if (block == nullptr) {
    throw ForeignPointerError("free of address " + std::to_string(address) +
                              ", which no block of cpu-caching starts at");
  }
  if (block->where == Where::kCached) {
    throw DoubleFreeError("free of address " + std::to_string(address) +
                          ", which is in the cache already");
  }
  free(block, thread);
}

void CpuCaching::record_free(std::uint64_t address) {
  const std::lock_guard lock(shared_->lock);
  Block* const found = shared_->find(address);
  if (found == nullptr) return;
  Block& block = *found;
  if (block.where == Where::kCached) {
    throw DoubleFreeError("record_free of address " + std::to_string(address) +
                          ", which is in the cache");
  }
  if (block.owner != nullptr) {
    block.owner->count_live(block.size, -1);
    block.owner->count_held(block.size, -1);
  }
  forget(block);
}

void CpuCaching::free_cached() {
  for (Bin& bin : bins_) {
    while (bin.top != nullptr) {
      Block& block = *bin.top;
      bin.top = block.below;
      give_back(block);
    }
  }
  cause_ = Cause::kDriverCall;
}

Location CpuCaching::locate(const void* handle) const {
  return {static_cast<const Block*>(handle)->serial, 0};
}

void CpuCaching::visit(const std::function<void(const BlockView&)>& visitor) const {
  std::map<std::uint64_t, const Block*> mine;
  {
    const std::lock_guard lock(shared_->lock);
    for (const Block& block : shared_->blocks) {
      const bool is_held = block.where != Where::kNowhere;
      if (is_held && block.owner == this) mine.emplace(block.serial, &block);
    }
  }
  for (const auto& [serial, block] : mine) {
    const bool cached = block->where == Where::kCached;
    visitor({serial, block->address, block->size, 0, "", false, 0, block->size,
             cached ? 0 : block->size,
             cached ? BlockState::kInactive : BlockState::kActiveAllocated, block});
  }
}

Bytes CpuCaching::largest_free() const {
  while (!largest_.empty()) {
    Bin& bin = *largest_.top();
    if (bin.top != nullptr) return bin.size;
    bin.in_largest = false;
    largest_.pop();
  }
  return 0;
}

CpuCaching::Bin& CpuCaching::bin_of(Bytes size) {
  std::size_t slot = slot_of(size, table_.size());
  while (table_[slot] != nullptr) {
    if (table_[slot]->size == size) return *table_[slot];
    slot = (slot + 1) & (table_.size() - 1);
  }
  Bin& bin = bins_.emplace_back(Bin{.size = size});
  table_[slot] = &bin;
  if (bins_.size() * 2 > table_.size()) grow_table();
  return bin;
}

void CpuCaching::grow_table() {
  table_.assign(table_.size() * 2, nullptr);
  for (Bin& bin : bins_) {
    std::size_t slot = slot_of(bin.size, table_.size());
    while (table_[slot] != nullptr) slot = (slot + 1) & (table_.size() - 1);
    table_[slot] = &bin;
  }
}

// A block of fresh memory; null, and counted, when there is none.
CpuCaching::Block* CpuCaching::take(Bytes size) {
  std::uint64_t address = backend_.allocate(size);
  cause_ = backend_cause();
  if (address == 0) {
    free_cached();
    ++statistics_.retries;
    address = backend_.allocate(size);
    cause_ = Cause::kRetryAfterFlush;
  }
  if (address == 0) {
    ++statistics_.ooms;
    return nullptr;
  }
  const std::lock_guard lock(shared_->lock);
  Block* block = shared_->unused;
  if (block == nullptr) {
    block = &shared_->blocks.emplace_back();
  } else {
    shared_->unused = block->below;
  }
  *block = {.address = address, .size = size, .serial = shared_->serial++, .owner = this};
  ++statistics_.device_allocs;
  count_held(size, 1);
  return block;
}

void CpuCaching::give_back(Block& block) {
  backend_.release(block.address, block.size);
  ++statistics_.device_frees;
  if (block.owner != nullptr) block.owner->count_held(block.size, -1);
  const std::lock_guard lock(shared_->lock);
  forget(block);
}

void CpuCaching::forget(Block& block) {
  block.where = Where::kNowhere;
  block.below = shared_->unused;
  shared_->unused = &block;
}

// Takes over a live block of another instance, and its counts.
void CpuCaching::adopt(Block& block) {
  if (block.owner != nullptr) {
    block.owner->count_live(block.size, -1);
    block.owner->count_held(block.size, -1);
  }
  block.owner = this;
  block.bin = &bin_of(block.size);
  count_live(block.size, 1);
  count_held(block.size, 1);
}

void CpuCaching::count_live(Bytes size, std::int64_t sign) {
  statistics_.allocated += sign * size;
  statistics_.active = statistics_.requested = statistics_.allocated;
  statistics_.n_alloc += sign;
  statistics_.n_active = statistics_.n_alloc;
}

void CpuCaching::count_held(Bytes size, std::int64_t sign) {
  statistics_.reserved += sign * size;
  statistics_.n_segment += sign;
}

namespace {

const bool registered = allocator_registry().add({
    .name = "cpu-caching",
    .summary = "PyTorch's exact-size CPU cache (c10/mobile/CPUCachingAllocator)",
    .kind = AllocatorKind::kCpu,
    .create =
        [](Backend& backend, const Settings& settings) {
          const auto thread = settings.whole_number("guard_thread", 0);
          return std::make_unique<CpuCaching>(
              backend, thread ? static_cast<ThreadId>(*thread) : CpuCaching::kEveryThread);
        },
    .settings = {{"guard_thread",
                  "the only thread of the trace that uses the cache; others go to the system"}},
});

}  // namespace
}  // namespace workbench
