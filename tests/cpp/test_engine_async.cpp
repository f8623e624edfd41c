// The rules of async: what PyTorch puts above the driver's pool. Rules of the pool's model:
// test_engine_async_pool.cpp.
#include <memory>
#include <string>
#include <vector>

#include "allocators/async.h"
#include "allocators/simulated_pool.h"
#include "async_subject.h"
#include "check.h"
#include "core/events.h"

namespace {

using namespace workbench;

// Writes down what the layer asks of it.
class NotedPool final : public MemoryPool {
 public:
  explicit NotedPool(std::vector<std::string>& notes) : notes_(notes) {}

  Allocation allocate(Bytes size, StreamId stream) override {
    notes_.push_back("allocate " + std::to_string(size) + " on " + std::to_string(stream));
    used_ += size;
    const auto address = static_cast<std::uint64_t>(++blocks_) * 512;
    return {address, reinterpret_cast<void*>(address)};
  }
  void free(void* handle, StreamId stream) override {
    notes_.push_back("free " + std::to_string(reinterpret_cast<std::uint64_t>(handle) / 512) +
                     " on " + std::to_string(stream));
  }
  StreamId make_stream() override { return 99; }
  void join(StreamId waiter, StreamId on) override {
    notes_.push_back(std::to_string(waiter) + " waits for " + std::to_string(on));
  }
  void event_record(std::size_t, StreamId) override {}
  void event_wait(std::size_t, StreamId) override {}
  void synchronized(StreamId) override {}
  void synchronize() override { notes_.push_back("synchronize"); }
  void trim_to(Bytes bytes) override { notes_.push_back("trim to " + std::to_string(bytes)); }
  Bytes used() const override { return used_; }
  Bytes reserved() const override { return used_; }
  Bytes peak_used() const override { return used_; }
  Bytes peak_reserved() const override { return used_; }
  void reset_peaks() override {}
  Cause cause() const override { return Cause::kServedFromCache; }
  Location locate(const void*) const override { return {0, 0}; }
  void visit(const std::function<void(const BlockView&)>&) const override {}
  Bytes largest_free() const override { return 0; }
  std::int64_t chunks_taken() const override { return 0; }
  std::int64_t chunks_given_back() const override { return 0; }

 private:
  std::vector<std::string>& notes_;
  int blocks_ = 0;
  Bytes used_ = 0;
};

// The layer over a pool that takes notes.
struct Noted {
  std::vector<std::string> notes;
  std::unique_ptr<Backend> backend = device(kGiB);
  Async async{*backend, std::make_unique<NotedPool>(notes), -1, ""};

