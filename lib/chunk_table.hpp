/// \file
/// Which chunks of the tree are committed: one mask per root, one bit per chunk. Knows integers only.
///
/// A bit is written only by the owner of a node of at least a chunk that covers it, so nobody races for one bit; owners
/// of different chunks of a root share its mask and use atomic or and and. A reader that owns the node sees the last
/// owner's write, because the node came to it through publish and claim (W of buddy.hpp); so relaxed order suffices.
///
/// Invariant  A chunk of which any block smaller than a chunk exists is committed: it is committed before it is split,
///            and released only by whoever owns it whole.
#pragma once

#include <bit>
#include <cstdint>

#include "atomic.hpp"
#include "block_word.hpp"
#include "geometry.hpp"
#include "reserved_array.hpp"

namespace orderly::detail {

using chunk_mask = std::uint64_t;

enum class backing : std::uint8_t { full, partial, bare };

class chunk_table {
 public:
  [[nodiscard]] bool open(const geometry& shape) noexcept {
    flat_ = shape.flat;
    root_order_ = shape.root_order;
    chunk_order_ = shape.chunk_order;
    const std::uint64_t roots = shape.tree_granules >> root_order_;
    return flat_ || (masks_.reserve(roots) && small_masks_.reserve(roots));
  }

  /// The bits of the chunks that the first `granules` of a node touch, in its root's mask.
  [[nodiscard]] chunk_mask bits(node n, std::uint64_t granules) const noexcept {
    const auto count = static_cast<unsigned>((granules + (std::uint64_t{1} << chunk_order_) - 1) >> chunk_order_);
    const chunk_mask run = count == 64 ? ~chunk_mask{0} : (chunk_mask{1} << count) - 1;
    return run << (n.granule() >> chunk_order_ & ((1U << (root_order_ - chunk_order_)) - 1));
  }

  /// The committed ones of these bits.
  [[nodiscard]] chunk_mask committed(node n, chunk_mask bits) const noexcept { return mask(n).load(relaxed) & bits; }

  /// Committed chunks of a node of at least a chunk. Exact for the node's owner.
  [[nodiscard]] unsigned count(node n) const noexcept {
    return static_cast<unsigned>(std::popcount(committed(n, bits(n, std::uint64_t{1} << n.order))));
  }

  /// How much of a node is committed. What is smaller than a chunk always is.
  [[nodiscard]] backing look(node n) const noexcept {
    if (flat_ || n.order < chunk_order_) return backing::full;
    const unsigned present = count(n);
    if (present == 0) return backing::bare;
    return present == 1U << (n.order - chunk_order_) ? backing::full : backing::partial;
  }

  /// True if the chunk that a node smaller than a chunk lies in is set aside for small blocks; see buddy::claim.
  [[nodiscard]] bool is_small(node n) const noexcept {
    if (flat_) return false;
    return (small_masks_[n.granule() >> root_order_].load(relaxed) & bits(n, 1)) != 0;
  }
  /// Pre: the caller owns the chunk whole.
  void set_small(node chunk, bool small) noexcept {
    atomic<chunk_mask>& mask = small_masks_[chunk.granule() >> root_order_];
    const chunk_mask bit = bits(chunk, 1);
    if (((mask.load(relaxed) & bit) != 0) == small) return;
    if (small)
      mask.fetch_or(bit, relaxed);
    else
      mask.fetch_and(~bit, relaxed);
  }

  void set(node n, chunk_mask bits) noexcept { mask(n).fetch_or(bits, relaxed); }
  void clear(node n, chunk_mask bits) noexcept { mask(n).fetch_and(~bits, relaxed); }

 private:
  [[nodiscard]] atomic<chunk_mask>& mask(node n) const noexcept { return masks_[n.granule() >> root_order_]; }

  bool flat_ = false;
  unsigned root_order_ = 0;
  unsigned chunk_order_ = 0;
  reserved_array<atomic<chunk_mask>> masks_;        ///< committed
  reserved_array<atomic<chunk_mask>> small_masks_;  ///< set aside for small blocks; written like the other
};

}  // namespace orderly::detail
