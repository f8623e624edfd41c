// The rules of the model of the driver's memory pool, as a program of async sees them.
#include <memory>
#include <utility>
#include <vector>

#include "allocators/async.h"
#include "async_subject.h"
#include "check.h"
#include "core/events.h"

namespace {

using namespace workbench;

TEST(a_stream_reuses_what_it_freed_at_once) {
  const auto backend = device();
  const auto async = make(*backend);
  const Allocation a = async->allocate(1000, 1, 0);
  CHECK(async->cause() == Cause::kDriverCall);
  async->free(a.handle, 0);
  CHECK(async->allocate(700, 1, 0).address == a.address);
  CHECK(async->statistics().reserved == kChunk);
  CHECK(async->statistics().allocated == 1024 && async->statistics().active == 1024);
}

// A whole chunk, freed on stream 0: another stream gets it, or a chunk of its own.
struct Freed {
  explicit Freed(std::string_view completion, std::string_view settings = "",
                 Bytes capacity = kUnlimited)
      : backend(device(capacity, completion)), async(make(*backend, settings)) {
    block = async->allocate(kChunk, 0, 0);
    async->free(block.handle, 0);
  }
  bool is_reused_on(StreamId stream) {
    const Allocation got = async->allocate(kChunk, stream, 0);
    const bool same = got.address == block.address;
    if (!got.is_refused()) async->free(got.handle, 0);
    return same;
  }
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Async> async;
  Allocation block;
};

TEST(another_stream_reuses_it_when_the_free_has_completed) {
  CHECK(Freed("immediate").is_reused_on(1));
  CHECK(!Freed("never").is_reused_on(1));
  CHECK(!Freed("recorded").is_reused_on(1));
  for (const StreamId waited_for : {StreamId{0}, kAllStreams}) {
    Freed freed("recorded");
    freed.backend->synchronize(waited_for);
    CHECK(freed.is_reused_on(1));
  }
  Freed freed("recorded");
  freed.backend->synchronize(1);
  CHECK(!freed.is_reused_on(1));
  CHECK(!Freed("immediate", "reuse_allow_opportunistic:False").is_reused_on(1));
}

TEST(another_stream_reuses_it_when_cuda_events_order_it_behind_the_free) {
  Freed unordered("never");
  unordered.async->event_record(0, 0);
  CHECK(!unordered.is_reused_on(1));
  Freed freed("never");
  freed.async->event_record(0, 0);
  freed.async->event_wait(0, 1);
  CHECK(freed.is_reused_on(1));

  Freed off("never", "reuse_follow_event_dependencies:False");
  off.async->event_record(0, 0);
  off.async->event_wait(0, 1);
  CHECK(!off.is_reused_on(1));
}

TEST(an_event_from_before_the_free_orders_nothing_behind_it) {
  const auto backend = device();
  const auto async = make(*backend);
  const Allocation a = async->allocate(kChunk, 0, 0);
  async->event_record(0, 0);
  async->free(a.handle, 0);
  async->event_wait(0, 1);
  async->event_wait(1, 1);  // never recorded
  CHECK(async->allocate(kChunk, 1, 0).address != a.address);
}

TEST(order_passes_from_stream_to_stream) {
  Freed freed("never");
  freed.async->event_record(5, 0);
  freed.async->event_wait(5, 2);
  freed.async->event_record(6, 2);
  freed.async->event_wait(6, 1);
  CHECK(freed.is_reused_on(1));

  // Only what the middle one knew when the event was recorded.
  Freed late("never");
  late.async->event_record(6, 2);
  late.async->event_record(5, 0);
  late.async->event_wait(5, 2);
  late.async->event_wait(6, 1);
  CHECK(!late.is_reused_on(1));
}

TEST(a_stream_waits_for_another_only_when_the_device_has_no_more) {
  Freed freed("never", "", 2 * kChunk);
  const Allocation own = freed.async->allocate(kChunk, 1, 0);
  CHECK(own.address != freed.block.address);
  const Allocation waited = freed.async->allocate(kChunk, 1, 0);
  CHECK(waited.address == freed.block.address);
  CHECK(freed.async->cause() == Cause::kEventProcessing);
  CHECK(freed.async->allocate(1, 1, 0).is_refused());

  Freed off("never", "reuse_allow_internal_dependencies:False", 2 * kChunk);
  CHECK(!off.async->allocate(kChunk, 1, 0).is_refused());
  CHECK(off.async->allocate(kChunk, 1, 0).is_refused());
}

TEST(what_a_stream_waited_for_orders_it_behind_earlier_frees_too) {
  const auto backend = device(2 * kChunk);
  const auto async = make(*backend, "remap:False");
  const Allocation a = async->allocate(kChunk, 0, 0);
  const Allocation b = async->allocate(kChunk, 0, 0);
  async->free(a.handle, 0);
  async->free(b.handle, 0);
  CHECK(async->allocate(kChunk, 1, 0).address == a.address);  // the lowest: freed first
  CHECK(async->allocate(kChunk, 1, 0).address == b.address);
  CHECK(async->cause() == Cause::kEventProcessing);
}

TEST(memory_of_several_streams_is_remapped_when_the_device_has_no_more) {
  const auto backend = device(2 * kChunk);
  const auto async = make(*backend);
  const Allocation a = async->allocate(kChunk, 0, 0);
  const Allocation b = async->allocate(kChunk, 1, 0);
  async->free(a.handle, 0);
  async->free(b.handle, 0);
  CHECK(!async->allocate(2 * kChunk, 2, 0).is_refused());
  CHECK(async->statistics().reserved == 2 * kChunk);
}

TEST(a_free_through_the_unifying_stream_completes_when_the_recorded_streams_have) {
  const auto backend = device(kUnlimited, "recorded");
  const auto async = make(*backend);
  const Allocation a = async->allocate(kChunk, 0, 0);
  async->record_stream(a.handle, 1);
  async->free(a.handle, 0);
  // Not even its own stream has it before.
  const Allocation b = async->allocate(kChunk, 0, 0);
  CHECK(b.address != a.address);
  backend->complete_recorded(1, backend->sequence());
  CHECK(async->allocate(kChunk, 0, 0).address == a.address);
}

TEST(frees_on_the_unifying_stream_complete_in_their_order) {
  const auto backend = device(kUnlimited, "recorded");
  const auto async = make(*backend);
  const Allocation a = async->allocate(kChunk, 0, 0);
  const Allocation b = async->allocate(kChunk, 0, 0);
  async->record_stream(a.handle, 1);
  async->record_stream(b.handle, 2);
  async->free(a.handle, 0);
  async->free(b.handle, 0);
  backend->synchronize(2);
  const Allocation c = async->allocate(kChunk, 0, 0);
  CHECK(c.address != a.address && c.address != b.address);
  backend->synchronize(1);
  CHECK(async->allocate(kChunk, 0, 0).address == a.address);
  CHECK(async->allocate(kChunk, 0, 0).address == b.address);
}

TEST(the_pool_grows_by_whole_chunks_and_fills_them) {
  const auto backend = device();
  const auto async = make(*backend);
  const Allocation a = async->allocate(20 * kMiB, 0, 0);
  const Allocation b = async->allocate(12 * kMiB, 1, 0);
  CHECK(b.address == a.address + static_cast<std::uint64_t>(20 * kMiB));
  CHECK(async->statistics().reserved == kChunk);
  async->allocate(33 * kMiB, 0, 0);
  CHECK(async->statistics().reserved == 3 * kChunk);
  CHECK(backend->used() == 3 * kChunk && backend->driver_calls().map == 2);
  CHECK(async->statistics().device_allocs == 3);
}

TEST(the_smallest_free_block_that_fits_is_taken_and_neighbours_merge) {
  const auto backend = device();
  const auto async = make(*backend);
  std::vector<Allocation> blocks;
  for (const Bytes size : {8, 1, 4, 1, 6, 12}) {
    blocks.push_back(async->allocate(size * kMiB, 0, 0));
  }
  async->free(blocks[0].handle, 0);
  async->free(blocks[2].handle, 0);
  async->free(blocks[4].handle, 0);
  CHECK(async->allocate(5 * kMiB, 0, 0).address == blocks[4].address);
  CHECK(async->allocate(4 * kMiB, 0, 0).address == blocks[2].address);
  async->free(blocks[1].handle, 0);
  CHECK(async->allocate(9 * kMiB, 0, 0).address == blocks[0].address);
}

TEST(what_waits_for_a_stream_leaves_the_rest_of_its_chunk_to_anyone) {
  for (const char* settings : {"", "reuse_allow_opportunistic:False"}) {
    const auto backend = device();
    const auto async = make(*backend, settings);
    for (int i = 0; i < 30; ++i) {
      const Allocation block = async->allocate(3 * kMiB, 0, 0);
      async->record_stream(block.handle, 1);
      async->free(block.handle, 0);
    }
    CHECK(async->statistics().reserved == 3 * kChunk);  // ten in each

    const auto other = device();
    const auto streams = make(*other, settings);
    for (StreamId stream = 0; stream < 10; ++stream) {
      streams->free(streams->allocate(3 * kMiB, stream, 0).handle, 0);
    }
    CHECK(streams->statistics().reserved == kChunk);
  }
}

TEST(neighbours_that_a_stream_may_have_serve_a_request_together) {
  const auto backend = device(2 * kChunk);
  const auto async = make(*backend);
  const Allocation a = async->allocate(3 * kMiB, 0, 0);
  async->free(a.handle, 0);
  const Allocation part = async->allocate(30 * kMiB, 0, 0);
  CHECK(part.address == a.address && async->statistics().reserved == kChunk);
  // What is left of it still is anyone's.
  CHECK(async->allocate(2 * kMiB, 1, 0).address ==
        a.address + static_cast<std::uint64_t>(30 * kMiB));
  CHECK(async->statistics().reserved == kChunk);

  // And whole chunks of such are mapped side by side.
  const auto other = device(2 * kChunk);
  const auto remaps = make(*other);
  const Allocation b = remaps->allocate(20 * kMiB, 0, 0);
  const Allocation c = remaps->allocate(20 * kMiB, 0, 0);
  remaps->free(b.handle, 0);
  remaps->free(c.handle, 0);
  CHECK(!remaps->allocate(2 * kChunk, 0, 0).is_refused());

  // Of other streams only where there is no more, by waiting for them.
  const auto third = device(kChunk);
  const auto waits = make(*third);
  waits->free(waits->allocate(3 * kMiB, 0, 0).handle, 0);
  waits->free(waits->allocate(3 * kMiB, 1, 0).handle, 0);
  CHECK(!waits->allocate(kChunk, 2, 0).is_refused());
  CHECK(waits->cause() == Cause::kEventProcessing);
}

TEST(free_chunks_are_mapped_side_by_side_for_a_large_request) {
  const auto backend = device(4 * kChunk);
  const auto async = make(*backend);
  std::vector<Allocation> blocks;
  for (int i = 0; i < 4; ++i) blocks.push_back(async->allocate(kChunk - kMiB * i, 0, 0));
  async->free(blocks[0].handle, 0);
  async->free(blocks[2].handle, 0);
  CHECK(!async->allocate(2 * kChunk, 0, 0).is_refused());
  CHECK(async->statistics().reserved == 4 * kChunk);
  CHECK(backend->driver_calls().unmap == 2);

  // Chunks of which a part is in use stay where they are.
  const auto other = device(4 * kChunk);
  const auto off = make(*other, "remap:False");
  blocks.clear();
  for (int i = 0; i < 4; ++i) blocks.push_back(off->allocate(kChunk, 0, 0));
  off->free(blocks[0].handle, 0);
  off->free(blocks[2].handle, 0);
  CHECK(off->allocate(2 * kChunk, 0, 0).is_refused());
}

TEST(a_refused_request_moves_nothing) {
  const auto backend = device(2 * kChunk);
  const auto async = make(*backend);
  const Allocation a = async->allocate(kChunk, 0, 0);
  async->free(a.handle, 0);
  CHECK(async->allocate(3 * kChunk, 0, 0).is_refused());
  CHECK(backend->driver_calls().unmap == 0 && async->statistics().reserved == kChunk);
  CHECK(async->allocate(kChunk, 0, 0).address == a.address);
}

TEST(empty_cache_waits_for_all_work_and_gives_back_every_free_chunk) {
  const auto backend = device();  // nothing completes unless the allocator waits
  const auto async = make(*backend);
  const Allocation kept = async->allocate(kMiB, 0, 0);
  const Allocation large = async->allocate(3 * kChunk, 1, 0);
  const Allocation recorded = async->allocate(kChunk, 1, 0);
  async->record_stream(recorded.handle, 2);
  async->free(large.handle, 0);
  async->free(recorded.handle, 0);
  async->empty_cache();
  CHECK(async->statistics().reserved == kChunk && backend->used() == kChunk);
  CHECK(async->statistics().device_frees == 4);
  async->free(kept.handle, 0);
  async->empty_cache();
  CHECK(async->statistics().reserved == 0 && backend->used() == 0);
}

TEST(nothing_is_given_back_at_a_synchronization_below_the_release_threshold) {
  for (const auto& [settings, left] :
       {std::pair{"", 3 * kChunk}, std::pair{"release_threshold_mb:64", 2 * kChunk},
        std::pair{"release_threshold_mb:0", Bytes{0}}}) {
    Freed freed("recorded", settings);
    freed.async->free(freed.async->allocate(3 * kChunk, 0, 0).handle, 0);
    const auto wait_for = [&](StreamId stream) {
      freed.backend->synchronize(stream);
      freed.async->synchronized(stream);
    };
    wait_for(1);  // whose work is not what the chunks wait for
    CHECK(freed.async->statistics().reserved == 3 * kChunk);
    wait_for(0);
    CHECK(freed.async->statistics().reserved == left);
  }
}

}  // namespace

int main() { return check::run(); }
