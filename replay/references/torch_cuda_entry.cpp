// The entry of a reference made of PyTorch's CUDA parts. Which allocator those are is settled by
// the environment while they are loaded, so it is loaded from here.
//
// WORKBENCH_ORIGINAL: the path of the library. WORKBENCH_BACKEND: PyTorch's name of the allocator.
#include <dlfcn.h>
#include <workbench_allocator.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

namespace {

// A variable of the environment, as long as this lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* const found = std::getenv(name)) before_ = found;
    set(value);
  }
  ~Variable() { set(before_ ? before_->c_str() : nullptr); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const char* value) const {
    if (value == nullptr) {
      unsetenv(name_);
    } else {
      setenv(name_, value, 1);
    }
  }

  const char* const name_;
  std::optional<std::string> before_;
};

using Entry = const wb_interface*(std::uint32_t);

std::string problem;

Entry* load() {
  const Variable older("PYTORCH_CUDA_ALLOC_CONF", nullptr);
  const Variable newer("PYTORCH_ALLOC_CONF", "backend:" WORKBENCH_BACKEND);
  void* const library = dlopen(WORKBENCH_ORIGINAL, RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return reinterpret_cast<Entry*>(dlsym(library, "workbench_allocator"));
  problem = dlerror();
  return nullptr;
}

void* create(const wb_host*, const char*, char* error, std::size_t error_size) {
  std::snprintf(error, error_size, "PyTorch's library cannot be loaded (%s); install torch again",
                problem.c_str());
  return nullptr;
}
void destroy(void*) {}
void* allocate(void*, std::uint64_t, std::int32_t, std::int32_t) { return nullptr; }
void deallocate(void*, void*, std::uint64_t, std::int32_t, std::int32_t) {}

// What says why there is none.
constexpr wb_interface kNone = {.size = offsetof(wb_interface, record_stream),
                                .version = WB_VERSION,
                                .name = "none",
                                .create = create,
                                .destroy = destroy,
                                .allocate = allocate,
                                .deallocate = deallocate};

}  // namespace

extern "C" __attribute__((visibility("default"))) const wb_interface* workbench_allocator(
    std::uint32_t version) {
  static Entry* const entry = load();
  return entry == nullptr ? &kNone : entry(version);
}
