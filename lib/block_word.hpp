/// \file
/// block_word: the one word that says what a node of the buddy tree is. Ownership changes by compare-and-swap on it and
/// nowhere else; every list is a hint.
///
///   from    event                               to      by                               order     pairs with
///   none    its parent is split or carved       free    the parent's owner               seq_cst   claim, recheck
///   none    its parent is split or carved       owned   the parent's owner               relaxed   - (stays with it)
///   free    taken, or claimed to merge          owned   whoever wins the CAS             seq_cst   publish
///   owned   given back, buddy not free          free    the owner (publish)              seq_cst   claim, recheck
///   owned   merged with its buddy               none    the owner of both                relaxed   the parent's publish
///   split   both halves merged                  owned   the owner of both                relaxed   - (stays with it)
///   owned   split                               split   the owner                        relaxed   the halves' publish
///   owned   filled into a magazine              cached  the owner                        relaxed   the magazine's hand-over
///   cached  allocate                            live    the front's owner                relaxed   the user's own hand-over
///   cached  magazine emptied into the buddy     owned   whoever holds the magazine       relaxed   - (stays with it)
///   owned   allocate past the front             live    the owner                        relaxed   the user's own hand-over
///   live    deallocate                          cached  any thread, by CAS               relaxed   the magazine's hand-over
///   live    deallocate past the front           owned   any thread, by CAS               relaxed   - (stays with it)
///   owned   a trimmed block is given back       split   the owner                        relaxed   its pieces' publish
///
/// A block may be trimmed: it covers the first n sixteenths of its node, and the rest of the node is given away as
/// smaller blocks. The nodes between the block's node and those pieces are `split`, the covered ones `none`, so a piece
/// of the rest never finds its buddy free and never merges into the block.
#pragma once

#include <cstdint>

#include "orderly/error.hpp"

namespace orderly::detail {

/// A node of the buddy tree: the block of `granule << order` bytes that starts at granule `index << order`.
struct node {
  std::uint32_t index = 0;
  std::uint8_t order = 0;

  [[nodiscard]] constexpr std::uint64_t granule() const noexcept { return std::uint64_t{index} << order; }
  [[nodiscard]] constexpr node parent() const noexcept { return {index >> 1, static_cast<std::uint8_t>(order + 1)}; }
  [[nodiscard]] constexpr node buddy() const noexcept { return {index ^ 1U, order}; }
  [[nodiscard]] constexpr node left() const noexcept { return {index << 1, static_cast<std::uint8_t>(order - 1)}; }
  [[nodiscard]] constexpr node right() const noexcept {
    return {(index << 1) | 1U, static_cast<std::uint8_t>(order - 1)};
  }
  [[nodiscard]] constexpr bool operator==(const node&) const = default;
};

/// Granules that n sixteenths of an order cover.
[[nodiscard]] constexpr std::uint64_t granules_of(unsigned order, unsigned sixteenths) noexcept {
  return (std::uint64_t{sixteenths} << order) >> 4;
}

inline constexpr unsigned whole = 16;  ///< sixteenths of a block that is not trimmed

class block_word {
 public:
  constexpr block_word() = default;
  explicit constexpr block_word(std::uint64_t bits) noexcept : bits_(bits) {}

  [[nodiscard]] static constexpr block_word none() noexcept { return {}; }
  [[nodiscard]] static constexpr block_word free() noexcept { return of(block_state::free, 0, 0); }
  [[nodiscard]] static constexpr block_word owned() noexcept { return of(block_state::owned, 0, 0); }
  [[nodiscard]] static constexpr block_word split() noexcept { return of(block_state::split, 0, 0); }
  [[nodiscard]] static constexpr block_word cached(unsigned sixteenths) noexcept {
    return of(block_state::cached, sixteenths, 0);
  }
  /// `unused`: length of the block minus the bytes requested.
  [[nodiscard]] static constexpr block_word live(unsigned sixteenths, std::uint64_t unused) noexcept {
    return of(block_state::live, sixteenths, unused);
  }

  /// The same live block with that many bytes fewer unused. Pre: it has as many.
  [[nodiscard]] constexpr block_word with_requested(std::uint64_t bytes) const noexcept {
    return block_word(bits_ - (bytes << unused_shift));
  }

  [[nodiscard]] constexpr block_state state() const noexcept { return static_cast<block_state>(bits_ & 0xF); }
  [[nodiscard]] constexpr unsigned sixteenths() const noexcept { return static_cast<unsigned>(bits_ >> 4) & 0x1F; }
  [[nodiscard]] constexpr std::uint64_t unused() const noexcept { return bits_ >> unused_shift; }
  [[nodiscard]] constexpr std::uint64_t bits() const noexcept { return bits_; }
  [[nodiscard]] constexpr bool operator==(const block_word&) const = default;

 private:
  // 4 bits of state, 5 of sixteenths, 12 kept for the lane, 43 of unused bytes: 8 TiB, above the largest order.
  static constexpr unsigned unused_shift = 21;

  [[nodiscard]] static constexpr block_word of(block_state state, unsigned sixteenths, std::uint64_t unused) noexcept {
    return block_word(static_cast<std::uint64_t>(state) | std::uint64_t{sixteenths} << 4 | unused << unused_shift);
  }

  std::uint64_t bits_ = 0;
};

static_assert(block_word::none().bits() == 0, "fresh tables are zero and hold no block");

}  // namespace orderly::detail
