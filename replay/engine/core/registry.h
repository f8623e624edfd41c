// Names of things that register themselves while the engine is loaded.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "core/errors.h"

namespace workbench {

// `Entry` has `std::string name` and `bool hidden`. A name that is registered twice is kept as a
// fault, to be raised where the engine is loaded: an exception here would end the process.
template <class Entry>
class Registry {
 public:
  // `kind` names what is registered, for messages.
  explicit Registry(std::string kind) : kind_(std::move(kind)) {}

  bool add(Entry entry) {
    for (const Entry& other : entries_) {
      if (other.name == entry.name) fault_ = "two " + kind_ + "s register the name " + entry.name;
    }
    entries_.insert(
        std::upper_bound(entries_.begin(), entries_.end(), entry,
                         [](const Entry& a, const Entry& b) { return a.name < b.name; }),
        std::move(entry));
    return true;
  }

  // Sorted by name.
  const std::vector<Entry>& entries() const { return entries_; }
  // Empty where all names differ.
  const std::string& fault() const { return fault_; }

  const Entry& get(std::string_view name) const {
    std::string names;
    for (const Entry& entry : entries_) {
      if (entry.name == name) return entry;
      if (!entry.hidden) names += (names.empty() ? "" : ", ") + entry.name;
    }
    throw InputError("unknown " + kind_ + " '" + std::string(name) + "'; there are " + names);
  }

 private:
  std::string kind_;
  std::vector<Entry> entries_;
  std::string fault_;
};

}  // namespace workbench
