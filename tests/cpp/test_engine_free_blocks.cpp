// The structures below caching against the standard library's, under random operations.
#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "allocators/caching_blocks.h"
#include "allocators/free_blocks.h"
#include "allocators/recycled.h"
#include "check.h"

namespace {

using namespace workbench;
using caching::BlockTree;
using caching::FreeBlocks;
using caching::TreeLinks;

struct Item {
  std::uint64_t position = 0;
  Bytes size = 0;
  TreeLinks<Item> links{};
};

struct BestFit {
  bool operator()(const Item* a, const Item* b) const {
    return std::tie(a->size, a->position) < std::tie(b->size, b->position);
  }
};
struct ByPosition {
  bool operator()(const Item& a, const Item& b) const { return a.position < b.position; }
  bool operator()(const Item* a, const Item* b) const { return a->position < b->position; }
};

using Set = std::set<const Item*, BestFit>;

const Item* after(const Set& set, Set::const_iterator place) {
  return place == set.end() || std::next(place) == set.end() ? nullptr : *std::next(place);
}
const Item* before(const Set& set, Set::const_iterator place) {
  return place == set.begin() ? nullptr : *std::prev(place);
}
const Item* at_least(const Set& set, Bytes size) {
  Item key;
  key.size = size;
  const auto found = set.lower_bound(&key);
  return found == set.end() ? nullptr : *found;
}

// Positions in any order; sizes from few (many equal), from all bins, or beside bins' limits.
std::vector<Item> random_items(std::mt19937_64& random, std::size_t count, int kind) {
  std::vector<Item> items(count);
  for (std::size_t i = 0; i < count; ++i) items[i].position = (i + 1) * 512;
  std::shuffle(items.begin(), items.end(), random);
  for (Item& item : items) {
    const auto bits = random() % 50;
    const Bytes power = Bytes{512} << bits;
    item.size = kind == 0 ? 512 * static_cast<Bytes>(1 + random() % 4)
                : kind == 1
                    ? std::max<Bytes>(512, (power + power / 32 * (random() % 32)) & -512)
                    : std::max<Bytes>(512, power + 512 * (static_cast<Bytes>(random() % 3) - 1));
  }
  return items;
}

TEST(free_blocks_are_found_as_in_an_ordered_set) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 9; ++round) {
    std::vector<Item> items = random_items(random, 400, round % 3);
    const auto free = std::make_unique<FreeBlocks<Item>>();
    Set set;
    CHECK(free->empty() && free->first() == nullptr && free->last() == nullptr);
    for (int i = 0; i < 6000; ++i) {
      Item& item = items[random() % items.size()];
      // Fills up, and empties again, so that bins come and go.
      const bool wants_more = i / 1000 % 2 == 0;
      if (set.contains(&item)) {
        if (!wants_more || random() % 3 == 0) {
          free->remove(item);
          set.erase(&item);
        }
      } else if (wants_more || random() % 3 == 0) {
        free->add(item);
        set.insert(&item);
      }
      CHECK(free->empty() == set.empty());
      CHECK(free->first() == (set.empty() ? nullptr : *set.begin()));
      CHECK(free->last() == (set.empty() ? nullptr : *set.rbegin()));
      const Bytes wanted = items[random() % items.size()].size;
      for (const Bytes size : {wanted, wanted - 512, wanted + 512}) {
        CHECK(size <= 0 || free->find(size) == at_least(set, size));
      }
      const auto place = set.find(&item);
      if (place != set.end()) {
        CHECK(free->next(item) == after(set, place));
        CHECK(free->previous(item) == before(set, place));
      }
    }
    // From either end to the other.
    Item* item = free->first();
    for (const Item* const expected : set) {
      CHECK(item == expected);
      item = free->next(*item);
    }
    CHECK(item == nullptr);
    item = free->last();
    for (auto expected = set.rbegin(); expected != set.rend(); ++expected) {
      CHECK(item == *expected);
      item = free->previous(*item);
    }
    CHECK(item == nullptr);
  }
}

