// The least a test program needs: cases that run one after another, and checks that name
// themselves.
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace check {

struct Case {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline bool add(std::string name, std::function<void()> body) {
  cases().push_back({std::move(name), std::move(body)});
  return true;
}

inline void that(bool holds, const char* text, const char* file, int line) {
  if (holds) return;
  ++failures();
  std::printf("  %s:%d: %s does not hold\n", file, line, text);
}

template <class Error, class Call>
bool throws(Call&& call) {
  try {
    call();
  } catch (const Error&) {
    return true;
  }
  return false;
}

inline int run() {
  for (const Case& test : cases()) {
    const int before = failures();
    try {
      test.body();
    } catch (const std::exception& error) {
      ++failures();
      std::printf("  unexpected: %s\n", error.what());
    }
    std::printf("%s: %s\n", failures() == before ? "ok" : "FAILED", test.name.c_str());
  }
  return failures() == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
#define CHECK_THROWS(Error, ...)                                                          \
  check::that(check::throws<Error>([&] { __VA_ARGS__; }), #__VA_ARGS__ " throws " #Error, \
              __FILE__, __LINE__)
#define TEST(name)                                          \
  static void name();                                       \
  static const bool name##_added = check::add(#name, name); \
  static void name()
