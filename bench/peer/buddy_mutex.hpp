/// \file
/// A power-of-two buddy behind one mutex: the textbook version, coalescing at every free.
///
/// An arena that is no power of two starts as several blocks.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string_view>

#include "peer/address_range.hpp"
#include "peer/buddy_lists.hpp"
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
        free_(granules_) {
    for (std::size_t position = 0; position < granules_;) {
      const auto aligned = static_cast<unsigned>(std::countr_zero(position));  // all of them at 0
      const auto fits = static_cast<unsigned>(std::bit_width(granules_ - position)) - 1;
      const unsigned order = std::min(aligned, fits);
      free_.push({static_cast<std::uint32_t>(position), order});
      position += std::size_t{1} << order;
    }
  }

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept {
    if (bytes > range_.size()) return nullptr;
    const unsigned order = buddy_lists::order_of(bytes);
    const std::lock_guard lock(mutex_);
    const buddy_lists::block found = free_.take(order);
    if (found.index == buddy_lists::none) return nullptr;
    free_.split(found, order);
    const std::size_t start = std::size_t{found.index} * granule;
    high_water_ = std::max(high_water_, start + (granule << order));
    return range_.begin() + start;
  }

  void deallocate(void* pointer, std::size_t bytes) noexcept {
    const auto start = static_cast<std::size_t>(static_cast<std::byte*>(pointer) - range_.begin());
    const std::lock_guard lock(mutex_);
    free_.push(free_.merge({static_cast<std::uint32_t>(start / granule), buddy_lists::order_of(bytes)}, most_order));
  }

  /// The highest end of a block so far, as for best fit. An arena does not shrink.
  [[nodiscard]] std::size_t committed() const noexcept { return peak_committed(); }
  [[nodiscard]] std::size_t peak_committed() const noexcept {
    const std::lock_guard lock(mutex_);
    return high_water_;
  }

  [[nodiscard]] static std::size_t rounded(std::size_t bytes) noexcept {
    return granule << buddy_lists::order_of(bytes);
  }

 private:
  static constexpr std::size_t granule = buddy_lists::granule;
  static constexpr unsigned most_order = 31;  // an index has 32 bits

  std::size_t granules_;
  address_range range_;
  buddy_lists free_;
  mutable std::mutex mutex_;
  std::size_t high_water_ = 0;
};

}  // namespace orderly::bench
