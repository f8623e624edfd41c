// Objects that come and go in large numbers without a call of the system for each.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace workbench {

// Memory is taken in pieces of doubling size and given back when this ends.
template <class T>
class Recycled {
 public:
  // As the last user left it.
  T& take() {
    if (unused_.empty()) [[unlikely]]
      grow();
    T* const object = unused_.back();
    unused_.pop_back();
    return *object;
  }
  // The next to be taken: its memory is still in the caches.
  void give(T& object) { unused_.push_back(&object); }

 private:
  void grow() {
    const std::size_t count = next_;
    next_ *= 2;
    pieces_.push_back(std::make_unique<T[]>(count));
    unused_.reserve(2 * count);  // all there are: giving back never allocates
    T* const piece = pieces_.back().get();
    // Lowest on top.
    for (std::size_t i = count; i > 0; --i) unused_.push_back(&piece[i - 1]);
  }

  std::size_t next_ = 64;
  std::vector<std::unique_ptr<T[]>> pieces_;
  std::vector<T*> unused_;
};

}  // namespace workbench
