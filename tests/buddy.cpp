// The buddy system alone: against a map of granules on one thread, audited word by word after every step; then under
// threads, audited whenever they rest.
#include "buddy.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "support/last_one.hpp"
#include "support/parks.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"
#include "support/tree_audit.hpp"

using namespace orderly;
using namespace orderly::detail;
using namespace orderly::test;

namespace {

constexpr std::size_t granule_bytes = 16;

/// A tree over integers: no memory stands behind it.
struct forest {
  explicit forest(const geometry& g) : shape(g) {
    REQUIRE(chunks.open(shape));
    REQUIRE(tree.open(shape, chunks));
  }

  [[nodiscard]] unsigned order_of_chunk() const { return shape.chunk_order; }

  /// Commits and decommits as an arena would, for an owned node of at least a chunk: exactly the chunks of `mask`, in
  /// the node's own count.
  void set_committed(node n, chunk_mask mask) {
    const chunk_mask all = chunks.bits(n, std::uint64_t{1} << n.order);
    const chunk_mask wanted = mask << std::countr_zero(all) & all;
    chunks.set(n, wanted);
    chunks.clear(n, all & ~wanted);
  }

  geometry shape;
  chunk_table chunks;
  buddy tree;
};

geometry flat_range(std::uint64_t granules) { return flat_geometry(granule_bytes, granules * granule_bytes); }

/// Roots of 64 chunks of 16 granules.
geometry many_roots() { return virtual_geometry(granule_bytes, 16 * granule_bytes, 64 * 16 * granule_bytes, 0); }

/// Does the order have blocks of that length? Below 16 granules a sixteenth may be less than a granule.
bool divides(unsigned order, unsigned sixteenths) { return (std::uint64_t{sixteenths} << order) % 16 == 0; }

struct live_block {
  node n;
  unsigned sixteenths = whole;

  [[nodiscard]] std::uint64_t granules() const { return granules_of(n.order, sixteenths); }
};

/// Takes one block as the layers above do.
std::optional<live_block> take(buddy& tree, unsigned order, unsigned sixteenths) {
  const auto claimed = tree.claim(order);
  if (!claimed) return std::nullopt;
  const node n = tree.split(*claimed, order);
  if (sixteenths != whole) tree.carve(n, sixteenths);
  tree.word(n).store(live_bits(sixteenths), std::memory_order_relaxed);
  return live_block{n, sixteenths};
}

/// Takes as many whole blocks of an order as the node that comes to hand holds, at most 8.
std::vector<live_block> take_many(buddy& tree, unsigned order) {
  std::vector<live_block> taken;
  const auto claimed = tree.claim(order);
  if (!claimed) return taken;
  const node n = tree.split(*claimed, std::min<unsigned>(claimed->order, order + 3));
  const std::uint32_t first = tree.shatter(n, order);
  for (std::uint32_t index = first; index < first + (1U << (n.order - order)); ++index) {
    const node block{index, static_cast<std::uint8_t>(order)};
    tree.word(block).store(live_bits(whole), std::memory_order_relaxed);
    taken.push_back({block, whole});
  }
  return taken;
}

/// The owner of every granule. Plain accesses: only a block's owner writes here, so a race that ThreadSanitizer sees is
/// an ordering that the tree failed to give.
class granule_map {
 public:
  granule_map(std::uint64_t granules, findings& found) : owners_(granules), found_(found) {}

  void claim(const live_block& block, std::uint32_t owner) { change(block, 0, owner); }
  void release(const live_block& block, std::uint32_t owner) { change(block, owner, 0); }

  /// Finds fault unless exactly the granules that nobody owns are free.
  void expect_agrees(const tree_audit& audit) const {
    for (const tree_block& block : audit.blocks()) {
      found_.expect(block.state == block_state::free || block.state == block_state::live, "a block of order ",
                    int{block.n.order}, " is neither free nor live");
      for (std::uint64_t granule = block.granule; granule < block.granule + block.granules; ++granule) {
        found_.expect((owners_[granule] == 0) == (block.state == block_state::free), "granule ", granule, " is ",
                      to_string(block.state), ", its owner is ", owners_[granule]);
      }
    }
  }

