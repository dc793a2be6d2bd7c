// The arena over a source that keeps books of its own: what is committed, what a refusal leaves behind, and the limits.
#include "arena.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "support/decorated_source.hpp"
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
constexpr std::uint64_t root_chunks = 64;

/// 64 chunks of 16 granules in a root, and slots of 128 chunks.
struct watched_arena {
  explicit watched_arena(std::uint64_t limit_chunks = 128)
      : memory(make_paper_source(kib, paper, log), virtual_geometry(kib, chunk, 128 * chunk, limit_chunks * chunk)) {
    REQUIRE(memory.open());
    REQUIRE(memory.shape().root_order - memory.shape().chunk_order == 6);
  }

  [[nodiscard]] static node root(std::uint32_t index) { return {index, 10}; }
  [[nodiscard]] static node chunk_node(std::uint32_t index) { return {index, 4}; }
  [[nodiscard]] static node slot() { return {0, 11}; }

  /// Commits exactly these chunks of the first root.
  void commit_chunks(std::uint64_t mask) {
    for (; mask != 0; mask &= mask - 1) {
      const node n = chunk_node(static_cast<std::uint32_t>(std::countr_zero(mask)));
      REQUIRE(memory.commit(n, 16, ceiling::hard) == refusal::none);
    }
  }

  /// Chunks of the first root that are committed: by the table; and the same by the source.
  [[nodiscard]] std::uint64_t noted() const { return memory.chunks().committed(root(0), ~chunk_mask{0}); }
  [[nodiscard]] std::uint64_t true_chunks() const {
    std::uint64_t mask = 0;
    for (unsigned i = 0; i < root_chunks; ++i) mask |= std::uint64_t{paper->committed(i * chunk, chunk)} << i;
    return mask;
  }

  void check_books() const {
    CHECK(noted() == true_chunks());
    CHECK(memory.committed() == log->committed());
    CHECK(memory.committed() <= memory.peak_committed());
    CHECK(log->peak_committed() <= memory.peak_committed());
    ORDERLY_CHECK_CONTRACT(*log);
  }

  std::shared_ptr<source_log> log = std::make_shared<source_log>();
  std::shared_ptr<paper_map> paper = std::make_shared<paper_map>();
  arena memory;
};

/// Has something happen when it has committed, before the arena knows.
class followed_source final : public decorated_source {
 public:
  followed_source(std::unique_ptr<memory_source> inner, std::function<void()>& then)
      : decorated_source(std::move(inner)), then_(then) {}
  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    const bool done = decorated_source::commit(address, bytes);
    if (const auto then = std::exchange(then_, nullptr)) then();
    return done;
  }

 private:
  std::function<void()>& then_;
};

std::size_t runs(std::uint64_t mask) { return static_cast<std::size_t>(std::popcount(mask & ~(mask << 1))); }

/// Sets of chunks with every kind of run: at the ends, alone, long, none, all.
constexpr std::uint64_t masks[] = {0, 1, 1ULL << 63, ~0ULL, ~0ULL << 1, ~0ULL >> 1, 0x5555555555555555, 0xaaaaaaaaaaaaaaaa,
                                   0x00ff00ff0000ffff, 0x8000000100000001};

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("an arena opens when source and system agree, and gives its range back") {
  const auto log = std::make_shared<source_log>();
  const auto paper = std::make_shared<paper_map>();
  const geometry shape = virtual_geometry(kib, chunk, 128 * chunk, 0);
  {
    arena refused(make_paper_source(kib, paper, log), shape);
    log->refuse(call::reserve, 1);
    CHECK_FALSE(refused.open());
    arena opened(make_paper_source(kib, paper, log), shape);
    CHECK(opened.open());
    CHECK(log->ranges().at(0).bytes == shape.bytes(shape.total_granules));
    CHECK(opened.committed() == 0);
  }
  CHECK(log->reserved_ranges() == 0);
  ORDERLY_CHECK_CONTRACT(*log);
}

TEST_CASE("addresses and offsets") {
  const watched_arena watched;
  const arena& memory = watched.memory;
  const std::uint64_t bytes = memory.shape().bytes(memory.shape().total_granules);
  CHECK(memory.address(0) == memory.base());
  CHECK(memory.offset(memory.base()) == 0U);
  CHECK(memory.offset(memory.address(7)) == 7 * kib);
  CHECK(memory.offset(memory.base() + bytes - 1) == bytes - 1);
  CHECK_FALSE(memory.offset(memory.base() + bytes).has_value());
  CHECK_FALSE(memory.offset(memory.base() - 1).has_value());
  CHECK_FALSE(memory.offset(nullptr).has_value());
}

