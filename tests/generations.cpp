// The numbers of handles, without a pool: lib/generations.hpp.
#include "generations.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

TEST_SUITE("unit") {

TEST_CASE("before the table is open no handle is good") {
  generations tested(1000);
  CHECK(tested.latest(0) == 0);
  CHECK(tested.latest(999) == 0);
  for (const std::uint64_t number : {0U, 1U, 2U}) CHECK_FALSE(tested.end(5, number));
  tested.end_any(5);
  CHECK(tested.latest(5) == 0);
}

TEST_CASE("a handle ends once, and the next one is two further") {
  generations tested(1000);
  REQUIRE(tested.open());
  REQUIRE(tested.open());
  CHECK(tested.hand_out(7) == 1);
  CHECK(tested.latest(7) == 1);
  CHECK(tested.end(7, 1));
  CHECK(tested.latest(7) == 2);
  CHECK_FALSE(tested.end(7, 1));
  CHECK_FALSE(tested.end(7, 2));
  CHECK(tested.hand_out(7) == 3);
  CHECK_FALSE(tested.end(7, 1));
  CHECK(tested.end(7, 3));
  CHECK(tested.latest(6) == 0);
  CHECK(tested.latest(8) == 0);
  CHECK(tested.hand_out(999) == 1);
}

TEST_CASE("a block that was freed by its address gets another number than before") {
  generations tested(10);
  REQUIRE(tested.open());
  CHECK(tested.hand_out(3) == 1);
  CHECK(tested.hand_out(3) == 3);
  CHECK_FALSE(tested.end(3, 1));
  tested.end_any(3);
  CHECK(tested.latest(3) == 4);
  tested.end_any(3);
  CHECK(tested.latest(3) == 4);
  CHECK_FALSE(tested.end(3, 3));
}

TEST_CASE("a table that the system does not give is not opened, and nothing breaks") {
  generations tested(std::uint64_t{1} << 58);
  CHECK_FALSE(tested.open());
  CHECK(tested.latest(1) == 0);
  CHECK_FALSE(tested.end(1, 1));
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("of threads that open the table at once all use one") {
  for (std::size_t round = 0; round < scaled(400); ++round) {
    generations tested(100);
    std::vector<std::uint64_t> given(4);
    run_threads(4, [&](std::size_t index) {
      if (tested.open()) given[index] = tested.hand_out(index) + tested.hand_out(index);
    });
    for (std::size_t index = 0; index < 4; ++index) {
      CHECK(given[index] == 1 + 3);
      CHECK(tested.latest(index) == 3);
    }
  }
}

}  // TEST_SUITE
