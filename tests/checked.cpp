// Blocks with a handle: orderly/checked.hpp. A second free is told apart whatever became of the block since.
#include "orderly/checked.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/failing_source.hpp"
#include "support/oracles.hpp"
#include "support/process.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t capacity = 8 * mib;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// In each round one thread allocates a block with a handle, and all free that handle at once; then it allocates the
/// block for the next. Returns how many frees succeeded.
std::size_t race_to_free(pool& tested, std::size_t bytes, std::size_t threads, std::size_t rounds) {
  checked_block block;
  std::atomic<std::size_t> accepted = 0;
  std::atomic<std::size_t> arrived = 0;
  findings found;
  const auto meet = [&](std::size_t count) {
    ++arrived;
    for (int spin = 0; arrived < count * threads; ++spin) {
      if (spin >= 1000) std::this_thread::yield();
    }
  };
  run_threads(threads, [&](std::size_t index) {
    checked_block mine;
    for (std::size_t round = 0; round < rounds; ++round) {
      if (index == 0) block = tested.try_allocate_checked(bytes);
      meet(3 * round + 1);
      mine = block;
      const error code = tested.try_deallocate(mine, bytes);
      accepted += code == error::none;
      found.expect(code == error::none || code == error::double_free, to_string(code));
      meet(3 * round + 2);
      if (index == 0) block = tested.try_allocate_checked(bytes);
      meet(3 * round + 3);
      // The same again, late: the block is somebody's by now, or waits for somebody.
      const error late = tested.try_deallocate(mine, bytes);
      found.expect(late == error::stale_handle || late == error::double_free, to_string(late));
      if (index == 0) found.expect(tested.try_deallocate(block, bytes) == error::none, "a good free was refused");
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  return accepted;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a block with a handle is a block like any other") {
  pool tested(options{.capacity = capacity});
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, 64 * kib, 2 * mib - 5, 5 * mib}) {
    CAPTURE(bytes);
    const checked_block block = tested.allocate_checked(bytes);
    CHECK(block);
    CHECK(block.generation % 2 == 1);
    CHECK(tested.block_size(block.address) >= bytes);
    CHECK(tested.try_deallocate(block, bytes) == error::none);
    CHECK_FALSE(tested.owns(block.address));
  }
  const checked_block aligned = tested.allocate_checked(300, 4096);
  CHECK(reinterpret_cast<std::uintptr_t>(aligned.address) % 4096 == 0);
  tested.deallocate(aligned);
  CHECK(tested.stats().bad_frees == 0);
  check_idle(tested);
}

TEST_CASE("null is ignored") {
  pool tested(options{.capacity = capacity});
  CHECK(tested.try_deallocate(checked_block{}, 100) == error::none);
  CHECK(tested.try_deallocate(checked_block{nullptr, 7}) == error::none);
  tested.deallocate(checked_block{});
  tested.deallocate_or_throw(checked_block{});
  CHECK(tested.stats().bad_frees == 0);
}

TEST_CASE("a second free is told apart whatever became of the block") {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{1000}, 9 * kib, 64 * kib, 2 * mib}) {
    CAPTURE(bytes);
    pool tested(options{.capacity = 8 * mib});
    const checked_block block = tested.allocate_checked(bytes);
    tested.deallocate(block, bytes);
    bad_free report;
    CHECK(tested.try_deallocate(block, bytes, &report) == error::double_free);
    CHECK(report.generation == block.generation);
    CHECK(report.block_generation == block.generation + 1);
    CHECK(contains(report.message(), "was freed already"));

    // Handed out again, with a handle, several times.
    checked_block next;
    for (std::uint64_t round = 1; round <= 3; ++round) {
      next = tested.allocate_checked(bytes);
      REQUIRE(next.address == block.address);
      const books before = books_of(tested);
      CHECK(tested.try_deallocate(block, bytes, &report) == error::stale_handle);
      CHECK(same_books(before, books_of(tested)));
      CHECK(report.state == block_state::live);
      CHECK(contains(report.message(), std::to_string(round) + (round == 1 ? " time" : " times") + " since"));
      CHECK(tested.owns(block.address));
      CHECK(tested.try_deallocate(next, bytes) == error::none);
    }
    // Handed out again by address.
    void* const plain = tested.allocate(bytes);
    REQUIRE(plain == block.address);
    CHECK(tested.try_deallocate(next, bytes) == error::double_free);
    CHECK(tested.try_deallocate(block, bytes) == error::stale_handle);
    CHECK(tested.try_deallocate(plain, bytes) == error::none);
    // Merged, decommitted, and handed out in another size, so that the handle points into a block or to its start.
    tested.trim();
    const checked_block whole = tested.allocate_checked(8 * mib);
    CHECK(tested.try_deallocate(next) != error::none);
    CHECK(tested.try_deallocate(block) != error::none);
    CHECK(tested.try_deallocate(whole, 8 * mib) == error::none);
    CHECK(tested.stats().bad_frees == 8);
    check_idle(tested);
  }
}

