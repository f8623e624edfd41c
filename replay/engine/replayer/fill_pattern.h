// Whose blocks are filled with what, to find out whether anyone else wrote to them.
#pragma once

#include <cstddef>
#include <optional>
#include <unordered_map>

#include "allocators/allocator.h"
#include "backends/backend.h"

namespace workbench {

// On a real device writing and reading are work of streams: a block that is handed out before
// another stream is done with it is found out as it is in life. Where streams are a model, both
// happen at once.
class FillPattern {
 public:
  // `kind`: of memory that the allocator is made for. Pinned memory is the host's to write. One for
  // the CPU hands blocks out again whatever streams do, and all is done on one.
  FillPattern(Backend& backend, AllocatorKind kind) : backend_(backend), kind_(kind) {}

  // Fills the block's requested bytes with the pattern of the event that allocated it.
  void fill(const Allocation& allocation, Bytes size, std::size_t event, StreamId stream);
  // The event that a filled block was allocated by.
  std::size_t event_of(const void* handle) const { return filled_.at(handle).block.event; }
  // The functions below throw DamagedBlockError, naming event and offset, where a byte is found
  // that is not what fill() wrote: of this block, or of one that was checked before. The block is
  // used on `stream`.
  void use(const void* handle, StreamId stream);
  void check(const void* handle);
  // Checks every block that is still filled, and waits for all that was checked before.
  void check_all();

 private:
  struct Filled {
    FilledBlock block;
    StreamId stream;
  };
  void check(const Filled& filled);
  static void throw_if(const std::optional<Damage>& damage);

  Backend& backend_;
  const AllocatorKind kind_;
  std::unordered_map<const void*, Filled> filled_;
};

}  // namespace workbench
