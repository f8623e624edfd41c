// Free blocks in best-fit order: by size, then by position. What was tried: docs/caching-speed.md.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/units.h"

namespace workbench::caching {

// Where a block stands in the order of its tree. A tree's shape depends on the positions in it and
// on nothing else, so that equal runs make equal trees.
template <class T>
struct TreeLinks {
  T* parent;
  T* left;
  T* right;
};

// A binary search tree over blocks that hold their own links: adding and removing allocates
// nothing. It is a treap: a parent's priority is above its children's, and priorities are hashes of
// positions, which makes its depth that of a tree built in random order.
//
// T has `position`, unique among the blocks of a tree, and `links`. `Less(a, b)` is a total order.
template <class T, class Less>
class BlockTree {
 public:
  static void add(T*& root, T& block) {
    if (root == nullptr) {
      root = &block;
      block.links = {nullptr, nullptr, nullptr};
      return;
    }
    T** place = &root;
    T* parent = nullptr;
    const std::uint64_t own = priority(block);
    while (*place != nullptr && priority(**place) >= own) {
      parent = *place;
      place = Less()(block, *parent) ? &parent->links.left : &parent->links.right;
    }
    T* rest = *place;
    *place = &block;
    block.links.parent = parent;
    // What was here is parted into what is before the block and what is after it.
    T** before = &block.links.left;
    T** after = &block.links.right;
    T* before_parent = &block;
    T* after_parent = &block;
    while (rest != nullptr) {
      if (Less()(*rest, block)) {
        *before = rest;
        rest->links.parent = before_parent;
        before_parent = rest;
        before = &rest->links.right;
        rest = *before;
      } else {
        *after = rest;
        rest->links.parent = after_parent;
        after_parent = rest;
        after = &rest->links.left;
        rest = *after;
      }
    }
    *before = nullptr;
    *after = nullptr;
  }

  static void remove(T*& root, T& block) {
    T* parent = block.links.parent;
    if (block.links.left == nullptr && block.links.right == nullptr && parent == nullptr) {
      root = nullptr;
      return;
    }
    T** place = parent == nullptr              ? &root
                : parent->links.left == &block ? &parent->links.left
                                               : &parent->links.right;
    T* before = block.links.left;
    T* after = block.links.right;
    while (before != nullptr && after != nullptr) {
      T*& upper = priority(*before) >= priority(*after) ? before : after;
      const bool is_before = &upper == &before;
      T* const block_here = upper;
      *place = block_here;
      block_here->links.parent = parent;
      parent = block_here;
      place = is_before ? &block_here->links.right : &block_here->links.left;
      upper = *place;
    }
    T* const rest = before != nullptr ? before : after;
    *place = rest;
    if (rest != nullptr) rest->links.parent = parent;
  }

  static T* first(T* root) {
    while (root->links.left != nullptr) root = root->links.left;
    return root;
  }

  static T* last(T* root) {
    while (root->links.right != nullptr) root = root->links.right;
    return root;
  }

  // Null after the last.
  static T* next(const T& block) {
    if (block.links.right != nullptr) return first(block.links.right);
    const T* child = &block;
    T* parent = block.links.parent;
    while (parent != nullptr && parent->links.right == child) {
      child = parent;
      parent = parent->links.parent;
    }
    return parent;
  }

  // Null before the first.
  static T* previous(const T& block) {
    if (block.links.left != nullptr) return last(block.links.left);
    const T* child = &block;
    T* parent = block.links.parent;
    while (parent != nullptr && parent->links.left == child) {
      child = parent;
      parent = parent->links.parent;
    }
    return parent;
  }

 private:
  static std::uint64_t priority(const T& block) {
    std::uint64_t hash = block.position * 0x9e3779b97f4a7c15ULL;
    hash ^= hash >> 32;
    return hash * 0xd6e8feb86659fd93ULL;
  }
};

// The free blocks of one stream in one pool. Sizes are parted into bins no wider than 1/32 of the
// sizes in them, each bin has a tree, and bits say which bins have blocks: most calls touch a bit,
// a root, and the block they are after.
template <class T>
class FreeBlocks {
 public:
  bool empty() const { return summary_ == 0; }

