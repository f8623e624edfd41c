// Real memory of this machine, touched so that it is really there.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "backends/backend.h"

namespace workbench {
namespace {

// Below this the C library serves the request, as it does for PyTorch's own CPU allocator: a
// mapping each would take a page for the smallest tensor and run into vm.max_map_count.
constexpr Bytes kSmallest = 64 * kKiB;

class Host final : public Backend {
 public:
  using Backend::Backend;

  bool is_device() const override { return false; }
  bool has_memory() const override { return true; }
  bool last_faulted() const override { return faulted_; }

 private:
  std::uint64_t take(Bytes size) override {
    const auto length = static_cast<std::size_t>(size);
    void* memory = nullptr;
    faulted_ = size >= kSmallest;
    if (faulted_) {
      memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) return 0;
    } else if (posix_memalign(&memory, kHostAlignment, length) != 0) {
      return 0;
    }
    // Volatile: a store of nothing anyone reads must not be optimised away.
    volatile char* bytes = static_cast<char*>(memory);
    for (std::size_t i = 0; i < length; i += page_) bytes[i] = 0;
    return reinterpret_cast<std::uint64_t>(memory);
  }

  void give(std::uint64_t address, Bytes size) override {
    void* memory = reinterpret_cast<void*>(address);
    if (size >= kSmallest) {
      munmap(memory, static_cast<std::size_t>(size));
    } else {
      std::free(memory);
    }
  }

  Bytes footprint(Bytes size) const override { return size; }

  const std::size_t page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  bool faulted_ = false;
};

const bool registered = backend_registry().add({
    .name = "host",
    .summary = "this machine's memory, mapped and touched",
    .is_model = false,
    .create = [](const BackendOptions& options) { return std::make_unique<Host>(options); },
});

}  // namespace
}  // namespace workbench
