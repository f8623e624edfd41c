#include "allocators/async.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "allocators/priced_pool.h"
#include "allocators/simulated_pool.h"
#include "core/errors.h"

namespace workbench {
namespace {

// What an unknown number of bytes is in PyTorch's own error: in the largest unit that fits.
std::string format_size(Bytes size) {
  constexpr std::array<const char*, 4> kUnits = {" bytes", " KiB", " MiB", " GiB"};
  double value = static_cast<double>(size);
  std::size_t unit = 0;
  while (unit + 1 < kUnits.size() && value >= 1024) {
    value /= 1024;
    ++unit;
  }
  char text[40];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f%s" : "%.2f%s", value, kUnits[unit]);
  return text;
}

std::string times(std::int64_t count) {
  return count == 1 ? "once" : std::to_string(count) + " times";
}

// The driver's own pool where there is one, else the model of it.
std::unique_ptr<MemoryPool> make_pool(Backend& backend, const PoolModel& model) {
  std::unique_ptr<MemoryPool> pool(backend.new_driver_pool({
      .release_threshold = model.release_threshold,
      .follow_event_dependencies = model.follow_event_dependencies,
      .allow_opportunistic = model.allow_opportunistic,
      .allow_internal_dependencies = model.allow_internal_dependencies,
  }));
  if (pool != nullptr) return pool;
  pool = std::make_unique<SimulatedPool>(backend, model);
  PricedCalls* const priced = backend.priced_calls();
  return priced == nullptr ? std::move(pool)
                           : std::make_unique<PricedPool>(std::move(pool), *priced);
}

std::string describe_pool(const Backend& backend, const AsyncSettings& settings) {
  if (!backend.is_hardware()) {
    return "the driver's memory pool is a model, so what is reserved is a model's number: chunks "
           "of " +
           std::to_string(settings.pool.chunk / kMiB) +
           " MiB and the rules in docs/allocators.md, async";
  }
  std::string names;
  for (const std::string& name : settings.of_model) names += (names.empty() ? "" : " and ") + name;
  return names.empty() ? ""
                       : names + ": of the model only; the driver's own pool decides by itself";
}

}  // namespace

Async::Async(Backend& backend, const AsyncSettings& settings)
    : Async(backend, make_pool(backend, settings.pool), settings.memory_fraction,
            describe_pool(backend, settings)) {}

Async::Async(Backend& backend, std::unique_ptr<MemoryPool> pool, double memory_fraction,
             std::string describes_pool)
    : Replayed(backend),
      lock_(backend.several_threads()),
      pool_(std::move(pool)),
      describes_pool_(std::move(describes_pool)),
      is_drivers_(pool_->is_drivers()),
      unifying_(pool_->make_stream()),
      limit_(memory_fraction < 0 ? kUnlimited : share(memory_fraction)) {}

Bytes Async::share(double fraction) const {
  return static_cast<Bytes>(fraction * static_cast<double>(backend_.total()));
}

Allocation Async::allocate(Bytes size, StreamId stream, ThreadId) {
  if (size == 0) return Allocation::nothing();
  const std::lock_guard guard(lock_);
  if (size >= kEiB) [[unlikely]]
    return refuse(size);
  if (captures_ == 0 && !deferred_.empty()) [[unlikely]]
    free_deferred();
  if (used_ + size > limit_) [[unlikely]]
    return refuse(size);
  backend_.count(&DriverCalls::pool_alloc);
  const Allocation got = pool_->allocate(size, stream);
  if (got.is_refused()) [[unlikely]]
    return refuse(size);
  cause_ = pool_->cause();
  const bool asked = cause_ == Cause::kDriverCall || cause_ == Cause::kPageFault;
  ++(asked ? misses_ : hits_);
  Pointer& pointer = pointers_.take();
  pointer.block = got.handle;
  pointer.size = size;
  pointer.made_on = stream;
  pointer.captured = captures_ > 0;
  pointer.deferred = false;
  pointer.before = nullptr;
  pointer.after = first_;
  if (first_ != nullptr) first_->before = &pointer;
  first_ = &pointer;
  used_ += size;
  ++live_;
  return {got.address, &pointer};
}

Allocation Async::refuse(Bytes size) {
  cause_ = Cause::kDriverCall;
  ++ooms_;
  if (size >= kEiB) {
    refusal_ = "tried to allocate 1 EiB or more";
    return Allocation::refused();
  }
  const Bytes total = backend_.total();
  refusal_ = "used " + format_size(used_) + ", requested " + format_size(size) + ", device total " +
             format_size(total) + ", free " + format_size(total - backend_.used()) + ", limit " +
             (limit_ == kUnlimited ? "none" : format_size(limit_));
  return Allocation::refused();
}

void Async::free(void* handle, ThreadId) {
  Pointer& pointer = *static_cast<Pointer*>(handle);
  const std::lock_guard guard(lock_);
  cause_ = is_drivers_ ? Cause::kDriverCall : Cause::kServedFromCache;
  if (captures_ > 0) [[unlikely]] {
    if (!pointer.captured) {
      ++deferred_frees_;
      pointer.deferred = true;
      deferred_.push_back(&pointer);
      return;
    }
  } else if (pointer.captured && is_programs_) [[unlikely]] {
    ++captured_frees_;
  }
  free_now(pointer);
}

void Async::free_now(Pointer& pointer) {
  StreamId stream = pointer.made_on;
  if (!pointer.recorded.empty()) [[unlikely]] {
    if (!is_drivers_) cause_ = Cause::kEventProcessing;
    pool_->join(unifying_, stream);
    for (const StreamId recorded : pointer.recorded) pool_->join(unifying_, recorded);
    pointer.recorded.clear();
    stream = unifying_;
  }
  if (captures_ > 0) [[unlikely]]
    add_once(freed_in_capture_on_, stream);
  backend_.count(&DriverCalls::pool_free);
  pool_->free(pointer.block, stream);
  used_ -= pointer.size;
  --live_;
  (pointer.before == nullptr ? first_ : pointer.before->after) = pointer.after;
  if (pointer.after != nullptr) pointer.after->before = pointer.before;
  pointers_.give(pointer);
}

void Async::free_deferred() {
  for (Pointer* const pointer : deferred_) {
    if (journal_ != nullptr) {
      pool_->visit([&](const BlockView& block) {
        if (block.handle != pointer->block) return;
        write_journal(Action::kFreeCompleted, block.segment_address + block.offset, pointer->size,
                      pointer->made_on);
      });
    }
    free_now(*pointer);
  }
  deferred_.clear();
}

void Async::record_stream(void* handle, StreamId stream) {
  Pointer& pointer = *static_cast<Pointer*>(handle);
  const std::lock_guard guard(lock_);
  cause_ = Cause::kServedFromCache;
  if (stream == pointer.made_on) {
    ++own_stream_records_;
  } else {
    add_once(pointer.recorded, stream);
  }
}

void Async::add_once(std::vector<StreamId>& streams, StreamId stream) {
  if (std::find(streams.begin(), streams.end(), stream) == streams.end()) {
    streams.push_back(stream);
  }
}

void Async::empty_cache() {
  const std::lock_guard guard(lock_);
  cause_ = Cause::kDriverCall;
  pool_->synchronize();
  pool_->trim_to(0);
}

void Async::event_record(std::size_t event, StreamId stream) {
  const std::lock_guard guard(lock_);
  pool_->event_record(event, stream);
}

void Async::event_wait(std::size_t event, StreamId stream) {
  const std::lock_guard guard(lock_);
  pool_->event_wait(event, stream);
}

void Async::synchronized(StreamId stream) {
  const std::lock_guard guard(lock_);
  pool_->synchronized(stream);
}

void Async::capture_begin(StreamId) {
  const std::lock_guard guard(lock_);
  if (captures_++ > 0) ++nested_captures_;
}

void Async::capture_end(StreamId stream) {
  const std::lock_guard guard(lock_);
  // A trace may begin within a capture.
  if (captures_ == 0 || --captures_ > 0) return;
  for (const StreamId freed_on : freed_in_capture_on_) pool_->join(stream, freed_on);
  freed_in_capture_on_.clear();
}

void Async::set_fraction(std::int64_t millionths) {
  const std::lock_guard guard(lock_);
  limit_ = share(static_cast<double>(millionths) / static_cast<double>(kWholeFraction));
}

void Async::program_ends() {
  const std::lock_guard guard(lock_);
  is_programs_ = false;
  captures_ = 0;
  freed_in_capture_on_.clear();
  free_deferred();
}

Async::CacheInfo Async::cache_info(StreamId stream) {
  const std::lock_guard guard(lock_);
  Bytes guess = std::min(backend_.total() - backend_.used(), limit_ - used_);
  for (; guess > 0; guess /= 2) {
    backend_.count(&DriverCalls::pool_alloc);
    const Allocation got = pool_->allocate(guess, stream);
    if (got.is_refused()) continue;
    backend_.count(&DriverCalls::pool_free);
    pool_->free(got.handle, stream);
    break;
  }
  return {backend_.total(), std::max<Bytes>(guess, 0)};
}

void Async::reset_peaks() {
  const std::lock_guard guard(lock_);
  pool_->reset_peaks();
}

Location Async::locate(const void* handle) const {
  return pool_->locate(static_cast<const Pointer*>(handle)->block);
}

void Async::visit(const std::function<void(const BlockView&)>& visitor) const {
  if (is_drivers_) return visit_pointers(visitor);
  std::unordered_map<const void*, const Pointer*> pointers;
  for (const Pointer* pointer = first_; pointer != nullptr; pointer = pointer->after) {
    pointers.emplace(pointer->block, pointer);
  }
  pool_->visit([&](const BlockView& block) {
    BlockView view = block;
    const auto found = pointers.find(block.handle);
    if (found != pointers.end()) {
      const Pointer& pointer = *found->second;
      view.handle = &pointer;
      view.requested = pointer.size;
      if (pointer.deferred) view.state = BlockState::kActivePendingFree;
    }
    visitor(view);
  });
}

// All that is known where the driver's pool is: each as a segment of its own.
void Async::visit_pointers(const std::function<void(const BlockView&)>& visitor) const {
  std::uint64_t number = 0;
  for (const Pointer* pointer = first_; pointer != nullptr; pointer = pointer->after) {
    visitor(
        {.segment = number++,
         .segment_address = reinterpret_cast<std::uint64_t>(pointer->block),
         .segment_size = pointer->size,
         .stream = pointer->made_on,
         .pool = "",
         .expandable = false,
         .offset = 0,
         .size = pointer->size,
         .requested = pointer->size,
         .state = pointer->deferred ? BlockState::kActivePendingFree : BlockState::kActiveAllocated,
         .handle = pointer});
  }
}

// The driver does not tell the layer what it does inside. Calls are the layer's own to count, and
// all that is held and not used is stranded. A model of it can be looked into.
Reported Async::reported() const {
  return {.segments = false,
          .largest_free = !is_drivers_,
          .hits = false,
          .misses = false,
          .retries = false,
          .device_memory_calls = !is_drivers_,
          .blocks = !is_drivers_};
}

Statistics Async::statistics() const {
  const Bytes used = pool_->used();
  const Bytes reserved = pool_->reserved();
  return {
      .requested = used_,
      .allocated = used,
      .active = used,
      .reserved = reserved,
      .stranded = reserved - used,
      .n_alloc = live_,
      .n_active = live_,
      .ooms = ooms_,
      .device_allocs = pool_->chunks_taken(),
      .device_frees = pool_->chunks_given_back(),
      .hits = hits_,
      .misses = misses_,
  };
}

// The original fills in these and leaves all others 0.
std::vector<std::pair<std::string, std::int64_t>> Async::torch_statistics() const {
  std::vector<std::pair<std::string, std::int64_t>> found;
  for (const char* const name : {"active_bytes", "allocated_bytes", "reserved_bytes"}) {
    const bool reserved = std::string_view(name) == "reserved_bytes";
    found.emplace_back(std::string(name) + ".all.current",
                       reserved ? pool_->reserved() : pool_->used());
    found.emplace_back(std::string(name) + ".all.peak",
                       reserved ? pool_->peak_reserved() : pool_->peak_used());
  }
  return found;
}

std::vector<std::string> Async::warnings() const {
  std::vector<std::string> found;
  if (!describes_pool_.empty()) found.push_back(describes_pool_);
  if (own_stream_records_ > 0) {
    found.push_back("record_stream was called " + times(own_stream_records_) +
                    " with the stream that the allocation was made on, which has no effect");
  }
  if (deferred_frees_ > 0) {
    found.push_back("an allocation made outside a capture was freed during one " +
                    times(deferred_frees_) +
                    ": each stays in use until the next allocation outside a capture, and a graph "
                    "that uses it reads memory that is someone else's by then");
  }
  if (captured_frees_ > 0) {
    found.push_back("an allocation made during a capture was freed outside one " +
                    times(captured_frees_) + ": what the graph writes there can no longer be read");
  }
  if (nested_captures_ > 0) {
    found.push_back("a capture began while another was under way " + times(nested_captures_) +
                    ", which PyTorch's original refuses; here they are one");
  }
  return found;
}

bool Async::delays_free(const void* handle) const {
  return captures_ > 0 && !static_cast<const Pointer*>(handle)->captured;
}

AsyncSettings::AsyncSettings(const Settings& settings) {
  // What PyTorch sets on the first use of a device.
  pool.release_threshold = kUnlimited;
  if (const auto value = settings.number("per_process_memory_fraction")) {
    if (!(*value >= 0 && *value <= 1)) {
      settings.refuse("per_process_memory_fraction", "give a number from 0 to 1");
    }
    memory_fraction = *value;
  }
  for (const char* const key : {"chunk_mb", "remap"}) {
    if (settings.find(key)) of_model.emplace_back(key);
  }
  if (const auto megabytes = settings.whole_number("chunk_mb", 2)) {
    if (*megabytes % 2 != 0 || *megabytes > kGiB / kMiB) {
      settings.refuse("chunk_mb", "give an even number from 2 to 1024: the device's page is 2 MiB");
    }
    pool.chunk = *megabytes * kMiB;
  }
  if (const auto megabytes = settings.whole_number("release_threshold_mb", 0)) {
    pool.release_threshold = std::min(*megabytes, kEiB / kMiB) * kMiB;
  }
  const auto read = [&](const char* key, bool& flag) {
    flag = settings.boolean(key).value_or(flag);
  };
  read("reuse_follow_event_dependencies", pool.follow_event_dependencies);
  read("reuse_allow_opportunistic", pool.allow_opportunistic);
  read("reuse_allow_internal_dependencies", pool.allow_internal_dependencies);
  read("remap", pool.remap);
  if (const auto backend = settings.find("backend"); backend && *backend != "cudaMallocAsync") {
    settings.refuse("backend", "give cudaMallocAsync");
  }
}

namespace {

const bool registered = allocator_registry().add({
    .name = "async",
    .summary = "PyTorch's stream-ordered allocator (backend:cudaMallocAsync); the driver's pool "
               "under it is a model but on the backend cuda",
    .kind = AllocatorKind::kDevice,
    .create =
        [](Backend& backend, const Settings& settings) {
          return std::make_unique<Async>(backend, AsyncSettings(settings));
        },
    .settings = {{"per_process_memory_fraction",
                  "0 to 1; share of the device that may be requested"},
                 {"chunk_mb", "MiB that the pool grows by; 32"},
                 {"release_threshold_mb",
                  "MiB above which unused chunks are given back at a synchronization; unlimited"},
                 {"reuse_follow_event_dependencies",
                  "True or False; reuse between streams that CUDA events order"},
                 {"reuse_allow_opportunistic",
                  "True or False; reuse between streams when a free has completed"},
                 {"reuse_allow_internal_dependencies",
                  "True or False; wait for another stream when the device has no more"},
                 {"remap",
                  "True or False; whole free chunks are mapped side by side for large requests"},
                 {"backend", "cudaMallocAsync; read and of no effect"}},
    .locks_itself = true,
    .also_tested_with = {"chunk_mb:2",
                         "chunk_mb:4,release_threshold_mb:0,reuse_allow_opportunistic:False",
                         "chunk_mb:2,reuse_follow_event_dependencies:False,"
                         "reuse_allow_internal_dependencies:False",
                         "per_process_memory_fraction:0.9"},
    .is_model = true,
    .passes_calls_on = true,
});

}  // namespace
}  // namespace workbench
