// What calls of a driver cost by kind and size, as measured on a device: a profile.
#pragma once

#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/driver_times.h"
#include "core/units.h"

namespace workbench {

class DriverPrices {
 public:
  // Bytes and nanoseconds.
  using Point = std::pair<Bytes, double>;

  // By kind; sizes rise from point to point. Throws InputError for a kind that is not known or that
  // is not there, and for points that are in no order or cost nothing.
  explicit DriverPrices(const std::map<std::string, std::vector<Point>>& prices);

  // Nanoseconds of a call about `size` bytes. Between two points the logarithm of the price is
  // linear in that of the size; below the first and above the last it is theirs.
  double of(DriverCall kind, Bytes size) const;

 private:
  std::array<std::vector<Point>, kDriverCallNames.size()> points_;
};

}  // namespace workbench
