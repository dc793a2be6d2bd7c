/// \file
/// What a request is rounded to. Up to 16 granules every whole number of granules is a class; above that, each doubling
/// has eight: 9/16 to 16/16 of the power of two. So a class is an order and a number of sixteenths of it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace orderly::detail {

/// Order and trimmed length of a block.
struct block_shape {
  std::uint8_t order = 0;
  std::uint8_t sixteenths = 0;
  [[nodiscard]] constexpr bool operator==(const block_shape&) const = default;
};

/// Smallest order that holds that many granules. Pre: granules > 0.
[[nodiscard]] constexpr unsigned order_of(std::uint64_t granules) noexcept {
  return static_cast<unsigned>(std::bit_width(granules - 1));
}

/// Class of a request of that many granules. Pre: granules > 0.
[[nodiscard]] constexpr std::size_t class_of(std::uint64_t granules) noexcept {
  const std::uint64_t last_granule = granules - 1;
  const auto width = static_cast<unsigned>(std::bit_width(last_granule | 8));
  const unsigned shift = width - 4;
  return std::size_t{8} * shift + static_cast<std::size_t>(last_granule >> shift);
}

/// Length of a class in granules: the largest request that class_of maps to it.
[[nodiscard]] constexpr std::uint64_t class_granules(std::size_t index) noexcept {
  if (index < 16) return index + 1;
  return static_cast<std::uint64_t>(index % 8 + 9) << (index / 8 - 1);
}

/// Shape of a block of that many granules in the smallest order that holds them, but at least `least_order`; the length
/// is rounded up to the order's sixteenth, and to a whole granule.
[[nodiscard]] constexpr block_shape shape_of(std::uint64_t granules, unsigned least_order = 0) noexcept {
  unsigned order = order_of(granules);
  if (order < least_order) order = least_order;
  const std::uint64_t unit = order > 4 ? std::uint64_t{1} << (order - 4) : 1;
  const std::uint64_t rounded = (granules + unit - 1) / unit * unit;
  return {static_cast<std::uint8_t>(order), static_cast<std::uint8_t>((rounded << 4) >> order)};
}

}  // namespace orderly::detail
