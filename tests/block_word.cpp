// The word of a block, as a value; and the node it belongs to.
#include "block_word.hpp"

#include <doctest/doctest.h>

#include <cstdint>

using namespace orderly;
using namespace orderly::detail;

namespace {

/// Lengths of the largest block that a word must describe: 2^46 bytes, less than a sixteenth of which is unused.
constexpr std::uint64_t most_unused = (std::uint64_t{1} << 42) - 1;

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a word says what it was made of") {
  CHECK(block_word().state() == block_state::none);
  CHECK(block_word::none().bits() == 0);
  CHECK(block_word::free().state() == block_state::free);
  CHECK(block_word::owned().state() == block_state::owned);
  CHECK(block_word::split().state() == block_state::split);
  for (const block_word word : {block_word::none(), block_word::free(), block_word::owned(), block_word::split()}) {
    CHECK(word.sixteenths() == 0);
    CHECK(word.unused() == 0);
    CHECK(word.home() == 0);
    CHECK(block_word(word.bits()) == word);
  }
}

TEST_CASE("what was requested is read from the difference to the word of which nothing was") {
  const block_word unrequested = block_word::live(12, 3072, 7);
  for (const std::uint64_t bytes : {1U, 2049U, 3072U}) {
    CHECK(unrequested.requested_in(unrequested.with_requested(bytes)) == bytes);
    CHECK(unrequested.with_requested(bytes).unused() == 3072 - bytes);
  }
  const std::uint64_t none = most_unused + 1;
  CHECK(unrequested.requested_in(block_word::live(12, 1024, 8)) >= none);  // another home
  CHECK(unrequested.requested_in(block_word::live(13, 1024, 7)) >= none);  // another length
  CHECK(unrequested.requested_in(block_word::cached(12)) >= none);
  CHECK(unrequested.requested_in(block_word::returning(12, 2048, 7)) >= none);
  CHECK(unrequested.requested_in(block_word::none()) >= none);
}

TEST_CASE("every field keeps its value beside the largest of the others") {
  for (unsigned sixteenths = 1; sixteenths <= whole; ++sixteenths) {
    for (const unsigned home : {0U, 1U, block_word::most_home}) {
      CAPTURE(sixteenths);
      CAPTURE(home);
      for (const std::uint64_t unused : {std::uint64_t{0}, std::uint64_t{1}, most_unused}) {
        const block_word live = block_word::live(sixteenths, unused, home);
        CHECK(live.state() == block_state::live);
        CHECK(live.sixteenths() == sixteenths);
        CHECK(live.unused() == unused);
        CHECK(live.home() == home);
      }
      const block_word returning = block_word::returning(sixteenths, most_unused, home);
      CHECK(returning.state() == block_state::cached);
      CHECK(returning.sixteenths() == sixteenths);
      CHECK(returning.home() == home);
    }
    CHECK(block_word::cached(sixteenths).state() == block_state::cached);
    CHECK(block_word::cached(sixteenths).sixteenths() == sixteenths);
    CHECK(block_word::cached(sixteenths).unused() == 0);
  }
}

TEST_CASE("requested bytes come off the unused ones, and nothing else changes") {
  for (const std::uint64_t length : {std::uint64_t{1}, std::uint64_t{4096}, most_unused}) {
    for (const std::uint64_t requested : {std::uint64_t{0}, std::uint64_t{1}, length / 2, length}) {
      CAPTURE(length);
      CAPTURE(requested);
      const block_word unrequested = block_word::live(13, length, block_word::most_home);
      CHECK(unrequested.with_requested(requested) == block_word::live(13, length - requested, block_word::most_home));
    }
  }
}

TEST_CASE("words match whatever their homes, and in nothing else") {
  const block_word word = block_word::live(9, 100, 7);
  CHECK(word.matches(block_word::live(9, 100, 7)));
  CHECK(word.matches(block_word::live(9, 100, block_word::most_home)));
  CHECK(block_word::live(9, 100, 0).matches(word));
  CHECK_FALSE(word.matches(block_word::live(9, 101, 7)));
  CHECK_FALSE(word.matches(block_word::live(10, 100, 7)));
  CHECK_FALSE(word.matches(block_word::returning(9, 5, 7)));
}

TEST_CASE("parent, buddy and halves of a node") {
  for (unsigned order = 1; order < 20; ++order) {
    for (const std::uint32_t index : {0U, 1U, 2U, 5U, 4094U}) {
      const node n{index, static_cast<std::uint8_t>(order)};
      CHECK(n.granule() == std::uint64_t{index} << order);
      CHECK(n.left().parent() == n);
      CHECK(n.right().parent() == n);
      CHECK(n.left().buddy() == n.right());
      CHECK(n.right().buddy() == n.left());
      CHECK(n.buddy().buddy() == n);
      CHECK(n.buddy().parent() == n.parent());
      CHECK(n.left().granule() == n.granule());
      CHECK(n.right().granule() == n.granule() + (std::uint64_t{1} << (order - 1)));
    }
  }
}

TEST_CASE("sixteenths are rounded down to granules, and a whole is the node") {
  for (unsigned order = 0; order < 40; ++order) CHECK(granules_of(order, whole) == std::uint64_t{1} << order);
  CHECK(granules_of(8, 9) == 144);
  CHECK(granules_of(3, 10) == 5);
  CHECK(granules_of(0, 15) == 0);
}

}  // TEST_SUITE
