/// \file
/// The invariants of a buddy tree that no thread works on: every word and every list is looked at.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <vector>

#include "buddy.hpp"
#include "support/threads.hpp"

namespace orderly::test {

/// The word of a block that is handed out, of which every byte was requested.
[[nodiscard]] inline std::uint64_t live_bits(unsigned sixteenths) {
  return detail::block_word::live(sixteenths, 0, 0).bits();
}

/// A block of the tree, free or not.
struct tree_block {
  detail::node n;
  block_state state = block_state::none;
  std::uint64_t granule = 0;
  std::uint64_t granules = 0;
};

/// Walks the tree from its roots. Finds fault unless each granule lies in exactly one block, no word says anything that
/// the walk does not explain, and no two buddies are free (B3).
class tree_audit {
 public:
  tree_audit(const detail::buddy& tree, const detail::geometry& shape, findings& found)
      : tree_(tree), shape_(shape), found_(found) {
    const std::uint64_t root = std::uint64_t{1} << shape.root_order;
    for (std::uint64_t granule = 0; granule < tree.used_granules(); granule += root) {
      walk({static_cast<std::uint32_t>(granule >> shape.root_order), static_cast<std::uint8_t>(shape.root_order)});
    }
    expect_tiled();
    expect_no_other_words();
    expect_no_free_pairs();
  }

  /// In address order.
  [[nodiscard]] const std::vector<tree_block>& blocks() const noexcept { return blocks_; }

  [[nodiscard]] std::vector<tree_block> blocks(block_state state) const {
    std::vector<tree_block> some;
    std::copy_if(blocks_.begin(), blocks_.end(), std::back_inserter(some),
                 [state](const tree_block& block) { return block.state == state; });
    return some;
  }

  /// True if every root that was ever used is one free block; in a flat range, if the free blocks are the powers of two
  /// that its length is the sum of, the largest first.
  [[nodiscard]] bool merged() const {
    std::uint64_t end = 0;
    for (const tree_block& block : blocks_) {
      const std::uint64_t rest = tree_.used_granules() - end;
      const std::uint64_t largest = std::min(std::bit_floor(rest), std::uint64_t{1} << shape_.root_order);
      if (block.state != block_state::free || block.granules != largest) return false;
      end += largest;
    }
    return end == tree_.used_granules();
  }

 private:
  void walk(detail::node n) {
    if (n.granule() >= shape_.tree_granules) return;  // past the end of a flat range: expect_no_other_words
    const detail::block_word word = tree_.look(n);
    found_.expect(word.state() != block_state::none, "no block at granule ", n.granule(), ", order ", int{n.order});
    if (word.state() == block_state::none) return;
    ++words_;
    if (word.state() == block_state::split) {
      found_.expect(n.order > 0, "granule ", n.granule(), " is split");
      if (n.order == 0) return;
      walk(n.left());
      walk(n.right());
      return;
    }
    const unsigned sixteenths = word.sixteenths() == 0 ? detail::whole : word.sixteenths();
    const std::uint64_t granules = detail::granules_of(n.order, sixteenths);
    blocks_.push_back({n, word.state(), n.granule(), granules});
    walk_rest(n, granules);
  }

  /// What lies behind the first granules of a trimmed block's node.
  void walk_rest(detail::node n, std::uint64_t covered) {
    if (covered == std::uint64_t{1} << n.order) return;
    const std::uint64_t half = std::uint64_t{1} << (n.order - 1);
    const detail::node end = covered <= half ? n.left() : n.right();
    const std::uint64_t in_end = covered <= half ? covered : covered - half;
    if (in_end < half) {
      found_.expect(tree_.look(end).state() == block_state::split, "the node at granule ", end.granule(), ", order ",
                    int{end.order}, " is cut by a trimmed block, and is not split");
      ++words_;
    }
    walk_rest(end, in_end);
    if (covered <= half) walk(n.right());
  }

  void expect_tiled() {
    std::uint64_t end = 0;
    for (const tree_block& block : blocks_) {
      found_.expect(block.granule == end, "a block starts at granule ", block.granule, ", not at ", end);
      end = block.granule + block.granules;
    }
    found_.expect(end == tree_.used_granules(), "the blocks end at granule ", end, " of ", tree_.used_granules());
  }

  void expect_no_other_words() {
    std::uint64_t words = 0;
    for (unsigned order = 0; order <= shape_.root_order; ++order) {
      for (std::uint64_t index = 0; index <= shape_.nodes(order); ++index) {
        const detail::node n{static_cast<std::uint32_t>(index), static_cast<std::uint8_t>(order)};
        words += tree_.look(n).state() != block_state::none;
      }
    }
    found_.expect(words == words_, words, " words are set, and the blocks explain ", words_);
  }

  void expect_no_free_pairs() {
    for (const tree_block& block : blocks_) {
      if (block.state != block_state::free || block.n.order == shape_.root_order) continue;
      found_.expect(tree_.look(block.n.buddy()).state() != block_state::free, "the block of order ",
                    int{block.n.order}, " at granule ", block.granule, " and its buddy are both free");
    }
  }

  const detail::buddy& tree_;
  const detail::geometry& shape_;
  findings& found_;
  std::vector<tree_block> blocks_;
  std::uint64_t words_ = 0;
};

/// Finds fault unless each free node is found through the lists, once, and nothing else is (B2). Leaves the tree as it
/// was.
inline void expect_listed(detail::buddy& tree, const detail::geometry& shape, findings& found) {
  const auto position = [](const detail::node& n) { return n.granule(); };
  std::vector<detail::node> free;
  for (const tree_block& block : tree_audit(tree, shape, found).blocks(block_state::free)) free.push_back(block.n);
  std::vector<detail::node> listed;
  for (unsigned order = 0; order <= shape.root_order; ++order) {
    for (const auto kind : {detail::backing::full, detail::backing::partial, detail::backing::bare}) {
      while (const auto n = tree.claim(order, kind)) listed.push_back(*n);
    }
  }
  std::ranges::sort(listed, {}, position);
  found.expect(listed == free, listed.size(), " nodes are listed, ", free.size(), " are free");
  for (const detail::node& n : listed) tree.give(n, detail::whole);
}

}  // namespace orderly::test
