#include "geometry.hpp"

#include <algorithm>
#include <bit>

#include "atomic.hpp"
#include "free_list.hpp"
#include "size_class.hpp"

namespace orderly::detail {
namespace {

/// Roots are 16 chunks, and larger while they are below 1 MiB and a 64-bit mask can still hold a bit for each chunk:
/// large enough that most requests are split exactly, small enough that there are many.
constexpr unsigned least_chunks_per_root_log2 = bounds::least_root_chunks_log2;
constexpr unsigned most_chunks_per_root_log2 = bounds::most_root_chunks_log2;
constexpr unsigned root_bytes_log2 = 20;

/// Blocks of orders below this size are small, however large a chunk is. They are many and some of them stay: where
/// they lie among larger ones hardly a chunk comes free as a whole, and all of them together fill few chunks of their
/// own. With chunks of 2 MiB this brings the smallest limit of a recorded trace (serve_vision) from 1.66 times the peak
/// of live bytes to 1.18, and leaves those of the others where they are. Setting blocks apart by how long they will
/// live, as if that were known, brings it to 1.24.
constexpr unsigned small_bytes_log2 = 16;

/// The words of a group of this order fill a page of 4 KiB.
constexpr unsigned most_group_order = 8;

/// Roots that threads may hold in the middle of an operation, on top of the pigeonhole bound.
constexpr std::uint64_t spare_roots = bounds::spare_roots;

[[nodiscard]] unsigned log2_of(std::uint64_t power) noexcept { return static_cast<unsigned>(std::countr_zero(power)); }

}  // namespace

geometry virtual_geometry(std::size_t granule, std::size_t chunk, std::uint64_t capacity,
                          std::uint64_t limit) noexcept {
  geometry g;
  g.granule_shift = log2_of(granule);
  g.chunk_order = log2_of(chunk) - g.granule_shift;
  const unsigned least = g.chunk_order + least_chunks_per_root_log2;
  const unsigned most = g.chunk_order + most_chunks_per_root_log2;
  const unsigned wanted = root_bytes_log2 > g.granule_shift ? root_bytes_log2 - g.granule_shift : 0;
  g.root_order = std::clamp(wanted, least, most);
  g.group_order = std::min(most_group_order, g.chunk_order);
  g.small_order = std::min(small_bytes_log2 - g.granule_shift, g.chunk_order);
  g.capacity = (capacity + chunk - 1) / chunk * chunk;
  g.limit = std::min(limit == 0 ? g.capacity : limit / chunk * chunk, g.capacity);

  const std::uint64_t capacity_granules = g.capacity >> g.granule_shift;
  g.top_order = std::max(g.root_order, order_of(capacity_granules));
  const std::uint64_t roots = std::min(g.capacity / chunk + spare_roots, max_tree_granules >> g.root_order);
  g.tree_granules = roots << g.root_order;
  g.total_granules = g.tree_granules;
  for (unsigned order = g.root_order + 1; order <= g.top_order; ++order) {
    g.slots[order] =
        static_cast<std::uint32_t>(std::clamp<std::uint64_t>((2 * capacity_granules) >> order, 1, max_linked_nodes));
    const std::uint64_t size = std::uint64_t{1} << order;
    g.slot_granule[order] = (g.total_granules + size - 1) / size * size;
    g.total_granules = g.slot_granule[order] + g.slots[order] * size;
  }
  return g;
}

geometry flat_geometry(std::size_t granule, std::uint64_t capacity) noexcept {
  geometry g;
  g.flat = true;
  g.granule_shift = log2_of(granule);
  g.tree_granules = std::min(capacity >> g.granule_shift, max_tree_granules);
  g.capacity = g.limit = g.tree_granules << g.granule_shift;
  g.root_order = order_of(g.tree_granules);
  g.group_order = std::min(most_group_order, g.root_order);
  g.top_order = g.root_order;
  g.chunk_order = g.root_order + 1;
  g.total_granules = g.tree_granules;
  return g;
}

}  // namespace orderly::detail