TEST_CASE("a handle that was freed and points into a larger block now is told so") {
  pool tested(options{.capacity = mib, .granule = 256, .chunk = 64 * kib});
  std::vector<checked_block> small;
  for (int i = 0; i < 256; ++i) small.push_back(tested.allocate_checked(256));
  for (const checked_block& block : small) tested.deallocate(block, 256);
  tested.defragment();
  const checked_block large = tested.allocate_checked(64 * kib);
  std::size_t inside = 0;
  for (const checked_block& block : small) {
    const error code = tested.try_deallocate(block, 256);
    const bool told = code == error::double_free || code == error::stale_handle;
    CHECK(told);
    inside += tested.owns(block.address);
  }
  CHECK(inside == 256);
  CHECK(tested.try_deallocate(large, 64 * kib) == error::none);
}

TEST_CASE("what a free refuses does not end the handle") {
  pool tested(options{.capacity = capacity});
  const checked_block block = tested.allocate_checked(1000);
  auto* const start = static_cast<char*>(block.address);
  char elsewhere[256];
  pool other(options{.capacity = capacity});
  bad_free report;
  const books before = books_of(tested);
  CHECK(tested.try_deallocate(block, 5000, &report) == error::size_mismatch);
  CHECK_FALSE(contains(report.message(), "handle"));
  CHECK(tested.try_deallocate(block, SIZE_MAX) == error::size_mismatch);
  CHECK(tested.try_deallocate(checked_block{start + 256, block.generation}, 1000) == error::interior_pointer);
  CHECK(tested.try_deallocate(checked_block{start + 1, block.generation}, 1000) == error::misaligned_pointer);
  CHECK(tested.try_deallocate(checked_block{elsewhere, 1}, 1) == error::foreign_pointer);
  CHECK(other.try_deallocate(block, 1000) == error::wrong_pool);
  for (const std::uint64_t generation : {std::uint64_t{0}, block.generation - 1, block.generation + 1,
                                         block.generation + 2, UINT64_MAX}) {
    CAPTURE(generation);
    CHECK(tested.try_deallocate(checked_block{start, generation}, 1000, &report) == error::stale_handle);
    CHECK(contains(report.message(), "no handle of generation " + std::to_string(generation) + " was given"));
  }
  CHECK(same_books(before, books_of(tested)));
  CHECK(tested.try_deallocate(block, 1000) == error::none);
  check_idle(tested);
}

TEST_CASE("a block without a handle is not freed by one") {
  pool tested(options{.capacity = capacity});
  void* const plain = tested.allocate(1000);
  CHECK(tested.try_deallocate(checked_block{plain, 0}, 1000) == error::stale_handle);  // before there are handles
  CHECK(tested.try_deallocate(checked_block{plain, 1}, 1000) == error::stale_handle);
  const checked_block other = tested.allocate_checked(1000);
  CHECK(tested.try_deallocate(checked_block{plain, other.generation}, 1000) == error::stale_handle);
  CHECK(tested.try_deallocate(plain, 1000) == error::none);
  CHECK(tested.try_deallocate(checked_block{plain, 1}, 1000) == error::double_free);
  tested.deallocate(other);
  check_idle(tested);
}

TEST_CASE("frees by address and by handle, mixed: what is told, and what is not") {
  pool tested(options{.capacity = capacity});
  const checked_block block = tested.allocate_checked(1000);
  CHECK(tested.try_deallocate(block.address, 1000) == error::none);  // by address
  CHECK(tested.try_deallocate(block, 1000) == error::double_free);   // told: the block is free
  const checked_block next = tested.allocate_checked(1000);
  REQUIRE(next.address == block.address);
  CHECK(tested.try_deallocate(block, 1000) == error::stale_handle);  // told: it has another handle
  CHECK(tested.try_deallocate(next.address, 1000) == error::none);
  void* const plain = tested.allocate(1000);
  REQUIRE(plain == next.address);
  CHECK(tested.try_deallocate(next, 1000) == error::none);           // not told: it has none
  CHECK(tested.try_deallocate(plain, 1000) == error::double_free);
  check_idle(tested);
}

