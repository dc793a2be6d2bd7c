// Slots over a source that keeps books of its own: exact chunks, the best fit among free ones, and who owns which.
#include "slots.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "orderly/pool.hpp"
#include "size_class.hpp"
#include "support/failing_source.hpp"
#include "support/last_one.hpp"
#include "support/paper_source.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::detail;
using namespace orderly::test;

namespace {

using call = source_log::call;

constexpr std::size_t kib = 1024;
constexpr std::size_t chunk = 16 * kib;

/// Roots of 64 chunks. Slots: 16 of order 11 (128 chunks), 8 of order 12 (256), ... 2 of order 14 (1024).
struct watched_slots {
  explicit watched_slots(std::uint64_t limit_chunks = 1024, std::uint64_t capacity_chunks = 1024)
      : memory(make_paper_source(kib, paper, log),
               virtual_geometry(kib, chunk, capacity_chunks * chunk, limit_chunks * chunk)) {
    REQUIRE(memory.open());
    REQUIRE(tested.open(memory));
    REQUIRE(memory.shape().root_order == 10);
    REQUIRE(memory.shape().top_order == 14);
  }

  [[nodiscard]] std::optional<node> take(unsigned order, std::uint64_t chunks) {
    const auto n = tested.take(order, chunks, ceiling::hard, why);
    CHECK(n.has_value() == (why == refusal::none));
    if (n) CHECK(tested.look(*n).state() == block_state::owned);
    return n;
  }

  /// Trims slots alone, and gives back which the source refused.
  trimming trim(std::size_t bytes, std::size_t most = SIZE_MAX / chunk * chunk) {
    trimming of{.bytes = std::min(bytes, most), .most = most};
    tested.trim(of);
    for (std::size_t i = 0; i < of.refused_count; ++i) tested.give(of.refused[i]);
    return of;
  }

  /// Finds fault unless each slot has exactly the chunks that it is said to have, from its start.
  void expect_books_agree(findings& found) const {
    const geometry& shape = memory.shape();
    std::size_t committed = 0;
    for (unsigned order = 11; order <= 14; ++order) {
      for (std::uint32_t index = 0; index < shape.slots[order]; ++index) {
        const node n{index, static_cast<std::uint8_t>(order)};
        const std::uint64_t start = shape.bytes(shape.granule(n));
        for (std::uint64_t i = 0; i < std::uint64_t{1} << (order - 4); ++i) {
          found.expect(paper->committed(start + i * chunk, chunk) == (i < tested.chunks(n)), "chunk ", i, " of slot ",
                       index, ", order ", order, ", which has ", tested.chunks(n));
        }
        committed += tested.chunks(n) * chunk;
      }
    }
    found.expect(committed == memory.committed() && committed == log->committed(), committed, " bytes in slots, ",
                 memory.committed(), " accounted for, ", log->committed(), " counted by the source");
  }

  void check_books() const {
    findings found;
    expect_books_agree(found);
    ORDERLY_CHECK_FINDINGS(found);
    ORDERLY_CHECK_CONTRACT(*log);
  }

  std::shared_ptr<source_log> log = std::make_shared<source_log>();
  std::shared_ptr<paper_map> paper = std::make_shared<paper_map>();
  arena memory;
  slots tested;
  refusal why = refusal::none;
};

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a slot has exactly the chunks asked for, whatever it had before") {
  random_engine random = make_random(1);
  watched_slots watched;
  for (int round = 0; round < 200; ++round) {
    const std::uint64_t chunks = uniform(random, 65, 1024);
    const unsigned order = order_of(chunks) + 4;
    CAPTURE(chunks);
    if (watched.memory.committed() > (1024 - chunks) * chunk) {
      CHECK(watched.trim(SIZE_MAX).refused_count == 0);
    }
    const node n = watched.take(order, chunks).value();
    CHECK(n.order == order);
    CHECK(watched.tested.chunks(n) == chunks);
    watched.tested.give(n);
    CHECK(watched.tested.look(n).state() == block_state::free);
    CHECK(watched.tested.chunks(n) == chunks);
    if (round % 20 == 0) watched.check_books();
  }
  watched.check_books();
}

