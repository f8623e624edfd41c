// What the references share.
#pragma once

#include <signal.h>
#include <unistd.h>
#include <workbench_allocator.h>

#include <cstddef>
#include <cstdio>
#include <cstring>

namespace reference {

// Reaches a private member of an original, where the workbench has to see what has no public way:
// the language lets an explicit instantiation name one. For each, a tag with its type:
//
//     struct Tag { using type = …; friend type reach(Tag); };
//     template struct Reach<Tag, &Class::member>;
//     object.*reach(Tag{})
template <class Tag, typename Tag::type Member>
struct Reach {
  friend typename Tag::type reach(Tag) { return Member; }
};

// False, and says why, where the original's own calls for memory could not be served.
inline bool has_system_memory(const wb_host& host, char* error, std::size_t error_size) {
  if (host.has_memory != 0) return true;
  std::snprintf(error, error_size,
                "it takes its memory from the system by itself; replay it with --backend host");
  return false;
}

// While this lives, a process that dies of a known defect of the original says so in its last
// words. There is one at a time.
class TellsOfTheDefect {
 public:
  // `words`: a line, which outlives this.
  explicit TellsOfTheDefect(const char* words) {
    words_ = words;
    struct sigaction action = {};
    action.sa_handler = &tell;
    for (int i = 0; i < kSignals; ++i) sigaction(kNumbers[i], &action, &before_[i]);
  }
  ~TellsOfTheDefect() { put_back(); }
  TellsOfTheDefect(const TellsOfTheDefect&) = delete;
  TellsOfTheDefect& operator=(const TellsOfTheDefect&) = delete;

 private:
  static void put_back() {
    for (int i = 0; i < kSignals; ++i) sigaction(kNumbers[i], &before_[i], nullptr);
  }
  static void tell(int) {
    // The fault comes again, to whoever would have had it.
    put_back();
    if (write(STDERR_FILENO, words_, std::strlen(words_)) < 0) return;
  }

  static constexpr int kSignals = 3;
  static constexpr int kNumbers[kSignals] = {SIGSEGV, SIGBUS, SIGABRT};
  static inline struct sigaction before_[kSignals];
  static inline const char* words_ = nullptr;
};

}  // namespace reference
