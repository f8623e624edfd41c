#include "pickle_check.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace workbench {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
constexpr std::size_t kLongestNumber = 16;

enum class Kind : std::uint8_t { kAtom, kList, kDict, kTuple };

struct Value {
  std::uint32_t container = kNone;  // its place among the containers; an atom has none
  Kind kind = Kind::kAtom;
  bool from_memo = false;
};

// What is known of a list, dictionary or tuple. A reference to one that is still being filled is
// how a thing comes to hold itself, so the lowest such reference inside each is kept. Containers
// lie on the stack in the order of their numbers, and whatever is above one when it is put into
// another is put there too, or has been; so a reference is open as long as its target is on the
// stack, and one number is enough.
struct Container {
  std::uint32_t depth = 1;
  std::uint32_t lowest_reference = kNone;
  bool on_stack = true;
};

class Checker {
 public:
  explicit Checker(std::string_view pickle) : bytes_(pickle) {}

  void Run() {
    if (bytes_.empty()) throw std::invalid_argument("is empty");
    if (bytes_[0] != '\x80') Fail("is not a pickle of protocol 2 to 5");
    while (!stopped_) Step();
    if (const std::size_t more = bytes_.size() - at_; more != 0) {
      Fail("has " + std::to_string(more) + (more == 1 ? " byte" : " bytes") + " after its end,");
    }
  }

 private:
  void Step() {
    start_ = at_;
    switch (static_cast<unsigned char>(*Take(1))) {
      case 0x80:  // PROTO
        if (const auto version = Number(1); start_ != 0 || version < 2 || version > 5) {
          Fail("is a pickle of a protocol other than 2 to 5");
        }
        break;
      case 0x95:  // FRAME
        if (const auto length = Number(8); length > bytes_.size() - at_) TooLong(length);
        break;
      case '(':
        marks_.push_back(stack_.size());
        break;
      case 'N':
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        PushAtom();
        break;
      case 'J':  // BININT
        Atom(4);
        break;
      case 'K':  // BININT1
        Atom(1);
        break;
      case 'M':  // BININT2
        Atom(2);
        break;
      case 'G':  // BINFLOAT
        Atom(8);
        break;
      case 0x8a:  // LONG1
        Long(Number(1));
        break;
      case 0x8b:  // LONG4
        Long(Number(4));
        break;
      case 0x8c:  // SHORT_BINUNICODE
        Text(Number(1));
        break;
      case 'X':  // BINUNICODE
        Text(Number(4));
        break;
      case 0x8d:  // BINUNICODE8
        Text(Number(8));
        break;
      case 'C':  // SHORT_BINBYTES
        Atom(Number(1));
        break;
      case 'B':  // BINBYTES
        Atom(Number(4));
        break;
      case 0x8e:  // BINBYTES8
        Atom(Number(8));
        break;
      case ']':
        PushContainer(Kind::kList, 0);
        break;
      case '}':
        PushContainer(Kind::kDict, 0);
        break;
      case ')':
        PushContainer(Kind::kTuple, 0);
        break;
      case 0x85:  // TUPLE1
        PushContainer(Kind::kTuple, 1);
        break;
      case 0x86:
        PushContainer(Kind::kTuple, 2);
        break;
      case 0x87:
        PushContainer(Kind::kTuple, 3);
        break;
      case 't':
        PushContainer(Kind::kTuple, PopMark());
        break;
      case 'a':
        Append(1);
        break;
      case 'e':
        Append(PopMark());
        break;
      case 's':
        SetItems(2);
        break;
      case 'u':
        SetItems(PopMark());
        break;
      case 'q':  // BINPUT
        Put(Number(1));
        break;
      case 'r':  // LONG_BINPUT
        Put(Number(4));
        break;
      case 0x94:  // MEMOIZE
        Put(memo_.size());
        break;
      case 'h':  // BINGET
        Get(Number(1));
        break;
      case 'j':  // LONG_BINGET
        Get(Number(4));
        break;
      case '.':
        if (stack_.size() != 1 || !marks_.empty()) Fail("ends with something left over");
        stopped_ = true;
        break;
      default:
        Refuse();
    }
  }

