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
///   cached  magazine emptied into the buddy     free    whoever holds the magazine       seq_cst   claim, recheck
///   owned   allocate past the front             live    the owner                        relaxed   the user's own hand-over
///   cached  allocate from a magazine in hand    live    whoever holds the magazine       relaxed   the user's own hand-over
///   live    deallocate, home front              cached  the home front, by a store       relaxed   the magazine's hand-over
///   live    deallocate, another front           return- any thread, by CAS               relaxed   the parcel's hand-over
///                                               ing
///   return- the parcel comes home               cached  the home front, by a store       relaxed   the magazine's hand-over
///   ing
///   live    deallocate, no home                 owned   any thread, by CAS               relaxed   - (stays with it)
///   owned   a trimmed block is given back       split   the owner                        relaxed   its pieces' publish
///   live    divided, no home                    owned   any thread, by CAS               relaxed   - (stays with it)
///   live    divided, a home                     owned   a thread that revoked the home   relaxed   - (stays with it)
///   none    live part of a divided block        live    the block's owner                release   find, the user's own
///                                                                                                  hand-over
///   owned   divided                             split   the owner                        release   walks
///
/// Home. A block that a front handed out names that front in its word, and only its home moves the word from then on, except
/// for one step: another thread that frees the block marks it as returning, by CAS, and sends it home in a parcel. So the
/// free of a block at home is a look and a store, without a locked instruction, and is checked all the same:
///   - Only the home stores, inside a stay (front.hpp), so its own steps never overlap; but for the step that makes it the
///     home, while the block is in hand and has none. Others change nothing but live(home) to returning(home), and, with
///     the home revoked, live(home) to owned.
///   - A block goes back into circulation only by a step of its home: the free at home, or the arrival of a parcel while
///     the word says returning(home), which the arrival ends. So no block is ever in circulation twice.
///   - Of two frees of one block in any order that the program can tell, the second sees the first and is refused. If a
///     free at home and one elsewhere really race, which only a double free does, the store may cover the mark: then the
///     parcel arrives, finds the word in another state, and is dropped and counted as the bad free that it is.
/// `returning` shows as cached.
///
/// A block may be trimmed: it covers the first n sixteenths of its node, and the rest of the node is given away as
/// smaller blocks. The nodes between the block's node and those pieces are `split`, the covered ones `none`, so a piece
/// of the rest never finds its buddy free and never merges into the block.
#pragma once

#include <bit>
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
  static constexpr unsigned most_home = (1U << 13) - 1;

  constexpr block_word() = default;
  explicit constexpr block_word(std::uint64_t bits) noexcept : bits_(bits) {}

  [[nodiscard]] static constexpr block_word none() noexcept { return {}; }
  [[nodiscard]] static constexpr block_word free() noexcept { return of(block_state::free, 0, 0); }
  [[nodiscard]] static constexpr block_word owned() noexcept { return of(block_state::owned, 0, 0); }
  [[nodiscard]] static constexpr block_word split() noexcept { return of(block_state::split, 0, 0); }
  [[nodiscard]] static constexpr block_word cached(unsigned sixteenths) noexcept {
    return of(block_state::cached, sixteenths, 0);
  }
  /// `unused`: length of the block minus the bytes requested. `home`: number of the front that moves the word; 0: none.
  [[nodiscard]] static constexpr block_word live(unsigned sixteenths, std::uint64_t unused, unsigned home) noexcept {
    return block_word(of(block_state::live, sixteenths, unused).bits_ | std::uint64_t{home} << home_shift);
  }
  /// Freed elsewhere, on the way to its home. Keeps what it was, so that its parcel is told from another free's.
  [[nodiscard]] static constexpr block_word returning(unsigned sixteenths, std::uint64_t unused, unsigned home) noexcept {
    return block_word(of(block_state::cached, sixteenths, unused).bits_ | std::uint64_t{home} << home_shift);
  }

  /// The same live block with that many bytes fewer unused. Pre: it has as many.
  [[nodiscard]] constexpr block_word with_requested(std::uint64_t bytes) const noexcept {
    return block_word(bits_ - (bytes << unused_shift));
  }

  /// For an unrequested live block: the n for which with_requested(n) is `other`; 2^42 or more if there is none.
  [[nodiscard]] constexpr std::uint64_t requested_in(block_word other) const noexcept {
    return std::rotr(bits_ - other.bits_, unused_shift);
  }

  [[nodiscard]] constexpr block_state state() const noexcept { return static_cast<block_state>(bits_ & 0xF); }
  [[nodiscard]] constexpr unsigned sixteenths() const noexcept { return static_cast<unsigned>(bits_ >> 4) & 0x1F; }
  [[nodiscard]] constexpr unsigned home() const noexcept {
    return static_cast<unsigned>(bits_ >> home_shift) & most_home;
  }
  [[nodiscard]] constexpr std::uint64_t unused() const noexcept { return bits_ >> unused_shift; }
  /// Alike but for the home.
  [[nodiscard]] constexpr bool matches(block_word other) const noexcept {
    return ((bits_ ^ other.bits_) & ~(std::uint64_t{most_home} << home_shift)) == 0;
  }
  [[nodiscard]] constexpr std::uint64_t bits() const noexcept { return bits_; }
  [[nodiscard]] constexpr bool operator==(const block_word&) const = default;

 private:
  // 4 bits of state, 5 of sixteenths, 13 of home, 42 of unused bytes: less than a sixteenth of the largest order.
  static constexpr unsigned home_shift = 9;
  static constexpr int unused_shift = 22;

  [[nodiscard]] static constexpr block_word of(block_state state, unsigned sixteenths, std::uint64_t unused) noexcept {
    return block_word(static_cast<std::uint64_t>(state) | std::uint64_t{sixteenths} << 4 | unused << unused_shift);
  }

  std::uint64_t bits_ = 0;
};

static_assert(block_word::none().bits() == 0, "fresh tables are zero and hold no block");

}  // namespace orderly::detail
