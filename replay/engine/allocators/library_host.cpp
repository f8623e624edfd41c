// What a library of the user's may ask of the workbench.
#include <algorithm>
#include <iterator>
#include <limits>
#include <mutex>
#include <string>

#include "allocators/library_calls.h"

namespace workbench {
namespace {

std::string range_text(const void* memory, std::uint64_t bytes) {
  return std::to_string(bytes) + " bytes at " +
         std::to_string(reinterpret_cast<std::uintptr_t>(memory));
}

std::string no_stream() {
  return ", which is none: streams are 0 to " + std::to_string(kMostStreams - 1);
}

}  // namespace

void* WorkbenchCalls::take(void* self, std::uint64_t bytes) {
  return static_cast<WorkbenchCalls*>(self)->take_memory(bytes, Memory::kPageable);
}

void* WorkbenchCalls::take_pinned(void* self, std::uint64_t bytes) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  try {
    return calls.take_memory(bytes, Memory::kPinned);
  } catch (const UnavailableError& error) {
    const std::lock_guard guard(calls.events_lock_);
    calls.unavailable_ = error.what();
    return nullptr;
  }
}

void WorkbenchCalls::throw_if_unavailable() {
  const std::lock_guard guard(events_lock_);
  if (!unavailable_.empty()) throw UnavailableError(unavailable_);
}

void* WorkbenchCalls::take_memory(std::uint64_t bytes, Memory memory) {
  if (bytes == 0 || bytes > static_cast<std::uint64_t>(std::numeric_limits<Bytes>::max())) {
    return nullptr;
  }
  took_.store(true, std::memory_order_relaxed);
  auto* const got = reinterpret_cast<void*>(backend_.allocate(static_cast<Bytes>(bytes), memory));
  if (host_.counts != 0 && got != nullptr) {
    const std::lock_guard guard(events_lock_);
    taken_[got] = {bytes, memory};
  }
  return got;
}

void WorkbenchCalls::give_memory(void* memory, std::uint64_t bytes, Memory kind) {
  if (host_.counts != 0) {
    const std::lock_guard guard(events_lock_);
    const auto found = taken_.find(memory);
    const std::string at = range_text(memory, bytes);
    if (found == taken_.end())
      return blame("it gave back " + at + ", which it does not have of the workbench");
    const Taken& taken = found->second;
    if (taken.bytes != bytes || taken.kind != kind) {
      return blame("it gave back " + at + (kind == Memory::kPinned ? " as pinned" : "") +
                   ", where it took " + std::to_string(taken.bytes) +
                   (taken.kind == Memory::kPinned ? " pinned" : ""));
    }
    taken_.erase(found);
  }
  backend_.release(reinterpret_cast<std::uint64_t>(memory), static_cast<Bytes>(bytes), kind);
}

void WorkbenchCalls::blame(const std::string& fault) {
  if (fault_.empty()) fault_ = fault;
}

void WorkbenchCalls::throw_if_blamed() {
  const std::lock_guard guard(events_lock_);
  if (!fault_.empty()) throw LibraryCallError(fault_);
}

void WorkbenchCalls::give_pinned(void* self, void* memory, std::uint64_t bytes) {
  static_cast<WorkbenchCalls*>(self)->give_memory(memory, bytes, Memory::kPinned);
}

void WorkbenchCalls::give(void* self, void* memory, std::uint64_t bytes) {
  static_cast<WorkbenchCalls*>(self)->give_memory(memory, bytes, Memory::kPageable);
}

std::uint64_t WorkbenchCalls::event_record(void* self, std::int32_t stream) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  const std::lock_guard guard(calls.events_lock_);
  if (stream < 0 || stream >= kMostStreams) {
    calls.blame("it recorded a CUDA event on stream " + std::to_string(stream) + no_stream());
    return 0;
  }
  calls.events_.push_back(calls.backend_.record_event(stream));
  return calls.events_.back().sequence;
}

std::int32_t WorkbenchCalls::event_query(void* self, std::uint64_t event) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  const std::lock_guard guard(calls.events_lock_);
  const CudaEvent* const found = calls.find_event(event);
  return found == nullptr || calls.backend_.completed(*found);
}

void WorkbenchCalls::event_wait(void* self, std::uint64_t event) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  const std::lock_guard guard(calls.events_lock_);
  const CudaEvent* const found = calls.find_event(event);
  if (found != nullptr) calls.backend_.wait(*found);
}

std::uint64_t WorkbenchCalls::used(void* self) {
  return static_cast<std::uint64_t>(static_cast<WorkbenchCalls*>(self)->backend_.used());
}

void* WorkbenchCalls::reserve(void* self, std::uint64_t bytes) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  if (bytes == 0 || bytes >= static_cast<std::uint64_t>(kEiB)) return nullptr;
  auto* const got = reinterpret_cast<void*>(calls.backend_.reserve(static_cast<Bytes>(bytes)));
  if (got != nullptr) {
    const std::lock_guard guard(calls.events_lock_);
    calls.ranges_[got] = bytes;
  }
  return got;
}

void WorkbenchCalls::unreserve(void* self, void* address, std::uint64_t bytes) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  {
    const std::lock_guard guard(calls.events_lock_);
    const auto found = calls.ranges_.find(address);
    if (found == calls.ranges_.end() || found->second != bytes) {
      return calls.blame("it gave back " + range_text(address, bytes) +
                         ", which it did not reserve so");
    }
    calls.ranges_.erase(found);
  }
  calls.backend_.unreserve(reinterpret_cast<std::uint64_t>(address), static_cast<Bytes>(bytes));
}

std::int32_t WorkbenchCalls::map(void* self, void* address, std::uint64_t bytes) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  if (!calls.is_reserved(address, bytes, "mapped")) return 0;
  calls.took_.store(true, std::memory_order_relaxed);
  return calls.backend_.map(reinterpret_cast<std::uint64_t>(address), static_cast<Bytes>(bytes));
}

void WorkbenchCalls::unmap(void* self, void* address, std::uint64_t bytes) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  if (!calls.is_reserved(address, bytes, "unmapped")) return;
  calls.backend_.unmap(reinterpret_cast<std::uint64_t>(address), static_cast<Bytes>(bytes));
}

bool WorkbenchCalls::is_reserved(void* address, std::uint64_t bytes, const char* what) {
  const std::lock_guard guard(events_lock_);
  const auto after = ranges_.upper_bound(address);
  if (after != ranges_.begin()) {
    const auto& [start, length] = *std::prev(after);
    const auto offset =
        static_cast<std::uint64_t>(static_cast<char*>(address) - static_cast<char*>(start));
    if (bytes > 0 && offset <= length && bytes <= length - offset) return true;
  }
  blame(std::string("it ") + what + " " + range_text(address, bytes) +
        ", which it has not reserved");
  return false;
}

void* WorkbenchCalls::stream(void* self, std::int32_t number) {
  auto& calls = *static_cast<WorkbenchCalls*>(self);
  if (number >= 0 && number < kMostStreams) return calls.backend_.native_stream(number);
  const std::lock_guard guard(calls.events_lock_);
  calls.blame("it asked for stream " + std::to_string(number) + no_stream());
  return nullptr;
}

// Null where it has completed.
const CudaEvent* WorkbenchCalls::find_event(std::uint64_t number) {
  while (!events_.empty() && backend_.completed(events_.front())) events_.pop_front();
  const auto found = std::lower_bound(
      events_.begin(), events_.end(), number,
      [](const CudaEvent& event, std::uint64_t wanted) { return event.sequence < wanted; });
  return found != events_.end() && found->sequence == number ? &*found : nullptr;
}

}  // namespace workbench
