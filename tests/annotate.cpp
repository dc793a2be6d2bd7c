// What tools are told of blocks, byte for byte. Whether they then report the right programs, and only those, is for
// annotate/faults.cpp.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "annotate.hpp"
#include "orderly/pool.hpp"
#include "support/failing_source.hpp"
#include "support/paper_source.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"

#ifdef ORDERLY_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

using namespace orderly;
using namespace orderly::test;

TEST_SUITE("unit") {

#ifndef ORDERLY_ANNOTATED

TEST_CASE("a build without tools tells nothing") { CHECK(std::is_empty_v<detail::annotations>); }

#endif

#ifdef ORDERLY_ADDRESS_SANITIZER

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

struct piece {
  char* start = nullptr;
  std::size_t requested = 0;
  std::size_t usable = 0;
};

bool is_forbidden(const char* address) { return __asan_address_is_poisoned(address) != 0; }

/// Accessible from its start to the bytes that may be used, and no further.
bool is_told_right(const pool& of, const piece& block) {
  const std::size_t length = of.rounded(block.requested);
  const bool inside = __asan_region_is_poisoned(block.start, block.usable) == nullptr;
  return inside && (length == block.usable || is_forbidden(block.start + block.usable)) &&
         (length == block.usable || is_forbidden(block.start + length - 1));
}

bool is_all_forbidden(const char* start, std::size_t length) {
  for (std::size_t offset = 0; offset < length; offset += length < 4 * kib ? 1 : 509)
    if (!is_forbidden(start + offset)) return false;
  return is_forbidden(start + length - 1);
}

void check_random_work(pool& tested, random_engine& random) {
  std::vector<piece> live;
  for (std::size_t step = 0; step < scaled(20000); ++step) {
    if (live.size() < 50 || uniform(random, 0, 1) == 0) {
      piece made;
      made.requested = log_uniform(random, 1, 600 * kib);
      made.start = static_cast<char*>(tested.try_allocate(made.requested));
      if (made.start == nullptr) continue;
      made.usable = made.requested;
      REQUIRE(is_told_right(tested, made));
      if (uniform(random, 0, 9) == 0) made.usable = tested.block_size(made.start);
      live.push_back(made);
      continue;
    }
    std::swap(live[uniform(random, 0, live.size() - 1)], live.back());
    const piece block = live.back();
    live.pop_back();
    REQUIRE(is_told_right(tested, block));
    REQUIRE(tested.try_deallocate(block.start + 1) != error::none);
    REQUIRE(is_told_right(tested, block));
    const std::size_t bytes = uniform(random, 0, 1) == 0 ? 0 : block.requested;
    error code = error::none;
    const auto free_it = [&] { code = tested.try_deallocate(block.start, bytes); };
    if (uniform(random, 0, 19) == 0)
      std::thread(free_it).join();
    else
      free_it();
    REQUIRE(code == error::none);
    REQUIRE(is_all_forbidden(block.start, tested.rounded(block.requested)));
    if (uniform(random, 0, 199) == 0) {
      tested.trim();
      REQUIRE(is_all_forbidden(block.start, tested.rounded(block.requested)));
    }
  }
  for (const piece& block : live) REQUIRE(is_told_right(tested, block));
}

}  // namespace

TEST_CASE("just what was requested is accessible, in host memory") {
  random_engine random = make_random(1);
  pool tested({.capacity = 32 * mib, .limit = 16 * mib});
  check_random_work(tested, random);
}

TEST_CASE("just what was requested is accessible, in a buffer, and all of it when the pool is gone") {
  random_engine random = make_random(2);
  struct aligned {
    alignas(4096) char bytes[4 * mib];
  };
  const auto buffer = std::make_unique<aligned>();
  {
    pool tested(make_fixed_buffer_source(buffer->bytes, sizeof buffer->bytes), {.granule = 16});
    CHECK(is_all_forbidden(buffer->bytes, sizeof buffer->bytes));
    check_random_work(tested, random);
  }
  CHECK(__asan_region_is_poisoned(buffer->bytes, sizeof buffer->bytes) == nullptr);
}

TEST_CASE("a refused commit and a refused decommit leave things as they are") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), {.capacity = 4 * mib});
  piece block{static_cast<char*>(tested.allocate(300 * kib)), 300 * kib, 300 * kib};
  log->refuse_all(source_log::call::commit);
  CHECK(tested.try_allocate(mib) == nullptr);
  CHECK(is_told_right(tested, block));
  log->refuse_none();
  log->refuse_all(source_log::call::decommit);
  tested.deallocate(block.start, block.requested);
  CHECK(tested.trim() == 0);
  CHECK(is_all_forbidden(block.start, block.requested));
  log->refuse_none();
  block.start = static_cast<char*>(tested.allocate(block.requested));
  CHECK(is_told_right(tested, block));
}

// AddressSanitizer dies when it is told of addresses that no program has.
TEST_CASE("of memory that the host may not touch nothing is told") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_paper_source(64 * kib, std::make_shared<paper_map>(), log), {.capacity = 4 * mib});
  for (const std::size_t bytes : {std::size_t{1000}, mib}) {
    void* const block = tested.allocate(bytes);
    CHECK(tested.block_size(block) >= bytes);
    CHECK(tested.try_deallocate(block, bytes) == error::none);
  }
  CHECK(tested.trim() != 0);
}

#endif

}  // TEST_SUITE
