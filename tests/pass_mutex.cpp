// The mutex of passes: it excludes, and only its holder is told that it holds it.
#include "pass_mutex.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

TEST_SUITE("unit") {

TEST_CASE("the holder is told so, and nobody else") {
  detail::pass_mutex tested;
  CHECK_FALSE(tested.is_mine());
  {
    const std::lock_guard lock(tested);
    CHECK(tested.is_mine());
    bool others = true;
    bool taken = true;
    std::thread([&] {
      others = tested.is_mine();
      taken = tested.try_lock();
    }).join();
    CHECK_FALSE(others);
    CHECK_FALSE(taken);
    CHECK(tested.is_mine());
  }
  CHECK_FALSE(tested.is_mine());
  CHECK(tested.try_lock());
  CHECK(tested.is_mine());
  tested.unlock();
  CHECK_FALSE(tested.is_mine());
}

TEST_CASE("whoever takes it shows that it gets on, and whenever it says so; a holder that stands still shows nothing") {
  detail::pass_mutex tested;
  const std::uint64_t before = tested.beats();
  const std::lock_guard lock(tested);
  const std::uint64_t taken = tested.beats();
  CHECK(taken != before);
  std::thread([&] { CHECK_FALSE(tested.try_lock()); }).join();
  CHECK(tested.beats() == taken);
  tested.beat();
  CHECK(tested.beats() != taken);
}

TEST_CASE("threads that lock it in turn are told the truth each time") {
  detail::pass_mutex tested;
  findings found;
  std::size_t entered = 0;  // guarded by it
  const std::size_t rounds = scaled(20000);
  run_threads(4, [&](std::size_t) {
    for (std::size_t i = 0; i < rounds; ++i) {
      found.expect(!tested.is_mine(), "a thread outside is told that it holds the mutex");
      const std::lock_guard lock(tested);
      found.expect(tested.is_mine(), "the holder is not told");
      ++entered;
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(entered == 4 * rounds);
}

}