TEST_CASE("only what is missing is committed, one call for each run") {
  for (const std::uint64_t present : masks) {
    CAPTURE(present);
    watched_arena watched;
    watched.commit_chunks(present);
    CHECK(watched.true_chunks() == present);
    const std::size_t before = watched.log->seen(call::commit);
    CHECK(watched.memory.commit(watched.root(0), 1024, ceiling::hard) == refusal::none);
    CHECK(watched.log->seen(call::commit) - before == runs(~present));
    CHECK(watched.true_chunks() == ~std::uint64_t{0});
    CHECK(watched.memory.committed() == 64 * chunk);
    watched.check_books();
  }
}

TEST_CASE("a part of a node is committed in whole chunks, from its start") {
  for (const std::uint64_t granules : {1U, 15U, 16U, 17U, 512U, 1009U, 1024U}) {
    CAPTURE(granules);
    watched_arena watched;
    CHECK(watched.memory.commit(watched.root(0), granules, ceiling::hard) == refusal::none);
    CHECK(watched.noted() == ~std::uint64_t{0} >> (64 - (granules + 15) / 16));
    watched.check_books();
    CHECK(watched.memory.decommit(watched.root(0)) == (granules + 15) / 16 * chunk);
    CHECK(watched.noted() == 0);
    watched.check_books();
  }
}

TEST_CASE("nodes of one root keep to their own chunks") {
  watched_arena watched;
  const node quarter{2, 8};  // chunks 32 to 47
  CHECK(watched.memory.commit(quarter, 256, ceiling::hard) == refusal::none);
  CHECK(watched.noted() == std::uint64_t{0xffff} << 32);
  watched.commit_chunks(std::uint64_t{1} << 31 | std::uint64_t{1} << 48);
  CHECK(watched.memory.decommit(quarter) == 16 * chunk);
  CHECK(watched.noted() == (std::uint64_t{1} << 31 | std::uint64_t{1} << 48));
  CHECK(watched.memory.decommit(quarter) == 0);
  watched.check_books();
}

TEST_CASE("the limits: what would exceed them changes nothing, and says which") {
  watched_arena watched(10);
  arena& memory = watched.memory;
  memory.set_soft_limit(4 * chunk);
  CHECK(memory.commit(watched.root(0), 4 * 16, ceiling::soft) == refusal::none);
  CHECK(memory.commit(watched.root(0), 5 * 16, ceiling::soft) == refusal::soft_limit);
  CHECK(memory.commit(watched.root(0), 10 * 16, ceiling::hard) == refusal::none);
  CHECK(memory.commit(watched.root(0), 11 * 16, ceiling::hard) == refusal::hard_limit);
  CHECK(memory.commit(watched.root(0), 11 * 16, ceiling::soft) == refusal::hard_limit);
  CHECK(memory.commit(watched.slot(), 0, 1, ceiling::hard) == refusal::hard_limit);
  CHECK(memory.commit(watched.root(0), 10 * 16, ceiling::soft) == refusal::none);  // is committed already
  CHECK(watched.log->seen(call::commit) == 2);
  CHECK(memory.committed() == 10 * chunk);
  CHECK(memory.peak_committed() == 10 * chunk);
  CHECK(memory.decommit(watched.root(0)) == 10 * chunk);
  CHECK(memory.committed() == 0);
  CHECK(memory.peak_committed() == 10 * chunk);
  watched.check_books();
}

TEST_CASE("the peak has what lay committed at once, though others give back before a commit returns") {
  const auto log = std::make_shared<source_log>();
  std::function<void()> then;
  arena memory(std::make_unique<followed_source>(make_paper_source(kib, std::make_shared<paper_map>(), log), then),
               virtual_geometry(kib, chunk, 128 * chunk, 128 * chunk));
  REQUIRE(memory.open());
  const node slot = watched_arena::slot();
  const auto chunk_node = watched_arena::chunk_node;
  CHECK(memory.commit(chunk_node(0), 16, ceiling::hard) == refusal::none);
  then = [&] { CHECK(memory.decommit(chunk_node(0)) == chunk); };
  CHECK(memory.commit(chunk_node(1), 16, ceiling::hard) == refusal::none);
  CHECK(log->peak_committed() == 2 * chunk);
  CHECK(memory.peak_committed() == 2 * chunk);

  then = [&] { CHECK(memory.decommit(chunk_node(1)) == chunk); };
  CHECK(memory.commit(slot, 0, 2, ceiling::hard) == refusal::none);
  CHECK(memory.peak_committed() == 3 * chunk);

  // Of two ranges the source refuses the second; the first lay committed.
  CHECK(memory.commit(chunk_node(5), 16, ceiling::hard) == refusal::none);
  then = [&] {
    CHECK(memory.decommit(slot, 0, 2));
    log->refuse(call::commit, 1);
  };
  CHECK(memory.commit(node{1, 6}, 64, ceiling::hard) == refusal::source);
  CHECK(memory.committed() == chunk);
  CHECK(log->peak_committed() == 4 * chunk);
  CHECK(memory.peak_committed() == 4 * chunk);
  ORDERLY_CHECK_CONTRACT(*log);
  CHECK(memory.decommit(chunk_node(5)) == chunk);
}

