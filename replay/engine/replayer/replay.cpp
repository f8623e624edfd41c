#include "replayer/replay.h"

#include <utility>

#include "core/errors.h"
#include "replayer/run.h"

namespace workbench {

Replay::Replay(const Events& events, CellOptions options)
    : events_((check_events(events), events)),
      options_(std::move(options)),
      completed_streams_(events_) {
  const std::string reason = backend_registry().get(options_.backend).unavailable();
  if (!reason.empty()) {
    throw InputError("backend " + options_.backend + " cannot be used here: " + reason);
  }
  // Unknown names and settings are found here, not at the first pass.
  Run run(events_, completed_streams_, options_);
  backend_has_memory_ = run.backend().has_memory();
  warnings_ = run.allocator().warnings();
}

}  // namespace workbench
