#include "planners/validate.h"

#include <algorithm>
#include <map>
#include <string>

#include "core/errors.h"

namespace workbench {
namespace {

[[noreturn]] void fail(const std::string& problem) {
  throw InputError("a broken plan: " + problem);
}

std::string text_of(const Plan& plan, std::size_t id) {
  return "id " + std::to_string(id) + " (bytes " + std::to_string(plan.offset[id]) + " to " +
         std::to_string(plan.offset[id] + plan.lifetimes.size[id]) + ", alive from " +
         std::to_string(id) + " to " + std::to_string(plan.lifetimes.end[id]) + ")";
}

}  // namespace

void check_columns(const Plan& plan) {
  const Lifetimes& lifetimes = plan.lifetimes;
  const std::size_t count = lifetimes.count();
  if (lifetimes.end.size() != count || plan.offset.size() != count) {
    fail("its columns differ in length");
  }
  for (std::size_t id = 0; id < count; ++id) {
    const auto name = [id] { return "id " + std::to_string(id) + " "; };
    if (lifetimes.size[id] <= 0 || lifetimes.size[id] >= kEiB) {
      fail(name() + "has a size of " + std::to_string(lifetimes.size[id]) + " bytes");
    }
    const PlanTime end = lifetimes.end[id];
    const Bytes offset = plan.offset[id];
    if (end == kUnmanaged && offset == kNoOffset) continue;
    if (end <= static_cast<PlanTime>(id) || end > static_cast<PlanTime>(count)) {
      fail(name() + "has a lifetime that ends at " + std::to_string(end) + ", outside " +
           std::to_string(id + 1) + " to " + std::to_string(count));
    }
    if (offset < 0 || offset >= 4 * kEiB) {
      fail(name() + "lies at offset " + std::to_string(offset));
    }
    if (offset % plan.alignment != 0) {
      fail(name() + "lies at offset " + std::to_string(offset) + ", not a multiple of " +
           std::to_string(plan.alignment));
    }
  }
}

void check_alignment(Bytes alignment) {
  if (alignment < kHostAlignment || alignment > 4096 || (alignment & (alignment - 1)) != 0) {
    throw InputError("alignment " + std::to_string(alignment) +
                     " is not a power of two from 64 to 4096 bytes");
  }
}

void validate(const Plan& plan) {
  check_alignment(plan.alignment);
  check_columns(plan);
  const std::size_t count = plan.lifetimes.count();
  std::vector<std::size_t> by_end;
  for (std::size_t id = 0; id < count; ++id) {
    if (plan.lifetimes.end[id] != kUnmanaged) by_end.push_back(id);
  }
  std::stable_sort(by_end.begin(), by_end.end(), [&](std::size_t a, std::size_t b) {
    return plan.lifetimes.end[a] < plan.lifetimes.end[b];
  });
  std::map<Bytes, std::size_t> live;  // offset → id
  auto ended = by_end.begin();
  for (std::size_t id = 0; id < count; ++id) {
    for (; ended != by_end.end() && plan.lifetimes.end[*ended] <= static_cast<PlanTime>(id);
         ++ended) {
      live.erase(plan.offset[*ended]);
    }
    if (plan.lifetimes.end[id] == kUnmanaged) continue;
    const auto above = live.lower_bound(plan.offset[id]);
    const auto check = [&](std::size_t low, std::size_t high) {
      if (plan.offset[low] + plan.lifetimes.size[low] <= plan.offset[high]) return;
      fail(text_of(plan, std::min(low, high)) + " and " + text_of(plan, std::max(low, high)) +
           " overlap");
    };
    if (above != live.end()) check(id, above->second);
    if (above != live.begin()) check(std::prev(above)->second, id);
    live.emplace(plan.offset[id], id);
  }
}

}  // namespace workbench
