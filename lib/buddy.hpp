/// \file
/// The lock-free buddy system: free lists and block words. It knows integers only. (Knowlton, CACM 8(10), 1965; the
/// lock-free form with one word per node is this project's.)
///
/// Invariants
///   B1  The word of a node says what it is; see block_word. A thread that moved a word to `owned` owns the node and
///       everything below it until it publishes, hands over or merges it.
///   B2  A node that is `free` while no operation is in flight is in a list, or its link says that it is.
///   B3  Two free buddies never remain: while no operation is in flight, of any pair at most one half is `free`.
/// Ordering
///   W   publish, seq_cst store of `free` -> claim, CAS: everything the last owner did to the node and its records.
///   H   No free node is forgotten. The giver stores `free`, then looks at the link (hint); whoever pops an entry clears
///       the link, then looks at the word (claim). All four are seq_cst, so one of the two sees the other: either the
///       giver pushes, or the popper finds the node free.
///   M   No merge is missed. The giver stores `free`, then looks at the buddy's word; both are seq_cst. Of two givers the
///       later store sees the other's. Whoever sees both halves free claims the lower one first: one thread wins it, and
///       goes on to merge or publishes it again and looks again. The others leave: the winner looks after them. So
///       the last of all publishers of a pair either merges it or saw its buddy in use.
/// Tables
///   The words of all orders below geometry::group_order lie in one table, those of a group of granules (64 KiB of memory
///   by default) on one page: blocks of all sizes in a chunk cost one page fault, and no two words of blocks of 1 KiB or
///   more share a cache line, so that threads whose blocks are neighbours do not slow each other down. The table is in the
///   order of an in-order walk: the word of order k at granule g is number 2 g + 2^k - 1, so within an order positions
///   have equal distances. Links likewise. Larger orders have tables of their own, and so do their kinds of hints.
/// Linearization   claim: its successful CAS. give: its last publish, or its last merge's publish.
/// Progress        lock-free. A giver repeats only when a CAS of another thread took the half that it saw free.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "atomic.hpp"
#include "block_word.hpp"
#include "chunk_table.hpp"
#include "free_list.hpp"
#include "geometry.hpp"
#include "reserved_array.hpp"

namespace orderly::detail {

class buddy {
 public:
  /// False: the system refused the tables. Flat ranges start as free blocks, others as untouched roots.
  [[nodiscard]] bool open(const geometry& shape, const chunk_table& chunks) noexcept;

  /// Owns a free node of at least `order`.
  ///   Small blocks and other blocks below a chunk come from chunks of their own, from the smallest node that will do, and
  ///   only then from a whole chunk: small blocks need by far the most table entries, and keeping together they touch few
  ///   pages of the tables.
  ///   A chunk or more comes first from nodes that are committed whole, so that nothing need be committed, then from nodes
  ///   committed in part, then from bare ones, then from an untouched root.
  [[nodiscard]] std::optional<node> claim(unsigned order) noexcept;

  /// For a block below a chunk when no chunk is to be had: one that lies among blocks of the other sort.
  [[nodiscard]] std::optional<node> claim_among_others(unsigned order) noexcept;

  /// The same, for a node of exactly `order` that is listed with that backing. For trimming.
  [[nodiscard]] std::optional<node> claim(unsigned order, backing kind) noexcept;

  /// Owns this node if it is free. Its list keeps a hint out of date.
  [[nodiscard]] bool claim(node n) noexcept { return claim_word(n); }

  /// Owns a descendant of an owned node; the rest is given away. Keeps the half that has more committed chunks.
  [[nodiscard]] node split(node n, unsigned order) noexcept;

  /// Divides an owned node into owned blocks of `order`; nothing is given away. Their indices are consecutive, from
  /// the result on.
  std::uint32_t shatter(node n, unsigned order) noexcept;

  /// Keeps the first `sixteenths` of an owned node and gives the rest away. The node's word stays as it is.
  void carve(node n, unsigned sixteenths) noexcept;

  /// Gives an owned block back and merges it as far as it goes.
  void give(node n, unsigned sixteenths) noexcept;

  [[nodiscard]] atomic<std::uint64_t>& word(node n) const noexcept { return words_[n.order][position(n)]; }

  /// Where the words of an order lie; a node's is at its position.
  [[nodiscard]] atomic<std::uint64_t>* words(unsigned order) const noexcept { return words_[order]; }
  [[nodiscard]] std::uint32_t position(node n) const noexcept { return n.index << spacing_[n.order]; }
  [[nodiscard]] node at_position(std::uint32_t position, unsigned order) const noexcept {
    return {position >> spacing_[order], static_cast<std::uint8_t>(order)};
  }
  /// log2 of the distance from one position of an order to the next.
  [[nodiscard]] unsigned spacing(unsigned order) const noexcept { return spacing_[order]; }

  [[nodiscard]] block_word look(node n) const noexcept { return block_word(word(n).load(acquire)); }  // W, as a look

  /// Roots that have ever been used: the tree below any other is untouched.
  [[nodiscard]] std::uint64_t used_granules() const noexcept;

 private:
  /// The free nodes of one order and one kind of backing. Below a chunk, where all is committed, `partial` stands for the
  /// nodes in chunks set aside for small blocks. Each kind has links of its own: a node that was merged while
  /// it was bare leaves a hint out of date among the bare ones, and must yet find its way to the full ones when it is
  /// free again.
  struct alignas(64) hints {
    free_list list;
    link_table links;
  };
  static constexpr std::uint32_t least_roots_ahead = 8;
  static constexpr std::uint32_t most_roots_ahead = 64;
  static constexpr std::size_t kinds = 3;
  [[nodiscard]] hints& free_nodes(unsigned order, backing kind) noexcept {
    return free_[order][static_cast<std::size_t>(kind)];
  }

  [[nodiscard]] std::optional<node> claim_below_chunk(unsigned order, bool small) noexcept;
  void give_whole(node n) noexcept;
  void publish(node n) noexcept;
  void hint(node n) noexcept;
  [[nodiscard]] bool claim_word(node n) noexcept;
  [[nodiscard]] block_word look_seq_cst(node n) const noexcept { return block_word(word(n).load(seq_cst)); }  // M
  [[nodiscard]] std::optional<node> untouched_root() noexcept;
  void touch_tables_ahead(std::uint32_t root) noexcept;
  void touch_tables(unsigned order, backing kind, std::uint32_t root, std::uint32_t count) noexcept;

  geometry shape_;
  const chunk_table* chunks_ = nullptr;
  std::array<atomic<std::uint64_t>*, max_orders> words_{};
  std::array<std::uint8_t, max_orders> spacing_{};
  reserved_array<atomic<std::uint64_t>> word_table_;
  reserved_array<atomic<link_code>> link_table_;
  std::array<std::array<hints, kinds>, max_orders> free_{};
  alignas(64) atomic<std::uint32_t> next_root_{0};
  atomic<std::uint32_t> touched_roots_{0};
};

}  // namespace orderly::detail
