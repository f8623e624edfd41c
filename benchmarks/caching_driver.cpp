// Runs the caching allocator for benchmarks/caching_speed.py, without Python, so that its
// instructions can be counted.
//
//   caching_driver trace FILE SETTINGS PASSES   events of FILE: nanoseconds of each pass
//   caching_driver growth LIVE EVENTS           LIVE blocks, then EVENTS frees and allocations of
//                                               random ones: nanoseconds per event, and per hop of
//                                               a random chase over as much memory
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "allocators/allocator.h"
#include "replayer/replay.h"

namespace {

using namespace workbench;
using Clock = std::chrono::steady_clock;

double nanoseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

// FILE: the number of events and of slots (int64 each), then op (uint8), slot (int32), size (int64)
// and stream (int32) of all events, column by column.
int run_trace(const char* path, const char* settings, std::size_t passes) {
  std::ifstream file(path, std::ios::binary);
  std::int64_t counts[2] = {};
  file.read(reinterpret_cast<char*>(counts), sizeof counts);
  const auto count = static_cast<std::size_t>(counts[0]);
  std::vector<std::uint8_t> op(count);
  std::vector<std::int32_t> slot(count), stream(count), thread(count);
  std::vector<Bytes> size(count);
  const auto read = [&](auto& column) {
    file.read(reinterpret_cast<char*>(column.data()),
              static_cast<std::streamsize>(column.size() * sizeof column[0]));
  };
  read(op);
  read(slot);
  read(size);
  read(stream);
  if (!file) return 2;
  const Replay replay({op, slot, size, stream, thread, static_cast<std::int32_t>(counts[1])},
                      {.allocator = "caching",
                       .settings = settings,
                       .backend = "simulated",
                       .backend_options = {.capacity = 80 * kGiB},
                       .continue_after_oom = true});
  for (const double time : replay.throughput(State::kCold, passes, [](std::size_t) {}).nanoseconds)
    std::printf("%.0f\n", time);
  return 0;
}

struct Node {
  Node* next;
  char rest[120];
};

// Nanoseconds per hop over `count` nodes of 128 bytes, a block's size, in one random cycle.
double chase(std::size_t count, std::mt19937_64& random) {
  std::vector<Node> nodes(count);
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), random);
  for (std::size_t i = 0; i < count; ++i) nodes[order[i]].next = &nodes[order[(i + 1) % count]];
  constexpr std::size_t kHops = 1'000'000;
  const Node* at = nodes.data();
  const auto start = Clock::now();
  for (std::size_t hop = 0; hop < kHops; ++hop) at = at->next;
  const double time = nanoseconds_since(start);
  // Keeps the chase from being optimised away.
  if (at == nullptr) std::abort();
  return time / kHops;
}

int run_growth(std::size_t live, std::size_t events) {
  std::mt19937_64 random(21);
  const auto backend = backend_registry().get("simulated").create({});
  const auto allocator = make_allocator("caching", "", *backend);
  // Logarithms spread evenly from 512 bytes to 2 MiB: both pools.
  const auto any_size = [&] {
    return static_cast<Bytes>(std::exp2(std::uniform_real_distribution<>(9, 21)(random)));
  };
  std::vector<void*> handles(live);
  for (void*& handle : handles) handle = allocator->allocate(any_size(), 0, 0).handle;
  // As many whatever `events` is, so that two runs differ by the allocator's work only.
  constexpr std::size_t kDrawn = std::size_t{1} << 20;
  std::vector<Bytes> sizes(kDrawn);
  std::vector<std::size_t> victims(kDrawn);
  for (Bytes& size : sizes) size = any_size();
  for (std::size_t& victim : victims) victim = random() % live;
  const std::size_t pairs = events / 2;
  const auto start = Clock::now();
  for (std::size_t i = 0; i < pairs; ++i) {
    void*& handle = handles[victims[i % kDrawn]];
    allocator->free(handle, 0);
    handle = allocator->allocate(sizes[i % kDrawn], 0, 0).handle;
  }
  const double time = nanoseconds_since(start);
  std::printf("%.2f %.2f\n", pairs == 0 ? 0 : time / static_cast<double>(2 * pairs),
              chase(live, random));
  for (void* handle : handles) allocator->free(handle, 0);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 5 && std::strcmp(arguments[1], "trace") == 0) {
    return run_trace(arguments[2], arguments[3], std::strtoull(arguments[4], nullptr, 10));
  }
  if (count == 4 && std::strcmp(arguments[1], "growth") == 0) {
    return run_growth(std::strtoull(arguments[2], nullptr, 10),
                      std::strtoull(arguments[3], nullptr, 10));
  }
  std::fputs("usage: caching_driver trace FILE SETTINGS PASSES | growth LIVE EVENTS\n", stderr);
  return 2;
}
