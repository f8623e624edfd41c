// PyTorch's CUDA parts by themselves: libc10_cuda.so without the libraries that usually start it.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/PeerToPeerAccess.h>
#include <torch/headeronly/version.h>
#include <workbench_allocator.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

// WORKBENCH_OVER_STUB: compiled over the stand-in for the CUDA runtime, which gets everything from
// the workbench; else over the real one.
#ifdef WORKBENCH_OVER_STUB
#include <cuda_stub.h>
#endif

#define WORKBENCH_TORCH_SINCE(minor) \
  (TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= (minor)))

extern int FLAGS_caffe2_log_level;

namespace c10::cuda::_internal {
// Of libc10_cuda.so, for libtorch_cuda.so; in no header.
C10_CUDA_API void setHasPrimaryContext(bool (*function)(DeviceIndex));
}  // namespace c10::cuda::_internal

namespace reference {

#ifdef WORKBENCH_OVER_STUB
constexpr int kDevices = 100;
inline void use(const wb_host* host) { wb_cuda_stub_use(host); }
inline std::size_t reserved_ranges() { return wb_cuda_stub_ranges(); }
#else
constexpr int kDevices = 1;
inline void use(const wb_host*) {}
inline std::size_t reserved_ranges() { return 0; }  // not known
#endif

// What ATen does when CUDA is first used; without it expandable segments do not work.
inline void start_cuda() {
  static const bool started = [] {
    c10::cuda::_internal::setHasPrimaryContext([](c10::DeviceIndex) { return true; });
    c10::cuda::detail::init_p2p_access_cache(kDevices);
    // Left open it is settled with NVML, which is not there where there is no GPU.
    using Config = c10::cuda::CUDACachingAllocator::CUDAAllocatorConfig;
    Config::set_expandable_segments_handle_type(
        c10::cuda::CUDACachingAllocator::Expandable_Segments_Handle_Type::POSIX_FD);
    // Running out of memory is a result here and no line on the terminal.
    FLAGS_caffe2_log_level = 2;
    return true;
  }();
  (void)started;
}

inline c10::cuda::CUDACachingAllocator::CUDAAllocator& original() {
  return *c10::cuda::CUDACachingAllocator::get();
}

inline bool refuse(const std::string& why, char* error, std::size_t error_size) {
  std::snprintf(error, error_size, "%s", why.c_str());
  return false;
}

// Whether there is a device to take memory from, and which the original is.
inline bool is_ready([[maybe_unused]] const wb_host& host, const char* name, char* error,
                     std::size_t error_size) {
#ifndef WORKBENCH_OVER_STUB
  if (host.stream(host.context, 1) == nullptr) {
    return refuse("this build of it takes its memory from a GPU; replay it with --backend cuda",
                  error, error_size);
  }
#endif
  const std::string found = original().name();
  return found == name || refuse("PyTorch's allocator is " + found + " in this process, not " +
                                     name + "; replay it in one of its own",
                                 error, error_size);
}

// Has PyTorch read settings; false, and its own words, where they will not do.
inline bool read_settings(const std::string& text, char* error, std::size_t error_size) {
  try {
    c10::CachingAllocator::setAllocatorSettings(text);
    return true;
  } catch (const c10::Error& refused) {
    return refuse(refused.what_without_backtrace(), error, error_size);
  } catch (const std::exception& refused) {
    return refuse(refused.what(), error, error_size);
  }
}

// The runtime keeps a device for each thread.
inline void be_on(c10::DeviceIndex device) {
  thread_local c10::DeviceIndex current = 0;
  if (current == device) return;
  c10::cuda::set_device(device);
  current = device;
}

// The original takes a tensor's pointer, which knows by whom it is freed.
inline void record_use(void* memory, cudaStream_t stream, c10::DeviceIndex device) {
  c10::DataPtr pointer(memory, memory, original().raw_deleter(),
                       c10::Device(c10::DeviceType::CUDA, device));
  original().recordStream(pointer, c10::cuda::getStreamFromExternal(stream, device));
  pointer.release_context();
}

// Streams by their number.
class Streams {
 public:
  explicit Streams(const wb_host& host) : host_(host) {}

  // Which of them have been asked for; the first 64 only.
  std::vector<cudaStream_t> used() const {
    std::vector<cudaStream_t> all = {nullptr};
    for (const std::atomic<void*>& one : known_) {
      if (void* const stream = one.load()) all.push_back(static_cast<cudaStream_t>(stream));
    }
    return all;
  }

  cudaStream_t of(std::int32_t number) {
    if (number <= 0) return nullptr;
    const auto index = static_cast<std::size_t>(number);
    if (index >= known_.size()) return make(number);
    void* stream = known_[index].load(std::memory_order_relaxed);
    if (stream == nullptr) {
      stream = make(number);
      known_[index].store(stream, std::memory_order_relaxed);
    }
    return static_cast<cudaStream_t>(stream);
  }

 private:
  cudaStream_t make(std::int32_t number) {
#ifdef WORKBENCH_OVER_STUB
    return static_cast<cudaStream_t>(wb_cuda_stub_stream(number));
#else
    return static_cast<cudaStream_t>(host_.stream(host_.context, number));
#endif
  }

  [[maybe_unused]] const wb_host& host_;
  std::array<std::atomic<void*>, 64> known_{};
};

// The value of `key` in settings, as PyTorch writes them; empty where it is not there.
inline std::string_view setting(std::string_view text, std::string_view key) {
  int depth = 0;
  for (std::size_t start = 0; start < text.size();) {
    std::size_t end = start;
    for (; end < text.size() && (text[end] != ',' || depth > 0); ++end) {
      depth += text[end] == '[' ? 1 : text[end] == ']' ? -1 : 0;
    }
    std::string_view entry = text.substr(start, end - start);
    while (!entry.empty() && entry.front() == ' ') entry.remove_prefix(1);
    const std::string_view name = entry.substr(0, entry.find(':'));
    if (name.substr(0, name.find(' ')) == key) {
      return entry.substr(std::min(entry.size(), entry.find(':') + 1));
    }
    start = end + 1;
  }
  return {};
}

}  // namespace reference
