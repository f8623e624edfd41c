#include "replayer/fill_pattern.h"

#include <string>

#include "core/errors.h"

namespace workbench {

void FillPattern::fill(const Allocation& allocation, Bytes size, std::size_t event,
                       StreamId stream) {
  const FilledBlock block = {allocation.address, size, event};
  const StreamId own = kind_ == AllocatorKind::kCpu ? 0 : stream;
  if (kind_ == AllocatorKind::kPinned) {
    fill_bytes(block);
  } else {
    backend_.fill(block, own);
  }
  filled_[allocation.handle] = {block, own};
}

void FillPattern::use(const void* handle, StreamId stream) {
  const Filled& filled = filled_.at(handle);
  if (kind_ == AllocatorKind::kCpu ||
      (kind_ == AllocatorKind::kDevice && stream == filled.stream)) {
    check(filled);
  } else {
    throw_if(backend_.use(filled.block, filled.stream, stream));
  }
}

void FillPattern::check(const void* handle) {
  const auto found = filled_.find(handle);
  check(found->second);
  filled_.erase(found);
}

void FillPattern::check_all() {
  for (const auto& [handle, filled] : filled_) check(filled);
  throw_if(backend_.damage());
}

void FillPattern::check(const Filled& filled) {
  throw_if(kind_ == AllocatorKind::kPinned ? find_damage(filled.block)
                                           : backend_.verify(filled.block, filled.stream));
}

void FillPattern::throw_if(const std::optional<Damage>& damage) {
  if (!damage) return;
  throw DamagedBlockError("the block allocated by event " + std::to_string(damage->block.event) +
                          " is damaged at offset " + std::to_string(damage->offset) + " of " +
                          std::to_string(damage->block.size) + " bytes");
}

}  // namespace workbench
