// The asymmetric barrier: of two threads that each write and then read, one at least sees the other.
#include "atomic.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

/// A word on a line of its own.
struct alignas(64) lone_word {
  atomic<std::uint64_t> value{0};
};

/// Two threads go through the rounds together. In each, both write their own word and then read the other's.
class mutual_look {
 public:
  /// Rounds in which neither saw the other.
  [[nodiscard]] std::size_t missed(std::size_t rounds) {
    std::size_t misses = 0;
    run_threads(2, [&](std::size_t self) {
      for (std::uint64_t round = 1; round <= rounds; ++round) {
        if (self == 0) {
          rare_.value.store(round, relaxed);
          misses += !asymmetric_barrier::heavy();
          rare_saw_ = frequent_.value.load(relaxed) >= round;
          meet(round, rare_done_, frequent_done_);
          misses += !rare_saw_ && !frequent_saw_;
          meet(round, rare_ready_, frequent_ready_);
        } else {
          if (asymmetric_barrier::available()) {
            frequent_.value.store(round, relaxed);
            asymmetric_barrier::light();
          } else {
            frequent_.value.exchange(round, seq_cst);
          }
          frequent_saw_ = rare_.value.load(relaxed) >= round;
          meet(round, frequent_done_, rare_done_);
          meet(round, frequent_ready_, rare_ready_);
        }
      }
    });
    return misses;
  }

 private:
  static void meet(std::uint64_t round, lone_word& mine, const lone_word& other) {
    mine.value.store(round, release);
    for (int spins = 0; other.value.load(acquire) < round; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
  }

  lone_word rare_, frequent_, rare_done_, frequent_done_, rare_ready_, frequent_ready_;
  bool rare_saw_ = false;      // each written before its thread's meeting, read after
  bool frequent_saw_ = false;
};

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("whether the system has the barrier is decided once") {
  asymmetric_barrier::prepare();
  const bool available = asymmetric_barrier::available();
  for (int again = 0; again < 3; ++again) {
    asymmetric_barrier::prepare();
    CHECK(asymmetric_barrier::heavy());
    CHECK(asymmetric_barrier::available() == available);
  }
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("of two threads that write and then read, one at least sees the other") {
  asymmetric_barrier::prepare();
  CHECK(std::make_unique<mutual_look>()->missed(scaled(100000)) == 0);
}

}  // TEST_SUITE
