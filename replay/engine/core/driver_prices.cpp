#include "core/driver_prices.h"

#include <algorithm>
#include <cmath>

#include "core/errors.h"

namespace workbench {

DriverPrices::DriverPrices(const std::map<std::string, std::vector<Point>>& prices) {
  for (const auto& [name, points] : prices) {
    const auto found = std::find(kDriverCallNames.begin(), kDriverCallNames.end(), name);
    if (found == kDriverCallNames.end()) {
      throw InputError("there is no kind of driver call '" + name + "'; leave its price out");
    }
    Bytes before = -1;
    for (const auto& [size, nanoseconds] : points) {
      if (size <= before || !(nanoseconds > 0) || !std::isfinite(nanoseconds)) {
        throw InputError("the prices of " + name +
                         " are no points of rising size that cost more than nothing");
      }
      before = size;
    }
    points_[static_cast<std::size_t>(found - kDriverCallNames.begin())] = points;
  }
  for (std::size_t kind = 0; kind < points_.size(); ++kind) {
    if (points_[kind].empty() && kind != static_cast<std::size_t>(DriverCall::kGate)) {
      throw InputError("driver calls of the kind " + std::string(kDriverCallNames[kind]) +
                       " have no price; give one");
    }
  }
}

double DriverPrices::of(DriverCall kind, Bytes size) const {
  const std::vector<Point>& points = points_[static_cast<std::size_t>(kind)];
  const auto above =
      std::lower_bound(points.begin(), points.end(), size,
                       [](const Point& point, Bytes wanted) { return point.first < wanted; });
  if (above == points.end()) return points.back().second;
  if (above == points.begin() || above->first == size) return above->second;
  const auto& [low_size, low] = *std::prev(above);
  const auto& [high_size, high] = *above;
  const double from = std::log(static_cast<double>(std::max<Bytes>(low_size, 1)));
  const double to = std::log(static_cast<double>(high_size));
  const double share = (std::log(static_cast<double>(size)) - from) / (to - from);
  const double price = std::exp(std::log(low) + share * (std::log(high) - std::log(low)));
  // Rounding must not lead past either end.
  return std::clamp(price, std::min(low, high), std::max(low, high));
}

}  // namespace workbench
