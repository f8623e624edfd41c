#include "spool_state.h"

#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace workbench {
namespace {

constexpr std::string_view kHeading = "workbench spool state 1\n";

// Calls `field` with every part of a state, in the order of the file.
template <typename State, typename Field>
void Visit(State& state, Field field) {
  field(state.begun);
  field(state.finished.below);
  field(state.finished.others);
  field(state.threads);
  field(state.scopes);
  field(state.live);
  field(state.freed);
  field(state.taken);
  field(state.next_id);
  field(state.last_time);
  field(state.rows);
  field(state.unmatched_frees);
  field(state.reused_addresses);
  field(state.step);
  field(state.phase);
}

struct Writer {
  std::string& bytes;

  template <typename T>
  void operator()(const T& value) const {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  template <typename T>
  void operator()(const std::vector<T>& values) const {
    (*this)(values.size());
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
};

struct Reader {
  std::string_view& bytes;

  void Take(void* to, std::size_t count) const {
    if (bytes.size() < count) throw std::invalid_argument("the state is cut short");
    if (count != 0) std::memcpy(to, bytes.data(), count);
    bytes.remove_prefix(count);
  }
  template <typename T>
  void operator()(T& value) const {
    Take(&value, sizeof value);
  }
  template <typename T>
  void operator()(std::vector<T>& values) const {
    std::size_t count = 0;
    Take(&count, sizeof count);
    if (count > bytes.size() / sizeof(T)) throw std::invalid_argument("the state is cut short");
    values.resize(count);
    Take(values.data(), count * sizeof(T));
  }
};

}  // namespace

std::string SpoolState::ToBytes() const {
  std::string bytes(kHeading);
  Visit(*this, Writer{bytes});
  return bytes;
}

SpoolState SpoolState::FromBytes(std::string_view bytes) {
  SpoolState state;
  if (bytes.substr(0, kHeading.size()) != kHeading) {
    throw std::invalid_argument("the state does not begin as one");
  }
  bytes.remove_prefix(kHeading.size());
  Visit(state, Reader{bytes});
  if (!bytes.empty()) throw std::invalid_argument("the state is longer than it should be");
  return state;
}

}  // namespace workbench
