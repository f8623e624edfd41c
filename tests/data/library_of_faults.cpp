// A library over malloc that breaks the rule its configuration names.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "workbench_allocator.h"

namespace {

struct Faulty {
  wb_host host;
  std::string mode;
  void* first = nullptr;
  void* taken = nullptr;
  long allocations = 0;

  bool is(const char* name) const { return mode == name; }
};

Faulty& self(void* allocator) { return *static_cast<Faulty*>(allocator); }

[[noreturn]] void crash() {
  *reinterpret_cast<volatile int*>(8) = 1;
  std::abort();
}

void* create(const wb_host* host, const char* config, char* error, std::size_t size) {
  auto* const made = new Faulty{*host, config};
  if (made->is("says bytes")) {
    std::snprintf(error, size, "no \xff pool\nof \x1b[31mthis kind");
    delete made;
    return nullptr;
  }
  if (made->is("throws in create")) throw 5;
  made->taken = host->take(host->context, 4096);
  return made;
}

void destroy(void* allocator) {
  Faulty& me = self(allocator);
  if (!me.is("keeps") && !me.is("gives twice") && me.taken != nullptr) {
    me.host.give(me.host.context, me.taken, 4096);
  }
  delete &me;
}

// A range of three pages, the middle one with memory.
void use_range(Faulty& me) {
  constexpr std::uint64_t kPage = 2 << 20;
  const wb_host& host = me.host;
  if (host.used(host.context) > host.total) crash();
  auto* const range = static_cast<char*>(host.reserve(host.context, 3 * kPage));
  const std::uint64_t before = host.used(host.context);
  const std::uint64_t bytes = me.is("maps beyond its range") ? 3 * kPage : kPage;
  const bool there = host.map(host.context, range + kPage, bytes) == 1;
  if (there && host.used(host.context) != before + kPage) crash();
  if (there) host.unmap(host.context, range + kPage, kPage);
  if (host.used(host.context) != before) crash();
  if (me.is("unmaps what it has not")) host.unmap(host.context, range - kPage, kPage);
  host.unreserve(host.context, range, me.is("gives half a range back") ? kPage : 3 * kPage);
}

void* allocate(void* allocator, std::uint64_t bytes, std::int32_t, std::int32_t) {
  Faulty& me = self(allocator);
  ++me.allocations;
  // Room behind each block: what is handed out wrongly may be written to.
  void* const memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 4096);
  if (me.first == nullptr) me.first = memory;
  if (me.allocations == 2) {
    char* const first = static_cast<char*>(me.first);
    if (me.is("misaligned")) return static_cast<char*>(memory) + 16;
    if (me.is("same twice")) return first;
    if (me.is("overlaps")) return first + 64;
    if (me.is("gives twice")) {
      for (int i = 0; i < 2; ++i) me.host.give(me.host.context, me.taken, 4096);
    }
    if (me.is("gives what it never took")) me.host.give(me.host.context, memory, 64);
    if (me.is("gives another size")) me.host.give(me.host.context, me.taken, 64);
    if (me.is("event on no stream")) {
      me.host.event_wait(me.host.context, me.host.event_record(me.host.context, -1));
    }
    if (me.is("event on a far stream")) me.host.event_record(me.host.context, 2'000'000'000);
    if (me.is("names no stream")) me.host.stream(me.host.context, 65536);
    if (me.is("maps what it has not")) me.host.map(me.host.context, memory, 4096);
    use_range(me);
  }
  return memory;
}

void deallocate(void*, void* memory, std::uint64_t, std::int32_t, std::int32_t) {
  std::free(memory);
}

void statistics(void* allocator, wb_statistics* to) {
  Faulty& me = self(allocator);
  if (me.is("crashes in statistics")) crash();
  if (me.is("throws in statistics")) throw std::runtime_error("no \xff numbers");
  if (me.allocations < 2) return;
  if (me.is("reserves less than it has")) to->reserved = 1;
  if (me.is("reports too much")) to->reserved = INT64_MAX;
  if (me.is("reports below zero")) to->hits = -7;
}

void report(void* allocator, wb_statistics* to) {
  to->reserved = 1 << 20;
  to->hits = 0;
  statistics(allocator, to);
}

std::int32_t prepare(void* allocator, const wb_lifetimes*, char*, std::size_t) {
  if (self(allocator).is("throws in prepare")) throw 5;
  return 0;
}

void program_begins(void* allocator) {
  if (self(allocator).is("crashes in program_begins")) crash();
  if (self(allocator).is("throws in program_begins")) throw 5;
}

}  // namespace

extern "C" const wb_interface* workbench_allocator(std::uint32_t) {
  static wb_interface interface = {
      .size = sizeof(wb_interface),
      .version = WB_VERSION,
      .name = "faults",
      .create = create,
      .destroy = destroy,
      .allocate = allocate,
      .deallocate = deallocate,
      .record_stream = nullptr,
      .empty_cache = nullptr,
      .statistics = report,
      .prepare = prepare,
      .program_begins = program_begins,
      .program_ends = nullptr,
      .lanes = nullptr,
      .pool_begin = nullptr,
      .pool_end = nullptr,
      .pool_release = nullptr,
      .capture_begin = nullptr,
      .capture_end = nullptr,
      .set_fraction = nullptr,
      .synchronized = nullptr,
  };
  // What is decided before there is a configuration.
  const char* const wanted = std::getenv("FAULTY_INTERFACE");
  const std::string fault = wanted == nullptr ? "" : wanted;
  if (fault == "size 12") interface.size = 12;
  if (fault == "half a pointer") interface.size = offsetof(wb_interface, statistics) + 4;
  if (fault == "version 0") interface.version = 0;
  return &interface;
}
