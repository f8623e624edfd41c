// Squeaky-wheel optimization (Joslin and Clements, 1999) over skyline plans: places all, gives
// precedence to whoever ended above the lower bound, and places again.
#include <algorithm>
#include <numeric>
#include <random>

#include "planners/planner.h"
#include "planners/ranks.h"
#include "planners/skyline.h"

namespace workbench {
namespace {

constexpr const char* kName = "squeaky-wheel";
// Rounds without a lower plan after which it goes back to the order of the lowest, and after which
// it gives up; of many buffers fewer.
constexpr std::size_t kPatience = 100;
constexpr std::size_t kMostInVain = 2000;
constexpr std::size_t kMostPlacedInVain = 2'000'000;
// Rounds in which blame keeps the order of the blamed; after them every second one.
constexpr std::size_t kSteadyRounds = 20;

class SqueakyWheel {
 public:
  explicit SqueakyWheel(const Buffers& buffers)
      : buffers_(buffers), ranks_(buffers), peak_(peak_of(buffers)), key_(buffers.size()) {}

  std::optional<Offsets> plan(const Deadline& deadline) {
    for (skyline::Order& order : skyline::usual_orders(buffers_, ranks_)) {
      ranked_ = std::move(order.ranked);
      if (!place(deadline) || lowest_ == peak_) return std::move(best_);
    }
    go_back();
    const std::size_t most = std::min(kMostInVain, kMostPlacedInVain / buffers_.size() + 1);
    for (std::size_t round = 0, in_vain = 0; lowest_ > peak_ && in_vain < most; ++round) {
      blame(round < kSteadyRounds || round % 2 == 0);
      const Bytes before = lowest_;
      if (!place(deadline)) break;
      in_vain = lowest_ < before ? 0 : in_vain + 1;
      if (in_vain > 0 && in_vain % kPatience == 0) go_back();
    }
    return std::move(best_);
  }

 private:
  // False where the deadline passed.
  bool place(const Deadline& deadline) {
    std::optional<Offsets> offsets = skyline::Skyline(buffers_, ranks_, ranked_).plan(deadline);
    if (!offsets) return false;
    offsets_ = std::move(*offsets);
    const Bytes height = height_of(buffers_, offsets_);
    if (!best_ || height < lowest_) {
      best_ = offsets_;
      best_ranked_ = ranked_;
      lowest_ = height;
    }
    return !deadline.passed();
  }

  void go_back() {
    ranked_ = best_ranked_;
    offsets_ = *best_;
  }

  // Moves what ended above the peak of live bytes ahead in the order: to half its rank, or to a
  // random one before its own.
  void blame(bool by_half) {
    for (std::size_t rank = 0; rank < ranked_.size(); ++rank) {
      const std::uint32_t index = ranks_.order[ranked_[rank]];
      const bool blamed = offsets_[index] + buffers_[index].size > peak_;
      const double part = !blamed ? 1 : by_half ? 0.5 : part_(random_);
      key_[ranked_[rank]] = static_cast<double>(rank) * part;
    }
    std::stable_sort(ranked_.begin(), ranked_.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return key_[a] < key_[b]; });
  }

  const Buffers& buffers_;
  const Ranks ranks_;
  const Bytes peak_;
  std::vector<std::uint32_t> ranked_;  // places (ranks.h), the preferred first
  Offsets offsets_;                    // of ranked_
  std::vector<double> key_;            // by place
  std::optional<Offsets> best_;
  std::vector<std::uint32_t> best_ranked_;
  Bytes lowest_ = 0;
  std::mt19937 random_{1};  // the same plan after the same number of rounds
  std::uniform_real_distribution<> part_{0, 1};
};

std::optional<Planned> plan(const Buffers& buffers, const Deadline& deadline) {
  if (buffers.empty()) return Planned{{}, kName};
  std::optional<Offsets> offsets = SqueakyWheel(buffers).plan(deadline);
  if (!offsets) return std::nullopt;
  return Planned{std::move(*offsets), kName};
}

const bool registered = planner_registry().add({
    .name = kName,
    .summary = "skyline again and again, with precedence for what ended too high",
    .plan = plan,
});

}  // namespace
}  // namespace workbench
