// Which pools are alive, whose a pointer is, and fronts that come back to pools that may be gone.
#include "registry.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "front.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

/// A range that is all there is of a pool.
class bare_pool final : public registered_pool {
 public:
  explicit bare_pool(std::size_t bytes = 16) : memory_(bytes) { enroll(); }
  bare_pool(const bare_pool&) = delete;
  bare_pool& operator=(const bare_pool&) = delete;
  ~bare_pool() { withdraw(); }

  [[nodiscard]] bool contains(const void* pointer) const noexcept override {
    const auto* byte = static_cast<const char*>(pointer);
    return byte >= memory_.data() && byte < memory_.data() + memory_.size();
  }
  void detach(front& of) noexcept override {
    const std::lock_guard lock(mutex_);  // several threads may give fronts back at once
    detached.push_back(&of);
  }
  void before_fork() noexcept override {}
  void after_fork(bool) noexcept override {}
  [[nodiscard]] const void* address(std::size_t offset = 0) const { return memory_.data() + offset; }

  std::vector<front*> detached;

 private:
  std::mutex mutex_;
  std::vector<char> memory_;
};

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a pool is alive from its enrolment to its withdrawal, under a number that is never used again") {
  std::vector<std::uint64_t> serials;
  CHECK_FALSE(is_alive(0));
  for (int round = 0; round < 3; ++round) {
    const bare_pool first, second;
    CHECK(is_alive(first.serial()));
    CHECK(is_alive(second.serial()));
    serials.push_back(first.serial());
    serials.push_back(second.serial());
  }
  for (const std::uint64_t serial : serials) CHECK_FALSE(is_alive(serial));
  std::ranges::sort(serials);
  CHECK(std::ranges::adjacent_find(serials) == serials.end());
  CHECK(serials.front() > 0);
}

TEST_CASE("a pointer is another pool's while that pool lives, and never one's own") {
  const bare_pool mine;
  auto other = std::make_unique<bare_pool>();
  const void* const pointer = other->address(15);
  CHECK(served_elsewhere(pointer, &mine));
  CHECK_FALSE(served_elsewhere(pointer, other.get()));
  CHECK_FALSE(served_elsewhere(mine.address(), &mine));
  CHECK_FALSE(served_elsewhere(other->address(16), &mine));
  CHECK_FALSE(served_elsewhere(nullptr, &mine));
  other.reset();
  CHECK_FALSE(served_elsewhere(pointer, &mine));
}

TEST_CASE("a front goes back to its own pool, and to no pool that is gone") {
  const auto fronts = std::make_unique<front[]>(2);
  bare_pool first;
  auto second = std::make_unique<bare_pool>();
  const std::uint64_t gone = second->serial();
  detach_if_alive(first.serial(), fronts[0]);
  detach_if_alive(gone, fronts[1]);
  CHECK(first.detached == std::vector<front*>{&fronts[0]});
  CHECK(second->detached == std::vector<front*>{&fronts[1]});
  second.reset();
  detach_if_alive(gone, fronts[1]);
  CHECK(first.detached.size() == 1);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("pools come and go while others ask for them") {
  constexpr std::size_t threads = 4;
  std::vector<std::atomic<std::uint64_t>> known(threads);
  const auto strangers = std::make_unique<front[]>(threads);
  findings found;
  run_threads(threads, [&](std::size_t self) {
    random_engine random = make_random(self);
    for (std::size_t round = 0; round < scaled(2000); ++round) {
      bare_pool mine;
      known[self].store(mine.serial(), std::memory_order_relaxed);
      found.expect(is_alive(mine.serial()), "a pool that lives is not known");
      found.expect(!served_elsewhere(mine.address(), &mine), "a pointer has two pools");
      detach_if_alive(mine.serial(), strangers[self]);
      const std::uint64_t other = known[uniform(random, 0, threads - 1)].load(std::memory_order_relaxed);
      if (other != mine.serial()) detach_if_alive(other, strangers[self]);  // dead or alive
    }
    found.expect(!is_alive(known[self].load(std::memory_order_relaxed)), "a pool that is gone is known");
  });
  ORDERLY_CHECK_FINDINGS(found);
}

}  // TEST_SUITE