TEST_CASE("whichever call the source refuses, a commit that fails changes nothing") {
  for (const std::uint64_t present : masks) {
    for (std::size_t number = 1; number <= runs(~present); ++number) {
      CAPTURE(present);
      CAPTURE(number);
      watched_arena watched;
      watched.commit_chunks(present);
      watched.log->refuse(call::commit, number);
      CHECK(watched.memory.commit(watched.root(0), 1024, ceiling::hard) == refusal::source);
      CHECK(watched.true_chunks() == present);
      watched.check_books();
      CHECK(watched.memory.commit(watched.root(0), 1024, ceiling::hard) == refusal::none);
      CHECK(watched.true_chunks() == ~std::uint64_t{0});
      watched.check_books();
    }
  }
}

TEST_CASE("of a node as many chunks as wanted are decommitted, the last ones") {
  for (const std::uint64_t present : masks) {
    for (const std::size_t most : {0U, 1U, 7U, 63U, 64U, 1000U}) {
      CAPTURE(present);
      CAPTURE(most);
      watched_arena watched;
      watched.commit_chunks(present);
      const std::size_t chunks = static_cast<std::size_t>(std::popcount(present));
      CHECK(watched.memory.decommit(watched.root(0), most) == std::min(chunks, most) * chunk);
      std::uint64_t left = present;
      for (std::size_t i = 0; i < std::min(chunks, most); ++i) left &= ~std::bit_floor(left);
      CHECK(watched.true_chunks() == left);
      watched.check_books();
    }
  }
}

TEST_CASE("what a failed commit cannot undo stays committed and accounted for") {
  for (const std::uint64_t present : masks) {
    for (std::size_t number = 2; number <= runs(~present); number += 5) {
      for (std::size_t undo = 1; undo < number; undo += 3) {
        CAPTURE(present);
        CAPTURE(number);
        CAPTURE(undo);
        watched_arena watched;
        watched.commit_chunks(present);
        watched.log->refuse(call::commit, number);
        watched.log->refuse(call::decommit, undo, undo + 1);
        CHECK(watched.memory.commit(watched.root(0), 1024, ceiling::hard) == refusal::source);
        CHECK((watched.true_chunks() & present) == present);
        CHECK(watched.true_chunks() != present);
        watched.check_books();
        watched.log->refuse_none();
        const std::size_t left = watched.log->committed();
        CHECK(watched.memory.decommit(watched.root(0)) == left);
        CHECK(watched.log->committed() == 0);
      }
    }
  }
}

TEST_CASE("whichever call the source refuses, a decommit says what it released") {
  for (const std::uint64_t present : masks) {
    for (std::size_t number = 1; number <= runs(present); ++number) {
      CAPTURE(present);
      CAPTURE(number);
      watched_arena watched;
      watched.commit_chunks(present);
      const std::size_t before = watched.log->committed();
      watched.log->refuse(call::decommit, number);
      const std::size_t released = watched.memory.decommit(watched.root(0));
      const std::size_t rest = watched.log->committed();
      CHECK(rest != 0);
      CHECK(released == before - rest);
      watched.check_books();
      CHECK(watched.memory.decommit(watched.root(0)) == rest);
      CHECK(watched.log->committed() == 0);
      watched.check_books();
    }
  }
}

TEST_CASE("a range outside the tree is committed and decommitted from chunk to chunk") {
  watched_arena watched;
  arena& memory = watched.memory;
  const std::uint64_t start = memory.shape().bytes(memory.shape().granule(watched.slot()));
  CHECK(memory.commit(watched.slot(), 0, 70, ceiling::hard) == refusal::none);
  CHECK(memory.commit(watched.slot(), 70, 100, ceiling::hard) == refusal::none);
  CHECK(watched.paper->committed(start, 100 * chunk));
  CHECK_FALSE(watched.paper->committed(start + 100 * chunk, chunk));
  CHECK(memory.committed() == 100 * chunk);
  CHECK(memory.decommit(watched.slot(), 80, 100));
  CHECK(watched.paper->committed(start, 80 * chunk));
  CHECK_FALSE(watched.paper->committed(start + 80 * chunk, chunk));
  watched.check_books();
  watched.log->refuse(call::commit, 1);
  CHECK(memory.commit(watched.slot(), 80, 128, ceiling::hard) == refusal::source);
  watched.log->refuse(call::decommit, 1);
  CHECK_FALSE(memory.decommit(watched.slot(), 0, 80));
  CHECK(memory.committed() == 80 * chunk);
  watched.check_books();
  const std::size_t calls = watched.log->seen(call::commit) + watched.log->seen(call::decommit);
  CHECK(memory.commit(watched.slot(), 80, 80, ceiling::hard) == refusal::none);
  CHECK(memory.decommit(watched.slot(), 80, 80));
  CHECK(watched.log->seen(call::commit) + watched.log->seen(call::decommit) == calls);
}