TEST_CASE("while memory is held back, a slot keeps what it has too much") {
  watched_slots watched;
  const node n = watched.take(11, 120).value();
  watched.tested.give(n);
  watched.memory.hold_back(true);
  CHECK(watched.take(11, 100).value() == n);
  CHECK(watched.tested.chunks(n) == 120);
  watched.tested.give(n);
  watched.memory.hold_back(false);
  CHECK(watched.take(11, 100).value() == n);
  CHECK(watched.tested.chunks(n) == 100);
  watched.tested.give(n);
  watched.check_books();
}

TEST_CASE("the free slot that fits best is taken: as many chunks, then more, then fewer, then none") {
  watched_slots watched;
  std::vector<node> taken;
  for (const std::uint64_t chunks : {66U, 80U, 97U, 120U, 128U}) taken.push_back(watched.take(11, chunks).value());
  for (const node& n : taken) watched.tested.give(n);
  const std::size_t committed = watched.memory.committed();
  CHECK(watched.take(11, 98).value() == taken[2]);  // of 97: the same eighth, one chunk more
  CHECK(watched.memory.committed() == committed + chunk);
  CHECK(watched.take(11, 100).value() == taken[3]);  // of 120: 20 too many
  CHECK(watched.tested.chunks(taken[3]) == 100);
  CHECK(watched.take(11, 121).value() == taken[4]);  // of 128
  CHECK(watched.take(11, 121).value() == taken[1]);  // of 80: none has more
  CHECK(watched.take(11, 121).value() == taken[0]);
  CHECK(watched.tested.used(11) == 5);
  CHECK(watched.take(11, 70).value().index == 5);
  CHECK(watched.tested.used(11) == 6);
  watched.check_books();
}

TEST_CASE("there are as many slots of an order as there are, and a free one is found again") {
  watched_slots watched;
  std::vector<node> taken;
  for (std::uint32_t index = 0; index < 8; ++index) taken.push_back(watched.take(12, 1).value());
  CHECK_FALSE(watched.take(12, 1).has_value());
  CHECK(watched.why == refusal::no_node);
  CHECK(watched.take(11, 65).has_value());
  std::ranges::sort(taken, {}, &node::index);
  for (std::uint32_t index = 0; index < 8; ++index) CHECK(taken[index].index == index);
  watched.tested.give(taken[5]);
  CHECK(watched.take(12, 130).value() == taken[5]);
  watched.check_books();
}

TEST_CASE("a slot is known by any granule in it, and a gap between orders is nobody's") {
  watched_slots watched(1023, 1023);
  const geometry& shape = watched.memory.shape();
  CHECK(shape.slot_granule[11] > shape.tree_granules);
  CHECK_FALSE(watched.tested.at_granule(shape.tree_granules));
  CHECK_FALSE(watched.tested.at_granule(shape.slot_granule[11] - 1));
  std::uint64_t gaps = 0;
  for (std::uint8_t order = 11; order <= 14; ++order) {
    for (std::uint32_t index = 0; index < shape.slots[order]; ++index) {
      const node n{index, order};
      CHECK(watched.tested.at_granule(shape.granule(n)) == n);
      CHECK(watched.tested.at_granule(shape.granule(n) + (std::uint64_t{1} << order) - 1) == n);
    }
    const std::uint64_t next = order == 14 ? shape.total_granules : shape.slot_granule[order + 1U];
    for (std::uint64_t granule = shape.granule({shape.slots[order], order}); granule < next; granule += 1024, ++gaps)
      CHECK_FALSE(watched.tested.at_granule(granule));
  }
  CHECK(gaps > 0);
}

TEST_CASE("a limit or a source that refuses leaves the slot free, as it was") {
  watched_slots watched(150);
  const node n = watched.take(12, 140).value();
  CHECK_FALSE(watched.take(11, 65).has_value());
  CHECK(watched.why == refusal::hard_limit);
  watched.tested.give(n);
  CHECK_FALSE(watched.take(12, 160).has_value());
  CHECK(watched.tested.chunks(n) == 140);
  CHECK(watched.tested.look(n).state() == block_state::free);
  watched.log->refuse(call::commit, 1);
  CHECK_FALSE(watched.take(12, 150).has_value());
  CHECK(watched.why == refusal::source);
  CHECK(watched.tested.chunks(n) == 140);
  watched.memory.set_soft_limit(145 * chunk);
  CHECK_FALSE(watched.tested.take(12, 150, ceiling::soft, watched.why).has_value());
  CHECK(watched.why == refusal::soft_limit);
  CHECK(watched.take(12, 150).value() == n);
  watched.check_books();
}

