/// \file
/// How a pool divides its addresses, in granules and orders.
///
/// A virtual source gives far more addresses than memory, and they are laid out so that addresses are never what is
/// missing:
///
///   [ tree: many roots, each split and merged by the buddy system ][ slots of order root+1 ][ ... ][ slots of the top order ]
///
///   Tree   A request of at most a root needs a free node. There are more roots than the limit has chunks, and a root
///          from which anything is taken holds at least one committed chunk. So while one more chunk may be committed,
///          some root is untouched (pigeonhole), and the request fits there.
///   Slots  A slot in use has more than half its size committed, so at most 2 x capacity / size slots are in use at once,
///          and that many exist. They are aligned to their size, so there are gaps between the orders: a source that makes
///          large pieces of memory, aligned to their size, makes few.
///
/// The first bound holds up to max_tree_granules (512 GiB of addresses at 256 B); a larger capacity gets fewer roots.
///
/// A flat source (one plain allocation) has one tree over the whole range and no slots.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "block_word.hpp"

namespace orderly::detail {

inline constexpr unsigned max_orders = 48;

/// Positions of words are 32 bits wide, and each granule has two (buddy.hpp).
inline constexpr std::uint64_t max_positions = std::uint64_t{1} << 32;
inline constexpr std::uint64_t max_tree_granules = (max_positions >> 1) - (std::uint64_t{1} << 16);

struct geometry {
  bool flat = false;
  unsigned granule_shift = 0;
  unsigned chunk_order = 0;  ///< flat: above every order of the tree, since nothing is committed piecewise
  unsigned group_order = 0;  ///< the records of orders below it lie together by place; see buddy
  unsigned small_order = 0;  ///< blocks below it keep together in chunks of their own; see buddy::claim
  unsigned root_order = 0;   ///< the largest order that is split and merged
  unsigned top_order = 0;    ///< the largest order that can be requested
  std::uint64_t capacity = 0;       ///< bytes
  std::uint64_t limit = 0;          ///< bytes
  std::uint64_t tree_granules = 0;
  std::array<std::uint32_t, max_orders> slots{};            ///< number, by order; only above root_order
  std::array<std::uint64_t, max_orders> slot_granule{};     ///< where they start
  std::uint64_t total_granules = 0;

  [[nodiscard]] std::uint64_t bytes(std::uint64_t granules) const noexcept { return granules << granule_shift; }
  [[nodiscard]] std::size_t granule_bytes() const noexcept { return std::size_t{1} << granule_shift; }
  [[nodiscard]] std::size_t chunk_bytes() const noexcept { return std::size_t{1} << (chunk_order + granule_shift); }
  [[nodiscard]] bool in_tree(unsigned order) const noexcept { return order <= root_order; }

  /// Number of nodes of an order.
  [[nodiscard]] std::uint64_t nodes(unsigned order) const noexcept {
    return in_tree(order) ? (tree_granules + (std::uint64_t{1} << order) - 1) >> order : slots[order];
  }

  /// First granule of a node.
  [[nodiscard]] std::uint64_t granule(node n) const noexcept {
    return in_tree(n.order) ? n.granule() : slot_granule[n.order] + n.granule();
  }
};

/// Pre: the options are valid: powers of two, granule <= chunk, capacity > 0. Capacity and limit are rounded here.
[[nodiscard]] geometry virtual_geometry(std::size_t granule, std::size_t chunk, std::uint64_t capacity,
                                        std::uint64_t limit) noexcept;
[[nodiscard]] geometry flat_geometry(std::size_t granule, std::uint64_t capacity) noexcept;

}  // namespace orderly::detail
