// How addresses are divided, over many random options: nothing overlaps, and there is always room for what the limit
// allows.
#include "geometry.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "free_list.hpp"
#include "size_class.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

struct drawn_options {
  std::size_t granule;
  std::size_t chunk;
  std::uint64_t capacity;
  std::uint64_t limit;
};

/// Chunks as pools have them: at least a page, or a granule.
drawn_options draw(random_engine& random) {
  drawn_options o;
  o.granule = std::size_t{1} << uniform(random, 4, 16);
  o.chunk = std::max(o.granule, std::size_t{1} << uniform(random, 12, 26));
  o.capacity = log_uniform(random, 1, std::uint64_t{1} << 43);
  o.limit = uniform(random, 0, 2) == 0 ? 0 : o.chunk + log_uniform(random, 1, 2 * o.capacity);
  return o;
}

void check_sizes(const geometry& g, const drawn_options& o) {
  CHECK_FALSE(g.flat);
  CHECK(g.granule_bytes() == o.granule);
  CHECK(g.chunk_bytes() == o.chunk);
  CHECK(g.capacity % o.chunk == 0);
  CHECK(g.capacity >= o.capacity);
  CHECK(g.capacity - o.capacity < o.chunk);
  CHECK(g.limit % o.chunk == 0);
  CHECK(g.limit >= o.chunk);
  CHECK(g.limit <= g.capacity);
  if (o.limit != 0 && o.limit <= g.capacity) CHECK(o.limit - g.limit < o.chunk);
  if (o.limit == 0 || o.limit > g.capacity) CHECK(g.limit == g.capacity);
}

/// The tree, then each order's slots, aligned to their size, without overlap.
void check_layout(const geometry& g) {
  CHECK(g.tree_granules % (std::uint64_t{1} << g.root_order) == 0);
  std::uint64_t end = g.tree_granules;
  for (unsigned order = g.root_order + 1; order <= g.top_order; ++order) {
    const std::uint64_t size = std::uint64_t{1} << order;
    CHECK(g.slot_granule[order] % size == 0);
    CHECK(g.slot_granule[order] >= end);
    CHECK(g.slot_granule[order] - end < size);
    CHECK(g.granule({0, static_cast<std::uint8_t>(order)}) == g.slot_granule[order]);
    CHECK(g.nodes(order) == g.slots[order]);
    end = g.slot_granule[order] + g.slots[order] * size;
    CHECK(g.granule({g.slots[order] - 1, static_cast<std::uint8_t>(order)}) + (std::uint64_t{1} << order) == end);
  }
  CHECK(end == g.total_granules);
  const std::uint64_t back = g.bytes(g.total_granules) >> g.granule_shift;
  CHECK(back == g.total_granules);  // no overflow
}

void check_tree(const geometry& g) {
  CHECK(g.root_order >= g.chunk_order);
  CHECK(g.root_order - g.chunk_order <= 6);  // a root's chunks fit a mask
  CHECK(g.tree_granules > 0);
  for (unsigned order = 0; order <= g.root_order; ++order) {
    CHECK(g.in_tree(order));
    const std::uint64_t covered = g.nodes(order) << order;
    CHECK(covered == g.tree_granules);
    CHECK(g.nodes(order) <= max_linked_nodes);
  }
  CHECK_FALSE(g.in_tree(g.root_order + 1));
}