 private:
  void change(const live_block& block, std::uint32_t from, std::uint32_t to) {
    const std::uint64_t first = block.n.granule();
    for (std::uint64_t granule = first; granule < first + block.granules(); ++granule) {
      found_.expect(owners_[granule] == from, "granule ", granule, " belongs to ", owners_[granule], ", not to ", from);
      owners_[granule] = to;
    }
  }

  std::vector<std::uint32_t> owners_;
  findings& found_;
};

void check_merged(forest& f) {
  findings found;
  const tree_audit audit(f.tree, f.shape, found);
  CHECK(audit.merged());
  expect_listed(f.tree, f.shape, found);
  ORDERLY_CHECK_FINDINGS(found);
}

/// One thread's blocks, taken and given at random.
class gardener {
 public:
  gardener(forest& f, granule_map& map, std::uint32_t self, random_engine random, findings& found)
      : forest_(f), map_(map), self_(self), random_(std::move(random)), found_(found) {}

  void step() {
    const std::size_t action = uniform(random_, 0, 9);
    const auto order = static_cast<unsigned>(uniform(random_, 0, forest_.shape.root_order));
    if (action < 3) {
      const auto sixteenths = static_cast<unsigned>(uniform(random_, 1, whole));
      if (divides(order, sixteenths)) keep(take(forest_.tree, order, sixteenths));
    } else if (action == 3) {
      for (const live_block& block : take_many(forest_.tree, order)) keep(block);
    } else if (action == 4 && !forest_.shape.flat) {
      recommit(order);
    } else {
      give_one();
    }
  }

  void give_all() {
    while (!held_.empty()) give_one();
  }

 private:
  void keep(const std::optional<live_block>& block) {
    if (!block) return;
    map_.claim(*block, self_);
    held_.push_back(*block);
  }

  void give_one() {
    if (held_.empty()) return;
    std::swap(held_[uniform(random_, 0, held_.size() - 1)], held_.back());
    const live_block block = held_.back();
    held_.pop_back();
    map_.release(block, self_);
    forest_.tree.give(block.n, block.sixteenths);
  }

  /// What trimming does: a node of some backing is claimed, some of its chunks change, and it is given back.
  void recommit(unsigned order) {
    order = std::max(order, forest_.order_of_chunk());
    const auto kind = static_cast<backing>(uniform(random_, 0, 2));
    const auto n = forest_.tree.claim(order, kind);
    if (!n) return;
    found_.expect(n->order == order, "claimed order ", int{n->order}, " instead of ", order);
    map_.claim({*n}, self_);
    forest_.set_committed(*n, uniform(random_, 0, 3) == 0 ? random_() : kind == backing::bare ? ~chunk_mask{0} : 0);
    map_.release({*n}, self_);
    forest_.tree.give(*n, whole);
  }

