// A hash map from 64-bit keys to small values, for sets that stay much smaller than the stream
// that runs through them (live addresses, live ids).
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace workbench {

// Open addressing with linear probing; removal shifts back instead of leaving a mark, so the map
// does not slow down over millions of insertions and removals. The key `kNoKey` cannot be stored.
template <typename Value>
class FlatMap {
 public:
  static constexpr std::uint64_t kNoKey = ~std::uint64_t{0};

  FlatMap() : slots_(std::size_t{1} << kFirstBits), shift_(64 - kFirstBits) {}

  std::size_t size() const { return size_; }

  // The value of `key`, or null. Holds until the next Insert or Remove.
  Value* Find(std::uint64_t key) {
    for (std::size_t place = Home(key);; place = Next(place)) {
      if (slots_[place].key == key) return key == kNoKey ? nullptr : &slots_[place].value;
      if (slots_[place].key == kNoKey) return nullptr;
    }
  }

  // Calls `see` with each key and its value, in no order.
  template <typename See>
  void ForEach(See see) const {
    for (const Slot& slot : slots_) {
      if (slot.key != kNoKey) see(slot.key, slot.value);
    }
  }

  // `key` must not be in the map.
  void Insert(std::uint64_t key, const Value& value) {
    if ((size_ + 1) * 2 > slots_.size()) Grow();
    Put(key, value);
    ++size_;
  }

  // `value` is what Find gave.
  void Remove(Value* value) {
    // The value lies inside its slot, so the slot's number follows from the distance.
    std::size_t hole = static_cast<std::size_t>(reinterpret_cast<char*>(value) -
                                                reinterpret_cast<char*>(slots_.data())) /
                       sizeof(Slot);
    for (std::size_t place = Next(hole); slots_[place].key != kNoKey; place = Next(place)) {
      const std::size_t home = Home(slots_[place].key);
      // May move back only if its home does not lie between the hole and it (cyclically).
      const bool reachable = ((place - home) & Mask()) >= ((place - hole) & Mask());
      if (reachable) {
        slots_[hole] = slots_[place];
        hole = place;
      }
    }
    slots_[hole].key = kNoKey;
    --size_;
  }

 private:
  static constexpr int kFirstBits = 10;

  struct Slot {
    std::uint64_t key = kNoKey;
    Value value{};
  };

  std::size_t Mask() const { return slots_.size() - 1; }
  std::size_t Next(std::size_t place) const { return (place + 1) & Mask(); }
  std::size_t Home(std::uint64_t key) const {
    return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15U) >> shift_);
  }

  void Put(std::uint64_t key, const Value& value) {
    std::size_t place = Home(key);
    while (slots_[place].key != kNoKey) place = Next(place);
    slots_[place] = {key, value};
  }

  void Grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    --shift_;
    for (const Slot& slot : old) {
      if (slot.key != kNoKey) Put(slot.key, slot.value);
    }
  }

  std::vector<Slot> slots_;
  int shift_;
  std::size_t size_ = 0;
};

}  // namespace workbench
