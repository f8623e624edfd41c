// The lowest of three skyline plans: buffers ranked by lifetime, by area and by size.
#include "planners/skyline.h"

#include "planners/planner.h"
#include "planners/ranks.h"

namespace workbench {
namespace {

std::optional<Planned> plan(const Buffers& buffers, const Deadline& deadline) {
  if (buffers.empty()) return Planned{{}, "skyline"};
  const Ranks ranks(buffers);
  const Bytes peak = peak_of(buffers);
  std::optional<Planned> best;
  Bytes lowest = 0;
  for (const skyline::Order& order : skyline::usual_orders(buffers, ranks)) {
    std::optional<Offsets> offsets = skyline::Skyline(buffers, ranks, order.ranked).plan(deadline);
    if (!offsets) break;
    const Bytes height = height_of(buffers, *offsets);
    if (!best || height < lowest) {
      best = Planned{std::move(*offsets), "skyline (" + order.name + ")"};
      lowest = height;
    }
    if (lowest == peak) break;
  }
  return best;
}

const bool registered = planner_registry().add({
    .name = "skyline",
    .summary = "fills the lowest valley first; the best of three orders",
    .plan = plan,
});

}  // namespace
}  // namespace workbench