  forest& forest_;
  granule_map& map_;
  std::uint32_t self_;
  random_engine random_;
  findings& found_;
  std::vector<live_block> held_;
};

/// Random steps of one thread, audited all along.
void compare_with_map(const geometry& shape, std::uint64_t stream) {
  findings found;
  forest f(shape);
  granule_map map(f.shape.tree_granules, found);
  gardener one(f, map, 1, make_random(stream), found);
  for (std::size_t round = 0; round < scaled(60); ++round) {
    for (int step = 0; step < 10; ++step) one.step();
    map.expect_agrees(tree_audit(f.tree, f.shape, found));
    expect_listed(f.tree, f.shape, found);
  }
  one.give_all();
  ORDERLY_CHECK_FINDINGS(found);
  check_merged(f);
}

/// Many short rounds: threads work at once, then rest and are audited; in every other round they give everything back
/// at once, which is where a merge would be missed.
void work_together(const geometry& shape, std::size_t threads, std::size_t rounds) {
  findings found;
  forest f(shape);
  granule_map map(f.shape.tree_granules, found);
  std::vector<gardener> all;
  for (std::uint32_t index = 0; index < threads; ++index) {
    all.emplace_back(f, map, index + 1, make_random(index), found);
  }
  for (std::size_t round = 0; round < rounds && found.count() == 0; ++round) {
    run_threads(threads, [&](std::size_t index) {
      for (int step = 0; step < 60; ++step) all[index].step();
      if (round % 2 != 0) all[index].give_all();
    });
    const tree_audit audit(f.tree, f.shape, found);
    map.expect_agrees(audit);
    expect_listed(f.tree, f.shape, found);
    if (round % 2 != 0) found.expect(audit.merged(), "round ", round, ": everything was given, and not all merged");
  }
  ORDERLY_CHECK_FINDINGS(found);
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("no two words lie in one place, and every position names its node") {
  const std::size_t bytes = 1 << 20;
  for (const geometry& shape : {virtual_geometry(256, 65536, bytes, 0), virtual_geometry(16, 4096, bytes, 0),
                                virtual_geometry(4096, 4096, bytes, 0), virtual_geometry(65536, 1 << 20, bytes, 0),
                                flat_geometry(256, bytes), flat_geometry(16, 1000)}) {
    CAPTURE(shape.granule_shift);
    CAPTURE(shape.root_order);
    forest f(shape);
    std::vector<const void*> words;
    for (unsigned order = 0; order <= shape.root_order; ++order) {
      for (std::uint64_t index = 0; index <= shape.nodes(order); ++index) {  // and one past the end
        const node n{static_cast<std::uint32_t>(index), static_cast<std::uint8_t>(order)};
        words.push_back(&f.tree.word(n));
        REQUIRE(f.tree.at_position(f.tree.position(n), order) == n);
        REQUIRE(f.tree.words(order) + f.tree.position(n) == &f.tree.word(n));
      }
    }
    std::ranges::sort(words);
    CHECK(std::ranges::adjacent_find(words) == words.end());
  }
}

TEST_CASE("words that many threads write lie on lines of their own, those of one chunk on one page") {
  const geometry shape = virtual_geometry(256, 65536, std::uint64_t{64} << 20, 0);
  const forest f(shape);
  const auto address = [&](std::uint32_t index, unsigned order) {
    return reinterpret_cast<std::uintptr_t>(&f.tree.word({index, static_cast<std::uint8_t>(order)}));
  };
  for (unsigned order = 2; order <= shape.root_order; ++order) {
    CAPTURE(order);
    CHECK(address(1, order) - address(0, order) >= 64);
  }
  for (std::uint32_t chunk = 0; chunk < 64; ++chunk) {
    for (unsigned order = 0; order < shape.chunk_order; ++order) {
      const std::uint32_t first = chunk << (shape.chunk_order - order);
      const std::uint32_t end = (chunk + 1) << (shape.chunk_order - order);
      CHECK(address(first, order) / 4096 == address(0, 0) / 4096 + chunk);
      CHECK(address(end - 1, order) / 4096 == address(0, 0) / 4096 + chunk);
    }
  }
}

TEST_CASE("a flat range starts as the powers of two that its length is the sum of") {
  for (const std::uint64_t granules : {1U, 2U, 3U, 5U, 6U, 7U, 8U, 31U, 32U, 33U, 100U, 255U, 256U, 1000U, 4095U, 4097U}) {
    CAPTURE(granules);
    forest f(flat_range(granules));
    CHECK(f.tree.used_granules() == granules);
    check_merged(f);
  }
}

TEST_CASE("a block of every order and every length is cut exactly, and merges again") {
  for (unsigned order = 0; order <= 8; ++order) {
    for (unsigned sixteenths = 1; sixteenths <= whole; ++sixteenths) {
      if (!divides(order, sixteenths)) continue;
      CAPTURE(order);
      CAPTURE(sixteenths);
      forest f(flat_range(256));
      const auto block = take(f.tree, order, sixteenths);
      REQUIRE(block.has_value());
      CHECK(block->n.granule() == 0);
      findings found;
      const tree_audit audit(f.tree, f.shape, found);
      expect_listed(f.tree, f.shape, found);
      ORDERLY_CHECK_FINDINGS(found);
      REQUIRE(audit.blocks(block_state::live).size() == 1);
      CHECK(audit.blocks(block_state::live)[0].granules == sixteenths * (1U << order) / 16);
      f.tree.give(block->n, sixteenths);
      check_merged(f);
    }
  }
}

TEST_CASE("what a trimmed block leaves is used whole, and merges in whatever order all comes back") {
  random_engine random = make_random(1);
  for (unsigned sixteenths = 1; sixteenths < whole; ++sixteenths) {
    CAPTURE(sixteenths);
    forest f(flat_range(64));
    std::vector<live_block> held{take(f.tree, 6, sixteenths).value()};
    std::uint64_t granules = held[0].granules();
    while (const auto block = take(f.tree, 0, whole)) {
      held.push_back(*block);
      ++granules;
    }
    CHECK(granules == 64);
    std::shuffle(held.begin(), held.end(), random);
    for (const live_block& block : held) f.tree.give(block.n, block.sixteenths);
    check_merged(f);
  }
}

TEST_CASE("a node falls into blocks of consecutive indices") {
  forest f(flat_range(256));
  const node n = f.tree.split(f.tree.claim(6).value(), 6);
  CHECK(f.tree.shatter(n, 2) == n.index * 16);
  findings found;
  const std::vector<tree_block> owned = tree_audit(f.tree, f.shape, found).blocks(block_state::owned);
  REQUIRE(owned.size() == 16);
  for (const tree_block& block : owned) CHECK(block.n.order == 2);
  ORDERLY_CHECK_FINDINGS(found);
  for (const tree_block& block : owned) f.tree.give(block.n, whole);
  check_merged(f);
}

TEST_CASE("a claim gets the smallest node that is large enough") {
  forest f(flat_range(1000));  // 512 + 256 + 128 + 64 + 32 + 8
  CHECK(f.tree.claim(4).value().order == 5);
  CHECK(f.tree.claim(4).value().order == 6);
  CHECK(f.tree.claim(9).value().order == 9);
  CHECK_FALSE(f.tree.claim(9).has_value());
  CHECK(f.tree.claim(0).value().order == 3);
}

TEST_CASE("claims go to committed memory: small ones wherever some is, large ones where all is") {
  forest f(many_roots());
  const unsigned chunk = f.order_of_chunk();
  const auto taken = [&](unsigned order, chunk_mask committed) {
    const node n = f.tree.split(f.tree.claim(f.shape.root_order).value(), order);
    f.set_committed(n, committed);
    return n;
  };
  // Of each pair the buddy is kept, and so is whatever else was split off.
  const node bare = taken(chunk + 1, 0);
  const node partial = taken(chunk + 1, 1);
  const node full = taken(chunk + 1, 3);
  const node larger = taken(chunk + 2, 15);
  std::vector<node> others;
  while (const auto n = f.tree.claim(chunk)) others.push_back(*n);
  const auto give_four = [&] {
    for (const node& n : {full, bare, larger, partial}) f.tree.give(n, whole);
  };
  give_four();
  for (const node& wanted : {full, larger, partial, bare}) CHECK(f.tree.claim(chunk).value() == wanted);
  give_four();
  CHECK(f.tree.claim(0).value().order == chunk + 1);
  CHECK(f.tree.claim(0).value().order == chunk + 1);
  for (const node& wanted : {larger, bare}) CHECK(f.tree.claim(0).value() == wanted);
  CHECK_FALSE(f.tree.claim(0).has_value());
  give_four();
  CHECK_FALSE(f.tree.claim(chunk, backing::full).has_value());
  CHECK(f.tree.claim(chunk + 1, backing::partial).value() == partial);
  CHECK(f.tree.claim(chunk + 1, backing::bare).value() == bare);
  CHECK(f.tree.claim(chunk + 1, backing::full).value() == full);
  CHECK(f.tree.claim(chunk + 2, backing::full).value() == larger);
  for (const node& n : others) f.tree.give(n, whole);
  for (const node& n : {bare, partial, full, larger}) f.tree.give(n, whole);
  check_merged(f);
}

TEST_CASE("small blocks and other blocks below a chunk keep to chunks of their own, while there are chunks") {
  geometry shape = many_roots();
  shape.small_order = 2;
  forest f(shape);
  const auto chunk_for = [&](bool small) {
    const node n = f.tree.split(f.tree.claim(f.order_of_chunk()).value(), f.order_of_chunk());
    f.set_committed(n, 1);
    f.chunks.set_small(n, small);
    return n;
  };
  const auto within = [](node n, node chunk) { return n.granule() >> chunk.order == chunk.index; };
  const node small = chunk_for(true);
  const node other = chunk_for(false);
  std::vector<node> held{f.tree.split(small, 0), f.tree.split(other, 0)};
  for (const unsigned order : {3U, 2U, 1U, 0U, 0U}) {
    CAPTURE(order);
    const node n = f.tree.claim(order).value();
    CHECK(within(n, order < 2 ? small : other));
    held.push_back(f.tree.split(n, order));
  }
  for (const unsigned order : {0U, 2U}) {
    CAPTURE(order);
    while (const auto n = f.tree.claim_among_others(order)) {
      CHECK(within(*n, order < 2 ? other : small));
      held.push_back(*n);
    }
  }
  findings found;
  for (const tree_block& block : tree_audit(f.tree, f.shape, found).blocks(block_state::free)) {
    CHECK_FALSE((within(block.n, other) || (within(block.n, small) && block.n.order >= 2)));
  }
  ORDERLY_CHECK_FINDINGS(found);
  for (const node& n : held) f.tree.give(n, whole);
  check_merged(f);
}

TEST_CASE("a split keeps the half that has more committed chunks") {
  forest f(many_roots());
  const unsigned chunk = f.order_of_chunk();
  for (unsigned committed = 0; committed < 64; ++committed) {
    CAPTURE(committed);
    const node root = f.tree.claim(f.shape.root_order).value();
    f.set_committed(root, chunk_mask{1} << committed);
    const node kept = f.tree.split(root, chunk);
    CHECK(f.chunks.count(kept) == 1);
    f.tree.give(kept, whole);
  }
  check_merged(f);
}

TEST_CASE("untouched roots are handed out once each") {
  forest f(many_roots());
  const std::uint64_t roots = f.shape.tree_granules >> f.shape.root_order;
  std::vector<bool> seen(roots);
  for (std::uint64_t count = 0; count < roots; ++count) {
    const node n = f.tree.claim(f.shape.root_order).value();
    CHECK_FALSE(seen[n.index]);
    seen[n.index] = true;
  }
  CHECK_FALSE(f.tree.claim(0).has_value());
  for (std::uint32_t index = 0; index < roots; ++index) {
    f.tree.give({index, static_cast<std::uint8_t>(f.shape.root_order)}, whole);
  }
  check_merged(f);
}

TEST_CASE("random steps agree with a map of granules") {
  compare_with_map(flat_range(256), 1);
  compare_with_map(flat_range(1000), 2);
  compare_with_map(flat_range(37), 3);
  compare_with_map(many_roots(), 4);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads take and give a few granules as fast as they can: what is lost once is missed by all") {
  for (const std::uint64_t granules : {2U, 3U, 4U, 8U}) {
    for (const std::size_t threads : {2U, 4U}) {
      CAPTURE(granules);
      CAPTURE(threads);
      forest f(flat_range(granules));
      run_threads(threads, [&](std::size_t) {
        for (std::size_t step = 0; step < scaled(400000) / threads; ++step) {
          if (const auto block = take(f.tree, 0, whole)) f.tree.give(block->n, whole);
        }
      });
      check_merged(f);
    }
  }
}

TEST_CASE("threads take the roots that nobody has used yet: each goes to one of them") {
  for (std::size_t round = 0; round < scaled(4); ++round) {
    CAPTURE(round);
    forest f(virtual_geometry(granule_bytes, 16 * granule_bytes, 100'000 * 16 * granule_bytes, 0));
    const unsigned order = f.shape.root_order;
    std::vector<std::atomic<unsigned>> owners(f.shape.nodes(order));
    run_threads(4, [&](std::size_t) {
      while (const auto n = f.tree.claim(order)) owners[n->index].fetch_add(1, std::memory_order_relaxed);
    });
    CHECK(std::ranges::count_if(owners, [](const auto& each) { return each.load() == 1; }) == std::ssize(owners));
  }
}

#if defined(__x86_64__)  // elsewhere no thread is stopped at a chosen instruction

TEST_CASE("a split is stopped at each instruction while another takes what is listed: in the end all free is listed") {
  if (sanitized) return;
  findings found;
  forest f(flat_range(4));
  node mine;
  stepped splits([&] { mine = f.tree.split(mine, 0); });
  bool inside = true;
  for (unsigned steps = 1; inside; ++steps) {
    const std::optional<node> all = f.tree.claim(2);
    found.expect(all.has_value(), "not all came back");
    if (!all) break;
    mine = *all;
    inside = splits.stop(steps);
    std::vector<node> taken;
    while (const auto n = f.tree.claim(0)) taken.push_back(*n);
    splits.finish();
    expect_listed(f.tree, f.shape, found);
    if (found.count() != 0) break;
    for (const node& n : taken) f.tree.give(n, whole);
    f.tree.give(mine, whole);
  }
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("a claim at a hint out of date is stopped at each instruction while the node is given: it stays listed") {
  if (sanitized) return;
  findings found;
  forest f(flat_range(1));
  const node only{0, 0};
  std::optional<node> got;
  stepped claims([&] { got = f.tree.claim(0); });
  bool inside = true;
  for (unsigned steps = 1; inside && found.count() == 0; ++steps) {
    found.expect(f.tree.claim(only), "it is not free");  // past its list
    inside = claims.stop(steps);
    f.tree.give(only, whole);
    claims.finish();
    if (got) f.tree.give(*got, whole);
    expect_listed(f.tree, f.shape, found);
  }
  ORDERLY_CHECK_FINDINGS(found);
}

#endif

TEST_CASE("threads share a small flat range") {
  for (const std::size_t threads : {2U, 4U, 8U}) {
    CAPTURE(threads);
    work_together(flat_range(64), threads, scaled(1200) / threads);
    work_together(flat_range(1000), threads, scaled(1200) / threads);
  }
}

TEST_CASE("threads share many roots, and memory comes and goes") {
  for (const std::size_t threads : {2U, 4U}) {
    CAPTURE(threads);
    work_together(many_roots(), threads, scaled(400) / threads);
  }
}

TEST_CASE("who finds the last root gone knows who took it") {
  std::unique_ptr<forest> f;
  want_the_last(
      scaled(4000),
      [&] {
        f = std::make_unique<forest>(many_roots());
        for (std::uint64_t left = f->shape.tree_granules >> f->shape.root_order; left > 1; --left)
          static_cast<void>(f->tree.claim(f->shape.root_order));
      },
      [&](std::size_t) { return f->tree.claim(f->shape.root_order).has_value(); });
}

}  // TEST_SUITE