  [[noreturn]] void Fail(const std::string& what) const {
    throw std::invalid_argument(what + " at byte " + std::to_string(start_));
  }

  [[noreturn]] void TooLong(std::uint64_t length) const {
    Fail("claims " + std::to_string(length) + " bytes where " +
         std::to_string(bytes_.size() - at_) + " are left");
  }

  // An operation that plain data does not need.
  [[noreturn]] void Refuse() {
    const auto code = static_cast<unsigned char>(bytes_[start_]);
    std::string name;
    switch (code) {
      case 'c':
      case 'i': {  // GLOBAL, INST: two lines
        const std::string_view rest = bytes_.substr(at_, 200);
        const std::size_t first = rest.find('\n');
        if (first != std::string_view::npos) {
          const std::size_t second = rest.find('\n', first + 1);
          name = Printable(rest.substr(0, first)) + "." +
                 Printable(rest.substr(
                     first + 1, second == std::string_view::npos ? second : second - first - 1));
        }
        Fail("asks to call " + (name.empty() ? "something" : name));
      }
      case 0x93:  // STACK_GLOBAL: the last two texts
        Fail("asks to call " + Printable(texts_[0]) + "." + Printable(texts_[1]));
      case 'R':
      case 'b':
      case 'o':
      case 0x81:
      case 0x92:
      case 0x82:
      case 0x83:
      case 0x84:
        Fail("asks to call something");
      case 'P':
      case 'Q':
      case 0x97:
      case 0x98:
        Fail("asks for data from outside the file");
      default: {
        constexpr char kDigits[] = "0123456789abcdef";
        Fail(std::string("has an operation that plain data does not need (0x") +
             kDigits[code >> 4] + kDigits[code & 15] + ")");
      }
    }
  }

  static std::string Printable(std::string_view text) {
    std::string shown(text.substr(0, 60));
    for (char& letter : shown) {
      if (letter < ' ' || letter > '~') letter = '?';
    }
    return shown;
  }

  const char* Take(std::uint64_t count) {
    if (count > bytes_.size() - at_) {
      if (at_ == start_ || count <= 8) {
        start_ = bytes_.size();
        Fail("is cut short: its end is missing");
      }
      TooLong(count);
    }
    const char* found = bytes_.data() + at_;
    at_ += static_cast<std::size_t>(count);
    return found;
  }

  // Little-endian, `width` of 1 to 8 bytes.
  std::uint64_t Number(std::size_t width) {
    const char* found = Take(width);
    std::uint64_t number = 0;
    for (std::size_t i = width; i-- > 0;) {
      number = number << 8 | static_cast<unsigned char>(found[i]);
    }
    return number;
  }

  void PushAtom() { stack_.push_back({}); }

  void Atom(std::uint64_t length) {
    Take(length);
    PushAtom();
  }

  void Long(std::uint64_t length) {
    if (length > kLongestNumber) Fail("holds a number of " + std::to_string(length) + " bytes");
    Atom(length);
  }

  void Text(std::uint64_t length) {
    texts_[0] = texts_[1];
    const char* found = Take(length);
    texts_[1] = {found, static_cast<std::size_t>(length)};
    // Halves of characters, which Python would read and could not write again.
    for (std::size_t at = texts_[1].find('\xed'); at < texts_[1].size() - 1;
         at = texts_[1].find('\xed', at + 1)) {
      if (static_cast<unsigned char>(texts_[1][at + 1]) >= 0xa0) Fail("has text that is no UTF-8");
    }
    PushAtom();
  }

  // How many values lie above the last mark, which is taken away.
  std::size_t PopMark() {
    if (marks_.empty()) Fail("has no mark where one is needed");
    const std::size_t count = stack_.size() - marks_.back();
    marks_.pop_back();
    return count;
  }

