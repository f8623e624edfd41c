#include "allocators/plan.h"

#include <algorithm>
#include <numeric>

#include "core/errors.h"

namespace workbench {
namespace {

std::string bytes_text(Bytes size) { return std::to_string(size) + " bytes"; }

}  // namespace

PlanAllocator::PlanAllocator(Backend& backend, std::shared_ptr<const Plan> plan, Options options)
    : Replayed(backend), options_(options) {
  load(std::move(plan));
}

PlanAllocator::~PlanAllocator() { give_arena(); }

void PlanAllocator::load(std::shared_ptr<const Plan> plan) {
  plan_ = std::move(plan);
  planned_.clear();
  by_end_.clear();
  has_addresses_ = false;
  if (plan_ == nullptr) return;
  const Lifetimes& lifetimes = plan_->lifetimes;
  planned_.resize(lifetimes.count());
  for (std::size_t id = 0; id < planned_.size(); ++id) {
    Block& block = planned_[id];
    block.requested = lifetimes.size[id];
    block.held = round_up(block.requested, plan_->alignment);
    block.end = lifetimes.end[id];
    block.place = plan_->offset[id];
    block.source = Source::kArena;
    if (block.end != kUnmanaged) by_end_.push_back(static_cast<std::int64_t>(id));
  }
  std::stable_sort(by_end_.begin(), by_end_.end(),
                   [&](std::int64_t a, std::int64_t b) { return at(a).end < at(b).end; });
  std::int64_t ended = 0;
  for (std::size_t id = 0; id < planned_.size(); ++id) {
    while (ended < static_cast<std::int64_t>(by_end_.size()) &&
           at(by_end_[static_cast<std::size_t>(ended)]).end <= static_cast<PlanTime>(id)) {
      ++ended;
    }
    planned_[id].frees_before = ended;
  }
}

void PlanAllocator::set_plan(std::shared_ptr<const Plan> plan) {
  if (live_planned_ > 0) {
    throw EngineError("a plan cannot be set while " + std::to_string(live_planned_) +
                      " blocks of the last are alive");
  }
  load(std::move(plan));
  free_ranges_.reset();
  begin_plan();
}

void PlanAllocator::begin_plan() {
  stopped_ = false;
  armed_ = false;
  // A plan of some steps begins with the first of them.
  if (plan_ != nullptr && plan_->step_count == 0) arm();
}

void PlanAllocator::program_begins() { begin_plan(); }

void PlanAllocator::program_ends() { stopped_ = true; }

void PlanAllocator::step_begins(std::int32_t step) {
  if (plan_ == nullptr || plan_->step_count == 0 || stopped_) return;
  const bool begins = !armed_ && step >= plan_->first_step;
  const bool begins_again = armed_ && options_.rearms && step - armed_step_ >= plan_->step_count;
  if (!begins && !begins_again) return;
  armed_step_ = step;
  arm();
}

// The ids begin at 0.
void PlanAllocator::arm() {
  // What lives on in the arena was to be free by now, and keeps its bytes from others.
  if (armed_ && live_planned_ > static_cast<std::int64_t>(overdue_.size())) {
    for (Block& block : planned_) {
      if (block.state == State::kLive) become_overdue(block, "alive when the plan begins again");
    }
  }
  take_arena();
  armed_ = true;
  doubt_ = !overdue_.empty();
  now_ = 0;
  freed_ = 0;
  looked_at_ = 0;
}

void PlanAllocator::take_arena() {
  // A mapping of its own, which starts at a page, where 64 bytes are not enough.
  const Bytes least = plan_->alignment > kHostAlignment ? 64 * kKiB : 0;
  const Bytes size = plan_->height == 0 ? 0 : std::max(plan_->height, least);
  arena_refused_ = false;
  if (size > arena_size_) {
    give_arena();
    arena_ = backend_.allocate(size);
    arena_refused_ = arena_ == 0;
    if (arena_refused_) return;
    arena_size_ = size;
    counts_.arena = size;
    statistics_.reserved += size;
    ++statistics_.n_segment;
    ++statistics_.device_allocs;
    has_addresses_ = false;
    free_ranges_.reset();
  }
  if (has_addresses_) return;
  has_addresses_ = true;
  for (Block& block : planned_) {
    block.address = arena_ + static_cast<std::uint64_t>(block.place);
  }
}

void PlanAllocator::give_arena() {
  if (arena_ == 0) return;
  backend_.release(arena_, arena_size_);
  statistics_.reserved -= arena_size_;
  --statistics_.n_segment;
  ++statistics_.device_frees;
  arena_ = 0;
  arena_size_ = 0;
}

Allocation PlanAllocator::allocate(Bytes size, StreamId, ThreadId thread) {
  if (size == 0) return Allocation::nothing();
  if (!armed_ || thread != plan_->thread) {
    ++(armed_ ? counts_.other_threads : counts_.outside);
    return take_raw(size, Source::kRaw);
  }
  const PlanTime id = now_;
  if (id >= static_cast<PlanTime>(planned_.size())) [[unlikely]] {
    mismatch(id, "the end of the plan, which has " + std::to_string(planned_.size()) + " ids",
             "an allocation of " + bytes_text(size));
    ++now_;
    return take_raw(size, Source::kFallback);
  }
  Block& block = at(id);
  if (arena_refused_) [[unlikely]] {
    ++now_;
    if (block.end == kUnmanaged) return take_raw(size, Source::kRaw);
    ++statistics_.misses;
    ++statistics_.ooms;
    cause_ = Cause::kDriverCall;
    return Allocation::refused();
  }
  // Up to the first mismatch every free was in time, so that their number tells whether any is
  // missing.
  if (doubt_ || freed_ != block.frees_before) [[unlikely]] {
    begin_doubt();
    look_for_overdue(id);
  }
  if (block.requested != size) [[unlikely]] {
    mismatch(id, "an allocation of " + bytes_text(block.requested), "one of " + bytes_text(size));
    ++now_;
    return take_raw(size, Source::kFallback);
  }
  if (block.end == kUnmanaged) {
    ++now_;
    ++counts_.unmanaged;
    return take_raw(size, Source::kRaw);
  }
  ++now_;
  if (!overdue_.empty() && overlaps_overdue(block)) [[unlikely]] {
    return take_raw(size, Source::kFallback);
  }
  block.state = State::kLive;
  ++live_planned_;
  live_planned_bytes_ += block.held;
  ++counts_.planned;
  ++statistics_.hits;
  count(block, 1);
  if (free_ranges_) free_ranges_->take(block.place, block.held);
  cause_ = Cause::kServedFromCache;
  return {block.address, &block};
}

void PlanAllocator::free(void* handle, ThreadId) {
  Block& block = *static_cast<Block*>(handle);
  if (block.source != Source::kArena) {
    give_raw(block);
    return;
  }
  if (block.state == State::kOverdue) {
    overdue_.erase(block.place);
  } else if (block.end == now_) {
    ++freed_;
  } else if (!stopped_) {
    mismatch(id_of(block), "a free at " + std::to_string(block.end),
             "one at " + std::to_string(now_));
  }
  block.state = State::kIdle;
  --live_planned_;
  live_planned_bytes_ -= block.held;
  count(block, -1);
  if (free_ranges_) free_ranges_->give(block.place, block.held);
  cause_ = Cause::kServedFromCache;
}

Allocation PlanAllocator::take_raw(Bytes size, Source source) {
  ++statistics_.misses;
  const std::uint64_t address = backend_.allocate(size);
  cause_ = backend_cause();
  if (address == 0) {
    ++statistics_.ooms;
    return Allocation::refused();
  }
  ++statistics_.device_allocs;
  Block* block = unused_;
  if (block == nullptr) {
    block = &raw_.emplace_back();
  } else {
    unused_ = block->next_unused;
  }
  *block = {.address = address,
            .requested = size,
            .held = size,
            .place = serial_++,
            .state = State::kLive,
            .source = source};
  statistics_.reserved += size;
  ++statistics_.n_segment;
  count(*block, 1);
  if (source == Source::kFallback) {
    ++counts_.fallback;
    counts_.fallback_bytes += size;
    live_fallback_ += size;
    counts_.peak_fallback = std::max(counts_.peak_fallback, live_fallback_);
  }
  return {address, block};
}

void PlanAllocator::give_raw(Block& block) {
  backend_.release(block.address, block.held);
  cause_ = Cause::kDriverCall;
  ++statistics_.device_frees;
  statistics_.reserved -= block.held;
  --statistics_.n_segment;
  count(block, -1);
  if (block.source == Source::kFallback) live_fallback_ -= block.held;
  block.state = State::kIdle;
  block.next_unused = unused_;
  unused_ = &block;
}

void PlanAllocator::mismatch(PlanTime id, const std::string& expected, const std::string& got) {
  if (!options_.falls_back) {
    stopped_ = true;
    armed_ = false;
    throw PlanMismatchError(id, expected, got);
  }
  ++counts_.mismatches;
  begin_doubt();
}

void PlanAllocator::begin_doubt() {
  if (doubt_) return;
  doubt_ = true;
  // Everything that was to be freed before the last allocation was.
  const PlanTime last = std::min(now_, static_cast<PlanTime>(planned_.size())) - 1;
  looked_at_ = last < 0 ? 0 : static_cast<std::size_t>(at(last).frees_before);
}

void PlanAllocator::look_for_overdue(PlanTime now) {
  for (; looked_at_ < by_end_.size() && at(by_end_[looked_at_]).end <= now; ++looked_at_) {
    Block& block = at(by_end_[looked_at_]);
    if (block.state == State::kLive) {
      become_overdue(block, "alive at " + std::to_string(now));
    }
  }
}

void PlanAllocator::become_overdue(Block& block, const std::string& got) {
  mismatch(id_of(block), "a free at " + std::to_string(block.end), got);
  block.state = State::kOverdue;
  overdue_.emplace(block.place, block.place + block.held);
}

bool PlanAllocator::overlaps_overdue(const Block& block) const {
  const auto above = overdue_.lower_bound(block.place + block.held);
  return above != overdue_.begin() && std::prev(above)->second > block.place;
}

void PlanAllocator::count(const Block& block, std::int64_t sign) {
  statistics_.requested += sign * block.requested;
  statistics_.allocated += sign * block.held;
  statistics_.active = statistics_.allocated;
  statistics_.n_alloc += sign;
  statistics_.n_active = statistics_.n_alloc;
}

Location PlanAllocator::locate(const void* handle) const {
  const Block& block = *static_cast<const Block*>(handle);
  const auto place = static_cast<std::uint64_t>(block.place);
  return block.source == Source::kArena ? Location{0, place} : Location{place, 0};
}

void PlanAllocator::visit(const std::function<void(const BlockView&)>& visitor) const {
  std::map<Bytes, const Block*> in_arena;
  for (const Block& block : planned_) {
    if (block.state != State::kIdle) in_arena.emplace(block.place, &block);
  }
  const auto show_arena = [&](Bytes offset, Bytes size, const Block* block) {
    if (size == 0) return;
    visitor({0, arena_, arena_size_, 0, "", false, static_cast<std::uint64_t>(offset), size,
             block == nullptr ? 0 : block->requested,
             block == nullptr ? BlockState::kInactive : BlockState::kActiveAllocated, block});
  };
  Bytes shown = 0;
  for (const auto& [offset, block] : in_arena) {
    show_arena(shown, offset - shown, nullptr);
    show_arena(offset, block->held, block);
    shown = offset + block->held;
  }
  show_arena(shown, arena_size_ - shown, nullptr);

  std::map<std::int64_t, const Block*> raw;
  for (const Block& block : raw_) {
    if (block.state != State::kIdle) raw.emplace(block.place, &block);
  }
  for (const auto& [serial, block] : raw) {
    visitor({static_cast<std::uint64_t>(serial), block->address, block->held, 0, "", false, 0,
             block->held, block->requested, BlockState::kActiveAllocated, block});
  }
}

Bytes PlanAllocator::largest_free() const {
  if (!free_ranges_) {
    free_ranges_.emplace();
    if (arena_size_ > 0) free_ranges_->give(0, arena_size_);
    for (const Block& block : planned_) {
      if (block.state != State::kIdle) free_ranges_->take(block.place, block.held);
    }
  }
  return free_ranges_->largest();
}

Statistics PlanAllocator::statistics() const {
  Statistics now = statistics_;
  if (live_planned_ > 0) now.stranded = arena_size_ - live_planned_bytes_;
  return now;
}

std::vector<std::string> PlanAllocator::warnings() const {
  std::vector<std::string> warnings;
  if (plan_ == nullptr) return warnings;
  if (options_.rearms && plan_->step_count == 0) {
    warnings.push_back(
        "rearm:step does nothing for a plan of the whole trace; plan some steps with steps:A:B");
  }
  if (plan_->height > backend_.capacity()) {
    warnings.push_back("the plan's arena of " + bytes_text(plan_->height) +
                       " is more than the capacity, so that nothing planned can be served");
  }
  return warnings;
}

namespace {

const bool registered = allocator_registry().add({
    .name = "plan",
    .summary = "a static plan made from the traffic (c10/mobile/CPUProfilingAllocator)",
    .kind = AllocatorKind::kCpu,
    .create = [](Backend& backend, const Settings& settings) -> std::unique_ptr<Allocator> {
      if (settings.find("file")) {
        for (const char* key : {"planner", "alignment", "steps", "thread", "seconds"}) {
          if (settings.find(key)) settings.refuse(key, "the plan's file says it; leave it out");
        }
      }
      const auto chooses = [&](const char* key, const char* usual, const char* other) {
        const std::string_view value = settings.find(key).value_or(usual);
        if (value != usual && value != other) {
          settings.refuse(key, std::string("give ") + usual + " or " + other);
        }
        return value == other;
      };
      return std::make_unique<PlanAllocator>(
          backend, settings.plan(),
          PlanAllocator::Options{.falls_back = chooses("on_mismatch", "strict", "fallback"),
                                 .rearms = chooses("rearm", "never", "step")});
    },
    .settings = {{"planner", "who makes the plan: best (default), greedy, skyline, …"},
                 {"file", "a plan written by wb plan, instead of one made of the trace itself"},
                 {"alignment", "of every planned block: 64 (default), a power of two up to 4096"},
                 {"steps",
                  "A:B, the steps from A up to, not including, B that the plan is made of"},
                 {"thread", "whose allocations are planned; by default of who makes most"},
                 {"seconds", "that planners which can give up may take: 10"},
                 {"on_mismatch", "strict (default) ends the replay; fallback takes raw memory"},
                 {"rearm", "never (default), or step: begin the plan again after its steps"}},
    .runs_plan = true,
});

}  // namespace
}  // namespace workbench
