// Bits folded into runs, against a map that looks at each bit.
#include "part_map.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "support/random.hpp"
#include "support/scale.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

using bits = std::vector<bool>;
using run = std::pair<std::uint32_t, unsigned>;  ///< first part, order

std::vector<std::uint32_t> words_of(const bits& live) {
  std::vector<std::uint32_t> words(part_map::words_of(live.size()));
  for (std::size_t i = 0; i < live.size(); ++i)
    if (live[i]) words[i / 32] |= std::uint32_t{1} << i % 32;
  return words;
}

/// The largest aligned runs without a set bit, found from above.
void find_runs(const bits& live, std::uint32_t first, unsigned order, std::vector<run>& found) {
  bool any = false;
  for (std::uint32_t i = first; i < first + (std::uint32_t{1} << order); ++i) any = any || live[i];
  if (!any) {
    found.emplace_back(first, order);
  } else if (order != 0) {
    find_runs(live, first, order - 1, found);
    find_runs(live, first + (std::uint32_t{1} << (order - 1)), order - 1, found);
  }
}

void check_map(const bits& live, unsigned levels) {
  const std::vector<std::uint32_t> words = words_of(live);
  const part_map map(words, std::uint32_t{1} << levels);
  REQUIRE(map.valid());
  std::vector<run> expected;
  find_runs(live, 0, levels, expected);
  std::vector<run> runs;
  map.each_free([&](std::uint32_t part, unsigned order) { runs.emplace_back(part, order); });
  CHECK(runs == expected);
  std::vector<std::uint32_t> set;
  map.each_live([&](std::uint32_t part) { set.push_back(part); });
  std::vector<std::uint32_t> expected_set;
  for (std::uint32_t i = 0; i < live.size(); ++i)
    if (live[i]) expected_set.push_back(i);
  CHECK(set == expected_set);
  CHECK(map.count_live() == set.size());
  std::size_t wrong = 0;
  std::uint32_t next_live = map.parts(), next_free = map.parts();
  for (std::uint32_t i = map.parts(); i-- != 0;) {
    (live[i] ? next_live : next_free) = i;
    wrong += map.next_live(i) != next_live || map.next_free(i) != next_free;
  }
  CHECK(wrong == 0);
  CHECK(map.next_live(map.parts()) == map.parts());
}

}  // namespace

TEST_CASE("runs of random bits, of every density and length") {
  random_engine random = make_random(0);
  for (unsigned levels = 0; levels <= 12; ++levels) {
    CAPTURE(levels);
    for (std::size_t round = 0; round < scaled(40); ++round) {
      bits live(std::size_t{1} << levels);
      const std::size_t density = uniform(random, 0, 4);
      for (std::size_t at = 0; at < live.size();) {  // runs of their own
        const bool set = uniform(random, 0, 3) < density;
        std::size_t left = log_uniform(random, 1, live.size());
        for (; left != 0 && at < live.size(); --left) live[at++] = set;
      }
      check_map(live, levels);
    }
    check_map(bits(std::size_t{1} << levels, false), levels);
    check_map(bits(std::size_t{1} << levels, true), levels);
  }
}

TEST_CASE("a suffix of 2^m - h parts is as many runs as it has bits, at most m") {
  constexpr unsigned m = 10;
  for (std::uint32_t h = 1; h < std::uint32_t{1} << m; ++h) {
    bits live(std::size_t{1} << m);
    for (std::uint32_t i = 0; i < h; ++i) live[i] = true;
    const auto words = words_of(live);
    int runs = 0;
    part_map(words, std::uint32_t{1} << m).each_free([&](std::uint32_t, unsigned) { ++runs; });
    REQUIRE(runs == std::popcount((std::uint32_t{1} << m) - h));
  }
}

TEST_CASE("bits past the last part are noticed") {
  const std::uint32_t words[] = {1U << 4};
  CHECK_FALSE(part_map(words, 4).valid());
  CHECK(part_map(words, 8).valid());
  CHECK_FALSE(part_map(words, 1).valid());
}
