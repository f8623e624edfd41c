// Experiments with the driver's memory pool. Each takes a pool of its own with one rule switched
// on.
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "core/errors.h"
#include "cuda/calibration.h"
#include "cuda/kernels.h"

namespace workbench::cuda {
namespace {

// How long a stream is kept busy where it is to be behind; an experiment takes far less.
constexpr std::uint64_t kBusyNanoseconds = 200'000'000;
// By which the pool is made to grow.
constexpr Bytes kStep = 2 * kMiB;
constexpr Bytes kSteps = 256;

const char* word(bool value) { return value ? "True" : "False"; }

// What all the amounts by which a pool grows are multiples of.
Bytes chunk_of_pool(Bench& bench) {
  Pool pool(bench, nullptr, /*keeps_memory=*/true);
  std::vector<void*> blocks;
  Bytes chunk = 0;
  Bytes before = pool.reserved();
  const auto take = [&](Bytes size) {
    void* const block = pool.allocate(size, bench.first());
    if (block == nullptr) return;
    blocks.push_back(block);
    const Bytes reserved = pool.reserved();
    chunk = std::gcd(chunk, reserved - before);
    before = reserved;
  };
  const Bytes most = bench.capacity() / 2;
  for (Bytes step = 0; step < kSteps && before + kStep <= most; ++step) take(kStep);
  for (const Bytes odd : {3 * kMiB, 33 * kMiB, 70 * kMiB, 130 * kMiB}) {
    if (before + 2 * odd <= most) take(odd);
  }
  for (void* const block : blocks) pool.free(block, bench.first());
  bench.settle();
  return chunk;
}

// Whether a block that was freed on the first stream is handed out again on the second.
enum class Before { kBusy, kBusyAndOrdered, kDone };
bool reuses(Bench& bench, Bytes size, std::optional<cudaMemPoolAttr> rule, Before before,
            Bytes most = 0) {
  Pool pool(bench, rule ? &*rule : nullptr, /*keeps_memory=*/true, most);
  void* const freed = pool.allocate(size, bench.first());
  if (freed == nullptr) throw EngineError("the driver's pool refused its first block");
  if (before != Before::kDone) {
    bench.require("the busy kernel", launch_busy(bench.first(), kBusyNanoseconds));
  }
  pool.free(freed, bench.first());
  if (before == Before::kBusyAndOrdered) {
    cudaEvent_t event = nullptr;
    bench.require("cudaEventCreateWithFlags",
                  cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    bench.require("cudaEventRecord", cudaEventRecord(event, bench.first()));
    bench.require("cudaStreamWaitEvent", cudaStreamWaitEvent(bench.second(), event, 0));
    bench.require("cudaEventDestroy", cudaEventDestroy(event));
  } else if (before == Before::kDone) {
    bench.settle();
  }
  const Bytes reserved = pool.reserved();
  void* const got = pool.allocate(size, bench.second());
  const bool reused = got != nullptr && pool.reserved() == reserved;
  if (got != nullptr) pool.free(got, bench.second());
  bench.settle();
  return reused;
}

// Whether free chunks that lie apart serve a request of twice the size.
bool remaps(Bench& bench, Bytes chunk) {
  Pool pool(bench, nullptr, /*keeps_memory=*/true);
  std::vector<void*> blocks;
  for (int i = 0; i < 4; ++i) blocks.push_back(pool.allocate(chunk, bench.first()));
  pool.free(blocks[0], bench.first());
  pool.free(blocks[2], bench.first());
  bench.settle();
  const Bytes reserved = pool.reserved();
  void* const large = pool.allocate(2 * chunk, bench.first());
  const bool found = large != nullptr && pool.reserved() == reserved;
  for (void* const block : {large, blocks[1], blocks[3]}) {
    if (block != nullptr) pool.free(block, bench.first());
  }
  bench.settle();
  return found;
}

// Whether a pool that is to keep nothing gives unused memory back where the host synchronizes.
bool releases(Bench& bench, Bytes chunk) {
  Pool pool(bench, nullptr, /*keeps_memory=*/false);
  void* const block = pool.allocate(chunk, bench.first());
  if (block == nullptr) return false;
  pool.free(block, bench.first());
  bench.settle();
  return pool.reserved() == 0;
}

}  // namespace

Pool::Pool(Bench& bench, const cudaMemPoolAttr* rule, bool keeps_memory, Bytes most)
    : bench_(bench) {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = 0;
  properties.maxSize = static_cast<std::size_t>(most);
  bench.require("cudaMemPoolCreate", cudaMemPoolCreate(&pool_, &properties));
  std::uint64_t threshold = keeps_memory ? std::numeric_limits<std::uint64_t>::max() : 0;
  bench.require("cudaMemPoolSetAttribute",
                cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &threshold));
  for (const cudaMemPoolAttr one :
       {cudaMemPoolReuseFollowEventDependencies, cudaMemPoolReuseAllowOpportunistic,
        cudaMemPoolReuseAllowInternalDependencies}) {
    int allowed = rule != nullptr && *rule == one ? 1 : 0;
    bench.require("cudaMemPoolSetAttribute", cudaMemPoolSetAttribute(pool_, one, &allowed));
  }
}

Pool::~Pool() {
  cudaDeviceSynchronize();
  cudaMemPoolDestroy(pool_);
}

void* Pool::allocate(Bytes size, cudaStream_t stream) {
  void* memory = nullptr;
  const cudaError_t error =
      cudaMallocFromPoolAsync(&memory, static_cast<std::size_t>(size), pool_, stream);
  return bench_.calls().found_memory("cudaMallocFromPoolAsync", error) ? memory : nullptr;
}

void Pool::free(void* memory, cudaStream_t stream) {
  bench_.require("cudaFreeAsync", cudaFreeAsync(memory, stream));
}

void Pool::trim() { bench_.require("cudaMemPoolTrimTo", cudaMemPoolTrimTo(pool_, 0)); }

Bytes Pool::reserved() {
  std::uint64_t value = 0;
  bench_.require("cudaMemPoolGetAttribute",
                 cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &value));
  return static_cast<Bytes>(value);
}

void find_pool_rules(Bench& bench, CalibrationSink& sink) {
  const Bytes chunk = chunk_of_pool(bench);
  if (chunk <= 0) throw EngineError("the driver's pool did not grow, so it cannot be measured");
  sink.fact("chunk_bytes", std::to_string(chunk));
  if (8 * chunk > bench.capacity()) {
    throw EngineError("the pool grows by " + std::to_string(chunk) +
                      " bytes, which is too much for its rules to be found out within this "
                      "capacity");
  }
  const auto tell = [&](const char* name, bool value) { sink.fact(name, word(value)); };
  // Without any rule a block of a stream that is behind must stay there; else nothing is held back.
  tell("holds_back", !reuses(bench, chunk, std::nullopt, Before::kBusy) &&
                         !reuses(bench, chunk, cudaMemPoolReuseAllowOpportunistic, Before::kBusy));
  tell("reuse_follow_event_dependencies",
       reuses(bench, chunk, cudaMemPoolReuseFollowEventDependencies, Before::kBusyAndOrdered));
  tell("reuse_allow_opportunistic",
       reuses(bench, chunk, cudaMemPoolReuseAllowOpportunistic, Before::kDone));
  // It is for where there is no more memory: a pool that may hold no more.
  tell("reuse_allow_internal_dependencies",
       reuses(bench, chunk, cudaMemPoolReuseAllowInternalDependencies, Before::kBusy, chunk));
  tell("remap", remaps(bench, chunk));
  tell("releases_above_threshold", releases(bench, chunk));
}

}  // namespace workbench::cuda
