/// \file
/// A power-of-two buddy behind one mutex: the textbook version, coalescing at every free.
///
/// One doubly linked list of free blocks per order, newest first, and a mask of the lists that are not empty. All
/// records lie outside the memory, indexed by granule. An arena that is no power of two starts as several blocks.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string_view>

#include "peer/address_range.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class buddy_mutex_peer {
 public:
  static constexpr std::string_view name = "buddy-mutex";
  static constexpr bool arena = true;

  /// The limit is the size of the arena.
  explicit buddy_mutex_peer(const arena_config& config)
      : granules_(std::max(std::size_t{1}, (config.limit != 0 ? config.limit : config.capacity) / granule)),
        range_(granules_ * granule),
        free_order_range_(granules_ * sizeof(std::uint8_t)),
        links_range_(granules_ * sizeof(links)) {
    if (granules_ >= none) throw std::invalid_argument("buddy-mutex serves arenas of less than 1 TiB");
    lists_.fill(none);
    for (std::size_t position = 0; position < granules_;) {
      const auto aligned = static_cast<unsigned>(std::countr_zero(position));  // all of them at 0
      const auto fits = static_cast<unsigned>(std::bit_width(granules_ - position)) - 1;
      const unsigned order = std::min(aligned, fits);
      push(static_cast<std::uint32_t>(position), order);
      position += std::size_t{1} << order;
    }
  }

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept {
    if (bytes > range_.size()) return nullptr;
    const unsigned order = order_of(bytes);
    const std::lock_guard lock(mutex_);
    const std::uint64_t large_enough = not_empty_ & (~std::uint64_t{0} << order);
    if (large_enough == 0) return nullptr;
    auto found = static_cast<unsigned>(std::countr_zero(large_enough));
    const std::uint32_t index = lists_[found];
    remove(index, found);
    while (found > order) {
      --found;
      push(index + (std::uint32_t{1} << found), found);
    }
    const std::size_t start = std::size_t{index} * granule;
    high_water_ = std::max(high_water_, start + (granule << order));
    return range_.begin() + start;
  }

  void deallocate(void* pointer, std::size_t bytes) noexcept {
    const auto start = static_cast<std::size_t>(static_cast<std::byte*>(pointer) - range_.begin());
    auto index = static_cast<std::uint32_t>(start / granule);
    unsigned order = order_of(bytes);
    const std::lock_guard lock(mutex_);
    for (;; ++order) {
      const std::uint32_t buddy = index ^ (std::uint32_t{1} << order);
      if (buddy >= granules_ || free_order()[buddy] != order + 1) break;
      remove(buddy, order);
      index = std::min(index, buddy);
    }
    push(index, order);
  }

  /// The highest end of a block so far, as for best fit. An arena does not shrink.
  [[nodiscard]] std::size_t committed() const noexcept { return peak_committed(); }
  [[nodiscard]] std::size_t peak_committed() const noexcept {
    const std::lock_guard lock(mutex_);
    return high_water_;
  }

  [[nodiscard]] static std::size_t rounded(std::size_t bytes) noexcept { return granule << order_of(bytes); }

 private:
  static constexpr std::size_t granule = 256;
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  struct links {
    std::uint32_t next;
    std::uint32_t previous;
  };

  static unsigned order_of(std::size_t bytes) noexcept {
    return static_cast<unsigned>(std::bit_width((std::max(bytes, std::size_t{1}) - 1) / granule));
  }

  /// Order of the free block that starts at a granule, plus one; 0: none starts there.
  [[nodiscard]] std::uint8_t* free_order() const noexcept {
    return reinterpret_cast<std::uint8_t*>(free_order_range_.begin());
  }
  [[nodiscard]] links* link() const noexcept { return reinterpret_cast<links*>(links_range_.begin()); }

  void push(std::uint32_t index, unsigned order) noexcept {
    const std::uint32_t next = lists_[order];
    link()[index] = {next, none};
    if (next != none) link()[next].previous = index;
    lists_[order] = index;
    not_empty_ |= std::uint64_t{1} << order;
    free_order()[index] = static_cast<std::uint8_t>(order + 1);
  }

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
  address_range range_;
  address_range free_order_range_;
  address_range links_range_;
  mutable std::mutex mutex_;
  std::array<std::uint32_t, 64> lists_;
  std::uint64_t not_empty_ = 0;
  std::size_t high_water_ = 0;
};

}  // namespace orderly::bench
