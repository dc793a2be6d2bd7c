/// \file
/// free_list: the hints of one order, newest first. (Treiber's stack over indices, IBM RJ 5118, 1986)
///
/// Representation  The head is one 64-bit word: the link code of the top index, and a tag. Links lie outside the blocks,
///                 one 32-bit word per node, in a table that is never unmapped. A link code is `unlinked` (the node is in
///                 no list), `last` (it is the bottom) or the next index plus two.
/// Invariants      I1  A node's link is not `unlinked` from the moment some thread wins it (A) until the thread that
///                     popped the node releases it (B). In between it is in at most one list, once.
///                 I2  A head changes only by CAS, and each success adds one to the tag.
/// Ordering        P   push (c), release -> pop (d) or a failed (f), acquire: the link stored by (b).
///                     By I2 every later head is in (c)'s release sequence, so reading any later value serves too.
///                 S   (c), (f), the load that finds the list empty, and peek() are seq_cst, so that a thread that writes
///                     elsewhere before or after may rely on one order with them (pool::state::adopt and press).
/// Linearization   push: (c). pop: (f); of an empty list, the load that saw no top.
/// ABA             (f) must not succeed with a `next` read before the node was popped and pushed again. It compares the
///                 tag: 2^32 successful changes of this one head would have to fall into the few instructions between
///                 (e) and (f). At the 10^8 changes a second of one line that hardware reaches, that is a stall of
///                 43 s that ends on exactly one value of 4 x 10^9.
/// Progress        lock-free: a CAS fails only because another one succeeded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "atomic.hpp"

namespace orderly::detail {

/// Link of one node; see free_list.
using link_code = std::uint32_t;
inline constexpr link_code unlinked = 0;
inline constexpr link_code last = 1;
[[nodiscard]] constexpr link_code link_to(std::uint32_t index) noexcept { return index + 2; }
[[nodiscard]] constexpr std::uint32_t linked_index(link_code code) noexcept { return code - 2; }

/// Largest number of nodes that link codes can name.
inline constexpr std::uint64_t max_linked_nodes = (std::uint64_t{1} << 32) - 2;

/// The links of the nodes that a list may hold, by index.
class link_table {
 public:
  link_table() = default;
  /// `spacing`: log2 of the distance, in links, from one index to the next.
  link_table(atomic<link_code>* first, unsigned spacing = 0) noexcept : first_(first), spacing_(spacing) {}

  [[nodiscard]] atomic<link_code>& operator[](std::uint32_t index) const noexcept {
    return first_[std::size_t{index} << spacing_];
  }

 private:
  atomic<link_code>* first_ = nullptr;
  unsigned spacing_ = 0;
};

/// The word of a list's head, as a value.
class tagged_head {
 public:
  constexpr tagged_head() = default;
  explicit constexpr tagged_head(std::uint64_t bits) noexcept : bits_(bits) {}

  [[nodiscard]] constexpr link_code top() const noexcept { return static_cast<link_code>(bits_); }
  [[nodiscard]] constexpr std::uint32_t tag() const noexcept { return static_cast<std::uint32_t>(bits_ >> 32); }
  [[nodiscard]] constexpr bool empty() const noexcept { return top() <= last; }
  [[nodiscard]] constexpr std::uint64_t bits() const noexcept { return bits_; }

  /// The next head: another top, and the tag one higher (it wraps).
  [[nodiscard]] constexpr tagged_head with_top(link_code top) const noexcept {
    return tagged_head(((bits_ + one_change) & tag_bits) | top);
  }

 private:
  static constexpr std::uint64_t one_change = std::uint64_t{1} << 32;
  static constexpr std::uint64_t tag_bits = (bounds::tags - 1) << 32;

  std::uint64_t bits_ = 0;
};

/// One head. All-zero is an empty list. It belongs on a cache line of its own, or one that is read with it.
class free_list {
 public:
  /// Pushes a node whose link the caller has won. `links` is the table that the list's indices name.
  void push(const link_table& links, std::uint32_t index) noexcept {
    tagged_head seen(head_.load(relaxed));                                    // (a) a guess; (c) validates it
    std::uint64_t expected = seen.bits();
    do {
      seen = tagged_head(expected);
      links[index].store(seen.empty() ? last : seen.top(), relaxed);          // (b) ours by I1; published by (c)
    } while (!head_.compare_exchange_weak(expected, seen.with_top(link_to(index)).bits(), seq_cst, relaxed));  // (c) P
  }

  /// Pops the newest node, its link still not `unlinked`; the caller releases it.
  [[nodiscard]] std::optional<std::uint32_t> try_pop(const link_table& links) noexcept {
    std::uint64_t expected = head_.load(seq_cst);                             // (d) P, S
    for (;;) {
      const tagged_head seen(expected);
      if (seen.empty()) return std::nullopt;
      const link_code next = links[linked_index(seen.top())].load(relaxed);   // (e) may be out of date; then (f) fails
      if (head_.compare_exchange_weak(expected, seen.with_top(next).bits(), seq_cst, seq_cst))  // (f) P, S
        return linked_index(seen.top());
    }
  }

  /// Takes all nodes at once: the link code of the first, whose links lead to the others, up to `last`. As a pop, its
  /// linearization point is (f).
  [[nodiscard]] link_code take_all() noexcept {
    std::uint64_t expected = head_.load(seq_cst);                             // (d) P, S
    for (;;) {
      const tagged_head seen(expected);
      if (seen.empty()) return last;
      if (head_.compare_exchange_weak(expected, seen.with_top(last).bits(), seq_cst, seq_cst)) return seen.top();  // (f)
    }
  }

  /// True if something lay there at some recent instant: a look, not a claim.
  [[nodiscard]] bool peek() const noexcept { return !tagged_head(head_.load(seq_cst)).empty(); }  // with (c): see users

 private:
  atomic<std::uint64_t> head_{0};
};

}  // namespace orderly::detail
