#include "allocators/allocator.h"

#include <cstdio>

#include "core/errors.h"

namespace workbench {
namespace {

std::string hexadecimal(std::uint64_t address) {
  char text[2 + 16 + 1];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(address));
  return text;
}

}  // namespace

void Allocator::free_at(std::uint64_t address, ThreadId thread) {
  void* live = nullptr;
  bool ours = false;
  visit([&](const BlockView& block) {
    const std::uint64_t start = block.segment_address + block.offset;
    if (address < start || address - start >= static_cast<std::uint64_t>(block.size)) return;
    if (block.state != BlockState::kActiveAllocated) {
      ours = true;
    } else if (address == start) {
      live = const_cast<void*>(block.handle);
    }
  });
  if (live != nullptr) {
    free(live, thread);
  } else if (ours) {
    throw DoubleFreeError("free of " + hexadecimal(address) +
                          ": memory of this allocator that is free already");
  } else {
    throw ForeignPointerError("free of " + hexadecimal(address) +
                              ": no live block of this allocator starts there");
  }
}

Registry<AllocatorEntry>& allocator_registry() {
  static Registry<AllocatorEntry> registry("allocator");
  return registry;
}

std::unique_ptr<Allocator> make_allocator(std::string_view name, std::string_view settings,
                                          Backend& backend, std::shared_ptr<const Plan> plan,
                                          bool counts) {
  const AllocatorEntry& entry = allocator_registry().get(name);
  Settings parsed(settings, name, entry.settings);
  parsed.set_plan(std::move(plan));
  parsed.set_counts(counts);
  return entry.create(backend, parsed);
}

}  // namespace workbench
