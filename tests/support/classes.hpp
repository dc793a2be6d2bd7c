/// \file
/// The size classes, stated a second time and independently of the library.
#pragma once

#include <bit>
#include <cstddef>

namespace orderly::test {

/// Length of the block for a request: every whole number of granules up to 16, above that eight lengths per doubling.
/// For requests up to a root, 16 chunks.
[[nodiscard]] inline std::size_t class_length(std::size_t bytes, std::size_t granule) {
  const std::size_t granules = bytes == 0 ? 1 : (bytes + granule - 1) / granule;
  if (granules <= 16) return granules * granule;
  const std::size_t step = std::bit_ceil(granules) / 16;
  return (granules + step - 1) / step * step * granule;
}

}  // namespace orderly::test
