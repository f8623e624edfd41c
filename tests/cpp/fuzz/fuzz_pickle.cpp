// Any bytes as a pickle: plain data, or refused in words.
#include <stdexcept>
#include <string>

#include "fuzz.h"
#include "pickle_check.h"

std::vector<std::string_view> fuzz_dictionary() {
  using namespace std::string_view_literals;
  return {"\x80\x02"sv,
          "\x80\x04\x95"sv,
          "\x80\x05}\x94(\x8c\x01"
          "aK\x01u."sv,
          "]\x94"sv,
          "}q\x00"sv,
          "(]K\x01"
          "ae"sv,
          "(\x8c\x01"
          "a)u"sv,
          "h\x00"sv,
          "j\x00\x00\x00\x00"sv,
          "r\xff\xff\xff\xff"sv,
          "X\xff\xff\xff\xff"sv,
          "\x8d\xff\xff\xff\xff\xff\xff\xff\xff"sv,
          "\x8a\x01\x02"sv,
          "\x8b\x10\x00\x00\x00"sv,
          "\x85\x86\x87"sv,
          "cos\nsystem\n"sv,
          "\x93R"sv,
          "a."sv,
          "s."sv};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    workbench::CheckPickle(bytes);
    REQUIRE(bytes.back() == '.');
  } catch (const std::invalid_argument& error) {
    REQUIRE(std::string_view(error.what()).size() > 5);
  }
  return 0;
}
