#include "allocators/library_calls.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>

#include "core/errors.h"
#include "core/last_words.h"
#include "core/lifetimes.h"

namespace workbench {
namespace {

// The C library's promise, for what is not asked for with an alignment.
constexpr Bytes kMallocAlignment = 16;

constexpr Reported kNothing = {.requested = true,
                               .allocated = false,
                               .active = false,
                               .reserved = false,
                               .segments = false,
                               .largest_free = false,
                               .hits = false,
                               .misses = false,
                               .retries = false,
                               .device_calls = false,
                               .stranded = false,
                               .blocks = false};

// The function of this name; throws LibraryFaultError where the library has none.
template <class Function>
void must_find(const SharedLibrary& library, const std::string& name, const std::string& remedy,
               Function*& function) {
  function = library.find_function<Function>(name);
  if (function == nullptr) {
    throw LibraryFaultError("library " + library.path() + " has no function '" + name + "'; " +
                            remedy);
  }
}

// What a library wrote into `error`, ended by 0.
std::string reason_in(const std::array<char, 1024>& error) {
  return error[0] == 0 ? "it does not say why" : printable(error.data());
}

// A small request may be aligned to no more than its own size.
Bytes malloc_alignment(Bytes size) { return size < kMallocAlignment ? 1 : kMallocAlignment; }

std::string text_of(std::optional<std::string_view> text, const char* otherwise = "") {
  return std::string(text.value_or(otherwise));
}

}  // namespace

MallocCalls::MallocCalls(SharedLibrary library, Backend&, const Settings&)
    : library_(std::move(library)) {
  const std::string remedy = "abi:malloc calls malloc and free";
  must_find(library_, "malloc", remedy, allocate_);
  must_find(library_, "free", remedy, deallocate_);
  aligned_ = library_.find_function<int(void**, std::size_t, std::size_t)>("posix_memalign");
}

Bytes MallocCalls::alignment(Bytes size) const {
  return aligned_ != nullptr ? kHostAlignment : malloc_alignment(size);
}

Reported MallocCalls::reported() const { return kNothing; }

TorchCalls::TorchCalls(SharedLibrary library, Backend&, const Settings& settings)
    : library_(std::move(library)) {
  const auto named = [&](const char* key, const char* otherwise, auto*& function) {
    const std::string name = text_of(settings.find(key), otherwise);
    if (name.empty()) return;
    must_find(library_, name, "name the one that is meant with " + std::string(key) + ":NAME",
              function);
  };
  named("alloc", "my_malloc", allocate_);
  named("free", "my_free", deallocate_);
  named("record_stream", "", record_stream_);
  named("reset", "", reset_);
  void (*init)(int) = nullptr;
  named("init", "", init);
  for (const char* key : {"memory_fraction", "base_alloc", "begin_allocate_to_pool",
                          "end_allocate_to_pool", "release_pool"}) {
    void (*unused)() = nullptr;
    named(key, "", unused);
    if (unused != nullptr) warnings_.push_back(std::string(key) + " is never called in a replay");
  }
  const LastWords::While doing("create");
  if (init != nullptr) call_library("create", [&] { init(1); });
}

Bytes TorchCalls::alignment(Bytes size) const { return malloc_alignment(size); }

Reported TorchCalls::reported() const { return kNothing; }

WorkbenchCalls::WorkbenchCalls(SharedLibrary library, Backend& backend, const Settings& settings)
    : library_(std::move(library)), backend_(backend), events_lock_(backend.several_threads()) {
  const wb_interface* (*entry)(std::uint32_t) = nullptr;
  must_find(library_, "workbench_allocator", "export it as workbench_allocator.h says", entry);
  const LastWords::While doing("create");
  const wb_interface* const theirs =
      call_library("workbench_allocator", [&] { return entry(WB_VERSION); });
  if (theirs == nullptr) {
    throw LibraryFaultError("library " + path() + " knows no interface of version " +
                            std::to_string(WB_VERSION) + " or older");
  }
  constexpr std::size_t kLeast = offsetof(wb_interface, record_stream);
  if (theirs->size < kLeast) {
    throw LibraryFaultError("library " + path() + " returned an interface of size " +
                            std::to_string(theirs->size) + ", below the " + std::to_string(kLeast) +
                            " bytes of what must be there; set size to "
                            "sizeof(wb_interface)");
  }
  // What is beyond the end of theirs stays null; half a pointer is none.
  constexpr std::size_t kMember = sizeof(void*);
  std::memcpy(&functions_, theirs, std::min(theirs->size, sizeof functions_) / kMember * kMember);
  if (functions_.version == 0 || functions_.version > WB_VERSION) {
    throw LibraryFaultError("library " + path() + " returned an interface of version " +
                            std::to_string(functions_.version) + "; it was asked for one up to " +
                            std::to_string(WB_VERSION) + ", and the first is 1");
  }
  const std::array<std::pair<const char*, bool>, 4> needed = {
      {{"create", functions_.create != nullptr},
       {"destroy", functions_.destroy != nullptr},
       {"allocate", functions_.allocate != nullptr},
       {"deallocate", functions_.deallocate != nullptr}}};
  for (const auto& [name, is_there] : needed) {
    if (!is_there) throw LibraryFaultError("library " + path() + " has no function " + name);
  }
  host_ = {.size = sizeof host_,
           .context = this,
           .is_device = backend.is_device(),
           .has_memory = backend.has_memory(),
           .counts = settings.counts(),
           .several_threads = backend.several_threads(),
           .capacity = backend.capacity() == kUnlimited
                           ? std::numeric_limits<std::uint64_t>::max()
                           : static_cast<std::uint64_t>(backend.capacity()),
           .take = &take,
           .give = &give,
           .event_record = &event_record,
           .event_query = &event_query,
           .event_wait = &event_wait,
           .take_pinned = &take_pinned,
           .give_pinned = &give_pinned,
           .total = static_cast<std::uint64_t>(backend.total()),
           .used = &used,
           .reserve = &reserve,
           .unreserve = &unreserve,
           .map = &map,
           .unmap = &unmap,
           .stream = &stream};
  std::array<char, 1024> error{};
  const std::string configuration = text_of(settings.find("config"));
  allocator_ = call_library("create", [&] {
    return functions_.create(&host_, configuration.c_str(), error.data(), error.size());
  });
  error.back() = 0;
  if (allocator_ == nullptr) {
    throw LibraryFaultError("library " + path() + " made no allocator of the configuration '" +
                            configuration + "': " + reason_in(error));
  }
  reported_ = kNothing;
  if (settings.counts() && functions_.statistics != nullptr) {
    const LastWords::While asking("statistics");
    const wb_statistics told = ask();
    const auto tells = [](std::int64_t value) { return value != WB_NOT_REPORTED; };
    reported_.allocated = tells(told.allocated);
    reported_.active = tells(told.active);
    reported_.reserved = tells(told.reserved);
    reported_.stranded = tells(told.stranded);
    reported_.segments = tells(told.segments);
    reported_.largest_free = tells(told.largest_free);
    reported_.hits = tells(told.hits);
    reported_.misses = tells(told.misses);
    reported_.retries = tells(told.retries);
  }
}

WorkbenchCalls::~WorkbenchCalls() {
  // Where it did something wrong, what it says of that at its end must not hide it.
  if (std::uncaught_exceptions() > 0) return;
  LastWords::say("destroy");
  try {
    functions_.destroy(allocator_);
  } catch (...) {
    // What it has to say must not end the process.
  }
}

Reported WorkbenchCalls::reported() const {
  Reported told = reported_;
  // A library that takes its memory elsewhere has calls that are not seen here.
  told.device_calls = took_;
  return told;
}

wb_statistics WorkbenchCalls::ask() const {
  constexpr std::int64_t kUntold = WB_NOT_REPORTED;
  wb_statistics told = {.size = sizeof told,
                        .allocated = kUntold,
                        .active = kUntold,
                        .reserved = kUntold,
                        .stranded = kUntold,
                        .largest_free = kUntold,
                        .segments = kUntold,
                        .hits = kUntold,
                        .misses = kUntold,
                        .retries = kUntold,
                        .requested = kUntold,
                        .inactive_split = kUntold,
                        .active_blocks = kUntold,
                        .inactive_split_blocks = kUntold,
                        .ooms = kUntold,
                        .device_allocs = kUntold,
                        .device_frees = kUntold};
  call_library("statistics", [&] { functions_.statistics(allocator_, &told); });
  return told;
}

LibraryStatistics WorkbenchCalls::statistics() {
  throw_if_blamed();
  LibraryStatistics result;
  if (functions_.statistics == nullptr) return result;
  const wb_statistics told = ask();
  const auto set = [](bool is_reported, std::int64_t value, std::int64_t& to) {
    if (is_reported) to = value;
  };
  set(reported_.allocated, told.allocated, result.values.allocated);
  set(reported_.active, told.active, result.values.active);
  set(reported_.reserved, told.reserved, result.values.reserved);
  set(reported_.stranded, told.stranded, result.values.stranded);
  set(reported_.segments, told.segments, result.values.n_segment);
  set(reported_.largest_free, told.largest_free, result.largest_free);
  set(reported_.hits, told.hits, result.values.hits);
  set(reported_.misses, told.misses, result.values.misses);
  set(reported_.retries, told.retries, result.values.retries);
  const auto tells = [](std::int64_t value) { return value != WB_NOT_REPORTED; };
  result.tells_requested = tells(told.requested);
  result.tells_ooms = tells(told.ooms);
  result.tells_device_calls = tells(told.device_allocs) && tells(told.device_frees);
  set(result.tells_requested, told.requested, result.values.requested);
  set(result.tells_ooms, told.ooms, result.values.ooms);
  set(result.tells_device_calls, told.device_allocs, result.values.device_allocs);
  set(result.tells_device_calls, told.device_frees, result.values.device_frees);
  set(tells(told.inactive_split), told.inactive_split, result.values.inactive_split);
  set(tells(told.active_blocks), told.active_blocks, result.values.n_active);
  set(tells(told.inactive_split_blocks), told.inactive_split_blocks,
      result.values.n_inactive_split);
  return result;
}

void WorkbenchCalls::tell_lanes(const Events& events) {
  if (functions_.lanes == nullptr || events.lanes.empty()) return;
  std::vector<wb_lane> lanes;
  for (const PoolStream& lane : events.lanes) lanes.push_back({lane.stream, lane.pool});
  const LastWords::While doing("lanes");
  call_library("lanes", [&] { functions_.lanes(allocator_, lanes.data(), lanes.size()); });
}

void WorkbenchCalls::prepare(const Events& events) {
  tell_lanes(events);
  if (functions_.prepare == nullptr) return;
  const Lifetimes lifetimes = lifetimes_of(events, {0, events.count()}, std::nullopt);
  const auto allocates = [&](std::size_t i) {
    const Op op = events.op_at(i);
    return (op == Op::kAlloc || op == Op::kLive) && events.size[i] > 0;
  };
  std::vector<ThreadId> threads;
  threads.reserve(lifetimes.count());
  for (std::size_t i = 0; i < events.count(); ++i) {
    if (allocates(i)) threads.push_back(events.thread[i]);
  }
  static_assert(kUnmanaged == -1, "which is UINT64_MAX");
  const wb_lifetimes told = {
      .size = sizeof told,
      .count = lifetimes.count(),
      .bytes = reinterpret_cast<const std::uint64_t*>(lifetimes.size.data()),
      .end = reinterpret_cast<const std::uint64_t*>(lifetimes.end.data()),
      .thread = threads.data(),
  };
  std::array<char, 1024> error{};
  const LastWords::While doing("prepare");
  const bool cannot = call_library("prepare", [&] {
    return functions_.prepare(allocator_, &told, error.data(), error.size()) != 0;
  });
  error.back() = 0;
  if (cannot) {
    throw LibraryFaultError("library " + path() +
                            " cannot serve these events: " + reason_in(error));
  }
}

void WorkbenchCalls::program_begins() {
  if (functions_.program_begins == nullptr) return;
  const LastWords::While doing("program_begins");
  call_library("program_begins", [&] { functions_.program_begins(allocator_); });
}

void WorkbenchCalls::program_ends() {
  if (functions_.program_ends == nullptr) return;
  const LastWords::While doing("program_ends");
  call_library("program_ends", [&] { functions_.program_ends(allocator_); });
}

}  // namespace workbench
