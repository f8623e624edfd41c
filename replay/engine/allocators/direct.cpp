// No caching: every call goes to the backend. The baseline of every comparison.
#include <deque>
#include <map>
#include <mutex>

#include "allocators/walk.h"
#include "core/lock.h"

namespace workbench {
namespace {

class Direct final : public Replayed<Direct> {
 public:
  using Replayed::Replayed;

  Allocation allocate(Bytes size, StreamId stream, ThreadId) override {
    if (size == 0) return Allocation::nothing();
    const Bytes held =
        backend_.is_device() && size < kEiB ? round_up(size, kDeviceAlignment) : size;
    const std::uint64_t address = backend_.allocate(held);
    cause_ = backend_cause();
    const std::lock_guard guard(lock_);
    ++statistics_.misses;
    if (address == 0) {
      ++statistics_.ooms;
      return Allocation::refused();
    }
    ++statistics_.device_allocs;
    Block* block = unused_;
    if (block == nullptr) {
      block = &blocks_.emplace_back();
    } else {
      unused_ = block->next_unused;
    }
    *block = {address, held, size, serial_++, stream, true, nullptr};
    count(*block, 1);
    return {address, block};
  }

  void free(void* handle, ThreadId) override {
    Block& block = *static_cast<Block*>(handle);
    cause_ = Cause::kDriverCall;
    backend_.release(block.address, block.held);
    const std::lock_guard guard(lock_);
    ++statistics_.device_frees;
    count(block, -1);
    block.live = false;
    block.next_unused = unused_;
    unused_ = &block;
  }

  Location locate(const void* handle) const override {
    return {static_cast<const Block*>(handle)->serial, 0};
  }

  void visit(const std::function<void(const BlockView&)>& visitor) const override {
    std::map<std::uint64_t, const Block*> live;
    for (const Block& block : blocks_) {
      if (block.live) live.emplace(block.serial, &block);
    }
    for (const auto& [serial, block] : live) {
      visitor({serial, block->address, block->held, block->stream, "", false, 0, block->held,
               block->requested, BlockState::kActiveAllocated, block});
    }
  }

  Bytes largest_free() const override { return 0; }

 private:
  struct Block {
    std::uint64_t address;
    Bytes held;
    Bytes requested;
    std::uint64_t serial;
    StreamId stream;
    bool live;
    Block* next_unused;
  };

  void count(const Block& block, Bytes sign) {
    statistics_.requested += sign * block.requested;
    statistics_.allocated += sign * block.held;
    statistics_.active = statistics_.reserved = statistics_.allocated;
    statistics_.n_alloc += sign;
    statistics_.n_active = statistics_.n_segment = statistics_.n_alloc;
  }

  Lock lock_{backend_.several_threads()};  // around the records, not the backend's calls
  std::deque<Block> blocks_;
  Block* unused_ = nullptr;
  std::uint64_t serial_ = 0;
};

const bool registered = allocator_registry().add({
    .name = "direct",
    .summary = "no caching: every call goes to the backend",
    .kind = AllocatorKind::kCpu,
    .create = [](Backend& backend, const Settings&) { return std::make_unique<Direct>(backend); },
    .locks_itself = true,
    .passes_calls_on = true,
});

}  // namespace
}  // namespace workbench
