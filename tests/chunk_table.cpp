// Which chunks are committed, as masks.
#include "chunk_table.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

/// 16 granules in a chunk, 64 chunks in a root.
geometry shape() { return virtual_geometry(16, 256, 256 * 256, 0); }
constexpr unsigned chunk_order = 4;
constexpr unsigned root_order = 10;

constexpr node chunk(std::uint32_t index) { return {index, chunk_order}; }

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a node's bits are its chunks in the mask of its root") {
  chunk_table table;
  REQUIRE(table.open(shape()));
  CHECK(table.bits({0, root_order}, 1024) == ~chunk_mask{0});
  CHECK(table.bits({3, root_order}, 1024) == ~chunk_mask{0});
  CHECK(table.bits({1, root_order - 1}, 512) == ~chunk_mask{0} << 32);
  for (std::uint32_t index = 0; index < 200; ++index) {
    CHECK(table.bits(chunk(index), 16) == chunk_mask{1} << index % 64);
  }
  for (std::uint64_t granules = 1; granules <= 1024; ++granules) {
    const auto chunks = static_cast<int>((granules + 15) / 16);
    CHECK(std::popcount(table.bits({5, root_order}, granules)) == chunks);
    CHECK(std::countr_one(table.bits({5, root_order}, granules)) == chunks);
  }
  CHECK(table.bits({6, root_order - 3}, 33) == chunk_mask{7} << 48);
}

TEST_CASE("what is set is committed, in its own root, until it is cleared") {
  chunk_table table;
  REQUIRE(table.open(shape()));
  const node root{2, root_order};
  CHECK(table.count(root) == 0);
  table.set(chunk(128), 0b101);
  table.set(chunk(140), chunk_mask{1} << 12);
  CHECK(table.committed(root, ~chunk_mask{0}) == 0x1005);
  CHECK(table.committed(root, 0b111) == 0b101);
  CHECK(table.count(root) == 3);
  CHECK(table.count({32, chunk_order + 2}) == 2);
  CHECK(table.count(chunk(129)) == 0);
  CHECK(table.count({1, root_order}) == 0);
  CHECK(table.count({3, root_order}) == 0);
  table.clear(chunk(128), 0b100);
  CHECK(table.committed(root, ~chunk_mask{0}) == 0x1001);
}

TEST_CASE("a node is backed in full, in part, or not at all; less than a chunk always is") {
  chunk_table table;
  REQUIRE(table.open(shape()));
  const node four{2, chunk_order + 2};
  CHECK(table.look(four) == backing::bare);
  for (unsigned count = 1; count <= 4; ++count) {
    table.set(four, chunk_mask{1} << (7 + count));
    CHECK(table.look(four) == (count == 4 ? backing::full : backing::partial));
  }
  CHECK(table.look({0, root_order}) == backing::partial);
  CHECK(table.look(chunk(8)) == backing::full);
  CHECK(table.look(chunk(7)) == backing::bare);
  CHECK(table.look({0, chunk_order - 1}) == backing::full);
  table.set({1, root_order}, ~chunk_mask{0});
  CHECK(table.look({1, root_order}) == backing::full);
}

TEST_CASE("a chunk is set aside for small blocks, and every node within knows") {
  chunk_table table;
  REQUIRE(table.open(shape()));
  table.set_small(chunk(70), true);
  table.set_small(chunk(70), true);
  for (unsigned order = 0; order < chunk_order; ++order) {
    const unsigned shift = chunk_order - order;
    const auto node_at = [&](std::uint32_t index) { return node{index, static_cast<std::uint8_t>(order)}; };
    CHECK(table.is_small(node_at(70U << shift)));
    CHECK(table.is_small(node_at((71U << shift) - 1)));
    CHECK_FALSE(table.is_small(node_at((70U << shift) - 1)));
    CHECK_FALSE(table.is_small(node_at(71U << shift)));
    CHECK_FALSE(table.is_small(node_at(6U << shift)));
  }
  CHECK(table.look(chunk(70)) == backing::bare);
  table.set_small(chunk(70), false);
  CHECK_FALSE(table.is_small({70U << chunk_order, 0}));
}

TEST_CASE("a flat range is backed in full") {
  chunk_table table;
  REQUIRE(table.open(flat_geometry(16, 1000 * 16)));
  for (std::uint8_t order = 0; order <= 10; ++order) CHECK(table.look({0, order}) == backing::full);
  CHECK_FALSE(table.is_small({0, 0}));
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("owners of the chunks of one root write its mask at once, and lose nothing") {
  chunk_table table;
  REQUIRE(table.open(shape()));
  findings found;
  constexpr std::uint32_t threads = 4;
  run_threads(threads, [&](std::size_t self) {
    random_engine random = make_random(self);
    chunk_mask mine = 0;
    chunk_mask small = 0;
    for (std::size_t step = 0; step < scaled(40000); ++step) {
      const std::size_t index = uniform(random, 0, 15) * threads + self;
      const node n = chunk(static_cast<std::uint32_t>(index));
      const chunk_mask bit = chunk_mask{1} << index;
      found.expect(table.count(n) == ((mine & bit) != 0 ? 1U : 0U), "chunk ", index, " was changed by another thread");
      found.expect(table.is_small({n.index << chunk_order, 0}) == ((small & bit) != 0), "chunk ", index,
                   " was set aside by another thread");
      (mine & bit) != 0 ? table.clear(n, bit) : table.set(n, bit);
      mine ^= bit;
      table.set_small(n, (small & bit) == 0);
      small ^= bit;
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
}

}  // TEST_SUITE
