// The backend cuda over the stand-in for the CUDA runtime: what streams and CUDA events of a real
// device have that the simulated one has not.
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backends/backend.h"
#include "check.h"
#include "cuda_kernels.h"
#include "replayer/replay.h"
#include "threaded_events.h"

namespace {

using namespace workbench;

constexpr Bytes kCapacity = 256 * kMiB;

std::unique_ptr<Backend> device(const char* completion = "recorded") {
  return backend_registry().get("cuda").create(
      {.capacity = kCapacity, .completion = Completion::parse(completion)});
}

FilledBlock filled(Backend& backend, std::uint64_t address, Bytes size, std::size_t event,
                   StreamId stream = 0) {
  const FilledBlock block = {address, size, event};
  backend.fill(block, stream);
  return block;
}

TEST(a_damaged_byte_is_found_with_its_block_and_offset) {
  for (const Bytes size : {1, 7, 8, 513, 100'000}) {
    for (const Bytes offset : {Bytes{0}, size / 2, size - 1}) {
      const auto backend = device();
      const std::uint64_t address = backend->allocate(size);
      const FilledBlock block = filled(*backend, address, size, 17);
      backend->verify(block, 0);
      CHECK(!backend->damage());
      // The stand-in's memory is this machine's.
      auto* const byte = reinterpret_cast<volatile unsigned char*>(address) + offset;
      *byte = static_cast<unsigned char>(*byte ^ 1);
      backend->verify(block, 0);
      const auto damage = backend->damage();
      CHECK(damage && damage->offset == offset && damage->block.event == 17);
      CHECK(damage && damage->block.size == size && !backend->damage());
      backend->release(address, size);
    }
  }
}

TEST(a_block_written_before_another_stream_is_done_with_it_is_found_out) {
  for (const bool too_early : {false, true}) {
    const auto backend = device();
    const std::uint64_t address = backend->allocate(4096);
    const FilledBlock first = filled(*backend, address, 4096, 1);
    backend->use(first, 0, 1);
    const CudaEvent used = backend->record_event(1);
    CHECK(!backend->completed(used));
    if (!too_early) {
      backend->synchronize(1);
      CHECK(backend->completed(used));
    }
    filled(*backend, address, 4096, 2);
    const auto damage = backend->damage();
    CHECK(damage.has_value() == too_early);
    CHECK(!damage || damage->block.event == 1);
    backend->release(address, 4096);
  }
}

TEST(cuda_events_complete_when_the_trace_says_and_not_before) {
  const auto backend = device();
  const CudaEvent first = backend->record_event(0);
  const CudaEvent second = backend->record_event(0);
  const CudaEvent other = backend->record_event(3);
  CHECK(!backend->completed(first) && !backend->completed(other));
  backend->complete_recorded(0, first.sequence);
  CHECK(backend->completed(first) && !backend->completed(second));
  backend->wait(other);
  CHECK(backend->completed(other) && !backend->completed(second));
  backend->synchronize(kAllStreams);
  CHECK(backend->completed(second));

  const auto delayed = device("delay:2");
  delayed->set_now(10);
  const CudaEvent later = delayed->record_event(1);
  delayed->set_now(11);
  CHECK(!delayed->completed(later));
  delayed->set_now(12);
  CHECK(delayed->completed(later));

  const auto immediate = device("immediate");
  CHECK(immediate->completed(immediate->record_event(2)));
}

TEST(closed_gates_stop_no_call_that_waits_for_the_device) {
  const auto backend = device("never");
  std::vector<CudaEvent> events;
  for (StreamId stream = 0; stream < 4; ++stream) events.push_back(backend->record_event(stream));
  const std::uint64_t address = backend->allocate(kMiB);
  const std::uint64_t pinned = backend->allocate(kMiB, Memory::kPinned);
  const std::uint64_t registered = backend->allocate(kMiB, Memory::kRegistered);
  const std::uint64_t range = backend->reserve(8 * kMiB);
  CHECK(backend->map(range, 4 * kMiB));
  for (StreamId stream = 0; stream < 4; ++stream) events.push_back(backend->record_event(stream));
  backend->unmap(range + 2 * kMiB, 2 * kMiB);
  backend->unmap(range, 2 * kMiB);
  backend->unreserve(range, 8 * kMiB);
  backend->release(registered, kMiB, Memory::kRegistered);
  backend->release(pinned, kMiB, Memory::kPinned);
  backend->release(address, kMiB);
  CHECK(backend->used() == 0);
  // What the host is told is the trace's all the same.
  for (const CudaEvent& event : events) CHECK(!backend->completed(event));
}

TEST(a_stream_that_is_held_back_takes_any_amount_of_work) {
  const auto backend = device("never");
  const std::uint64_t address = backend->allocate(4096);
  CudaEvent last = backend->record_event(0);
  for (std::size_t i = 0; i < 2000; ++i) {
    filled(*backend, address, 4096, i);
    if (i % 3 == 0) last = backend->record_event(0);
  }
  CHECK(!backend->completed(last));
  backend->wait(last);
  CHECK(backend->completed(last) && !backend->damage());
  CHECK(backend->warnings().size() == 2);
  backend->release(address, 4096);
}

TEST(driver_calls_are_timed_where_that_is_asked_for) {
  CHECK(device()->driver_times() == nullptr);
  const auto backend =
      backend_registry().get("cuda").create({.capacity = kCapacity, .times_calls = true});
  backend->release(backend->allocate(kMiB), kMiB);
  const DriverTimes* const times = backend->driver_times();
  CHECK(times != nullptr);
  if (times == nullptr) return;
  const Durations& alloc = (*times)[static_cast<std::size_t>(DriverCall::kAlloc)];
  const Durations& free = (*times)[static_cast<std::size_t>(DriverCall::kFree)];
  CHECK(alloc.count() == 1 && free.count() == 1);
  CHECK(alloc.quantile(0.5) <= alloc.longest() && alloc.longest() == alloc.total());
  CHECK((*times)[static_cast<std::size_t>(DriverCall::kMap)].count() == 0);
}

TEST(what_the_device_has_is_the_capacity_where_none_is_given) {
  const auto backend = backend_registry().get("cuda").create({});
  CHECK(backend->capacity() > 0 && backend->capacity() < kUnlimited);
  CHECK(backend->total() == backend->capacity());
  CHECK(backend->allocate(backend->capacity() + 1) == 0);
}

threaded::Program random_program(unsigned seed) {
  threaded::Program program;
  std::mt19937 random(seed);
  std::vector<std::int64_t> live;
  std::vector<std::int64_t> pending;
  std::int64_t next = 0;
  for (int i = 0; i < 600; ++i) {
    const auto choice = random() % 100;
    const auto stream = static_cast<StreamId>(random() % 3);
    if (choice < 48 || live.empty()) {
      const auto size = static_cast<Bytes>(1 + random() % (1u << (10 + random() % 15)));
      program.add(0, Op::kAlloc, next, size, stream);
      live.push_back(next++);
    } else if (choice < 80) {
      const std::size_t index = random() % live.size();
      program.add(0, Op::kFree, live[index]);
      pending.push_back(live[index]);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(index));
    } else if (choice < 92) {
      program.add(0, Op::kRecordStream, live[random() % live.size()], 0, stream);
    } else if (choice < 96 && !pending.empty()) {
      program.add(0, Op::kFreeCompleted, pending.front());
      pending.erase(pending.begin());
    } else if (choice < 98) {
      program.add(0, Op::kSynchronize, -1, 0, stream);
    } else {
      program.add(0, Op::kEmptyCache);
    }
  }
  return program;
}

TEST(what_is_decided_is_what_is_decided_on_the_simulated_device) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    threaded::Program program = random_program(seed);
    const Events events = program.events();
    for (const char* completion : {"recorded", "immediate", "never", "delay:7"}) {
      for (const char* allocator : {"caching", "caching expandable_segments:True", "host-pinned",
                                    "direct", "caching max_split_size_mb:20"}) {
        const std::string text = allocator;
        const std::size_t space = text.find(' ');
        std::vector<std::string> digests;
        for (const char* backend : {"simulated", "cuda"}) {
          const Replay replay(events,
                              {.allocator = text.substr(0, space),
                               .settings = space == text.npos ? "" : text.substr(space + 1),
                               .backend = backend,
                               .backend_options = {.capacity = seed < 2 ? kCapacity : 32 * kMiB,
                                                   .completion = Completion::parse(completion)},
                               .continue_after_oom = true});
          MemoryOptions options;
          options.verify = replay.backend_has_bytes();
          digests.push_back(replay.memory(options, [](std::size_t) {}).digest);
          digests.push_back(replay.timed(State::kSteady, true, [](std::size_t) {}).digest);
        }
        CHECK(digests[0] == digests[2] && digests[1] == digests[3]);
        if (digests[0] != digests[2] || digests[1] != digests[3]) {
          std::printf("  … with %s, completion %s, seed %u\n", allocator, completion, seed);
        }
      }
    }
  }
}

