#include "replayer/replay.h"

#include <utility>

#include "core/errors.h"
#include "replayer/planning.h"
#include "replayer/run.h"

namespace workbench {
namespace {

CellOptions completed(CellOptions options, const Events& events) {
  options.backend_options.several_threads =
      options.order != Order::kGlobal && thread_count(events) > 1;
  const AllocatorEntry& entry = allocator_registry().get(options.allocator);
  if (!entry.runs_plan) {
    if (options.plan != nullptr) {
      throw InputError("allocator " + options.allocator + " runs no plan; leave the plan out");
    }
  } else if (options.plan == nullptr) {
    options.plan = plan_for(events, Settings(options.settings, options.allocator, entry.settings));
  }
  return options;
}

std::vector<std::size_t> step_starts(const Events& events, const CellOptions& options) {
  std::vector<std::size_t> starts;
  if (options.plan == nullptr) return starts;
  for (std::size_t i = 0; i < events.step.size(); ++i) {
    if (i == 0 || events.step[i] != events.step[i - 1]) starts.push_back(i);
  }
  return starts;
}

}  // namespace

Replay::Replay(const Events& events, CellOptions options)
    : events_((check_events(events), events)),
      options_(completed(std::move(options), events_)),
      completed_streams_(events_),
      threads_(options_.backend_options.several_threads
                   ? std::make_unique<const ThreadEvents>(events_, options_.order)
                   : nullptr),
      step_starts_(step_starts(events_, options_)) {
  const std::string reason = backend_registry().get(options_.backend).unavailable();
  if (!reason.empty()) {
    throw InputError("backend " + options_.backend + " cannot be used here: " + reason);
  }
  // Unknown names and settings are found here, not at the first pass.
  Run run(events_, completed_streams_, step_starts_, options_, threads_.get(), /*counts=*/true);
  backend_has_memory_ = run.backend().has_memory();
  backend_has_bytes_ = run.backend().has_bytes();
  starts_afresh_ = run.allocator().starts_afresh();
  warnings_ = run.allocator().warnings();
}

}  // namespace workbench
