// Slots, settings, registries, digests and streams.
#include <string>
#include <vector>

#include "backends/stream_progress.h"
#include "check.h"
#include "core/clock.h"
#include "core/digest.h"
#include "core/errors.h"
#include "core/events.h"
#include "core/registry.h"
#include "core/settings.h"

namespace {

using namespace workbench;

struct Slots {
  std::vector<std::int32_t> slot;
  std::int32_t count;
};

Slots slots_of(const std::vector<Op>& ops, const std::vector<std::int64_t>& ids) {
  std::vector<std::uint8_t> codes;
  for (const Op op : ops) codes.push_back(static_cast<std::uint8_t>(op));
  Slots result{std::vector<std::int32_t>(ops.size()), 0};
  result.count = assign_slots(codes, ids, result.slot);
  return result;
}

using enum Op;

TEST(a_slot_is_used_again_after_the_free) {
  const Slots got = slots_of({kAlloc, kAlloc, kFree, kLive, kFree, kFree}, {5, 6, 5, 7, 7, 6});
  CHECK(got.count == 2);
  CHECK((got.slot == std::vector<std::int32_t>{0, 1, 0, 0, 0, 1}));
}

TEST(ids_far_apart_get_slots_too) {
  const std::int64_t far = std::int64_t{1} << 60;
  const Slots got = slots_of({kAlloc, kAlloc, kFree, kFree}, {-far, far, -far, far});
  CHECK(got.count == 2);
  CHECK((got.slot == std::vector<std::int32_t>{0, 1, 0, 1}));
}

TEST(a_slot_stays_until_the_free_is_complete) {
  const Slots got =
      slots_of({kAlloc, kRecordStream, kFree, kAlloc, kFreeCompleted, kAlloc}, {1, 1, 1, 2, 1, 3});
  CHECK(got.count == 2);
  CHECK((got.slot == std::vector<std::int32_t>{0, 0, 0, 1, 0, 0}));
}

TEST(events_without_an_id_have_no_slot) {
  const Slots got = slots_of({kSynchronize, kEmptyCache, kRecordStream}, {-1, -1, 9});
  CHECK(got.count == 0);
  CHECK((got.slot == std::vector<std::int32_t>{kNoSlot, kNoSlot, kNoSlot}));
}

TEST(ids_that_contradict_themselves_are_errors) {
  CHECK_THROWS(InputError, slots_of({kFree}, {1}));
  CHECK_THROWS(InputError, slots_of({kAlloc, kFree, kFree}, {1, 1, 1}));
  CHECK_THROWS(InputError, slots_of({kAlloc, kAlloc}, {1, 1}));
  CHECK_THROWS(InputError, slots_of({kAlloc, kFree, kAlloc}, {1, 1, 1}));
  CHECK_THROWS(InputError, slots_of({kAlloc, kFreeCompleted}, {1, 1}));
  CHECK_THROWS(InputError, slots_of({kAlloc}, {1, 2}));
}

TEST(a_value_in_double_quotes_is_taken_as_it_is) {
  const std::vector<SettingHelp> known = {{"a", ""}, {"b", ""}, {"c", ""}};
  const Settings settings("a: \"x, y:[z\" , b:\"\",c:p\"q", "test", known);
  CHECK(settings.find("a") == "x, y:[z");
  CHECK(settings.find("b") == "");
  CHECK(settings.find("c") == "p\"q");
  for (const char* wrong : {"a:\"x", "a:\"x\"y", "a:\"x\" y,b:1", "\"a\":x"}) {
    CHECK_THROWS(InputError, Settings(wrong, "test", known));
  }
}

TEST(settings_read_the_syntax_of_pytorch) {
  const std::vector<SettingHelp> known = {{"a", ""}, {"list", ""}, {"number", ""}};
  const Settings settings("a : x , list:[1:2,>:3], number:12,", "test", known);
  CHECK(settings.find("a") == "x");
  CHECK(settings.find("list") == "[1:2,>:3]");
  CHECK(settings.whole_number("number", 0) == 12);
  CHECK(!settings.find("missing"));
  CHECK(!settings.whole_number("missing", 0));
  CHECK_THROWS(InputError, settings.whole_number("number", 13));
  CHECK_THROWS(InputError, settings.whole_number("a", 0));
  for (const char* wrong : {"a", ":x", "b:1", ",", "a:1,,", ",a:1", "a:1,,list:1", "a:1,a:2",
                            "a:1,,a:2", "a:1\n", "a\t:1", "a:\x7f"}) {
    CHECK_THROWS(InputError, Settings(wrong, "test", known));
  }
}

TEST(an_error_about_settings_is_a_whole_sentence) {
  const std::string text("unknown\0:1", 10);
  try {
    const Settings settings(text, "test", {});
    CHECK(false);
  } catch (const InputError& error) {
    CHECK(std::string(error.what()).ends_with("at position 7; write key:value,key:value"));
  }
}

struct Named {
  std::string name;
  bool hidden = false;
};

TEST(a_name_registered_twice_is_a_fault) {
  Registry<Named> registry("thing");
  registry.add({"b"});
  registry.add({"a"});
  CHECK(registry.fault().empty());
  CHECK(registry.entries().front().name == "a");
  CHECK_THROWS(InputError, registry.get("c"));
  registry.add({"a"});
  CHECK(registry.fault() == "two things register the name a");
}

TEST(a_digest_depends_on_values_and_their_order) {
  Digest a;
  Digest b;
  CHECK(a.hex() == b.hex() && a.hex().size() == 16);
  a.add(1);
  a.add(2);
  b.add(2);
  b.add(1);
  CHECK(a.hex() != b.hex());
}

TEST(recorded_work_completes_when_the_trace_says_so) {
  StreamProgress progress(Completion::parse("recorded"));
  const CudaEvent first = progress.record(0);
  const CudaEvent other = progress.record(3);
  const CudaEvent second = progress.record(0);
  CHECK(!progress.completed(first));
  progress.complete_recorded(0, first.sequence);
  CHECK(progress.completed(first) && !progress.completed(second) && !progress.completed(other));
  progress.synchronize(0);
  CHECK(progress.completed(second) && !progress.completed(other));
  progress.synchronize(kAllStreams);
  CHECK(progress.completed(other));
  CHECK(!progress.completed(progress.record(3)));
}

TEST(work_completes_as_the_policy_says) {
  StreamProgress immediate(Completion::parse("immediate"));
  CHECK(immediate.completed(immediate.record(1)));

  StreamProgress never(Completion::parse("never"));
  const CudaEvent pending = never.record(1);
  never.synchronize(1);
  never.complete_recorded(1, pending.sequence);
  CHECK(!never.completed(pending));
  never.wait(pending);
  CHECK(never.completed(pending));

  StreamProgress delayed(Completion::parse("delay:2"));
  delayed.set_now(10);
  const CudaEvent later = delayed.record(1);
  delayed.set_now(11);
  CHECK(!delayed.completed(later));
  delayed.set_now(12);
  CHECK(delayed.completed(later));
  for (const char* wrong : {"", "Recorded", "delay", "delay:", "delay:-1", "delay:x", "delay:1 "}) {
    CHECK_THROWS(InputError, Completion::parse(wrong));
  }
}

TEST(the_clock_advances) {
  const ClockCosts& costs = clock_costs();
  CHECK(costs.ns_per_tick > 0 && costs.pair_ns > 0);
  const std::uint64_t before = ticks_before();
  CHECK(ticks_after() >= before);
}

}  // namespace

int main() { return check::run(); }