  std::vector<std::string> take() { return std::exchange(notes, {}); }
};

using Notes = std::vector<std::string>;

TEST(a_request_of_nothing_is_null_and_one_of_an_exbibyte_is_refused_unasked) {
  Noted noted;
  CHECK(noted.async.allocate(0, 0, 0).address == 0);
  CHECK(noted.async.allocate(kEiB, 0, 0).is_refused());
  CHECK(noted.take().empty());
  CHECK(noted.async.statistics().ooms == 1);
}

TEST(a_block_used_on_one_stream_is_freed_there_and_used_falls_at_the_free) {
  Noted noted;
  const Allocation a = noted.async.allocate(1000, 3, 0);
  CHECK(noted.async.statistics().requested == 1000);
  noted.async.free(a.handle, 0);
  CHECK(noted.async.statistics().requested == 0);
  CHECK((noted.take() == Notes{"allocate 1000 on 3", "free 1 on 3"}));
}

TEST(a_block_recorded_on_streams_is_freed_on_the_unifying_one_that_waits_for_all) {
  Noted noted;
  const Allocation a = noted.async.allocate(1000, 3, 0);
  noted.async.record_stream(a.handle, 5);
  noted.async.record_stream(a.handle, 4);
  noted.async.record_stream(a.handle, 5);
  noted.take();
  noted.async.free(a.handle, 0);
  CHECK((noted.take() ==
         Notes{"99 waits for 3", "99 waits for 5", "99 waits for 4", "free 1 on 99"}));
  CHECK(noted.async.cause() == Cause::kEventProcessing);
  CHECK(noted.async.warnings().empty());
}

TEST(record_stream_with_the_stream_of_creation_does_nothing_and_warns_once) {
  Noted noted;
  const Allocation a = noted.async.allocate(1000, 3, 0);
  noted.async.record_stream(a.handle, 3);
  noted.async.record_stream(a.handle, 3);
  noted.take();
  noted.async.free(a.handle, 0);
  CHECK((noted.take() == Notes{"free 1 on 3"}));
  CHECK(noted.async.warnings().size() == 1);
  CHECK(noted.async.warnings()[0].find("called 2 times") != std::string::npos);
}

TEST(what_was_made_outside_a_capture_is_freed_at_the_next_allocation_outside_one) {
  Noted noted;
  const Allocation before = noted.async.allocate(1000, 3, 0);
  const Allocation other = noted.async.allocate(500, 3, 0);
  noted.async.capture_begin(7);
  noted.take();
  noted.async.free(before.handle, 0);
  CHECK(noted.async.delays_free(other.handle));
  noted.async.allocate(10, 7, 0);
  noted.async.capture_end(7);
  noted.async.free(other.handle, 0);
  // Nothing was freed on behalf of the capture, so nothing joins it.
  CHECK((noted.take() == Notes{"allocate 10 on 7", "free 2 on 3"}));
  CHECK(noted.async.statistics().requested == 1010);
  noted.async.allocate(20, 0, 0);
  CHECK((noted.take() == Notes{"free 1 on 3", "allocate 20 on 0"}));
  CHECK(noted.async.statistics().requested == 30);
  CHECK(noted.async.warnings().size() == 1);
}

TEST(streams_freed_on_during_a_capture_are_joined_before_it_ends) {
  Noted noted;
  noted.async.capture_begin(7);
  const Allocation a = noted.async.allocate(10, 7, 0);
  const Allocation b = noted.async.allocate(10, 8, 0);
  const Allocation c = noted.async.allocate(10, 8, 0);
  const Allocation kept = noted.async.allocate(10, 8, 0);
  noted.async.record_stream(a.handle, 8);
  CHECK(!noted.async.delays_free(b.handle));
  noted.async.free(b.handle, 0);
  noted.async.free(a.handle, 0);
  noted.async.free(c.handle, 0);
  noted.take();
  noted.async.capture_end(7);
  CHECK((noted.take() == Notes{"7 waits for 8", "7 waits for 99"}));
  CHECK(noted.async.warnings().empty());
  noted.async.free(kept.handle, 0);
  CHECK(noted.async.warnings().size() == 1);
  CHECK(noted.async.warnings()[0].find("freed outside one once") != std::string::npos);
  noted.async.capture_begin(7);
  noted.async.capture_end(7);
  CHECK((noted.take() == Notes{"free 4 on 8"}));
}

TEST(captures_within_one_another_are_one_and_warn) {
  Noted noted;
  const Allocation before = noted.async.allocate(1000, 3, 0);
  noted.async.capture_begin(1);
  noted.async.capture_begin(2);
  noted.async.capture_end(1);
  noted.async.free(before.handle, 0);
  CHECK(noted.async.statistics().requested == 1000);
  noted.async.capture_end(2);
  noted.async.capture_end(2);  // of one that began before the trace
  noted.async.allocate(1, 3, 0);
  CHECK(noted.async.statistics().requested == 1);
  CHECK(noted.async.warnings().size() == 2);
}

TEST(a_program_that_ends_leaves_no_capture_and_no_deferred_free) {
  Noted noted;
  const Allocation before = noted.async.allocate(1000, 3, 0);
  noted.async.capture_begin(1);
  const Allocation captured = noted.async.allocate(10, 1, 0);
  noted.async.free(before.handle, 0);
  noted.async.program_ends();
  noted.async.free(captured.handle, 0);
  CHECK(noted.async.statistics().requested == 0);
  CHECK(noted.async.warnings().size() ==
        1);  // of the deferred free: the last was not the program's
}

TEST(the_limit_is_on_requested_bytes_whatever_the_device_has) {
  const auto backend = device(kGiB);
  const auto async = make(*backend, "per_process_memory_fraction:0.25");
  CHECK(async->limit() == 256 * kMiB);
  const Allocation a = async->allocate(200 * kMiB, 0, 0);
  CHECK(async->allocate(56 * kMiB + 1, 0, 0).is_refused());
  CHECK(backend->driver_calls().refused == 0);
  CHECK(async->refusal() ==
        "used 200.00 MiB, requested 56.00 MiB, device total 1.00 GiB, free 800.00 MiB, limit "
        "256.00 MiB");
  CHECK(!async->allocate(56 * kMiB, 0, 0).is_refused());
  async->free(a.handle, 0);
  CHECK(!async->allocate(200 * kMiB, 0, 0).is_refused());
  async->set_fraction(100'000);
  CHECK(async->limit() == kGiB / 10);
  CHECK(async->allocate(1, 0, 0).is_refused());
  async->set_fraction(kWholeFraction);
  CHECK(!async->allocate(1, 0, 0).is_refused());
}

TEST(the_device_refusing_is_out_of_memory_without_a_second_try) {
  const auto backend = device(100 * kMiB);
  const auto async = make(*backend, "reuse_allow_internal_dependencies:False");
  CHECK(!async->allocate(96 * kMiB, 0, 0).is_refused());
  CHECK(async->allocate(1, 0, 0).is_refused());
  CHECK(backend->driver_calls().refused == 1);
  CHECK(async->refusal() ==
        "used 96.00 MiB, requested 1 bytes, device total 100.00 MiB, free 4.00 MiB, limit none");
}

TEST(driver_calls_are_counted_four_for_each_stream_and_the_free) {
  const auto backend = device();
  const auto async = make(*backend);
  const Allocation a = async->allocate(1000, 0, 0);
  async->record_stream(a.handle, 1);
  async->record_stream(a.handle, 2);
  async->free(a.handle, 0);
  const DriverCalls& calls = backend->driver_calls();
  CHECK(calls.event_create == 3 && calls.event_record == 3 && calls.stream_wait == 3 &&
        calls.event_destroy == 3);
  CHECK(calls.pool_alloc == 1 && calls.pool_free == 1 && calls.map == 1);
  async->empty_cache();
  CHECK(calls.synchronize == 1 && calls.unmap == 1);
}

TEST(peaks_are_the_pools_and_a_reset_sets_them_to_what_is) {
  const auto backend = device();
  const auto async = make(*backend);
  const Allocation a = async->allocate(40 * kMiB, 0, 0);
  async->free(a.handle, 0);
  async->empty_cache();
  async->allocate(kMiB, 0, 0);
  const auto statistic = [&](const std::string& name) {
    for (const auto& [key, value] : async->torch_statistics()) {
      if (key == name) return value;
    }
    return std::int64_t{-1};
  };
  CHECK(statistic("allocated_bytes.all.current") == kMiB);
  CHECK(statistic("active_bytes.all.peak") == 40 * kMiB);
  CHECK(statistic("reserved_bytes.all.current") == kChunk);
  CHECK(statistic("reserved_bytes.all.peak") == 2 * kChunk);
  async->reset_peaks();
  CHECK(statistic("allocated_bytes.all.peak") == kMiB);
  CHECK(statistic("reserved_bytes.all.peak") == kChunk);
}

TEST(the_workspace_guess_allocates_and_halves_until_it_is_served) {
  const auto backend = device(100 * kMiB);
  const auto async = make(*backend);
  // 100 MiB would take four chunks, of which there are three.
  const Async::CacheInfo free = async->cache_info(0);
  CHECK(free.total == 100 * kMiB && free.largest == 50 * kMiB);
  // What it took to find out stays.
  CHECK(async->statistics().reserved == 2 * kChunk && async->statistics().allocated == 0);
  CHECK(backend->driver_calls().pool_alloc == 2 && backend->driver_calls().pool_free == 1);

  const auto other = device(kGiB);
  const auto limited = make(*other, "per_process_memory_fraction:0.5");
  limited->allocate(500 * kMiB, 0, 0);
  CHECK(limited->cache_info(0).largest == 12 * kMiB);
  limited->set_fraction(0);
  CHECK(limited->cache_info(0).largest == 0);
}

TEST(a_deferred_block_is_not_freed_a_second_time) {
  const auto backend = device();
  const auto async = make(*backend);
  const Allocation a = async->allocate(1000, 0, 0);
  async->capture_begin(0);
  async->free_at(a.address, 0);
  CHECK(check::throws<std::exception>([&] { async->free_at(a.address, 0); }));
  async->program_ends();
  CHECK(async->statistics().requested == 0);
}

TEST(the_models_pool_is_named_a_model) {
  const auto backend = device();
  CHECK(make(*backend)->warnings()[0].find("is a model") != std::string::npos);
}

TEST(settings_that_make_no_sense_are_refused) {
  const auto backend = device();
  for (const std::string text :
       {"chunk_mb:3", "chunk_mb:0", "chunk_mb:2048", "per_process_memory_fraction:1.5",
        "backend:native", "remap:yes", "release_threshold_mb:-1"}) {
    CHECK(check::throws<std::exception>([&] { make(*backend, text); }));
  }
  CHECK(!make(*backend, "backend:cudaMallocAsync")->allocate(1, 0, 0).is_refused());
}

}  // namespace

int main() { return check::run(); }
