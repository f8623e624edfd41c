// What a pickle may hold, operation by operation.
#include <stdexcept>
#include <string>
#include <string_view>

#include "check.h"
#include "pickle_check.h"

namespace {

using namespace std::string_view_literals;
using workbench::CheckPickle;

// What is said of the pickle; empty where it is plain.
std::string said(std::string_view pickle) {
  try {
    CheckPickle(pickle);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return {};
}

bool says(std::string_view pickle, std::string_view words) {
  return said(pickle).find(words) != std::string::npos;
}

const std::string kStart = "\x80\x02";

}  // namespace

TEST(plain_data_passes) {
  CHECK(said("\x80\x02]q\x00(K\x01M\x02\x00J\x03\x00\x00\x00G\x00\x00\x00\x00\x00\x00\x00\x00"
             "N\x88\x89\x8a\x01\x05)\x85h\x00"
             "0."sv) != "");  // POP is no part of plain data
  CHECK(said("\x80\x02]q\x00(K\x01M\x02\x00J\x03\x00\x00\x00N\x88\x89\x8a\x01\x05)\x85"
             "e."sv)
            .empty());
  CHECK(said("\x80\x04\x95\x08\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01"
             "aK\x01s."sv)
            .empty());
}

TEST(calls_are_refused_by_name) {
  CHECK(
      says("\x80\x02"
           "cos\nsystem\n."sv,
           "asks to call os.system at byte 2"));
  CHECK(says("\x80\x04\x8c\x02os\x8c\x06system\x93."sv, "asks to call os.system"));
  CHECK(says("\x80\x02(ios\nsystem\n."sv, "asks to call os.system"));
  for (const char operation : {'R', 'b', 'o', '\x81', '\x92', '\x82', '\x83', '\x84'}) {
    CHECK(says(kStart + "NN" + operation, "asks to call something at byte 4"));
  }
  for (const char operation : {'P', 'Q', '\x97', '\x98'}) {
    CHECK(says(kStart + operation, "asks for data from outside"));
  }
  CHECK(
      says("\x80\x02"
           "cno end of line"sv,
           "asks to call something"));
}

TEST(other_operations_are_refused) {
  for (const char operation :
       {'0', '1', '2', 'F', 'I',    'L',    'S',    'T',    'U',    'V',
        'g', 'p', 'd', 'l', '\x8f', '\x90', '\x91', '\x96', '\x00', '\xff'}) {
    CHECK(says(kStart + operation, "does not need"));
  }
}

TEST(lengths_beyond_the_end_are_refused) {
  CHECK(
      says("\x80\x02X\x00\xe4\x0b\x54"
           "abc."sv,
           "claims 1410065408 bytes where 4 are left"));
  CHECK(
      says("\x80\x02\x8d\x00\xe4\x0b\x54\x02\x00\x00\x00"
           "abc."sv,
           "claims 10000000000 bytes"));
  CHECK(says("\x80\x04\x95\x00\xe4\x0b\x54\x02\x00\x00\x00N."sv, "claims 10000000000 bytes"));
  CHECK(says("\x80\x02\x8b\xff\xff\xff\x7f."sv, "number of 2147483647 bytes"));
  CHECK(says("\x80\x02\x8a\x11"sv, "number of 17 bytes"));
}

TEST(halves_of_characters_are_refused) {
  CHECK(says("\x80\x04\x8c\x03\xed\xa0\x80."sv, "no UTF-8"));
  CHECK(says("\x80\x04\x8c\x06\xed\x9f\xbf\xed\xbf\xbf."sv, "no UTF-8"));
  CHECK(said("\x80\x04\x8c\x03\xed\x9f\xbf."sv).empty());
  CHECK(said("\x80\x04\x8c\x01\xed."sv).empty());  // for Python to refuse
  CHECK(said("\x80\x04\x8c\x00."sv).empty());
}

TEST(the_memo_cannot_be_made_to_grow) {
  CHECK(says("\x80\x02]r\xff\xff\xff\xff."sv, "writes place 4294967295 of a memo of 0"));
  CHECK(says("\x80\x02]q\x00h\x01."sv, "reads place 1 of a memo of 1"));
  CHECK(says("\x80\x02q\x00."sv, "needs a value"));
}

TEST(ends_are_where_they_belong) {
  CHECK(says(""sv, "is empty"));
  CHECK(says("hello"sv, "not a pickle"));
  CHECK(says("\x80"sv, "cut short"));
  CHECK(says("\x80\x02]"sv, "cut short: its end is missing at byte 3"));
  CHECK(says("\x80\x02N.."sv, "has 1 byte after its end, at byte 3"));
  CHECK(says("\x80\x02."sv, "left over"));
  CHECK(says("\x80\x02NN."sv, "left over"));
  CHECK(says("\x80\x02(N."sv, "left over"));
  CHECK(says("\x80\x01N."sv, "protocol other"));
  CHECK(says("\x80\x06N."sv, "protocol other"));
  CHECK(says("\x80\x02\x80\x02N."sv, "protocol other"));
}

TEST(the_stack_cannot_underflow) {
  for (const char operation : {'a', 's', '\x85', '\x86', '\x87'}) {
    CHECK(says(kStart + operation, "needs a value"));
    CHECK(says(kStart + "]NN(" + operation, "needs a value"));  // not below a mark
  }
  for (const char operation : {'e', 'u', 't'}) CHECK(says(kStart + operation, "no mark"));
  CHECK(says("\x80\x02(e."sv, "needs a value"));
}

TEST(only_lists_and_dictionaries_grow) {
  CHECK(says("\x80\x02NNa."sv, "cannot be added to"));
  CHECK(says("\x80\x02}Na."sv, "cannot be added to"));
  CHECK(says("\x80\x02]NNs."sv, "cannot be added to"));
  CHECK(says("\x80\x02}(Nu."sv, "key without a value"));
  CHECK(says("\x80\x02}]Ns."sv, "key that is no"));
  CHECK(says("\x80\x02})Ns."sv, "key that is no"));
  CHECK(says("\x80\x02]q\x00(h\x00Nae."sv, "changes something that is complete"));
}

TEST(what_holds_itself_is_refused) {
  CHECK(
      says("\x80\x02]q\x00h\x00"
           "a."sv,
           "holds itself"));
  CHECK(
      says("\x80\x02]q\x00]h\x00"
           "aa."sv,
           "holds itself"));
  CHECK(
      says("\x80\x02]q\x00h\x00\x85"
           "a."sv,
           "holds itself"));
  CHECK(says("\x80\x02}q\x00Nh\x00s."sv, "holds itself"));
  // A list that holds another by reference, which then is given the first.
  CHECK(
      says("\x80\x02]q\x00(]q\x01(h\x00"
           "e]h\x01"
           "ae."sv,
           "holds itself"));
  // Shared, though: one list in two places, one of them inside a brother.
  CHECK(said("\x80\x02](]q\x00Nah\x00]h\x00"
             "ae."sv)
            .empty());
  CHECK(said("\x80\x02](](]q\x00Nah\x00"
             "e](h\x00]ee."sv)
            .empty());
}

TEST(nesting_is_bounded) {
  const auto nested = [](std::size_t depth) {
    return kStart + std::string(depth, ']') + std::string(depth - 1, 'a') + ".";
  };
  CHECK(said(nested(workbench::kDeepestPickle)).empty());
  CHECK(says(nested(workbench::kDeepestPickle + 1), "nested more than 64 deep"));
  CHECK(says(nested(100'000), "nested more than 64 deep"));
  CHECK(says(kStart + ")" + std::string(100'000, '\x85') + ".", "nested more than 64 deep"));
}

int main() { return check::run(); }
