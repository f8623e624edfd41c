#include "replayer/reported.h"

#include <array>
#include <string>
#include <utility>

#include "core/errors.h"

namespace workbench {
namespace {

struct Number {
  const char* name;
  bool is_told;
  std::int64_t value;
};

std::string text_of(const Number& number) {
  return std::to_string(number.value) + " " + number.name;
}

}  // namespace

void check_reported(std::size_t event, const Reported& reported, const Statistics& now,
                    Bytes largest_free) {
  const Number requested = {"bytes that the program has", true, now.requested};
  const Number allocated = {"allocated bytes", reported.allocated, now.allocated};
  const Number active = {"active bytes", reported.active, now.active};
  const Number reserved = {"reserved bytes", reported.reserved, now.reserved};
  const Number stranded = {"stranded bytes", reported.stranded, now.stranded};
  const Number largest = {"bytes in the largest free block", reported.largest_free, largest_free};
  const std::string at = " at event " + std::to_string(event);
  for (const Number& number :
       {allocated, active, reserved, stranded, largest,
        Number{"segments", reported.segments, now.n_segment},
        Number{"hits", reported.hits, now.hits}, Number{"misses", reported.misses, now.misses},
        Number{"retries", reported.retries, now.retries}}) {
    if (number.is_told && (number.value < 0 || number.value > kEiB)) {
      throw LibraryFaultError("it reported " + text_of(number) + at + ", which cannot be");
    }
  }
  const std::array<std::pair<Number, Number>, 7> ordered = {{{requested, active},
                                                             {requested, reserved},
                                                             {allocated, active},
                                                             {allocated, reserved},
                                                             {active, reserved},
                                                             {stranded, reserved},
                                                             {largest, reserved}}};
  for (const auto& [less, more] : ordered) {
    if (less.is_told && more.is_told && less.value > more.value) {
      throw LibraryFaultError("it reported " + text_of(more) + at + ", which is less than " +
                              text_of(less));
    }
  }
}

}  // namespace workbench