  void add(T& block) {
    const std::size_t bin = bin_of(block.size);
    BySize::add(roots_[bin], block);
    words_[bin / 64] |= std::uint64_t{1} << bin % 64;
    summary_ |= std::uint64_t{1} << bin / 64;
  }

  void remove(T& block) {
    const std::size_t bin = bin_of(block.size);
    BySize::remove(roots_[bin], block);
    if (roots_[bin] != nullptr) return;
    words_[bin / 64] &= ~(std::uint64_t{1} << bin % 64);
    if (words_[bin / 64] == 0) summary_ &= ~(std::uint64_t{1} << bin / 64);
  }

  // The first block of at least `size`; null where there is none.
  T* find(Bytes size) const {
    const std::size_t bin = bin_of(size);
    T* found = nullptr;
    for (T* block = roots_[bin]; block != nullptr;) {
      if (block->size >= size) {
        found = block;
        block = block->links.left;
      } else {
        block = block->links.right;
      }
    }
    return found != nullptr ? found : first_after(bin);
  }

  // The block after this one in the order; null after the last.
  T* next(const T& block) const {
    T* const within = BySize::next(block);
    return within != nullptr ? within : first_after(bin_of(block.size));
  }

  T* previous(const T& block) const {
    T* const within = BySize::previous(block);
    return within != nullptr ? within : last_before(bin_of(block.size));
  }

  T* first() const {
    if (empty()) return nullptr;
    const auto word = static_cast<std::size_t>(std::countr_zero(summary_));
    return BySize::first(roots_[word * 64 + low_bit(words_[word])]);
  }

  T* last() const {
    if (empty()) return nullptr;
    const std::size_t word = high_bit(summary_);
    return BySize::last(roots_[word * 64 + high_bit(words_[word])]);
  }

 private:
  struct Less {
    bool operator()(const T& a, const T& b) const {
      return a.size != b.size ? a.size < b.size : a.position < b.position;
    }
  };
  using BySize = BlockTree<T, Less>;

  static constexpr std::size_t kSubBits = 5;
  static constexpr std::size_t kSubBins = std::size_t{1} << kSubBits;
  // Sizes below 2^60 in units of 512 bytes have 51 bits.
  static constexpr std::size_t kBins = (51 - kSubBits + 1) * kSubBins;
  static constexpr std::size_t kWords = (kBins + 63) / 64;
  static_assert(kWords <= 64, "one word sums up all");

  // Ascending in size; one bin each for the smallest. Without a branch: sizes are hard to foresee.
  static std::size_t bin_of(Bytes size) {
    const auto units = static_cast<std::uint64_t>(size) / kDeviceAlignment;
    const auto shift = static_cast<std::size_t>(std::bit_width(units | kSubBins)) - 1 - kSubBits;
    return shift * kSubBins + static_cast<std::size_t>(units >> shift);
  }

  static std::size_t low_bit(std::uint64_t word) {
    return static_cast<std::size_t>(std::countr_zero(word));
  }
  static std::size_t high_bit(std::uint64_t word) {
    return static_cast<std::size_t>(std::bit_width(word)) - 1;
  }
  // The bits of a word above `bit`, and those below it.
  static std::uint64_t above(std::size_t bit) { return ~std::uint64_t{1} << bit; }
  static std::uint64_t below(std::size_t bit) { return (std::uint64_t{1} << bit) - 1; }

  T* first_after(std::size_t bin) const {
    std::size_t word = bin / 64;
    std::uint64_t bits = words_[word] & above(bin % 64);
    if (bits == 0) {
      const std::uint64_t words = summary_ & above(word);
      if (words == 0) return nullptr;
      word = low_bit(words);
      bits = words_[word];
    }
    return BySize::first(roots_[word * 64 + low_bit(bits)]);
  }

  T* last_before(std::size_t bin) const {
    std::size_t word = bin / 64;
    std::uint64_t bits = words_[word] & below(bin % 64);
    if (bits == 0) {
      const std::uint64_t words = summary_ & below(word);
      if (words == 0) return nullptr;
      word = high_bit(words);
      bits = words_[word];
    }
    return BySize::last(roots_[word * 64 + high_bit(bits)]);
  }

  std::uint64_t summary_ = 0;  // which words have bits
  std::array<std::uint64_t, kWords> words_{};
  std::array<T*, kWords * 64> roots_{};
};

}  // namespace workbench::caching
