// The library torch-plan: c10::AllocationPlanner and c10::CPUProfilingAllocator behind the engine's
// C interface. What it is prepared for is recorded and planned; then the plan is run.
#include <c10/mobile/CPUProfilingAllocator.h>
#include <c10/util/Exception.h>
#include <workbench_allocator.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "original.h"

namespace reference {

using c10::AllocationPlan;
using c10::CPUProfilingAllocator;

// Neither the plan nor its arena can be seen in a public way.
struct TotalSize {
  using type = std::uint64_t AllocationPlan::*;
  friend type reach(TotalSize);
};
template struct Reach<TotalSize, &AllocationPlan::total_size>;
struct Blob {
  using type = void* CPUProfilingAllocator::*;
  friend type reach(Blob);
};
template struct Reach<Blob, &CPUProfilingAllocator::blob_>;

namespace {

constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

// The original throws where a request is none of the plan's. A run that departs from its plan has
// no numbers: it ends here, and says why in its last words.
[[noreturn]] void stop(const char* reason) {
  std::fprintf(stderr, "PyTorch's own c10::CPUProfilingAllocator stopped: %s\n", reason);
  std::fflush(stderr);
  std::_Exit(EXIT_FAILURE);
}

struct Instance {
  explicit Instance(bool is_counted) : counts(is_counted) {}

  const bool counts;  // timed passes measure the original alone
  AllocationPlan plan;
  CPUProfilingAllocator original;
  std::uint64_t planned_ids = 0;

  // Only where `counts`.
  std::uint64_t next_id = 0;
  std::uint64_t live = 0;
  std::uint64_t raw_live = 0;
  std::int64_t raw_blocks = 0;
  std::int64_t from_arena = 0;
  std::int64_t raw = 0;

  std::uint64_t arena_size() const { return plan.*reach(TotalSize{}); }
  bool is_in_arena(const void* pointer) const {
    const auto* const begin = static_cast<const char*>(original.*reach(Blob{}));
    return pointer >= begin && pointer < begin + arena_size();
  }
};

Instance& self(void* allocator) { return *static_cast<Instance*>(allocator); }

void* create(const wb_host* host, const char*, char* error, std::size_t error_size) {
  if (!has_system_memory(*host, error, error_size)) return nullptr;
  return new Instance(host->counts != 0);
}

void destroy(void* allocator) { delete &self(allocator); }

// The original's recording, of what it would have been told: at equal times frees come first.
std::int32_t prepare(void* allocator, const wb_lifetimes* lifetimes, char*, std::size_t) {
  Instance& me = self(allocator);
  const std::uint64_t count = me.planned_ids = lifetimes->count;
  std::vector<std::vector<std::uint64_t>> freed_at(count + 1);
  for (std::uint64_t id = 0; id < count; ++id) {
    if (lifetimes->end[id] <= count) freed_at[lifetimes->end[id]].push_back(id);
  }
  // Pointers serve the recording as names only.
  std::vector<char> names(count);
  c10::AllocationPlanner planner(&me.plan);
  for (std::uint64_t id = 0; id <= count; ++id) {
    for (const std::uint64_t freed : freed_at[id]) planner.record_free(&names[freed]);
    if (id < count) planner.record_allocation(lifetimes->bytes[id], &names[id]);
  }
  planner.formulate_plan();
  return 0;
}

void program_begins(void* allocator) {
  Instance& me = self(allocator);
  me.next_id = 0;
  me.original.set_plan(&me.plan);
}

void program_ends(void* allocator) { self(allocator).next_id = kNever; }

void count_allocation(Instance& me, const void* pointer, std::uint64_t bytes) {
  ++me.next_id;
  me.live += bytes;
  if (me.is_in_arena(pointer)) {
    ++me.from_arena;
    return;
  }
  ++me.raw;
  ++me.raw_blocks;
  me.raw_live += bytes;
}

void count_free(Instance& me, const void* pointer, std::uint64_t bytes) {
  me.live -= bytes;
  if (me.is_in_arena(pointer)) return;
  --me.raw_blocks;
  me.raw_live -= bytes;
}

void* allocate(void* allocator, std::uint64_t bytes, std::int32_t, std::int32_t) {
  Instance& me = self(allocator);
  // The original would read on behind its plan.
  if (me.counts && me.next_id >= me.planned_ids) stop("an allocation past the end of the plan");
  void* pointer = nullptr;
  try {
    pointer = me.original.allocate(bytes);
  } catch (const c10::Error& error) {
    stop(error.what_without_backtrace());
  }
  if (me.counts) count_allocation(me, pointer, bytes);
  return pointer;
}

void deallocate(void* allocator, void* memory, std::uint64_t bytes, std::int32_t, std::int32_t) {
  Instance& me = self(allocator);
  if (me.counts) count_free(me, memory, bytes);
  try {
    me.original.free(memory);
  } catch (const c10::Error& error) {
    stop(error.what_without_backtrace());
  }
}

void statistics(void* allocator, wb_statistics* to) {
  const Instance& me = self(allocator);
  to->allocated = to->active = static_cast<std::int64_t>(me.live);
  to->reserved = static_cast<std::int64_t>(me.arena_size() + me.raw_live);
  to->segments = me.raw_blocks + (me.arena_size() > 0 ? 1 : 0);
  to->hits = me.from_arena;
  to->misses = me.raw;
}

const wb_interface interface = {
    .size = sizeof(wb_interface),
    .version = WB_VERSION,
    .name = "torch-plan",
    .create = create,
    .destroy = destroy,
    .allocate = allocate,
    .deallocate = deallocate,
    .record_stream = nullptr,
    .empty_cache = nullptr,
    .statistics = statistics,
    .prepare = prepare,
    .program_begins = program_begins,
    .program_ends = program_ends,
};

}  // namespace
}  // namespace reference

extern "C" __attribute__((visibility("default"))) const wb_interface* workbench_allocator(
    std::uint32_t version) {
  return version >= WB_VERSION ? &reference::interface : nullptr;
}
