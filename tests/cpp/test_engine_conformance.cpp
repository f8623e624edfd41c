// What every allocator is held to, on every backend. A new allocator joins by being registered.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "allocators/allocator.h"
#include "backends/backend.h"
#include "check.h"
#include "core/errors.h"
#include "core/events.h"
#include "replayer/fill_pattern.h"
#include "subjects.h"

namespace {

using namespace workbench;

constexpr Bytes kCapacity = 256 * kMiB;
constexpr StreamId kStreams = 3;

struct Live {
  std::uint64_t address;
  Bytes size;
  void* handle;
};

// An allocator on a backend, with the blocks a program has of it, checked at every step.
class Subject {
 public:
  Subject(const AllocatorEntry& allocator, const std::string& settings, const BackendEntry& backend,
          Bytes capacity)
      : backend_(backend.create({.capacity = capacity})),
        allocator_(make_allocator(allocator.name, settings, *backend_)),
        pattern_(*backend_, allocator.kind),
        throws_(!allocator.flushes_when_refused ||
                settings.find("throw_on_cudamalloc_oom:True") != std::string::npos),
        keeps_(settings.find("pinned_reserve_segment_size_mb") != std::string::npos),
        expandable_(settings.find("expandable_segments:True") != std::string::npos) {}
  ~Subject() {
    try {
      free_all();
      pattern_.check_all();
    } catch (const DamagedBlockError& error) {
      std::printf("  %s\n", error.what());
      CHECK(!"damaged");
    }
  }

  Backend& backend() { return *backend_; }
  Allocator& allocator() { return *allocator_; }
  std::vector<Live>& live() { return live_; }
  // Whether it refuses at once instead of releasing what is cached: always, or because it was
  // asked.
  bool throws() const { return throws_; }
  // Whether it keeps one segment to its end.
  bool keeps() const { return keeps_; }
  // Whether what is mapped in two pieces may be unmapped in one.
  bool expandable() const { return expandable_; }

  // False where memory ran out.
  bool allocate(Bytes size, StreamId stream) {
    const Allocation got = allocator_->allocate(size, stream, 0);
    if (got.is_refused()) {
      CHECK(got.handle == nullptr);
      return false;
    }
    const std::uint64_t alignment = backend_->is_device() ? kDeviceAlignment : kHostAlignment;
    CHECK(got.handle != nullptr);
    CHECK(got.address % alignment == 0);
    const auto next = starts_.lower_bound(got.address);
    if (next != starts_.end()) {
      CHECK(got.address + static_cast<std::uint64_t>(size) <= next->first);
    }
    if (next != starts_.begin()) CHECK(std::prev(next)->second <= got.address);
    starts_[got.address] = got.address + static_cast<std::uint64_t>(size);
    live_.push_back({got.address, size, got.handle});
    if (backend_->has_bytes()) pattern_.fill(got, size, ++filled_, stream);
    return true;
  }

  void record_stream(std::size_t index, StreamId stream) {
    if (backend_->has_bytes()) pattern_.use(live_[index].handle, stream);
    allocator_->record_stream(live_[index].handle, stream);
  }

  void free(std::size_t index) {
    const Live block = take(index);
    allocator_->free(block.handle, 0);
  }

  // Forgets a block of the program after checking its bytes.
  Live take(std::size_t index) {
    const Live taken = live_[index];
    live_[index] = live_.back();
    live_.pop_back();
    starts_.erase(taken.address);
    if (backend_->has_bytes()) pattern_.check(taken.handle);
    return taken;
  }

  void free_all() {
    while (!live_.empty()) free(live_.size() - 1);
  }

  void check_statistics() {
    const Statistics now = allocator_->statistics();
    CHECK(0 <= now.requested && now.requested <= now.active);
    CHECK(now.allocated <= now.active);
    CHECK(now.active <= now.reserved);
    CHECK(!allocator_->reported().blocks || now.n_alloc <= now.n_active);
    CHECK(static_cast<std::size_t>(now.n_alloc) == live_.size());
    CHECK(now.reserved <= backend_->used());
    CHECK(backend_->used() <= backend_->capacity());
  }

  // What visit() shows adds up to the statistics.
  void check_blocks() {
    if (!allocator_->reported().blocks) return;
    Bytes allocated = 0;
    Bytes active = 0;
    Bytes reserved = 0;
    Bytes largest = 0;
    std::map<std::uint64_t, std::uint64_t> ends;
    std::map<std::uint64_t, Bytes> unaccounted;
    std::int64_t segments = 0;
    allocator_->visit([&](const BlockView& block) {
      if (!ends.contains(block.segment)) {
        reserved += block.segment_size;
        unaccounted[block.segment] = block.segment_size;
        segments += block.expandable ? 0 : 1;
      }
      // Only a range of addresses has gaps: where it has no memory.
      CHECK(block.expandable ? block.offset >= ends[block.segment]
                             : block.offset == ends[block.segment]);
      ends[block.segment] = block.offset + static_cast<std::uint64_t>(block.size);
      unaccounted[block.segment] -= block.size;
      if (block.state == BlockState::kActiveAllocated) allocated += block.size;
      if (block.state != BlockState::kInactive) active += block.size;
      if (block.state == BlockState::kInactive) largest = std::max(largest, block.size);
    });
    const Statistics now = allocator_->statistics();
    CHECK(allocated == now.allocated);
    CHECK(active == now.active);
    CHECK(reserved == now.reserved);
    for (const auto& [segment, bytes] : unaccounted) CHECK(bytes == 0);
    CHECK(segments == now.n_segment);
    // What is left of blocks that were given up in a segment that is kept serves nobody.
    CHECK(keeps_ ? largest >= allocator_->largest_free() : largest == allocator_->largest_free());
  }