TEST_CASE("a trim empties free slots, largest first, until it has released enough") {
  watched_slots watched;
  const node small = watched.take(11, 100).value();
  const node large = watched.take(12, 200).value();
  const node live = watched.take(13, 300).value();
  watched.tested.give(small);
  watched.tested.give(large);
  CHECK(watched.trim(chunk).released == 200 * chunk);
  CHECK(watched.tested.chunks(large) == 0);
  CHECK(watched.tested.chunks(small) == 100);
  watched.log->refuse(call::decommit, 1);
  const trimming refused = watched.trim(SIZE_MAX);
  CHECK(refused.released == 0);
  CHECK(refused.refused_count == 1);
  CHECK(refused.refused[0] == small);
  CHECK(watched.tested.chunks(small) == 100);
  CHECK(watched.trim(SIZE_MAX).released == 100 * chunk);
  CHECK(watched.tested.chunks(live) == 300);
  CHECK(watched.take(11, 70).value() == small);
  watched.check_books();
}

TEST_CASE("a trim keeps within its bound: it cuts a slot, or leaves it where the source cannot") {
  watched_slots watched;
  const node n = watched.take(11, 100).value();
  watched.tested.give(n);
  CHECK(watched.trim(SIZE_MAX, 30 * chunk).released == 30 * chunk);
  CHECK(watched.tested.chunks(n) == 70);
  CHECK(watched.trim(SIZE_MAX, 0).released == 0);
  watched.log->refuse_all(call::decommit);
  CHECK(watched.trim(SIZE_MAX, 30 * chunk).refused_count == 1);
  CHECK(watched.tested.chunks(n) == 70);
  CHECK(watched.tested.look(n).state() == block_state::free);
  watched.log->refuse_none();
  CHECK(watched.take(11, 70).value() == n);
  watched.check_books();
}

TEST_CASE("one slot that the source does not take back keeps no other from being released") {
  watched_slots watched;
  std::vector<node> taken;
  for (int count = 0; count < 9; ++count) taken.push_back(watched.take(11, 100).value());
  for (const node& n : taken) watched.tested.give(n);
  watched.log->refuse(call::decommit, 1, 2);  // the first two that it is asked for
  CHECK(watched.trim(SIZE_MAX).released == 700 * chunk);
  CHECK(watched.memory.committed() == 200 * chunk);
  CHECK(watched.trim(SIZE_MAX).released == 200 * chunk);
  watched.check_books();
}

TEST_CASE("a block whose surplus the source does not take back is freed with its size, like any other") {
  const auto log = std::make_shared<source_log>();
  constexpr std::size_t mib = 1024 * kib;
  pool over(make_failing_source(log), options{.capacity = 64 * mib});
  over.deallocate(over.allocate(2 * mib), 2 * mib);
  log->refuse_all(call::decommit);
  void* block = over.allocate(mib + mib / 4);
  CHECK(over.try_deallocate(block, mib + mib / 4) == error::none);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads take, give and trim: each slot has one owner, and the books agree") {
  for (const std::size_t threads : {2U, 4U, 8U}) {
    CAPTURE(threads);
    findings found;
    for (std::size_t round = 0; round < scaled(40); ++round) {
      watched_slots watched;
      std::vector<std::uint32_t> owners(64);  // plain: the slots order their owners
      run_threads(threads, [&](std::size_t index) {
        random_engine random = make_random(round * threads + index);
        const auto self = static_cast<std::uint32_t>(index + 1);
        std::vector<node> held;
        const auto place = [](node n) { return std::size_t{n.index} + 16 * (n.order - 11U); };
        const auto give_last = [&] {
          found.expect(std::exchange(owners[place(held.back())], 0) == self, "a slot was taken from its owner");
          watched.tested.give(held.back());
          held.pop_back();
        };
        for (int step = 0; step < 100; ++step) {
          if (uniform(random, 0, 1) == 0) {
            const unsigned order = static_cast<unsigned>(uniform(random, 11, 13));
            refusal why = refusal::none;
            const std::uint64_t half = std::uint64_t{1} << (order - 5);
            if (const auto n = watched.tested.take(order, uniform(random, half + 1, 2 * half), ceiling::hard, why)) {
              found.expect(std::exchange(owners[place(*n)], self) == 0, "slot ", n->index, " has two owners");
              held.push_back(*n);
            }
          } else if (!held.empty()) {
            give_last();
          } else {
            (void)watched.trim(uniform(random, 1, 100) * chunk, uniform(random, 50, 200) * chunk);
          }
        }
        while (!held.empty()) give_last();
      });
      watched.expect_books_agree(found);
      found.expect(watched.trim(SIZE_MAX).refused_count == 0, "the source refused");
      found.expect(watched.memory.committed() == 0, watched.memory.committed(), " bytes are lost");
      found.expect(watched.log->violations() == 0, watched.log->first_violation());
    }
    ORDERLY_CHECK_FINDINGS(found);
  }
}

