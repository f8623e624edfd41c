#include "core/thread_events.h"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "core/errors.h"

namespace workbench {

Order parse_order(std::string_view text) {
  const auto found = std::find(kOrderNames.begin(), kOrderNames.end(), text);
  if (found == kOrderNames.end()) {
    throw InputError("order '" + std::string(text) + "' is unknown; use global, handoff or free");
  }
  return static_cast<Order>(found - kOrderNames.begin());
}

std::size_t thread_count(const Events& events) {
  std::vector<ThreadId> threads(events.thread.begin(), events.thread.end());
  std::sort(threads.begin(), threads.end());
  return static_cast<std::size_t>(std::unique(threads.begin(), threads.end()) - threads.begin());
}

ThreadEvents::ThreadEvents(const Events& events, Order order)
    : order_(order), slots_(events.count(), kNoSlot), links_(events.count()), events_(events) {
  const std::size_t count = events.count();
  if (count >= kNone) {
    throw InputError("more than " + std::to_string(kNone) +
                     " events, too many for several threads; replay them in the order global");
  }
  std::unordered_map<ThreadId, std::size_t> part_of;
  for (std::size_t i = 0; i < count; ++i) {
    const auto [found, is_new] = part_of.try_emplace(events.thread[i], parts_.size());
    if (is_new) parts_.push_back({events.thread[i], {}});
    parts_[found->second].events.push_back(static_cast<Index>(i));
  }

  // Allocations of one thread get neighbouring slots: threads write to memory of their own.
  std::int32_t slot_count = 0;
  for (const Part& part : parts_) {
    for (const Index i : part.events) {
      const Op op = events.op_at(i);
      if (op == Op::kAlloc || op == Op::kLive) slots_[i] = slot_count++;
    }
  }

  // The events on a block follow each other; the trace's slot tells the block.
  std::vector<Index> last(static_cast<std::size_t>(events.slot_count), kNone);
  std::vector<Index> before(count, kNone);
  std::vector<bool> crosses(static_cast<std::size_t>(slot_count));  // from thread to thread
  for (std::size_t i = 0; i < count; ++i) {
    if (events.slot[i] == kNoSlot) continue;
    Index& latest = last[static_cast<std::size_t>(events.slot[i])];
    const Op op = events.op_at(i);
    if (op != Op::kAlloc && op != Op::kLive) {
      if (latest == kNone) {  // of a block that nobody allocated: nothing will live there
        slots_[i] = slot_count;
        continue;
      }
      before[i] = latest;
      slots_[i] = slots_[latest];
      if (events.thread[i] != events.thread[latest]) {
        crosses[static_cast<std::size_t>(slots_[i])] = true;
      }
    }
    latest = static_cast<Index>(i);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const Index earlier = before[i];
    if (earlier == kNone || !crosses[static_cast<std::size_t>(slots_[i])]) continue;
    // Where threads wait, only what another did needs waiting for. Where none does, an event may
    // have been left to another thread, and so all of the block's are told.
    if (order == Order::kHandoff && events.thread[i] == events.thread[earlier]) continue;
    links_[i].meeting = static_cast<Index>(meetings_++);
    links_[earlier].next = static_cast<Index>(i);
  }
  events_.slot = slots_;
  events_.slot_count = slot_count + 1;
}

}  // namespace workbench