 private:
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<Allocator> allocator_;
  FillPattern pattern_;
  const bool throws_;
  const bool keeps_;
  const bool expandable_;
  std::vector<Live> live_;
  std::map<std::uint64_t, std::uint64_t> starts_;  // address of each live block → its end
  std::size_t filled_ = 0;
};

template <class Body>
void for_every_subject(Bytes capacity, Body&& body) {
  for (const AllocatorEntry& allocator : allocator_registry().entries()) {
    if (allocator.hidden) continue;
    for (const BackendEntry& backend : backend_registry().entries()) {
      if (!backend.unavailable().empty()) continue;
      for (const std::string& settings : settings_of(allocator)) {
        const int before = check::failures();
        Subject subject(allocator, settings, backend, capacity);
        try {
          body(subject);
        } catch (const UnavailableError& error) {  // no fault of the allocator's
          std::printf("  not on this machine: %s\n", error.what());
        }
        if (check::failures() != before) {
          std::printf("  … with %s:%s on %s\n", allocator.name.c_str(), settings.c_str(),
                      backend.name.c_str());
        }
      }
    }
  }
}

Bytes random_size(std::mt19937& random) {
  const double exponent = std::uniform_real_distribution<>(0, 22)(random);
  return static_cast<Bytes>(std::exp2(exponent));
}

TEST(live_blocks_do_not_overlap_and_statistics_hold_at_every_event) {
  for_every_subject(kCapacity, [](Subject& subject) {
    std::mt19937 random(7);
    // Bytes that are written and read take long under sanitizers.
    const int count = subject.backend().has_bytes() ? 1000 : 4000;
    for (int i = 0; i < count; ++i) {
      const auto choice = random() % 100;
      auto& live = subject.live();
      if (choice < 50 || live.empty()) {
        subject.allocate(random_size(random), static_cast<StreamId>(random() % kStreams));
      } else if (choice < 90) {
        subject.free(random() % live.size());
      } else if (choice < 96) {
        const std::size_t used = random() % live.size();
        subject.record_stream(used, static_cast<StreamId>(random() % kStreams));
      } else if (choice < 99) {
        subject.backend().synchronize(static_cast<StreamId>(random() % kStreams));
      } else {
        subject.allocator().empty_cache();
      }
      subject.check_statistics();
      if (i % 50 == 0) subject.check_blocks();
    }
  });
}

TEST(nothing_is_reserved_after_freeing_everything_and_empty_cache) {
  for_every_subject(kCapacity, [](Subject& subject) {
    std::mt19937 random(11);
    for (int i = 0; i < 300; ++i) {
      if (!subject.allocate(random_size(random), static_cast<StreamId>(random() % kStreams))) break;
      if (random() % 4 == 0) {
        subject.record_stream(subject.live().size() - 1,
                              static_cast<StreamId>(random() % kStreams));
      }
      if (random() % 3 == 0) subject.free(random() % subject.live().size());
    }
    subject.free_all();
    // Not every allocator waits for streams here.
    subject.backend().synchronize(kAllStreams);
    subject.allocator().empty_cache();
    const Statistics end = subject.allocator().statistics();
    CHECK(end.active == 0 && end.allocated == 0 && end.requested == 0);
    CHECK(end.n_active == 0 && end.inactive_split == 0);
    CHECK(end.n_segment == (subject.keeps() ? 1 : 0));
    CHECK(subject.keeps() || end.reserved == 0);
    CHECK(subject.expandable() || end.device_allocs - end.device_frees == end.n_segment);
    CHECK(subject.backend().used() == end.reserved);
    subject.check_blocks();
  });
}

TEST(private_pools_and_captures_lose_nothing) {
  for_every_subject(kCapacity, [](Subject& subject) {
    // Two streams' parts of the default pool and of two private ones.
    const std::vector<PoolStream> lanes = {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {0, 2}, {1, 2}};
    Allocator& allocator = subject.allocator();
    Events events;
    events.lanes = lanes;
    allocator.prepare(events);
    std::mt19937 random(13);
    int captures = 0;
    for (int i = 0; i < 1000; ++i) {
      const auto choice = random() % 100;
      const auto pool = random() % 2;
      auto& live = subject.live();
      if (choice < 45 || live.empty()) {
        const std::size_t lane = random() % lanes.size();
        subject.allocate(random_size(random), allocator.takes_lanes() ? static_cast<StreamId>(lane)
                                                                      : lanes[lane].stream);
      } else if (choice < 85) {
        subject.free(random() % live.size());
      } else if (choice < 90) {
        allocator.record_stream(live[random() % live.size()].handle,
                                static_cast<StreamId>(random() % kStreams));
      } else if (choice < 92) {
        allocator.pool_begin(static_cast<PoolId>(pool) + 1);
        allocator.pool_end(static_cast<PoolId>(pool) + 1);
      } else if (choice < 94) {
        allocator.pool_release(static_cast<PoolId>(pool) + 1);
      } else if (choice < 96 && captures == 0 && allocator.takes_lanes()) {
        // Where pools make no difference, captures do something else: tests of their own.
        allocator.capture_begin(0);
        captures = 1;
      } else if (choice < 98 && captures == 1) {
        allocator.capture_end(0);
        captures = 0;
      } else {
        allocator.empty_cache();
      }
      subject.check_statistics();
      if (i % 50 == 0) subject.check_blocks();
    }
    if (captures == 1) allocator.capture_end(0);
    for (const PoolId pool : {1, 2}) {
      for (int i = 0; i < 1000; ++i) allocator.pool_release(pool);
    }
    subject.free_all();
    // What waited for the end of captures is looked at now.
    if (subject.allocate(512, 0)) subject.free_all();
    subject.backend().synchronize(kAllStreams);
    allocator.empty_cache();
    const Statistics end = allocator.statistics();
    CHECK(end.active == 0 && end.allocated == 0 && end.requested == 0);
    CHECK(subject.keeps() || end.reserved == 0);
    CHECK(subject.backend().used() == end.reserved);
  });
}

TEST(an_allocator_that_ends_gives_everything_back) {
  for (const AllocatorEntry& allocator : allocator_registry().entries()) {
    for (const BackendEntry& backend : backend_registry().entries()) {
      if (!backend.unavailable().empty()) continue;
      for (const std::string& settings : settings_of(allocator)) {
        const auto memory = backend.create({.capacity = kCapacity});
        {
          const auto subject = make_allocator(allocator.name, settings, *memory);
          const Allocation got = subject->allocate(100'000, 0, 0);
          subject->record_stream(got.handle, 1);
          subject->free(got.handle, 0);
        }
        CHECK(memory->used() == 0);
      }
    }
  }
}

TEST(a_request_of_nothing_gives_null_and_counts_nothing) {
  for_every_subject(kCapacity, [](Subject& subject) {
    const Allocation got = subject.allocator().allocate(0, 0, 0);
    CHECK(got.handle == nullptr && got.address == 0 && !got.is_refused());
    CHECK(subject.allocator().statistics().n_alloc == 0);
    CHECK(subject.backend().used() == 0);
  });
}

TEST(wrong_frees_are_named_errors_that_change_nothing) {
  for_every_subject(kCapacity, [](Subject& subject) {
    Allocator& allocator = subject.allocator();
    CHECK(subject.allocate(1000, 0) && subject.allocate(3'000'000, 0));
    const Live freed = subject.take(0);
    allocator.free_at(freed.address, 0);
    const Statistics before = allocator.statistics();
    // A cache knows that the block is free already; without one the address means nothing.
    if (before.reserved > before.active && allocator.reported().blocks) {
      CHECK_THROWS(DoubleFreeError, allocator.free_at(freed.address, 0));
    } else {
      CHECK_THROWS(EngineError, allocator.free_at(freed.address, 0));
    }
    CHECK_THROWS(ForeignPointerError, allocator.free_at(64, 0));
    CHECK_THROWS(ForeignPointerError, allocator.free_at(subject.live()[0].address + 64, 0));
    const Statistics after = allocator.statistics();
    CHECK(std::memcmp(&before, &after, sizeof before) == 0);
    CHECK(subject.allocate(1000, 0));
    subject.check_statistics();
    subject.check_blocks();
  });
}

TEST(more_than_there_is_is_refused_and_the_next_call_works) {
  for_every_subject(kCapacity, [](Subject& subject) {
    CHECK(subject.allocate(1000, 0));
    for (const Bytes size : {kCapacity + 1, kEiB, std::numeric_limits<Bytes>::max()}) {
      const Bytes active = subject.allocator().statistics().active;
      CHECK(!subject.allocate(size, 0));
      CHECK(subject.allocator().statistics().active == active);
      subject.check_statistics();
    }
    CHECK(subject.allocate(1000, 0));
  });
}

TEST(cached_memory_is_flushed_before_memory_runs_out) {
  for_every_subject(64 * kMiB, [](Subject& subject) {
    if (subject.throws()) return;
    // Each block alone fits; what a cache keeps of all of them together does not.
    for (Bytes size = 12 * kMiB; size <= 40 * kMiB; size += 4 * kMiB) {
      CHECK(subject.allocate(size, 0));
      subject.free_all();
    }
    CHECK(subject.allocator().statistics().ooms == 0);
  });
}

}  // namespace

int main() { return check::run(); }
