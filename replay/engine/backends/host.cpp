// Real memory of this machine, touched so that it is really there.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "backends/backend.h"
#include "backends/process_memory.h"
#include "core/errors.h"

namespace workbench {
namespace {

// Below this the C library serves the request, as it does for PyTorch's own CPU allocator: a
// mapping each would take a page for the smallest tensor and run into vm.max_map_count.
constexpr Bytes kSmallest = 64 * kKiB;

class Host final : public Backend {
 public:
  // `untouched`: all from the C library and as it comes, as PyTorch's own CPU allocator has it.
  Host(const BackendOptions& options, bool untouched) : Backend(options), untouched_(untouched) {}

  bool is_device() const override { return false; }
  bool has_memory() const override { return true; }
  bool last_faulted() const override { return faulted_; }

 private:
  std::uint64_t take(Bytes size) override {
    const auto length = static_cast<std::size_t>(size);
    void* memory = nullptr;
    faulted_ = is_mapping(size);
    if (faulted_) {
      memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) return 0;
    } else if (posix_memalign(&memory, kHostAlignment, length) != 0) {
      return 0;
    }
    touch(memory, length);
    return reinterpret_cast<std::uint64_t>(memory);
  }

  void give(std::uint64_t address, Bytes size) override {
    void* memory = reinterpret_cast<void*>(address);
    if (is_mapping(size)) {
      munmap(memory, static_cast<std::size_t>(size));
    } else {
      std::free(memory);
    }
  }

  // A mapping of its own, since the system locks whole pages.
  std::uint64_t take_pinned(Bytes size, Memory) override {
    const auto length = static_cast<std::size_t>(size);
    void* const memory =
        mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    faulted_ = true;
    // Locking brings the pages in.
    if (mlock(memory, length) != 0) {
      munmap(memory, length);
      check_lock_limit(round_up(size, static_cast<Bytes>(page_)));
      return 0;
    }
    return reinterpret_cast<std::uint64_t>(memory);
  }

  // What is unmapped is unlocked.
  void give_pinned(std::uint64_t address, Bytes size, Memory) override {
    munmap(reinterpret_cast<void*>(address), static_cast<std::size_t>(size));
  }

  // Throws UnavailableError where the limit is why `size` bytes could not be locked.
  static void check_lock_limit(Bytes size) {
    const LockedMemory locked = locked_memory();
    if (size <= locked.limit - locked.bytes) return;
    const auto kibibytes = [](Bytes bytes) { return std::to_string(bytes / kKiB) + " KiB"; };
    throw UnavailableError(
        "the system lets this process pin no more memory: RLIMIT_MEMLOCK is " +
        kibibytes(locked.limit) + ", " + kibibytes(locked.bytes) + " are pinned, and " +
        kibibytes(size) +
        " more were needed; raise it with `ulimit -l unlimited`, with memlock in "
        "/etc/security/limits.conf or with `docker run --ulimit memlock=-1`, or use the simulated "
        "backend");
  }

  std::uint64_t take_range(Bytes size, Bytes) override {
    void* const memory = mmap(nullptr, static_cast<std::size_t>(size), PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? 0 : reinterpret_cast<std::uint64_t>(memory);
  }
  void give_range(std::uint64_t address, Bytes size) override {
    munmap(reinterpret_cast<void*>(address), static_cast<std::size_t>(size));
  }
  bool map_piece(std::uint64_t address, Bytes size) override {
    if (!remap(address, size, PROT_READ | PROT_WRITE, 0)) return false;
    touch(reinterpret_cast<void*>(address), static_cast<std::size_t>(size));
    faulted_ = true;
    return true;
  }
  void unmap_piece(std::uint64_t address, Bytes size) override {
    remap(address, size, PROT_NONE, MAP_NORESERVE);
  }

  bool is_mapping(Bytes size) const { return size >= kSmallest && !untouched_; }

  // A mapping over another takes its place, and its memory goes back to the system.
  static bool remap(std::uint64_t address, Bytes size, int protection, int flags) {
    return mmap(reinterpret_cast<void*>(address), static_cast<std::size_t>(size), protection,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0) != MAP_FAILED;
  }

  void touch(void* memory, std::size_t length) const {
    if (untouched_) return;
    // Volatile: a store of nothing anyone reads must not be optimised away.
    volatile char* bytes = static_cast<char*>(memory);
    for (std::size_t i = 0; i < length; i += page_) bytes[i] = 0;
  }

  Bytes total_if_unlimited() const override {
    return static_cast<Bytes>(sysconf(_SC_PHYS_PAGES)) * static_cast<Bytes>(page_);
  }

  Bytes footprint(Bytes size) const override { return size; }

  const std::size_t page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const bool untouched_;
  // Of the calling thread; found without a call of the loader.
  [[gnu::tls_model("initial-exec")]] static inline constinit thread_local bool faulted_ = false;
};

const bool registered = backend_registry().add({
    .name = "host",
    .summary = "this machine's memory, mapped and touched",
    .is_model = false,
    .create = [](const BackendOptions& options) { return std::make_unique<Host>(options, false); },
});

const bool for_comparisons_registered = backend_registry().add({
    .name = "host-untouched",
    .summary = "as host, but without touching it; for what is compared with PyTorch's own code",
    .is_model = false,
    .create = [](const BackendOptions& options) { return std::make_unique<Host>(options, true); },
    .hidden = true,
});

}  // namespace
}  // namespace workbench
