// The `names` file of a spool: texts get numbers, each kind for itself. The caller holds the lock.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

namespace workbench::spool {

class Names {
 public:
  // Gives `text` a number and writes both; 0 when the disk is full.
  std::uint32_t define(int in_folder, const char* kind, const char* text);
  // For another recording.
  void clear();

 private:
  using Numbers = std::unordered_map<std::string, std::uint32_t>;

  std::unordered_map<std::string, Numbers> numbers_;
  int file_ = -1;
};

// Never destroyed: events still arrive while the process tears down its static objects.
Names& names();

}  // namespace workbench::spool
