// What a thread remembers of its fronts: many pools at once, pools that are gone, and its own end.
#include "thread_fronts.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "front.hpp"
#include "registry.hpp"
#include "support/random.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

/// A pool with one front, that counts how often it comes back.
class bare_pool final : public registered_pool {
 public:
  bare_pool() { enroll(); }
  bare_pool(const bare_pool&) = delete;
  bare_pool& operator=(const bare_pool&) = delete;
  ~bare_pool() { withdraw(); }

  [[nodiscard]] bool contains(const void*) const noexcept override { return false; }
  void before_fork() noexcept override {}
  void after_fork(bool) noexcept override {}
  void detach(front& of) noexcept override {
    strangers += &of != mine.get();
    ++detached;
  }

  std::unique_ptr<front> mine = std::make_unique<front>();
  std::atomic<int> detached = 0;  // several threads may give fronts back at once
  std::atomic<int> strangers = 0;
};

using pools = std::vector<std::unique_ptr<bare_pool>>;

pools make_pools(std::size_t count) {
  pools made;
  for (std::size_t i = 0; i < count; ++i) made.push_back(std::make_unique<bare_pool>());
  return made;
}

/// Runs body on a thread of its own, whose end is part of the test.
template <class Body>
void on_thread(const Body& body) {
  std::thread(body).join();
}

/// Finds fault unless the thread knows its front in each pool, by both ways.
void expect_known(const pools& alive, findings& found) {
  for (const auto& pool : alive) {
    found.expect(recall_front(pool->serial()) == pool->mine.get(), "pool ", pool->serial(), " is not recalled");
    found.expect(this_thread_fronts.find(pool->serial()) == pool->mine.get(), "pool ", pool->serial(),
                 " is not at hand after it was recalled");
  }
}

/// Its destructor tells what a thread still knows of its fronts after it has given them back. It must be made before
/// the thread remembers its first front, to be destroyed after.
struct late_visitor {
  ~late_visitor() {
    if (pool == nullptr) return;
    found->expect(pool->detached == 1, "the front was not given back by now");
    found->expect(this_thread_fronts.exiting, "the thread does not know that it ends");
    found->expect(this_thread_fronts.find(pool->serial()) == nullptr, "the front is still at hand");
    found->expect(recall_front(pool->serial()) == nullptr, "the front is still recalled");
    found->expect(!remember_front(pool->serial(), pool->mine.get()), "a front was remembered that nobody gives back");
  }
  bare_pool* pool = nullptr;
  findings* found = nullptr;
};

