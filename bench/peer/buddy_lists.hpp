/// \file
/// Free blocks of a textbook power-of-two buddy, for the peers that are one. Not for several threads at once.
///
/// One doubly linked list of free blocks per order, newest first, and a mask of the lists that are not empty. All
/// records lie outside the memory, indexed by granule.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "peer/address_range.hpp"

namespace orderly::bench {

class buddy_lists {
 public:
  static constexpr std::size_t granule = 256;
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  struct block {
    std::uint32_t index = none;  ///< of its first granule; none: there is no such block
    unsigned order = 0;
  };

  /// Nothing is free. Throws std::invalid_argument.
  explicit buddy_lists(std::size_t granules)
      : granules_(granules), free_order_range_(granules), links_range_(granules * sizeof(links)) {
    if (granules >= none) throw std::invalid_argument("a power-of-two buddy serves less than 1 TiB");
    lists_.fill(none);
  }

  static unsigned order_of(std::size_t bytes) noexcept {
    return static_cast<unsigned>(std::bit_width((std::max(bytes, std::size_t{1}) - 1) / granule));
  }

  /// The smallest free block of at least that order, the newest of them; it is free no longer.
  [[nodiscard]] block take(unsigned order) noexcept {
    const std::uint64_t large_enough = not_empty_ & (~std::uint64_t{0} << order);
    if (large_enough == 0) return {};
    const auto found = static_cast<unsigned>(std::countr_zero(large_enough));
    const std::uint32_t index = lists_[found];
    remove(index, found);
    return {index, found};
  }

  /// Halves a block that is not free until it has that order; the upper halves are free.
  void split(block whole, unsigned order) noexcept {
    while (whole.order > order) {
      --whole.order;
      push({whole.index + (std::uint32_t{1} << whole.order), whole.order});
    }
  }

  /// The block with all its buddies that are free, up to an order; they are free no longer.
  [[nodiscard]] block merge(block of, unsigned most) noexcept {
    for (; of.order < most; ++of.order) {
      const std::uint32_t buddy = of.index ^ (std::uint32_t{1} << of.order);
      if (buddy >= granules_ || free_order()[buddy] != of.order + 1) break;
      remove(buddy, of.order);
      of.index = std::min(of.index, buddy);
    }
    return of;
  }

  void push(block of) noexcept {
    const std::uint32_t next = lists_[of.order];
    link()[of.index] = {next, none};
    if (next != none) link()[next].previous = of.index;
    lists_[of.order] = of.index;
    not_empty_ |= std::uint64_t{1} << of.order;
    free_order()[of.index] = static_cast<std::uint8_t>(of.order + 1);
  }

 private:
  struct links {
    std::uint32_t next;
    std::uint32_t previous;
  };

  /// Order of the free block that starts at a granule, plus one; 0: none starts there.
  [[nodiscard]] std::uint8_t* free_order() const noexcept {
    return reinterpret_cast<std::uint8_t*>(free_order_range_.begin());
  }
  [[nodiscard]] links* link() const noexcept { return reinterpret_cast<links*>(links_range_.begin()); }

  void remove(std::uint32_t index, unsigned order) noexcept {
    const links around = link()[index];
    if (around.next != none) link()[around.next].previous = around.previous;
    if (around.previous != none) {
      link()[around.previous].next = around.next;
    } else {
      lists_[order] = around.next;
      if (around.next == none) not_empty_ &= ~(std::uint64_t{1} << order);
    }
    free_order()[index] = 0;
  }

  std::size_t granules_;
  address_range free_order_range_;
  address_range links_range_;
  std::array<std::uint32_t, 64> lists_;
  std::uint64_t not_empty_ = 0;
};

}  // namespace orderly::bench