  void Need(std::size_t count) const {
    if (stack_.size() - (marks_.empty() ? 0 : marks_.back()) < count) {
      Fail("needs a value that is not there");
    }
  }

  // Takes the top `count` values into the container numbered `into`.
  void Absorb(std::uint32_t into, std::size_t count) {
    Container& target = containers_[into];
    const std::size_t first = stack_.size() - count;
    for (std::size_t i = first; i < stack_.size(); ++i) {
      const Value& value = stack_[i];
      if (value.kind == Kind::kAtom) continue;
      Container& item = containers_[value.container];
      std::uint32_t lowest = OpenReference(item);
      if (value.from_memo && item.on_stack) lowest = std::min(lowest, value.container);
      if (lowest == into) Fail("holds something that holds itself");
      if (lowest < into) target.lowest_reference = std::min(target.lowest_reference, lowest);
      target.depth = std::max(target.depth, item.depth + 1);
    }
    if (target.depth > kDeepestPickle) {
      Fail("is nested more than " + std::to_string(kDeepestPickle) + " deep");
    }
    // Only now: one item may refer to another.
    for (std::size_t i = first; i < stack_.size(); ++i) {
      const Value& value = stack_[i];
      if (value.kind != Kind::kAtom && !value.from_memo)
        containers_[value.container].on_stack = false;
    }
    stack_.resize(first);
  }

  [[nodiscard]] std::uint32_t OpenReference(const Container& item) const {
    const std::uint32_t lowest = item.lowest_reference;
    return lowest != kNone && containers_[lowest].on_stack ? lowest : kNone;
  }

  void PushContainer(Kind kind, std::size_t count) {
    Need(count);
    const auto number = static_cast<std::uint32_t>(containers_.size());
    if (number == kNone) Fail("holds too many values");
    containers_.emplace_back();
    if (count > 0) Absorb(number, count);
    stack_.push_back({number, kind, false});
  }

  // The container below the top `count` values, to which they are to be added.
  std::uint32_t Target(std::size_t count, Kind kind) const {
    Need(count + 1);
    const Value& target = stack_[stack_.size() - count - 1];
    if (target.kind != kind) Fail("adds to something that cannot be added to");
    if (target.from_memo) Fail("changes something that is complete");
    return target.container;
  }

  void Append(std::size_t count) { Absorb(Target(count, Kind::kList), count); }

  void SetItems(std::size_t count) {
    const std::uint32_t target = Target(count, Kind::kDict);
    if (count % 2 != 0) Fail("has a key without a value");
    for (std::size_t i = stack_.size() - count; i < stack_.size(); i += 2) {
      if (stack_[i].kind != Kind::kAtom) Fail("has a key that is no string or number");
    }
    Absorb(target, count);
  }

  void Put(std::uint64_t place) {
    Need(1);
    Value value = stack_.back();
    value.from_memo = true;
    if (place > memo_.size()) {
      Fail("writes place " + std::to_string(place) + " of a memo of " +
           std::to_string(memo_.size()));
    }
    if (place == memo_.size()) {
      memo_.push_back(value);
    } else {
      memo_[static_cast<std::size_t>(place)] = value;
    }
  }

  void Get(std::uint64_t place) {
    if (place >= memo_.size()) {
      Fail("reads place " + std::to_string(place) + " of a memo of " +
           std::to_string(memo_.size()));
    }
    stack_.push_back(memo_[static_cast<std::size_t>(place)]);
  }

  std::string_view bytes_;
  std::size_t at_ = 0;
  std::size_t start_ = 0;  // of the operation at hand
  bool stopped_ = false;
  std::vector<Value> stack_;
  std::vector<std::size_t> marks_;
  std::vector<Value> memo_;
  std::vector<Container> containers_;
  std::string_view texts_[2];
};

}  // namespace

void CheckPickle(std::string_view pickle) { Checker(pickle).Run(); }

}  // namespace workbench
