// What this process is doing with a library of the user's, kept in a file that outlives the
// process however it ends: by a signal, by exit(), by being killed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace workbench {

// One word of ours, and the event it belongs to (−1: none). Where no file is named, nothing is
// kept.
class LastWords {
 public:
  static constexpr std::int64_t kNoEvent = -1;

  // Replaces the file. Throws std::runtime_error where it cannot be written.
  static void keep_in(const std::string& path);
  static void say(const char* doing, std::int64_t event = kNoEvent);
  static bool are_kept() { return page_ != nullptr; }

 private:
  struct Page {
    std::int64_t event;
    char doing[56];
  };

 public:
  // Says something for as long as it lives; then what was said before.
  class While {
   public:
    explicit While(const char* doing);
    ~While();
    While(const While&) = delete;
    While& operator=(const While&) = delete;

   private:
    Page before_{};
  };

 private:
  static Page* page_;
};

}  // namespace workbench
