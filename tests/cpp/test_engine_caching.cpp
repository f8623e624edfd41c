// The rules of caching one by one; the golden traces hold them together.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "allocators/allocator.h"
#include "check.h"

namespace {

using namespace workbench;

class Device {
 public:
  explicit Device(Bytes capacity = kUnlimited, const std::string& settings = "")
      : backend_(backend_registry().get("simulated").create({.capacity = capacity})),
        allocator_(make_allocator("caching", settings, *backend_)) {}

  Allocation allocate(Bytes size, StreamId stream = 0) {
    return allocator_->allocate(size, stream, 0);
  }
  void free(const Allocation& block) { allocator_->free(block.handle, 0); }
  Allocator& operator*() { return *allocator_; }
  Allocator* operator->() { return allocator_.get(); }
  Backend& backend() { return *backend_; }
  Statistics now() const { return allocator_->statistics(); }

 private:
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<Allocator> allocator_;
};

TEST(requests_are_rounded_to_512) {
  for (const auto& [size, rounded] :
       std::vector<std::pair<Bytes, Bytes>>{{1, 512}, {512, 512}, {513, 1024}, {kMiB, kMiB}}) {
    Device device;
    device.allocate(size);
    CHECK(device.now().allocated == rounded && device.now().requested == size);
  }
}

TEST(segments_have_the_size_of_their_pool) {
  for (const auto& [size, segment] :
       std::vector<std::pair<Bytes, Bytes>>{{1, 2 * kMiB},
                                            {kMiB, 2 * kMiB},
                                            {kMiB + 1, 20 * kMiB},
                                            {10 * kMiB - 512, 20 * kMiB},
                                            {10 * kMiB, 10 * kMiB},
                                            {10 * kMiB + 1, 12 * kMiB},
                                            {kGiB + 1, kGiB + 2 * kMiB}}) {
    Device device;
    device.allocate(size);
    CHECK(device.now().reserved == segment && device.now().n_segment == 1);
  }
}

TEST(large_blocks_are_split_when_more_than_a_mebibyte_remains) {
  Device device;
  device.allocate(19 * kMiB);  // a segment of 20 MiB, and exactly 1 MiB remains
  CHECK(device.now().allocated == 20 * kMiB && device.now().n_inactive_split == 0);
  device.allocate(5 * kMiB);
  CHECK(device->cause() == Cause::kDriverCall);
  CHECK(device.now().inactive_split == 15 * kMiB && device.now().n_inactive_split == 1);
  device.allocate(2 * kMiB);
  CHECK(device->cause() == Cause::kSplit);
}

TEST(the_smallest_block_that_fits_is_taken_then_the_oldest_segment) {
  Device device;
  const Allocation a = device.allocate(16 * kMiB);
  const Allocation b = device.allocate(12 * kMiB);
  const Allocation c = device.allocate(12 * kMiB);
  device.free(c);
  device.free(a);
  device.free(b);
  CHECK(device.allocate(12 * kMiB).address == b.address);
  CHECK(device.allocate(12 * kMiB).address == c.address);
  CHECK(device.allocate(12 * kMiB).address == a.address);
}

TEST(streams_do_not_share_free_blocks) {
  Device device;
  device.free(device.allocate(1000, 0));
  device.allocate(1000, 1);
  CHECK(device.now().n_segment == 2);
}

TEST(free_neighbours_merge) {
  Device device;
  const Allocation a = device.allocate(512 * kKiB);
  const Allocation b = device.allocate(512 * kKiB);
  const Allocation c = device.allocate(512 * kKiB);
  device.free(a);
  device.free(c);
  CHECK(device.now().n_inactive_split == 2);
  device.free(b);
  CHECK(device.now().n_inactive_split == 0 && device->largest_free() == 2 * kMiB);
}

TEST(a_block_another_stream_uses_stays_active_until_that_stream_is_done) {
  Device device;
  const Allocation block = device.allocate(1000, 0);
  device->record_stream(block.handle, 0);  // its own: ignored
  device->record_stream(block.handle, 2);
  device->record_stream(block.handle, 2);
  device.free(block);
  CHECK(device->cause() == Cause::kEventProcessing);
  CHECK(device.now().allocated == 0 && device.now().active == 1024);
  CHECK(device.now().requested == 1000);
  CHECK(device.allocate(1000, 0).address != block.address);
  device.backend().synchronize(1);
  CHECK(device.allocate(1000, 0).address != block.address);
  device.backend().synchronize(2);
  CHECK(device.allocate(1000, 0).address == block.address);
  CHECK(device->cause() == Cause::kEventProcessing);
}

TEST(a_refused_segment_is_tried_again_after_the_cache_is_released) {
  Device device(40 * kMiB);
  device.free(device.allocate(30 * kMiB));
  const Allocation pending = device.allocate(4 * kMiB, 1);
  CHECK(device.now().retries == 1 && device.now().reserved == 20 * kMiB);
  device->record_stream(pending.handle, 0);
  device.free(pending);
  CHECK(!device.allocate(40 * kMiB).is_refused());
  CHECK(device->cause() == Cause::kRetryAfterFlush);
  CHECK(device.now().retries == 2 && device.now().ooms == 0);
  CHECK(device.allocate(1).is_refused());
  CHECK(device.now().retries == 3 && device.now().ooms == 1);
}

TEST(a_segment_is_oversize_by_its_own_size_not_by_the_request) {
  Device device(kUnlimited, "max_split_size_mb:20");
  const auto oversize = [&](const std::string& kind) {
    const auto numbers = device->torch_statistics();
    return std::find_if(numbers.begin(), numbers.end(),
                        [&](const auto& pair) { return pair.first == "oversize_segments." + kind; })
        ->second;
  };
  device.free(device.allocate(5 * kMiB));
  CHECK(oversize("current") == 1 && oversize("peak") == 1);
  device->empty_cache();
  CHECK(oversize("current") == 0 && oversize("freed") == 1);
}

TEST(blocks_show_what_they_are) {
  Device device;
  const Allocation kept = device.allocate(1000, 1);
  const Allocation pending = device.allocate(2000, 1);
  device->record_stream(pending.handle, 0);
  device.free(pending);
  std::vector<BlockView> blocks;
  device->visit([&](const BlockView& block) { blocks.push_back(block); });
  CHECK(blocks.size() == 3);
  CHECK(blocks[0].state == BlockState::kActiveAllocated && blocks[0].requested == 1000);
  CHECK(blocks[0].handle == kept.handle && blocks[0].pool == "small" && blocks[0].stream == 1);
  CHECK(blocks[1].state == BlockState::kActivePendingFree && blocks[1].offset == 1024);
  CHECK(blocks[2].state == BlockState::kInactive && blocks[2].requested == 0);
  CHECK(device->locate(pending.handle).offset == 1024);
  CHECK(device->locate(pending.handle).segment == 0);
}

}  // namespace

int main() { return check::run(); }
