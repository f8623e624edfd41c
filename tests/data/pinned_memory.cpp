// A stand-in for PyTorch's allocator of pinned memory, which only CUDA builds have, and calls as a
// program makes them: for the test of the hook in front of it.

#include <ATen/core/CachingHostAllocator.h>

#include <cstdlib>

namespace {

struct Block {
  void* data;
};

void free_block(void* context) {
  auto* const block = static_cast<Block*>(context);
  if (block == nullptr) return;
  std::free(block->data);
  delete block;
}

int freed_caches = 0;

class HostMemory final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &free_block, c10::DeviceType::CPU};
    auto* const block = new Block{std::malloc(bytes)};
    return {block->data, block, &free_block, c10::DeviceType::CPU};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool record_event(void*, void* context, c10::Stream) override { return context != nullptr; }
  void empty_cache() override { ++freed_caches; }
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

HostMemory memory;

at::HostAllocator* current() { return at::getHostAllocator(at::DeviceType::CUDA); }

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void install() { at::setHostAllocator(at::DeviceType::CUDA, &memory); }
EXPORT int is_installed() { return current() == &memory ? 1 : 0; }
EXPORT void* allocate(std::size_t bytes) { return new c10::DataPtr(current()->allocate(bytes)); }
EXPORT void release(void* pointer) { delete static_cast<c10::DataPtr*>(pointer); }
EXPORT int use(void* pointer) {
  const auto* const data = static_cast<c10::DataPtr*>(pointer);
  const c10::Stream stream(c10::Stream::DEFAULT, {c10::DeviceType::CUDA, 0});
  return current()->record_event(data->get(), data->get_context(), stream) ? 1 : 0;
}
EXPORT int empty_cache() {
  current()->empty_cache();
  return freed_caches;
}