thread_local late_visitor visitor;

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a thread knows what it was told, and nothing else") {
  const pools made = make_pools(2);
  findings found;
  on_thread([&] {
    found.expect(this_thread_fronts.find(made[0]->serial()) == nullptr, "at hand from the start");
    found.expect(recall_front(made[0]->serial()) == nullptr, "recalled from the start");
    found.expect(remember_front(made[0]->serial(), made[0]->mine.get()), "not remembered");
    found.expect(this_thread_fronts.find(made[0]->serial()) == made[0]->mine.get(), "not at hand");
    found.expect(this_thread_fronts.find(made[1]->serial()) == nullptr, "at hand without cause");
    found.expect(recall_front(made[1]->serial()) == nullptr, "recalled without cause");
    on_thread([&] { found.expect(recall_front(made[0]->serial()) == nullptr, "another thread's front was recalled"); });
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(made[0]->detached == 1);
  CHECK(made[1]->detached == 0);
}

TEST_CASE("one thread uses many more pools than it has at hand, in any order") {
  pools made = make_pools(5 * thread_fronts::size + 3);
  random_engine random = make_random(1);
  findings found;
  on_thread([&] {
    for (const auto& pool : made) {
      found.expect(remember_front(pool->serial(), pool->mine.get()), "not remembered");
    }
    for (int round = 0; round < 20; ++round) {
      std::shuffle(made.begin(), made.end(), random);
      for (const auto& pool : made) {
        front* const at_hand = this_thread_fronts.find(pool->serial());
        found.expect(at_hand == nullptr || at_hand == pool->mine.get(), "another pool's front is at hand");
      }
      expect_known(made, found);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  for (const auto& pool : made) {
    CHECK(pool->detached == 1);
    CHECK(pool->strangers == 0);
  }
}

TEST_CASE("pools end before the thread, in any order: their fronts are not given back, the others' are") {
  random_engine random = make_random(2);
  for (int round = 0; round < 20; ++round) {
    pools made = make_pools(20);
    findings found;
    on_thread([&] {
      for (const auto& pool : made) found.expect(remember_front(pool->serial(), pool->mine.get()), "not remembered");
      std::shuffle(made.begin(), made.end(), random);
      made.resize(uniform(random, 0, 20));
      expect_known(made, found);
    });
    ORDERLY_CHECK_FINDINGS(found);
    for (const auto& pool : made) CHECK(pool->detached == 1);
  }
}

TEST_CASE("a thread that outlives pool after pool forgets them") {
  findings found;
  std::size_t most_recalled = 0;
  const pools lasting = make_pools(3);
  on_thread([&] {
    for (const auto& pool : lasting) found.expect(remember_front(pool->serial(), pool->mine.get()), "not remembered");
    std::vector<std::uint64_t> gone;
    for (int count = 0; count < 1000; ++count) {
      const bare_pool passing;
      gone.push_back(passing.serial());
      found.expect(remember_front(passing.serial(), passing.mine.get()), "not remembered");
      const auto recalled = std::ranges::count_if(gone, [](auto serial) { return recall_front(serial) != nullptr; });
      most_recalled = std::max(most_recalled, static_cast<std::size_t>(recalled));
    }
    expect_known(lasting, found);
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(most_recalled < 16);
  for (const auto& pool : lasting) CHECK(pool->detached == 1);
}

TEST_CASE("a thread that has given its fronts back knows none, and takes none") {
  bare_pool pool;
  findings found;
  on_thread([&] {
    visitor.pool = &pool;
    visitor.found = &found;
    found.expect(remember_front(pool.serial(), pool.mine.get()), "not remembered");
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(pool.detached == 1);
}

TEST_CASE("the lane kept last is at hand, beside one other of its set, each with its front") {
  thread_lanes mine;
  int streams[200];
  front* const some_front = reinterpret_cast<front*>(std::uintptr_t{4096});  // never touched
  const auto find = [&](std::uint64_t pool, const void* stream) -> thread_lanes::entry* {
    thread_lanes::entry* const set = mine.set_of(pool, stream);
    for (thread_lanes::entry* const each : {set, set + 1})
      if (each->pool == pool && each->stream == stream) return each;
    return nullptr;
  };
  const void* before = nullptr;
  for (const int& stream : streams) {
    const std::uint64_t serial = 100 + static_cast<std::uint64_t>(&stream - streams);
    const void* const beside = mine.set_of(1, &stream)->stream;
    mine.keep({1, &stream, serial, nullptr, nullptr});
    mine.keep_front(1, &stream, serial + 1, some_front);  // of another number
    REQUIRE(find(1, &stream) != nullptr);
    CHECK(find(1, &stream)->mine == nullptr);
    mine.keep_front(1, &stream, serial, some_front);
    CHECK(find(1, &stream)->mine == some_front);
    if (beside != nullptr) CHECK(find(1, beside) != nullptr);
    before = &stream;
  }
  mine.keep({1, before, 1000, nullptr, nullptr});  // bound anew: the older entry is not the first to be met
  CHECK(mine.set_of(1, before)->serial == 1000);
  CHECK(find(2, before) == nullptr);
}

TEST_CASE("lanes that a thread has met are recalled, as many as they are, until its end") {
  const pools made = make_pools(1);
  std::vector<int> streams(1000);
  std::thread([&] {
    for (std::size_t i = 0; i < streams.size(); ++i)
      remember_lane({made[0]->serial(), &streams[i], i + 1, nullptr, nullptr});
    std::size_t known = 0;
    for (std::size_t i = 0; i < streams.size(); ++i) {
      const thread_lanes::entry* const e = recall_lane(made[0]->serial(), &streams[i]);
      known += e != nullptr && e->serial == i + 1;
    }
    CHECK(known == streams.size());
    CHECK(recall_lane(made[0]->serial() + 1, streams.data()) == nullptr);
  }).join();
  CHECK(recall_lane(made[0]->serial(), streams.data()) == nullptr);  // each thread has its own
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads end while the pools that they used end") {
  for (int round = 0; round < 50; ++round) {
    pools made = make_pools(24);
    const std::size_t lasting = 8;
    findings found;
    std::mutex mutex;
    run_threads(4, [&](std::size_t self) {
      random_engine random = make_random(static_cast<std::size_t>(round) * 4 + self);
      for (std::size_t i = 0; i < lasting; ++i) {
        found.expect(remember_front(made[i]->serial(), made[i]->mine.get()), "not remembered");
      }
      for (int count = 0; count < 6; ++count) {
        const std::lock_guard hold(mutex);
        if (made.size() == lasting) break;
        const bare_pool& other = *made.back();
        found.expect(remember_front(other.serial(), other.mine.get()), "not remembered");
        if (uniform(random, 0, 1) == 0) made.pop_back();
      }
    });
    ORDERLY_CHECK_FINDINGS(found);
    for (std::size_t i = 0; i < lasting; ++i) {
      CHECK(made[i]->detached == 4);
      CHECK(made[i]->strangers == 0);
    }
  }
}

}  // TEST_SUITE