/// The pigeonhole bounds. A root in use holds a committed chunk; a slot in use has more than half its size committed.
void check_room(const geometry& g) {
  const std::uint64_t roots = g.tree_granules >> g.root_order;
  const bool clipped = roots == max_tree_granules >> g.root_order;
  if (!clipped) CHECK(roots > g.limit / g.chunk_bytes());
  for (unsigned order = g.root_order + 1; order <= g.top_order; ++order) {
    const std::uint64_t least_bytes = g.bytes(std::uint64_t{1} << (order - 1)) + g.chunk_bytes();
    CHECK(g.slots[order] >= g.limit / least_bytes);
    CHECK(g.slots[order] >= 1);
  }
  CHECK(g.top_order >= order_of(g.capacity >> g.granule_shift));  // the capacity is one request
  CHECK(g.top_order < max_orders);
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("virtual: whatever the options, nothing overlaps and room never runs out before memory does") {
  random_engine random = make_random(1);
  for (std::size_t count = 0; count < scaled(4000); ++count) {
    const drawn_options o = draw(random);
    CAPTURE(o.granule);
    CAPTURE(o.chunk);
    CAPTURE(o.capacity);
    CAPTURE(o.limit);
    const geometry g = virtual_geometry(o.granule, o.chunk, o.capacity, o.limit);
    check_sizes(g, o);
    check_layout(g);
    check_tree(g);
    check_room(g);
  }
}

TEST_CASE("virtual: a root is 1 MiB, or 16 to 64 chunks where that is more or less") {
  const auto root_bytes = [](std::size_t granule, std::size_t chunk) {
    const geometry g = virtual_geometry(granule, chunk, 1 << 30, 0);
    return g.bytes(std::uint64_t{1} << g.root_order);
  };
  constexpr std::size_t kib = 1024;
  CHECK(root_bytes(256, 64 * kib) == 1024 * kib);
  CHECK(root_bytes(256, 32 * kib) == 1024 * kib);
  CHECK(root_bytes(256, 4 * kib) == 64 * 4 * kib);
  CHECK(root_bytes(256, 2048 * kib) == 16 * 2048 * kib);
  CHECK(root_bytes(64 * kib, 64 * kib) == 1024 * kib);
}

TEST_CASE("virtual: blocks below 64 KiB are small, and below a chunk if that is less") {
  const auto small_bytes = [](std::size_t granule, std::size_t chunk) {
    const geometry g = virtual_geometry(granule, chunk, 1 << 30, 0);
    return g.bytes(std::uint64_t{1} << g.small_order);
  };
  constexpr std::size_t kib = 1024;
  CHECK(small_bytes(256, 4 * kib) == 4 * kib);
  CHECK(small_bytes(256, 64 * kib) == 64 * kib);
  CHECK(small_bytes(256, 2048 * kib) == 64 * kib);
  CHECK(small_bytes(16, 2048 * kib) == 64 * kib);
  CHECK(small_bytes(64 * kib, 2048 * kib) == 64 * kib);  // the granule: none is
}

TEST_CASE("flat: one tree over the range, of any length, and no slots") {
  random_engine random = make_random(2);
  for (std::size_t count = 0; count < scaled(4000); ++count) {
    const std::size_t granule = std::size_t{1} << uniform(random, 4, 16);
    const std::uint64_t capacity = log_uniform(random, granule, std::uint64_t{1} << 36);
    CAPTURE(granule);
    CAPTURE(capacity);
    const geometry g = flat_geometry(granule, capacity);
    CHECK(g.flat);
    CHECK(g.granule_bytes() == granule);
    CHECK(g.tree_granules == std::min(capacity / granule, max_tree_granules));
    CHECK(g.total_granules == g.tree_granules);
    CHECK(g.capacity == g.bytes(g.tree_granules));
    CHECK(g.limit == g.capacity);
    CHECK(g.root_order == order_of(g.tree_granules));
    CHECK(g.top_order == g.root_order);
    CHECK(g.chunk_order > g.root_order);
    for (unsigned order = 0; order <= g.root_order; ++order) {
      const std::uint64_t covered = g.nodes(order) << order;
      CHECK(covered >= g.tree_granules);
      CHECK(covered - g.tree_granules < (std::uint64_t{1} << order));
      CHECK(g.nodes(order) <= max_linked_nodes);
    }
  }
}

TEST_CASE("the largest pools keep their node numbers within the links") {
  for (const std::size_t granule : {std::size_t{16}, std::size_t{256}, std::size_t{65536}}) {
    CAPTURE(granule);
    const geometry g = virtual_geometry(granule, 64 << 10, std::uint64_t{1} << 46, 0);
    check_layout(g);
    check_tree(g);
    CHECK(flat_geometry(granule, std::uint64_t{1} << 46).tree_granules <= max_tree_granules);
  }
}

}  // TEST_SUITE