TEST_CASE("every way to free by handle reports") {
  std::vector<error> seen;
  pool tested(options{.capacity = capacity, .on_bad_free = [&](const bad_free& report) { seen.push_back(report.code); }});
  const checked_block block = tested.allocate_checked(1000);
  tested.deallocate(block, 1000);
  tested.deallocate(block, 1000);
  const checked_block next = tested.allocate_checked(1000);
  tested.deallocate(block, 1000);
  CHECK(seen == std::vector<error>{error::double_free, error::stale_handle});
  CHECK_THROWS_AS(tested.deallocate_or_throw(block, 1000), bad_free_error);
  try {
    tested.deallocate_or_throw(block);
  } catch (const bad_free_error& refused) {
    CHECK(refused.report().code == error::stale_handle);
    CHECK(refused.report().generation == block.generation);
  }
  tested.deallocate_or_throw(next, 1000);
  CHECK(tested.stats().bad_frees == 4);
}

TEST_CASE("what cannot be allocated has no handle") {
  pool tested(options{.capacity = mib});
  CHECK_FALSE(tested.try_allocate_checked(2 * mib));
  CHECK_FALSE(tested.try_allocate_checked(SIZE_MAX));
  CHECK_FALSE(tested.try_allocate_checked(1, 3));
  CHECK_THROWS_AS((void)tested.allocate_checked(2 * mib), out_of_memory);
  CHECK_THROWS_AS((void)tested.allocate_checked(1, 0), std::invalid_argument);
  pool moved(std::move(tested));
  CHECK_FALSE(tested.try_allocate_checked(1));
  CHECK_THROWS_AS((void)tested.allocate_checked(1), std::invalid_argument);
  const checked_block block = moved.allocate_checked(1);
  CHECK(tested.try_deallocate(block, 1) == error::pool_gone);
  const captured_stderr capture;
  tested.deallocate(block, 1);
  CHECK(contains(capture.text(), "gone"));
  CHECK(moved.try_deallocate(block, 1) == error::none);
}

TEST_CASE("the generations cost nothing before there is a handle, and little then") {
  const auto mapped = [] {
    std::size_t pages = 0;
    std::FILE* const file = std::fopen("/proc/self/statm", "r");
    REQUIRE(file != nullptr);
    CHECK(std::fscanf(file, "%zu", &pages) == 1);
    std::fclose(file);
    return pages * 4096;
  };
  pool tested(options{.capacity = std::size_t{1} << 30});
  void* const plain = tested.allocate(1000);
  const std::size_t before = mapped();
  tested.deallocate(plain, 1000);
  tested.deallocate(tested.allocate(1000), 1000);
  CHECK(mapped() - before < 16 * mib);  // what the allocator of the test itself may have taken
  const checked_block block = tested.allocate_checked(1000);
  CHECK(mapped() - before > 16 * mib);  // addresses
  tested.deallocate(block, 1000);
}

TEST_CASE("after a fork each process has handles of its own") {
  pool tested(options{.capacity = capacity});
  const checked_block block = tested.allocate_checked(1000);
  const child_end end = run_child([&] {
    const bool once = tested.try_deallocate(block, 1000) == error::none;
    const checked_block next = tested.allocate_checked(1000);
    const bool told = tested.try_deallocate(block, 1000) == error::stale_handle;
    _exit(once && told && tested.try_deallocate(next, 1000) == error::none ? 0 : 1);
  });
  CHECK(end.status == 0);
  CHECK(end.signal == 0);
  CHECK(tested.try_deallocate(block, 1000) == error::none);
  CHECK(tested.try_deallocate(block, 1000) == error::double_free);
}

