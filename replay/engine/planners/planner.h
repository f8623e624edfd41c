// From lifetimes to offsets. A planner is one file that registers itself.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/plan.h"
#include "core/registry.h"
#include "core/units.h"

namespace workbench {

// What needs a place: live from `begin` up to, not including, `end`.
struct Buffer {
  PlanTime begin;
  PlanTime end;
  Bytes size;  // above 0, a multiple of the alignment
};

using Buffers = std::vector<Buffer>;
using Offsets = std::vector<Bytes>;

// A moment of the clock past which a planner should give up.
class Deadline {
 public:
  static Deadline never() { return Deadline(Clock::time_point::max()); }
  static Deadline in_seconds(double seconds) {
    return Deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                       std::chrono::duration<double>(seconds)));
  }
  bool passed() const { return moment_ != Clock::time_point::max() && Clock::now() > moment_; }

 private:
  using Clock = std::chrono::steady_clock;
  explicit Deadline(Clock::time_point moment) : moment_(moment) {}
  Clock::time_point moment_;
};

struct Planned {
  Offsets offsets;      // one for each buffer
  std::string planner;  // the one whose plan it is
};

struct PlannerEntry {
  std::string name;
  std::string summary;
  // Nothing where the deadline passed before there was a plan. Buffers are in no particular order.
  std::function<std::optional<Planned>(const Buffers&, const Deadline&)> plan;
  bool hidden = false;
};

Registry<PlannerEntry>& planner_registry();

// max(offset + size).
Bytes height_of(const Buffers& buffers, const Offsets& offsets);
// The greatest sum of sizes alive at once: no plan can be lower.
Bytes peak_of(const Buffers& buffers);

struct PlanOptions {
  std::string planner = "best";
  Bytes alignment = kHostAlignment;
  double seconds = 10;  // that planners which give up may take
};

// A checked plan (validate.h). Throws InputError for an unknown planner, an alignment that is not a
// power of two from 64 to 4096 bytes, sizes that add up to more than there can be, or where no plan
// was found in time.
Plan make_plan(Lifetimes lifetimes, const PlanOptions& options);

// Fills in height and lower bound of a plan that has everything else.
void measure(Plan& plan);

}  // namespace workbench
