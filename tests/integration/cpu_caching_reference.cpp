// Replays events through the real c10::CPUCachingAllocator and watches it from outside.
#include <c10/mobile/CPUCachingAllocator.h>

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace {

// Sums what the original remembers, to hold the watcher's sums against.
struct Opened : c10::CPUCachingAllocator {
  static std::int64_t held_bytes() {
    std::int64_t sum = 0;
    for (const auto& [pointer, size] : allocation_map_) sum += static_cast<std::int64_t>(size);
    return sum;
  }
};

struct Block {
  std::int64_t serial;
  std::int64_t size;
  bool live;
};

}  // namespace

// For each of `count` events: `op` 0 allocates into its slot, 1 frees it, 2 empties the cache.
// Fills `hits` and `misses` so far and bytes `held` after each event, and `serials`, by slot: the
// number of the block that is in it at the end, in the order blocks were taken from the system.
// Returns what the original itself remembers to hold at the end.
extern "C" __attribute__((visibility("default"))) std::int64_t replay_reference(
    std::int64_t count, const std::uint8_t* op, const std::int32_t* slot, const std::int64_t* size,
    std::int32_t slot_count, std::int64_t* hits, std::int64_t* misses, std::int64_t* held,
    std::int64_t* serials) {
  std::vector<void*> pointers(static_cast<std::size_t>(slot_count));
  std::unordered_map<void*, Block> blocks;  // all that the allocator holds
  std::int64_t next_serial = 0;
  std::int64_t hit = 0;
  std::int64_t miss = 0;
  std::int64_t bytes = 0;
  auto allocator = std::make_unique<Opened>();
  for (std::int64_t i = 0; i < count; ++i) {
    if (op[i] == 0) {
      void* pointer = allocator->allocate(static_cast<std::size_t>(size[i]));
      pointers[static_cast<std::size_t>(slot[i])] = pointer;
      // A pointer it was given back before comes from the cache, any other from the system.
      const auto known = blocks.find(pointer);
      if (known != blocks.end()) {
        if (known->second.live || known->second.size != size[i]) return -1;
        known->second.live = true;
        ++hit;
      } else {
        blocks[pointer] = {next_serial++, size[i], true};
        bytes += size[i];
        ++miss;
      }
    } else if (op[i] == 1) {
      void* pointer = pointers[static_cast<std::size_t>(slot[i])];
      pointers[static_cast<std::size_t>(slot[i])] = nullptr;
      blocks.at(pointer).live = false;
      allocator->free(pointer);
    } else {
      // free_cached is private; the destructor calls it, and live blocks stay known to all.
      allocator = std::make_unique<Opened>();
      std::erase_if(blocks, [&](const auto& entry) {
        if (!entry.second.live) bytes -= entry.second.size;
        return !entry.second.live;
      });
    }
    hits[i] = hit;
    misses[i] = miss;
    held[i] = bytes;
  }
  const std::int64_t remembered = Opened::held_bytes();
  for (std::size_t s = 0; s < pointers.size(); ++s) {
    serials[s] = pointers[s] == nullptr ? -1 : blocks.at(pointers[s]).serial;
    if (pointers[s] != nullptr) allocator->free(pointers[s]);
  }
  return remembered;
}