TEST_CASE("a flat range is committed from the start, for good") {
  alignas(16) static unsigned char buffer[16 * kib];
  arena memory(make_fixed_buffer_source(buffer, sizeof buffer), flat_geometry(16, sizeof buffer));
  REQUIRE(memory.open());
  CHECK(memory.base() == reinterpret_cast<std::byte*>(buffer));
  CHECK(memory.committed() == sizeof buffer);
  CHECK(memory.peak_committed() == sizeof buffer);
  CHECK(memory.commit({0, 10}, 1024, ceiling::soft) == refusal::none);
  CHECK(memory.committed() == sizeof buffer);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads commit and decommit chunks of one root; the limit holds, and nothing is lost") {
  for (const std::size_t threads : {2U, 4U, 8U}) {
    CAPTURE(threads);
    watched_arena watched(20);
    findings found;
    run_threads(threads, [&](std::size_t index) {
      random_engine random = make_random(index);
      const std::size_t share = root_chunks / threads;  // each thread owns a node of that many chunks
      const node mine{static_cast<std::uint32_t>(index), static_cast<std::uint8_t>(std::countr_zero(share) + 4)};
      for (std::size_t step = 0; step < scaled(5000); ++step) {
        if (uniform(random, 0, 1) == 0) {
          const refusal why = watched.memory.commit(mine, uniform(random, 1, share * 16), ceiling::hard);
          found.expect(why == refusal::none || why == refusal::hard_limit, "refusal ", static_cast<int>(why));
        } else {
          const std::size_t held = watched.memory.chunks().count(mine) * chunk;
          const std::size_t released = watched.memory.decommit(mine);
          found.expect(released == held, "released ", released, " of ", held);
        }
      }
    });
    ORDERLY_CHECK_FINDINGS(found);
    watched.check_books();
    CHECK(watched.memory.peak_committed() <= 20 * chunk);
    const std::size_t left = watched.log->committed();
    CHECK(watched.memory.decommit(watched.root(0)) == left);
    CHECK(watched.memory.committed() == 0);
  }
}

TEST_CASE("one commits while another gives back: the peak has all that the source had at a time") {
  for (std::size_t round = 0; round < scaled(200); ++round) {
    std::atomic<bool> there = false;
    std::atomic<bool> gone = false;
    std::function<void()> then;
    const auto log = std::make_shared<source_log>();
    arena memory(std::make_unique<followed_source>(make_paper_source(kib, std::make_shared<paper_map>(), log), then),
                 virtual_geometry(kib, chunk, 128 * chunk, 128 * chunk));
    REQUIRE(memory.open());
    REQUIRE(memory.commit(watched_arena::chunk_node(0), 16, ceiling::hard) == refusal::none);
    then = [&] {
      there = true;
      while (!gone) std::this_thread::yield();
    };
    run_threads(2, [&](std::size_t self) {
      if (self == 0) {
        static_cast<void>(memory.commit(watched_arena::chunk_node(1), 16, ceiling::hard));
      } else {
        while (!there) std::this_thread::yield();
        static_cast<void>(memory.decommit(watched_arena::chunk_node(0)));
        gone = true;
      }
    });
    CHECK(memory.peak_committed() == log->peak_committed());
    CHECK(memory.decommit(watched_arena::chunk_node(1)) == chunk);
    ORDERLY_CHECK_CONTRACT(*log);
  }
}

TEST_CASE("who is refused by the limit knows who was charged") {
  watched_arena watched(1);
  want_the_last(
      scaled(20000),
      [&] {
        for (const std::uint32_t each : {0U, 1U}) static_cast<void>(watched.memory.decommit(watched.chunk_node(each)));
      },
      [&](std::size_t self) {
        return watched.memory.commit(watched.chunk_node(static_cast<std::uint32_t>(self)), 16, ceiling::hard) ==
               refusal::none;
      });
  watched.check_books();
}

}  // TEST_SUITE
