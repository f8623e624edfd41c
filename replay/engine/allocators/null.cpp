// Does nothing: what a replay costs without an allocator.
#include "allocators/walk.h"

namespace workbench {
namespace {

class Null final : public Replayed<Null> {
 public:
  using Replayed::Replayed;

  Allocation allocate(Bytes, StreamId, ThreadId) override { return {0, this}; }
  void free(void*, ThreadId) override {}
  Location locate(const void*) const override { return {0, 0}; }
  void visit(const std::function<void(const BlockView&)>&) const override {}
  Bytes largest_free() const override { return 0; }
};

const bool registered = allocator_registry().add({
    .name = "null",
    .summary = "does nothing; measures the harness",
    .kind = AllocatorKind::kCpu,
    .create = [](Backend& backend, const Settings&) { return std::make_unique<Null>(backend); },
    .hidden = true,
});

}  // namespace
}  // namespace workbench