TEST(the_drivers_pool_serves_async_and_everything_goes_back) {
  for (unsigned seed = 0; seed < 3; ++seed) {
    threaded::Program program = random_program(seed);
    const Events events = program.events();
    for (const char* completion : {"recorded", "immediate", "never", "delay:7"}) {
      const Replay replay(events,
                          {.allocator = "async",
                           .settings = "",
                           .backend = "cuda",
                           .backend_options = {.capacity = kUnlimited,
                                               .completion = Completion::parse(completion)}});
      MemoryOptions options;
      options.verify = true;
      const MemoryResult result = replay.memory(options, [](std::size_t) {});
      CHECK(!result.oom && !result.reported.blocks && !result.reported.largest_free);
      CHECK(result.peaks[Sample::kReserved] >= result.peaks[Sample::kAllocated]);
      CHECK(result.driver_calls.pool_alloc > 0 && result.driver_calls.alloc == 0);
      const std::string first = replay.timed(State::kCold, true, [](std::size_t) {}).digest;
      CHECK(first == result.digest);
    }
  }
  // Nothing of the device is left taken.
  const auto all = backend_registry().get("cuda").create({});
  const auto again = backend_registry().get("cuda").create({});
  CHECK(all->capacity() == again->capacity());
}

}  // namespace

int main() {
  const std::string reason = backend_registry().get("cuda").unavailable();
  if (!reason.empty()) {
    std::printf("skipped: %s\n", reason.c_str());
    return 0;
  }
  return check::run();
}
