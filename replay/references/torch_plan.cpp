// The library torch-plan: c10::AllocationPlanner and c10::CPUProfilingAllocator behind the engine's
// C interface. What it is prepared for is recorded and planned; then the plan is run.
#include <c10/core/impl/alloc_cpu.h>
#include <c10/mobile/CPUProfilingAllocator.h>
#include <c10/util/Exception.h>
#include <workbench_allocator.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
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

// The original throws where a request is none of the plan's. A run that departs from its plan has
// no numbers: it ends here, and says why in its last words.
[[noreturn]] void stop(const char* reason) {
  std::fprintf(stderr, "PyTorch's own c10::CPUProfilingAllocator stopped: %s\n", reason);
  std::fflush(stderr);
  std::_Exit(EXIT_FAILURE);
}

// The original keys its free ranges by size alone, and loses its way in memory when two are equal.
constexpr char kDefect[] =
    "PyTorch's own planner, c10::AllocationPlanner, crashed, as it does where two free ranges have "
    "the same size, which is nearly every trace; plan with planner:greedy plans by its rules "
    "without the defect, and may place ties of more than 8 allocations otherwise\n";

struct Instance {
  explicit Instance(const wb_host& host)
      : counts(host.counts != 0), several_threads(host.several_threads != 0) {}

  const bool counts;  // timed passes measure the original alone
  const bool several_threads;
  std::mutex mutex;  // the original is for one thread
  AllocationPlan plan;
  CPUProfilingAllocator original;
  std::int32_t thread = 0;  // whose allocations are planned
  std::uint64_t planned_ids = 0;

  // Only where `counts`.
  std::uint64_t next_id = 0;
  std::uint64_t live = 0;
  std::uint64_t raw_live = 0;
  std::int64_t raw_blocks = 0;
  std::int64_t from_arena = 0;
  std::int64_t raw = 0;

  std::unique_lock<std::mutex> lock() {
    return several_threads ? std::unique_lock(mutex) : std::unique_lock<std::mutex>();
  }
  std::uint64_t arena_size() const { return plan.*reach(TotalSize{}); }
  bool is_in_arena(const void* pointer) const {
    const auto* const begin = static_cast<const char*>(original.*reach(Blob{}));
    return pointer >= begin && pointer < begin + arena_size();
  }
};

Instance& self(void* allocator) { return *static_cast<Instance*>(allocator); }

void* create(const wb_host* host, const char*, char* error, std::size_t error_size) {
  if (!has_system_memory(*host, error, error_size)) return nullptr;
  return new Instance(*host);
}

void destroy(void* allocator) { delete &self(allocator); }

// The thread that allocates most, of several the first, as `plan` chooses it.
std::int32_t busiest(const wb_lifetimes& lifetimes) {
  std::map<std::int32_t, std::uint64_t> counts;
  for (std::uint64_t i = 0; i < lifetimes.count; ++i) ++counts[lifetimes.thread[i]];
  const auto most =
      std::max_element(counts.begin(), counts.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == counts.end() ? 0 : most->first;
}

// The original's recording, of what it would have been told by that thread: who frees does not
// matter, and what is freed between two allocations is freed before the second.
std::int32_t prepare(void* allocator, const wb_lifetimes* lifetimes, char*, std::size_t) {
  Instance& me = self(allocator);
  me.thread = busiest(*lifetimes);
  const std::uint64_t count = lifetimes->count;
  std::vector<std::vector<std::uint64_t>> freed_at(count + 1);
  for (std::uint64_t i = 0; i < count; ++i) {
    if (lifetimes->thread[i] == me.thread && lifetimes->end[i] <= count) {
      freed_at[lifetimes->end[i]].push_back(i);
    }
  }
  // Pointers serve the recording as names only.
  const std::vector<char> names(count);
  c10::AllocationPlanner planner(&me.plan);
  for (std::uint64_t i = 0; i <= count; ++i) {
    for (const std::uint64_t freed : freed_at[i]) planner.record_free(&names[freed]);
    if (i == count || lifetimes->thread[i] != me.thread) continue;
    planner.record_allocation(lifetimes->bytes[i], &names[i]);
    ++me.planned_ids;
  }
  const TellsOfTheDefect told(kDefect);
  planner.formulate_plan();
  return 0;
}

void program_begins(void* allocator) {
  Instance& me = self(allocator);
  me.next_id = 0;
  me.original.set_plan(&me.plan);
}

void count_allocation(Instance& me, const void* pointer, std::uint64_t bytes) {
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

void* allocate(void* allocator, std::uint64_t bytes, std::int32_t, std::int32_t thread) {
  Instance& me = self(allocator);
  const auto lock = me.lock();
  const bool is_planned = thread == me.thread;
  // The original would read on behind its plan.
  if (me.counts && is_planned && me.next_id++ >= me.planned_ids) {
    stop("an allocation past the end of the plan");
  }
  void* pointer = nullptr;
  try {
    // Elsewhere than in the thread that has its guard the original is not asked.
    pointer = is_planned ? me.original.allocate(bytes) : c10::alloc_cpu(bytes);
  } catch (const c10::Error& error) {
    stop(error.what_without_backtrace());
  }
  if (me.counts) count_allocation(me, pointer, bytes);
  return pointer;
}

void deallocate(void* allocator, void* memory, std::uint64_t bytes, std::int32_t, std::int32_t) {
  Instance& me = self(allocator);
  const auto lock = me.lock();
  if (me.counts) count_free(me, memory, bytes);
  try {
    me.original.free(memory);
  } catch (const c10::Error& error) {
    stop(error.what_without_backtrace());
  }
}

void statistics(void* allocator, wb_statistics* to) {
  Instance& me = self(allocator);
  const auto lock = me.lock();
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
    .program_ends = nullptr,
};

}  // namespace
}  // namespace reference

extern "C" __attribute__((visibility("default"))) const wb_interface* workbench_allocator(
    std::uint32_t version) {
  return version >= WB_VERSION ? &reference::interface : nullptr;
}
