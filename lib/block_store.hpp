/// \file
/// The buddy tree, the slots and the arena as one: takes and gives blocks of any shape, and commits what they cover.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "arena.hpp"
#include "buddy.hpp"
#include "part_map.hpp"
#include "size_class.hpp"
#include "slots.hpp"

namespace orderly::detail {

class block_store {
 public:
  block_store(const geometry& shape, std::unique_ptr<memory_source> source) noexcept
      : memory_(std::move(source), shape) {}

  /// False: the source or the system refused.
  [[nodiscard]] bool open() noexcept;

  [[nodiscard]] const geometry& shape() const noexcept { return memory_.shape(); }
  [[nodiscard]] arena& memory() noexcept { return memory_; }
  [[nodiscard]] const arena& memory() const noexcept { return memory_; }
  [[nodiscard]] const buddy& tree() const noexcept { return tree_; }

  /// Takes blocks of one shape from the tree; they are left owned, the indices of their nodes in `out`. Returns how many;
  /// `why` says what kept it from more. Pre: the order is in the tree.
  std::size_t take(block_shape shape, std::span<std::uint32_t> out, ceiling up_to, refusal& why) noexcept;

  /// Takes one block of any order. Left owned.
  [[nodiscard]] std::optional<node> take_one(block_shape shape, std::uint64_t granules, ceiling up_to,
                                             refusal& why) noexcept;

  /// Takes a block out of a node of the tree that is below a chunk, if it is free. Left owned.
  [[nodiscard]] std::optional<node> take_out_of(node free, block_shape shape) noexcept;

  /// Gives an owned block back.
  void give(node n, unsigned sixteenths) noexcept;

  /// Sets the words below an owned node of the tree that is to become blocks of its parts: what is not live is left owned,
  /// in the largest pieces there are; the live parts' own words and the node's are the caller's to write, in this order.
  /// Pre: the parts are smaller than the node, and some of them are live.
  void divide(node n, unsigned part_order, const part_map& live) noexcept;

  /// What the next take of such a block finds, as far as can be told: a free node, and the bytes that it lacks. The node is
  /// owned until it is given back, whole.
  struct prospect {
    node n;
    std::size_t missing = 0;
  };
  [[nodiscard]] std::optional<prospect> next(block_shape shape, std::uint64_t granules) noexcept;

  /// Decommits free memory until `bytes` are released or none is left: whole slots, and of nodes in the tree what is missing
  /// or a MiB, as far as they lie within `most`. Returns the bytes released.
  std::size_t trim(std::size_t bytes, std::size_t most = ~std::size_t{0}) noexcept;

  [[nodiscard]] atomic<std::uint64_t>& word(node n) const noexcept {
    return shape().in_tree(n.order) ? tree_.word(n) : slots_.word(n);
  }

  /// Bytes of a block: its sixteenths in the tree, its chunks in a slot.
  [[nodiscard]] std::uint64_t length(node n, unsigned sixteenths) const noexcept {
    if (shape().in_tree(n.order)) return shape().bytes(granules_of(n.order, sixteenths));
    return slots_.chunks(n) * shape().chunk_bytes();
  }

  /// What lies at an offset of the range: the block, free or not, that covers it, and its word at this instant.
  struct found {
    node n;
    block_word word;
    std::uint64_t offset = 0;  ///< of the block's start
    std::uint64_t length = 0;
    bool exists = false;
  };
  [[nodiscard]] found find(std::uint64_t offset) const noexcept;

  /// The live block that starts exactly there, if any.
  [[nodiscard]] found find_live(std::uint64_t offset) const noexcept;

  /// Calls visit(n, word) for each block in address order.
  template <class Visit>
  void each_block(Visit visit) const {
    const unsigned root = shape().root_order;
    for (std::uint64_t i = 0, end = (tree_.used_granules() + (std::uint64_t{1} << root) - 1) >> root; i < end; ++i)
      walk({static_cast<std::uint32_t>(i), static_cast<std::uint8_t>(root)}, visit);
    for (unsigned order = root + 1; order <= shape().top_order; ++order) {
      for (std::uint32_t i = 0; i < slots_.used(order); ++i) {
        const node n{i, static_cast<std::uint8_t>(order)};
        visit(n, slots_.look(n));
      }
    }
  }

 private:
  template <class Visit>
  void walk(node n, Visit& visit) const {
    const block_word seen = tree_.look(n);
    if (seen.state() == block_state::none) return;
    if (seen.state() == block_state::split) {
      if (n.order == 0) return;  // changed while we came here
      walk(n.left(), visit);
      walk(n.right(), visit);
      return;
    }
    visit(n, seen);
    if (seen.sixteenths() != 0) walk_rest(n, granules_of(n.order, seen.sixteenths()), visit);
  }

  /// The blocks behind the first `used` granules of a trimmed block's node.
  template <class Visit>
  void walk_rest(node n, std::uint64_t used, Visit& visit) const {
    if (n.order == 0 || used >= std::uint64_t{1} << n.order) return;
    const std::uint64_t half = std::uint64_t{1} << (n.order - 1);
    if (used < half) walk_rest(n.left(), used, visit);
    if (used <= half)
      walk(n.right(), visit);
    else
      walk_rest(n.right(), used - half, visit);
  }

  [[nodiscard]] found describe(node n, block_word word) const noexcept;
  [[nodiscard]] std::uint64_t to_commit(block_shape block) const noexcept;
  [[nodiscard]] std::uint64_t chunks_of(std::uint64_t granules) const noexcept;
  void trim_tree(backing kind, trimming& of) noexcept;
  std::size_t take_from(node n, block_shape shape, std::span<std::uint32_t> out) noexcept;

  arena memory_;
  buddy tree_;
  slots slots_;
};

}  // namespace orderly::detail
