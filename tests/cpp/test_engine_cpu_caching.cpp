// Rules of cpu-caching that a replay does not show: instances that share, guards, record_free.
#include <memory>
#include <thread>

#include "allocators/cpu_caching.h"
#include "check.h"
#include "core/errors.h"

namespace {

using namespace workbench;

std::unique_ptr<Backend> memory(Bytes capacity = kUnlimited) {
  return backend_registry().get("simulated").create({.capacity = capacity});
}

TEST(only_the_exact_size_is_served_from_the_cache_last_in_first_out) {
  const auto backend = memory();
  CpuCaching cache(*backend);
  const Allocation a = cache.allocate(100, 0, 0);
  const Allocation b = cache.allocate(100, 0, 0);
  cache.free(a.handle, 0);
  cache.free(b.handle, 0);
  CHECK(cache.allocate(99, 0, 0).address != b.address);
  CHECK(cache.cause() == Cause::kDriverCall);
  CHECK(cache.allocate(100, 0, 0).address == b.address);
  CHECK(cache.cause() == Cause::kServedFromCache);
  CHECK(cache.allocate(100, 0, 0).address == a.address);
  CHECK(cache.statistics().hits == 2 && cache.statistics().misses == 3);
  CHECK(cache.statistics().reserved == 299);
}

TEST(refused_memory_is_asked_for_again_after_freeing_what_this_instance_cached) {
  const auto backend = memory(10 * kMiB);
  CpuCaching cache(*backend);
  CpuCaching other(*backend);
  other.free(other.allocate(2 * kMiB, 0, 0).handle, 0);
  cache.free(cache.allocate(4 * kMiB, 0, 0).handle, 0);
  CHECK(!cache.allocate(8 * kMiB, 0, 0).is_refused());
  CHECK(cache.cause() == Cause::kRetryAfterFlush);
  CHECK(cache.statistics().reserved == 8 * kMiB && other.statistics().reserved == 2 * kMiB);
  // The other instance keeps its cache: this is out of memory.
  CHECK(cache.allocate(2 * kMiB, 0, 0).is_refused());
  CHECK(cache.statistics().ooms == 1);
}

TEST(memory_of_one_instance_freed_through_another_lands_in_the_others_cache) {
  const auto backend = memory();
  CpuCaching a(*backend);
  const Allocation block = a.allocate(100, 0, 0);
  {
    CpuCaching b(*backend);
    b.free_at(block.address, 0);
    CHECK_THROWS(DoubleFreeError, a.free_at(block.address, 0));
    CHECK(a.statistics().reserved == 0 && a.statistics().allocated == 0);
    CHECK(b.statistics().reserved == 100 && b.largest_free() == 100);
    CHECK(b.allocate(100, 0, 0).address == block.address);
  }
  // Live blocks stay live when an instance ends.
  CHECK(backend->used() > 0);
  a.free_at(block.address, 0);
  CHECK(a.allocate(100, 0, 0).address == block.address);
  a.free_at(block.address, 0);
}

TEST(record_free_forgets_memory_freed_outside) {
  const auto backend = memory();
  CpuCaching cache(*backend);
  const Allocation block = cache.allocate(100, 0, 0);
  backend->release(block.address, 100);
  cache.record_free(block.address);
  cache.record_free(block.address);
  CHECK_THROWS(ForeignPointerError, cache.free_at(block.address, 0));
  CHECK(cache.statistics().reserved == 0 && cache.statistics().allocated == 0);
  const Allocation cached = cache.allocate(200, 0, 0);
  cache.free(cached.handle, 0);
  CHECK_THROWS(DoubleFreeError, cache.record_free(cached.address));
}

TEST(free_cached_leaves_live_blocks_alone) {
  const auto backend = memory();
  CpuCaching cache(*backend);
  const Allocation live = cache.allocate(100, 0, 0);
  cache.free(cache.allocate(200, 0, 0).handle, 0);
  cache.free_cached();
  CHECK(cache.statistics().reserved == 100 && cache.largest_free() == 0);
  cache.free_at(live.address, 0);
  CHECK(cache.largest_free() == 100);
}

TEST(threads_without_the_guard_go_to_the_system) {
  const auto backend = memory();
  const auto cache = make_allocator("cpu-caching", "guard_thread:1", *backend);
  const Allocation outside = cache->allocate(100, 0, 0);
  cache->free(outside.handle, 1);
  CHECK(cache->statistics().reserved == 0);
  const Allocation inside = cache->allocate(100, 0, 1);
  cache->free(inside.handle, 1);
  CHECK(cache->statistics().reserved == 100);
  // Freed by a thread that knows no cache: it goes to the system and is forgotten.
  cache->free(cache->allocate(100, 0, 1).handle, 0);
  CHECK(cache->statistics().reserved == 0 && cache->statistics().n_alloc == 0);
  CHECK_THROWS(InputError, make_allocator("cpu-caching", "guard_thread:-1", *backend));
}

TEST(guards_nest_and_belong_to_a_thread) {
  const auto backend = memory();
  CpuCaching outer(*backend);
  CpuCaching inner(*backend);
  CHECK(CpuCachingGuard::current() == nullptr);
  {
    const CpuCachingGuard first(outer);
    {
      const CpuCachingGuard second(inner);
      CHECK(CpuCachingGuard::current() == &inner);
      std::thread([] { CHECK(CpuCachingGuard::current() == nullptr); }).join();
    }
    CHECK(CpuCachingGuard::current() == &outer);
  }
  CHECK(CpuCachingGuard::current() == nullptr);
}

TEST(many_sizes_are_told_apart) {
  const auto backend = memory();
  CpuCaching cache(*backend);
  for (int round = 0; round < 2; ++round) {
    for (Bytes size = 1; size <= 5000; ++size) {
      cache.free(cache.allocate(size, 0, 0).handle, 0);
      CHECK(cache.largest_free() == (round == 0 ? size : 5000));
    }
  }
  CHECK(cache.statistics().hits == 5000 && cache.statistics().misses == 5000);
}

}  // namespace

int main() { return check::run(); }
