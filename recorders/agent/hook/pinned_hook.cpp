// The allocator of pinned host memory that records: stands in front of PyTorch's own for CUDA and
// forwards all to it. Built against the installed torch, loaded once, never unloaded.

#include <ATen/core/CachingHostAllocator.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "hook_face.h"

namespace workbench {
namespace {

using spool::Event;
using StreamNumber = std::int32_t (*)(int device, std::int64_t id);

const HookFace* face = nullptr;
StreamNumber stream_number = nullptr;  // null: none but the default stream is known
std::atomic<c10::DeleterFnPtr> original_deleter{nullptr};

// A free is told the context alone, so that this is what stands for the memory.
DeviceEvent event_of(Event event, const void* context) {
  return {.event = event,
          .device = spool::kPinned,
          .address = reinterpret_cast<std::uintptr_t>(context)};
}

void record_and_free(void* context) {
  OpenCall call;
  if (context != nullptr) call = face->record_device(event_of(Event::kFree, context), false);
  original_deleter.load(std::memory_order_relaxed)(context);
  face->call_ended(call);
}

class RecordingAllocator final : public at::HostAllocator {
 public:
  explicit RecordingAllocator(at::HostAllocator* original) : original_(original) {}

  at::HostAllocator* original() const { return original_; }
  void stand_before(at::HostAllocator* original) { original_ = original; }

  c10::DataPtr allocate(std::size_t bytes) override {
    if (face->session() == 0) return original_->allocate(bytes);
    const std::uint64_t began = face->now();
    c10::DataPtr memory = original_->allocate(bytes);
    if (memory.get_context() == nullptr) return memory;
    c10::DeleterFnPtr known = nullptr;
    const c10::DeleterFnPtr deleter = memory.get_deleter();
    // Memory whose free would not be seen is not recorded either.
    if (!original_deleter.compare_exchange_strong(known, deleter) && known != deleter)
      return memory;
    if (!memory.compare_exchange_deleter(deleter, &record_and_free)) return memory;
    DeviceEvent event = event_of(Event::kAlloc, memory.get_context());
    event.bytes = bytes;
    event.began = began;
    face->record_device(event, true);
    return memory;
  }
  c10::DeleterFnPtr raw_deleter() const override {
    const auto deleter = original_->raw_deleter();
    return deleter != nullptr && deleter == original_deleter.load() ? &record_and_free : deleter;
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    original_->copy_data(to, from, bytes);
  }
  bool is_simple_data_ptr(const c10::DataPtr& memory) const override {
    return original_->is_simple_data_ptr(memory);
  }

  bool record_event(void* data, void* context, c10::Stream stream) override {
    const bool is_ours = original_->record_event(data, context, stream);
    if (is_ours && face->session() != 0) {
      DeviceEvent event = event_of(Event::kRecordStream, context);
      if (stream_number != nullptr)
        event.stream = stream_number(stream.device_index(), stream.id());
      face->record_device(event, false);
    }
    return is_ours;
  }
  void empty_cache() override {
    const OpenCall call = face->record_device(event_of(Event::kEmptyCache, nullptr), false);
    original_->empty_cache();
    face->call_ended(call);
  }
  at::HostStats get_stats() override { return original_->get_stats(); }
  void reset_accumulated_stats() override { original_->reset_accumulated_stats(); }
  void reset_peak_stats() override { original_->reset_peak_stats(); }
  void begin_allocate_to_pool(c10::MempoolId_t pool,
                              std::function<bool(c10::Stream)> filter) override {
    original_->begin_allocate_to_pool(pool, std::move(filter));
  }
  void end_allocate_to_pool(c10::MempoolId_t pool) override {
    original_->end_allocate_to_pool(pool);
  }
  void release_pool(c10::MempoolId_t pool) override { original_->release_pool(pool); }

 private:
  at::HostAllocator* original_;
};

RecordingAllocator* hook = nullptr;  // never destroyed

}  // namespace
}  // namespace workbench

using namespace workbench;  // NOLINT: the functions below are the library's whole face

// Stands in front of the allocator that is there now; `numbers` names streams, or is null.
WORKBENCH_EXPORT void wb_pinned_start(const HookFace* given, StreamNumber numbers) {
  at::HostAllocator* const current = at::getHostAllocator(at::DeviceType::CUDA);
  face = given;
  stream_number = numbers;
  if (current == nullptr || current == hook) return;
  if (hook == nullptr) {
    hook = new RecordingAllocator(current);
  } else {
    hook->stand_before(current);
  }
  at::setHostAllocator(at::DeviceType::CUDA, hook);
}

// Puts the original back; memory is freed through us still.
WORKBENCH_EXPORT void wb_pinned_stop() {
  if (hook == nullptr || at::getHostAllocator(at::DeviceType::CUDA) != hook) return;
  at::setHostAllocator(at::DeviceType::CUDA, hook->original());
}