TEST_CASE("threads take the slots that nobody has had yet: each goes to one of them") {
  constexpr std::uint64_t capacity = 64 * 1024;  // chunks
  constexpr std::uint64_t length = 65;           // of a slot of 128
  for (std::size_t round = 0; round < scaled(20); ++round) {
    CAPTURE(round);
    const auto log = std::make_shared<source_log>();
    const auto paper = std::make_shared<paper_map>();
    arena memory(make_paper_source(kib, paper, log), virtual_geometry(kib, chunk, capacity * chunk, 0));
    slots tested;
    REQUIRE(memory.open());
    REQUIRE(tested.open(memory));
    std::vector<std::atomic<unsigned>> owners(memory.shape().slots[11]);
    REQUIRE(owners.size() * length > capacity);
    run_threads(4, [&](std::size_t) {
      refusal why = refusal::none;
      while (const auto n = tested.take(11, length, ceiling::hard, why))
        owners[n->index].fetch_add(1, std::memory_order_relaxed);
    });
    CHECK(std::ranges::all_of(owners, [](const auto& each) { return each.load() <= 1; }));
    CHECK(std::ranges::count_if(owners, [](const auto& each) { return each.load() == 1; }) == capacity / length);
    CHECK(memory.committed() == capacity / length * length * chunk);
    ORDERLY_CHECK_CONTRACT(*log);
  }
}

TEST_CASE("while memory is held back, threads that take and give shorten no slot") {
  findings found;
  for (std::size_t round = 0; round < scaled(20); ++round) {
    watched_slots watched;
    watched.memory.hold_back(true);
    std::atomic<std::size_t> longer = 0;
    run_threads(4, [&](std::size_t self) {
      random_engine random = make_random(round * 4 + self);
      for (int step = 0; step < 200; ++step) {
        const unsigned order = static_cast<unsigned>(uniform(random, 11, 13));
        const std::uint64_t half = std::uint64_t{1} << (order - 5);
        const std::uint64_t wanted = uniform(random, half + 1, 2 * half);
        refusal why = refusal::none;
        const auto n = watched.tested.take(order, wanted, ceiling::hard, why);
        if (!n) continue;
        found.expect(watched.tested.chunks(*n) >= wanted, "a slot has fewer chunks than asked for");
        longer += watched.tested.chunks(*n) > wanted;
        watched.tested.give(*n);
      }
    });
    found.expect(longer != 0, "no slot had more than was wanted");
    found.expect(watched.log->seen(call::decommit) == 0, watched.log->seen(call::decommit),
                 " times the source got back what a stream may use");
    watched.expect_books_agree(found);
  }
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("who finds the last slot gone knows who took it") {
  std::unique_ptr<watched_slots> watched;
  const auto take = [&] {
    refusal why = refusal::none;
    return watched->tested.take(14, 513, ceiling::hard, why);
  };
  want_the_last(
      scaled(4000),
      [&] {
        watched = std::make_unique<watched_slots>();
        if (const auto n = take()) static_cast<void>(watched->memory.decommit(*n, 0, 513));  // there is room for one more
      },
      [&](std::size_t) { return take().has_value(); });
}

}  // TEST_SUITE
