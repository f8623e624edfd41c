// The CPU allocator that records: forwards to the one that was there, and writes a record for each
// allocation and each free. Built against the installed torch, loaded once, never unloaded.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

#include "hook_face.h"
#include "spool_writer.h"

namespace workbench {
namespace {

using spool::Kind;

constexpr std::size_t kCacheLine = 64;
constexpr std::uint8_t kPriority = 0xff;  // PyTorch keeps an allocator of a higher one

std::uint64_t as_number(const void* data) { return reinterpret_cast<std::uintptr_t>(data); }

inline void record_free(const void* data) { spool::record(Kind::kFree, as_number(data), 0); }

void record_and_free(void* data);

// For an original allocator whose pointers bring their own deleter and context.
struct Wrapped {
  void* data;
  void* context;
  c10::DeleterFnPtr deleter;
};

void record_and_free_wrapped(void* context) {
  auto* const wrapped = static_cast<Wrapped*>(context);
  record_free(wrapped->data);
  wrapped->deleter(wrapped->context);
  delete wrapped;
}

class RecordingAllocator final : public c10::Allocator {
 public:
  // One return value, made in place: moving a DataPtr costs as much as a record.
  __attribute__((aligned(kCacheLine))) c10::DataPtr allocate(std::size_t bytes) override {
    // The original takes long enough for the record's cache line to arrive meanwhile.
    __builtin_prefetch(spool::hot.cursor.next, 1);
    c10::DataPtr memory = original->allocate(bytes);
    const void* const data = memory.get();
    if (__builtin_expect(data == nullptr, 0)) {
      count_zero_bytes();
      return memory;
    }
    spool::record(Kind::kAlloc, as_number(data), bytes);
    if (!memory.compare_exchange_deleter(original_deleter, &record_and_free)) wrap(memory);
    return memory;
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return original_deleter == nullptr ? nullptr : &record_and_free;
  }

  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    original->copy_data(to, from, bytes);
  }

  c10::Allocator* original = nullptr;
  c10::DeleterFnPtr original_deleter = nullptr;  // null: each pointer brings its own

 private:
  __attribute__((cold, noinline)) static void count_zero_bytes() {
    if (spool::recording()) std::atomic_ref(spool::control->zero_byte_allocs).fetch_add(1);
  }

  __attribute__((cold, noinline)) static void wrap(c10::DataPtr& memory) {
    void* const data = memory.get();
    const c10::Device device = memory.device();
    auto owned = memory.move_context();
    auto* const wrapped = new Wrapped{data, owned.get(), owned.get_deleter()};
    (void)owned.release();
    memory = {data, wrapped, &record_and_free_wrapped, device};
  }
};

// Beside what the spool keeps for each event, in the same cache line. Never destroyed: tensors in
// static objects are freed after every destructor of ours.
static_assert(sizeof(RecordingAllocator) <= sizeof spool::hot.room_for_the_hook);
RecordingAllocator& hook() {
  return *std::launder(reinterpret_cast<RecordingAllocator*>(spool::hot.room_for_the_hook));
}
const bool made = (new (spool::hot.room_for_the_hook) RecordingAllocator, true);

// PyTorch also gives back the null pointers it got for requests of 0 bytes.
__attribute__((aligned(kCacheLine))) void record_and_free(void* data) {
  if (__builtin_expect(data != nullptr, 1)) record_free(data);
  hook().original_deleter(data);
}

}  // namespace
}  // namespace workbench

using namespace workbench;  // NOLINT: the functions below are the library's whole face

// Starts recording into `folder`. Returns 0, an errno, or -1 when PyTorch kept another allocator.
WORKBENCH_EXPORT int wb_start(const char* folder, std::uint64_t limit_bytes,
                              std::uint64_t keep_free_bytes, int count_forks) {
  c10::Allocator* const current = c10::GetCPUAllocator();
  if (current != &hook()) {
    hook().original = current;
    hook().original_deleter = current->raw_deleter();
  }
  const int error = spool::start_session({folder, limit_bytes, keep_free_bytes, count_forks != 0});
  if (error != 0) return error;
  c10::SetCPUAllocator(&hook(), kPriority);
  return c10::GetCPUAllocator() == &hook() ? 0 : -1;
}

// Ends the recording. Memory it handed out is still freed through the hook, which then forwards.
WORKBENCH_EXPORT void wb_stop() {
  if (c10::GetCPUAllocator() == &hook()) c10::SetCPUAllocator(hook().original, kPriority);
  spool::end_session();
}

// Takes the hook out and puts it back, to compare steps with and without it.
WORKBENCH_EXPORT void wb_pause() {
  if (c10::GetCPUAllocator() == &hook()) c10::SetCPUAllocator(hook().original, kPriority);
  spool::pause_session();
}

WORKBENCH_EXPORT void wb_resume() {
  spool::resume_session();
  c10::SetCPUAllocator(&hook(), kPriority);
}

// What the whole process does from here on, and at which step.
WORKBENCH_EXPORT void wb_context(std::uint32_t phase, std::uint64_t step) {
  spool::record(Kind::kContext, phase, step);
}

WORKBENCH_EXPORT void wb_step_seen() {
  if (spool::control != nullptr) spool::control->steps_seen = 1;
}

WORKBENCH_EXPORT std::uint32_t wb_define_name(const char* kind, const char* text) {
  return spool::define_name(kind, text);
}

// The module that the calling thread is in: the upper half of its records' scope.
WORKBENCH_EXPORT void wb_set_module(std::uint32_t number) {
  std::uint32_t& scope = spool::own_cursor().scope;
  scope = number << 16 | (scope & 0xffff);
}

namespace {
std::uint32_t* thread_scope() { return &spool::own_cursor().scope; }
std::uint64_t session() { return spool::active_session.load(std::memory_order_relaxed); }
}  // namespace

WORKBENCH_EXPORT const HookFace* wb_face() {
  static constexpr HookFace face = {&thread_scope,       &session,
                                    &spool::define_name, &spool::set_stack_finder,
                                    &spool::now,         &spool::record_device,
                                    &spool::call_ended};
  return &face;
}
