// The agreement between a front's owner and a pass: never both inside, and each sees what the other did.
#include "front.hpp"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "support/parks.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

/// What a front protects. Plain, so that ThreadSanitizer reports whoever is inside beside another; wide, so that a
/// stranger inside leaves a trace without it.
class plain_counters {
 public:
  /// False: the counters disagree, so another thread is half way through this.
  [[nodiscard]] bool increment() noexcept {
    bool agree = true;
    const std::uint64_t before = counters_[0];
    for (std::uint64_t& counter : counters_) {
      agree = agree && counter == before;
      counter = before + 1;
    }
    return agree;
  }
  [[nodiscard]] std::uint64_t value() const noexcept { return counters_[0]; }

 private:
  std::array<std::uint64_t, 32> counters_{};
};

/// Revokes, works when the owner is outside, restores.
template <class Work>
void pass(front& of, const Work& work) {
  of.revoke();
  REQUIRE(asymmetric_barrier::heavy());
  while (!of.outside()) std::this_thread::yield();
  work();
  of.restore();
}

/// With the barrier, and as on a system without it.
void owner_and_pass(bool by_exchange) {
  asymmetric_barrier::prepare();
  const auto f = std::make_unique<front>();
  if (by_exchange) f->require_exchange();
  plain_counters counters;
  findings found;
  std::atomic<bool> done = false;
  std::uint64_t stays = 0;
  std::uint64_t passes = 0;
  run_threads(2, [&](std::size_t index) {
    if (index == 0) {
      while (!done.load(std::memory_order_relaxed) || stays == 0) {
        if (const front::stay inside(*f); inside) {
          found.expect(counters.increment(), "the pass is inside beside the owner");
          ++stays;
        }
      }
      return;
    }
    for (; passes < scaled(20000); ++passes) {
      pass(*f, [&] { found.expect(counters.increment(), "the owner is inside beside the pass"); });
      if (passes % 16 == 0) std::this_thread::yield();  // an owner gets in that came while the pass was at it
    }
    done.store(true, std::memory_order_relaxed);
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(stays > 0);
  CHECK(counters.value() == stays + passes);
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a stay is seen while it lasts, and so is what it counted") {
  asymmetric_barrier::prepare();
  const auto f = std::make_unique<front>();
  CHECK(f->outside());
  CHECK(f->watch().idle());
  const front::activity before = f->watch();
  {
    const front::stay inside(*f);
    CHECK(static_cast<bool>(inside));
    CHECK_FALSE(f->outside());
    CHECK_FALSE(f->watch().idle());
    front::add(f->allocations, 1);
    front::add(f->frees, 2);
  }
  CHECK(f->outside());
  CHECK(f->watch().idle());
  CHECK(f->watch().calls == before.calls + 3);
}

TEST_CASE("where entering takes an exchange, only brief stays fail") {
  asymmetric_barrier::prepare();
  const auto f = std::make_unique<front>();
  CHECK(static_cast<bool>(front::brief_stay(*f)) == asymmetric_barrier::available());
  f->require_exchange();
  CHECK_FALSE(static_cast<bool>(front::brief_stay(*f)));
  CHECK(f->outside());
  {
    const front::stay inside(*f);
    CHECK(static_cast<bool>(inside));
    CHECK_FALSE(f->outside());
  }
  f->revoke();
  CHECK_FALSE(static_cast<bool>(front::stay(*f)));
  f->restore();
  CHECK(static_cast<bool>(front::stay(*f)));
  CHECK_FALSE(static_cast<bool>(front::brief_stay(*f)));
}

TEST_CASE("a revoked front lets nobody in until it is restored") {
  asymmetric_barrier::prepare();
  const auto f = std::make_unique<front>();
  f->revoke();
  for (int attempt = 0; attempt < 3; ++attempt) CHECK_FALSE(static_cast<bool>(front::stay(*f)));
  CHECK(f->outside());
  f->restore();
  CHECK(static_cast<bool>(front::stay(*f)));
}

TEST_CASE("work past the front is seen while it lasts") {
  const auto f = std::make_unique<front>();
  const front::activity before = f->watch();
  f->begin_slow();
  CHECK_FALSE(f->watch().idle());
  CHECK(f->outside());
  f->end_slow();
  CHECK(f->watch().idle());
  CHECK_FALSE(f->watch() == before);
}

TEST_CASE("a front is attached to one thread at a time") {
  const auto f = std::make_unique<front>();
  CHECK(f->try_attach());
  CHECK_FALSE(f->try_attach());
  f->detach();
  CHECK(f->try_attach());
}

TEST_CASE("a magazine's live word is that of the block with what was requested") {
  front_magazine m;
  m.unrequested = block_word::live(9, 1000, 0);
  CHECK(m.live(1) == block_word::live(9, 999, 0));
  CHECK(m.live(1000) == block_word::live(9, 0, 0));
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("owner and pass are never inside at once, and lose none of each other's work") { owner_and_pass(false); }

TEST_CASE("nor where entering takes an exchange") { owner_and_pass(true); }

TEST_CASE("wherever an owner is stopped, a pass that finds it outside is alone inside") {
  asymmetric_barrier::prepare();
  const auto f = std::make_unique<front>();
  random_engine random = make_random(1);
  findings found;
  std::atomic<bool> passing = false;
  std::atomic<bool> done = false;
  std::atomic<std::uint64_t> attempts = 0;
  parkable owner;
  std::thread owns([&] {
    owner.enter();
    while (!done.load(std::memory_order_relaxed)) {
      if (const front::stay inside(*f); inside)
        found.expect(!passing.load(std::memory_order_relaxed), "the owner is inside beside the pass");
      attempts.store(attempts.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
    owner.leave();
  });
  while (!owner.there()) std::this_thread::yield();
  std::size_t outside = 0;
  for (std::size_t round = 0; round < scaled(500); ++round) {
    owner.park(sanitized ? 0 : static_cast<unsigned>(uniform(random, 1, 60)));
    while (!owner.parked()) std::this_thread::yield();
    f->revoke();
    REQUIRE(asymmetric_barrier::heavy());
    const bool alone = f->outside();
    outside += alone;
    passing.store(alone, std::memory_order_relaxed);
    owner.release();
    const std::uint64_t before = attempts.load(std::memory_order_relaxed);
    while (attempts.load(std::memory_order_relaxed) < before + 3) std::this_thread::yield();
    passing.store(false, std::memory_order_relaxed);
    f->restore();
  }
  done.store(true, std::memory_order_relaxed);
  owns.join();
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(outside > 0);
}

TEST_CASE("of threads that take turns as owner, each sees what the last one did") {
  asymmetric_barrier::prepare();
  const auto f = std::make_unique<front>();
  plain_counters counters;
  findings found;
  std::atomic<std::uint64_t> stays = 0;
  run_threads(4, [&](std::size_t) {
    for (std::size_t attempt = 0; attempt < scaled(200000); ++attempt) {
      if (!f->try_attach()) continue;
      if (const front::stay inside(*f); inside) found.expect(counters.increment(), "two owners are inside");
      stays.fetch_add(1, std::memory_order_relaxed);
      f->detach();
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(counters.value() == stays);
}

TEST_CASE("who sees the end of work past the front sees what was done in it") {
  const auto f = std::make_unique<front>();
  std::vector<std::uint64_t> done(scaled(100000));  // plain: each is written once
  findings found;
  run_threads(2, [&](std::size_t self) {
    if (self == 0) {
      for (std::uint64_t& each : done) {
        f->begin_slow();
        ++each;
        f->end_slow();
      }
      return;
    }
    for (std::uint64_t seen = 0; seen < done.size();) {
      const std::uint64_t now = f->watch().slow / 2;
      for (; seen < now; ++seen) found.expect(done[seen] == 1, "step ", seen, " is over, and not done");
      std::this_thread::yield();
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
}

}  // TEST_SUITE