TEST(a_tree_keeps_its_order_and_its_links) {
  using Tree = BlockTree<Item, ByPosition>;
  std::mt19937_64 random(6);
  std::vector<Item> items = random_items(random, 1000, 0);
  std::set<Item*, ByPosition> set;
  Item* root = nullptr;
  for (int i = 0; i < 20000; ++i) {
    Item& item = items[random() % items.size()];
    if (set.erase(&item) > 0) {
      Tree::remove(root, item);
    } else {
      Tree::add(root, item);
      set.insert(&item);
    }
    CHECK((root == nullptr) == set.empty());
    CHECK(root == nullptr || root->links.parent == nullptr);
    if (set.empty()) continue;
    CHECK(Tree::first(root) == *set.begin() && Tree::last(root) == *set.rbegin());
    const auto place = set.find(&item);
    if (place == set.end()) continue;
    CHECK(Tree::next(item) == (std::next(place) == set.end() ? nullptr : *std::next(place)));
    CHECK(Tree::previous(item) == (place == set.begin() ? nullptr : *std::prev(place)));
  }
  while (!set.empty()) {
    CHECK(Tree::first(root) == *set.begin());
    Tree::remove(root, **set.begin());
    set.erase(set.begin());
  }
  CHECK(root == nullptr);
}

// What makes equal runs make equal trees, and keeps them shallow however they grow.
TEST(a_trees_shape_depends_on_what_is_in_it_alone) {
  using Tree = BlockTree<Item, ByPosition>;
  std::mt19937_64 random(7);
  std::vector<Item> ascending(5000);
  for (std::size_t i = 0; i < ascending.size(); ++i) ascending[i].position = (i + 1) * 512;
  std::vector<Item> shuffled = ascending;
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  Item* a = nullptr;
  Item* b = nullptr;
  for (Item& item : ascending) Tree::add(a, item);
  for (Item& item : shuffled) Tree::add(b, item);
  for (std::size_t i = 0; i < 500; ++i) {  // what came and went leaves no trace
    Tree::remove(b, shuffled[i]);
    Tree::add(b, shuffled[i]);
  }
  const auto position = [](const Item* item) { return item == nullptr ? 0 : item->position; };
  int deepest = 0;
  for (Item *x = Tree::first(a), *y = Tree::first(b); x != nullptr;
       x = Tree::next(*x), y = Tree::next(*y)) {
    CHECK(y != nullptr && x->position == y->position);
    CHECK(position(x->links.parent) == position(y->links.parent));
    int depth = 0;
    for (const Item* item = x; item != nullptr; item = item->links.parent) ++depth;
    deepest = std::max(deepest, depth);
  }
  CHECK(deepest <= 50);  // 13 at the least; 5000 for a list
}

TEST(a_recycled_object_is_nobody_elses) {
  std::mt19937_64 random(8);
  Recycled<Item> recycled;
  std::vector<Item*> taken;
  std::set<Item*> held;
  for (std::uint64_t i = 0; i < 30000; ++i) {
    if (taken.empty() || random() % 100 < (i < 15000 ? 60 : 40)) {
      Item& item = recycled.take();
      CHECK(held.insert(&item).second);
      item.position = reinterpret_cast<std::uintptr_t>(&item);
      taken.push_back(&item);
    } else {
      std::swap(taken[random() % taken.size()], taken.back());
      Item& item = *taken.back();
      taken.pop_back();
      CHECK(item.position == reinterpret_cast<std::uintptr_t>(&item));
      held.erase(&item);
      recycled.give(item);
      Item& again = recycled.take();
      CHECK(&again == &item);  // the last given is the next taken
      recycled.give(again);
    }
  }
}

TEST(pending_cuda_events_stay_in_order) {
  caching::PendingQueue queue;
  std::vector<caching::Block> blocks(1000);
  std::size_t pushed = 0;
  std::size_t popped = 0;
  std::mt19937_64 random(9);
  while (popped < blocks.size()) {
    if (pushed < blocks.size() && random() % 5 < 3) {
      queue.push({{0, pushed + 1, 0}, &blocks[pushed]});
      ++pushed;
    } else if (!queue.empty()) {
      CHECK(queue.front().block == &blocks[popped] && queue.front().event.sequence == popped + 1);
      queue.pop();
      ++popped;
    }
    CHECK(queue.empty() == (pushed == popped));
  }
}

}  // namespace

int main() { return check::run(); }