TEST_CASE("streams: a handle is good in any of them, once") {
  bench b(2, 16 * mib);
  const checked_block block = b.tested->allocate_checked(1000, 1, b[0]);
  CHECK(b.tested->try_deallocate(block, 1000, nullptr) == error::invalid_argument);  // names no stream
  CHECK(b.tested->try_deallocate(block, 5000, b[0]) == error::size_mismatch);
  CHECK(b.tested->try_deallocate(block, 1000, b[0]) == error::none);
  bad_free report;
  CHECK(b.tested->try_deallocate(block, 1000, b[1], &report) == error::double_free);
  const checked_block next = b.tested->allocate_checked(1000, 1, b[0]);
  const checked_block third = b.tested->try_allocate_checked(1000, 1, b[1]);
  REQUIRE(next.address == block.address);
  CHECK(b.tested->try_deallocate(block, 1000, b[0], &report) == error::stale_handle);
  CHECK(contains(report.message(), "1 time since"));
  b.tested->deallocate(block, 1000, b[0]);
  CHECK(b.tested->try_deallocate(next, 1000, b[1]) == error::none);
  CHECK(b.tested->try_deallocate(third, 1000, b[1]) == error::none);
  b.tested->deallocate(checked_block{}, 0, b[0]);
  CHECK(b.tested->stats().memory.bad_frees == 4);
  CHECK_FALSE(b.tested->try_allocate_checked(1000, 1, nullptr));
  CHECK_THROWS_AS((void)b.tested->allocate_checked(17 * mib, 1, b[0]), out_of_memory);
  check_idle(*b.tested);
}

TEST_CASE("streams: a divided block has no handle any more, and its parts have none yet") {
  bench b(1, 16 * mib);
  const checked_block block = b.tested->allocate_checked(64 * kib, 1, b[0]);
  const std::uint32_t live[] = {0b1001};
  CHECK(b.tested->divide(block.address, 16 * kib, live, b[0]) == error::none);
  CHECK(b.tested->try_deallocate(block, 0, b[0]) == error::double_free);
  CHECK(b.tested->try_deallocate(block, 16 * kib, b[0]) == error::double_free);
  auto* const start = static_cast<char*>(block.address);
  CHECK(b.tested->try_deallocate(checked_block{start + 48 * kib, 1}, 16 * kib, b[0]) == error::stale_handle);
  CHECK(b.tested->try_deallocate(start, 16 * kib, b[0]) == error::none);
  CHECK(b.tested->try_deallocate(start + 48 * kib, 16 * kib, b[0]) == error::none);
  check_idle(*b.tested);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("of many frees of one handle at once exactly one succeeds, and later ones are told") {
  for (const std::size_t bytes : {std::size_t{256}, std::size_t{1000}, 64 * kib, 2 * mib}) {
    CAPTURE(bytes);
    pool tested(options{.capacity = capacity});
    const std::size_t rounds = scaled(2000);
    CHECK(race_to_free(tested, bytes, 4, rounds) == rounds);
    CHECK(tested.stats().bad_frees == rounds * (3 + 4));
    check_idle(tested);
  }
}

TEST_CASE("threads free each other's handles again and again, late: no block is in two hands") {
  pool tested(options{.capacity = capacity});
  // Handles that have ended, each in one word, so that nobody reads half of one and half of another.
  constexpr unsigned generation_bits = 25;
  std::vector<std::atomic<std::uint64_t>> ended(64);
  findings found;
  std::atomic<std::size_t> told = 0;
  run_threads(4, [&](std::size_t index) {
    random_engine random = make_random(index);
    for (std::size_t round = 0, rounds = scaled(40000); round < rounds; ++round) {
      const std::size_t bytes = std::size_t{256} << uniform(random, 0, 3);
      const checked_block block = tested.try_allocate_checked(bytes);
      found.expect(bool(block), "refused");
      const stamp owner(block.address, 256);
      owner.put(index + 1);
      const std::uint64_t word = ended[uniform(random, 0, ended.size() - 1)].load(std::memory_order_relaxed);
      const checked_block stale{reinterpret_cast<void*>(word >> generation_bits << 8),
                                word & ((std::uint64_t{1} << generation_bits) - 1)};
      const error late = tested.try_deallocate(stale);
      found.expect(late != error::none || !stale, "a handle was freed twice");
      told += late == error::stale_handle;
      found.expect(owner.remove(index + 1), "the block was another's, too");
      found.expect(tested.try_deallocate(block, bytes) == error::none, "a good free was refused");
      const auto address = reinterpret_cast<std::uintptr_t>(block.address);
      ended[uniform(random, 0, ended.size() - 1)].store(address >> 8 << generation_bits | block.generation,
                                                        std::memory_order_relaxed);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(told > 0);
  check_idle(tested);
}

}  // TEST_SUITE
