// An allocator behind the engine's C interface that does nothing: what the interface itself costs.
#include <workbench_allocator.h>

namespace {

alignas(512) char block[512];

void* create(const wb_host*, const char*, char*, size_t) { return block; }
void destroy(void*) {}
void* allocate(void*, uint64_t, int32_t, int32_t) { return block; }
void deallocate(void*, void*, uint64_t, int32_t, int32_t) {}

const wb_interface interface = {
    .size = sizeof(wb_interface),
    .version = WB_VERSION,
    .name = "nothing",
    .create = create,
    .destroy = destroy,
    .allocate = allocate,
    .deallocate = deallocate,
    .record_stream = nullptr,
    .empty_cache = nullptr,
    .statistics = nullptr,
    .prepare = nullptr,
    .program_begins = nullptr,
    .program_ends = nullptr,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const wb_interface* workbench_allocator(
    uint32_t) {
  return &interface;
}
