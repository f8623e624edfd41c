// What the CUDA hook writes: records of frees, of requests and of what the allocator's tracker
// tells.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cstddef>
#include <cstdint>

#include "cuda_numbers.h"
#include "hook_face.h"

namespace workbench {

namespace native = c10::cuda::CUDACachingAllocator;

// Never destroyed, like the hook itself: memory is freed to the very end. Null before the start.
extern const HookFace* face;
extern CudaNumbers* numbers;

// What is known of a call that is under way on the thread.
struct ThreadCall {
  std::uint64_t freeing = 0;     // the address
  std::uint64_t allocated = 0;   // the address that was handed out last, by the tracker's word
  std::uint32_t pool = 0;        // that it, or the request that failed, was of
  std::int64_t free_bytes = -1;  // of the device where memory ran out
  bool in_checkpoint = false;    // memory comes and goes without calls of the program
};
extern thread_local constinit ThreadCall thread_call;

inline std::uint64_t as_number(const void* data) { return reinterpret_cast<std::uintptr_t>(data); }

inline bool recording() { return face->session() != 0; }

DeviceEvent event_of(spool::Event event, int device);
void record(const DeviceEvent& event);
std::int32_t number_of(const c10::cuda::CUDAStream& stream);

// A free: the record is written before the memory is given back, how long that took after it.
class FreeCall {
 public:
  explicit FreeCall(const void* data);
  ~FreeCall();
  FreeCall(const FreeCall&) = delete;
  FreeCall& operator=(const FreeCall&) = delete;

 private:
  OpenCall call_;
};

// What an allocation asks for and from where.
class Request {
 public:
  Request(native::CUDAAllocator& original, std::size_t bytes);
  Request(native::CUDAAllocator& original, std::size_t bytes, cudaStream_t stream);

  // Does it; a failure for want of memory is recorded and goes on.
  template <typename Call>
  auto made(Call call) const {
    try {
      return call();
    } catch (const c10::OutOfMemoryError&) {
      record_failure();
      throw;
    }
  }

  // Of null, which a request of 0 bytes gets, nothing.
  void record_alloc(const void* data) const;

 private:
  Request(native::CUDAAllocator& original, std::size_t bytes, int device, std::int32_t stream);
  DeviceEvent about(spool::Event event) const;
  void record_failure() const;

  std::size_t bytes_;
  int device_;
  std::int32_t stream_;
  std::uint64_t began_;
};

// Puts our deleter, which records, in the place of the original's; false where there is none, or
// too many different ones are known.
bool take_deleter(c10::DataPtr& memory);
// Ours for an original's; the original's itself where there is none.
c10::DeleterFnPtr our_deleter(c10::DeleterFnPtr original);

// A pointer as the original allocator gave it out: it asks whether the deleter is its own.
class AsOriginal {
 public:
  explicit AsOriginal(const c10::DataPtr& memory);
  ~AsOriginal() { (void)shown_.release_context(); }
  AsOriginal(const AsOriginal&) = delete;
  AsOriginal& operator=(const AsOriginal&) = delete;
  const c10::DataPtr& pointer() const { return shown_; }

 private:
  c10::DataPtr shown_;
};

// For native::CUDAAllocator::attachAllocatorTraceTracker. Called with the lock of the device held:
// no Python, no memory of the device.
void on_trace(const native::TraceEntry& entry);

}  // namespace workbench
