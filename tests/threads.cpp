// Threads that come and go, pools that come and go: neither order loses a block or touches what is gone.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <latch>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/failing_source.hpp"
#include "support/oracles.hpp"
#include "support/parks.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"
#include "support/wait.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

std::atomic<std::size_t> overwritten = 0;

/// Leaves freed blocks of many sizes in the calling thread's caches. While they are live, each names its owner.
void fill_caches(pool& used) {
  std::vector<std::pair<void*, std::size_t>> blocks;
  for (std::size_t bytes = 256; bytes <= 64 * kib; bytes *= 2) {
    for (int count = 0; count < 4; ++count) blocks.emplace_back(used.try_allocate(bytes), bytes);
  }
  const auto owner = [](const void* block) { return reinterpret_cast<std::uintptr_t>(block); };
  for (const auto& [block, bytes] : blocks)
    if (block != nullptr) stamp(block, bytes).put(owner(block));
  for (const auto& [block, bytes] : blocks) {
    if (block != nullptr && !stamp(block, bytes).remove(owner(block))) overwritten.fetch_add(1, std::memory_order_relaxed);
    used.deallocate(block);
  }
}

/// After a test: nobody else has written to the blocks of fill_caches().
void check_owners() { CHECK(overwritten.exchange(0) == 0); }

/// Every block of `bytes` that the pool has can be allocated, by this thread.
void check_all_there(pool& tested, std::size_t bytes) {
  std::vector<void*> blocks;
  while (void* block = tested.try_allocate(bytes)) blocks.push_back(block);
  CHECK(blocks.size() == tested.capacity() / bytes);
  for (void* block : blocks) tested.deallocate(block, bytes);
}

/// Calls the pool from its destructor: when the thread's own records of the pool may be gone already.
struct late_caller {
  pool* used = nullptr;
  void* kept = nullptr;
  ~late_caller() {
    if (used == nullptr) return;
    used->deallocate(kept, 1000);
    for (int count = 0; count < 20; ++count) used->deallocate(used->try_allocate(3000), 3000);
  }
};

thread_local late_caller late;

#if defined(__x86_64__)  // elsewhere no thread is stopped at a chosen instruction

/// A thread's exit, from one thread-local object's end to another's, and where in between it is parked.
struct watched_exit {
  parkable thread;
  unsigned steps = 0;             ///< instructions from its beginning to the stop
  std::atomic<bool> end = false;  ///< it came to its end
  std::atomic<bool> left = false;
};

struct end_of_exit {
  watched_exit* of = nullptr;
  ~end_of_exit() {
    of->end = true;
    of->thread.park(1);  // it must not go out by single steps
    of->left = true;
  }
};
struct beginning_of_exit {
  watched_exit* of = nullptr;
  ~beginning_of_exit() { of->thread.park(of->steps); }
};

#endif

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("threads that exit with full caches lose nothing, however many") {
  pool tested(options{.capacity = 4 * mib});
  const std::size_t threads = scaled(2000);
  for (std::size_t count = 0; count < threads; ++count) std::thread([&] { fill_caches(tested); }).join();
  CHECK(tested.stats().bad_frees == 0);
  CHECK(tested.stats().failed == 0);
  check_all_there(tested, 256);
  check_all_there(tested, 64 * kib);
  check_idle(tested);
  tested.trim();
  CHECK(tested.stats().committed == 0);
  check_owners();
}

TEST_CASE("a thread that exits leaves nothing in its caches") {
  pool tested(options{.capacity = 4 * mib});
  std::thread([&] {
    tested.deallocate(tested.allocate(1000), 1000);
    CHECK(tested.stats().cached > 0);
  }).join();
  CHECK(tested.stats().cached == 0);
  check_sound(tested);
}

TEST_CASE("the counters keep what threads did that are gone") {
  pool tested(options{.capacity = 4 * mib});
  std::vector<void*> blocks(64);
  for (std::size_t index = 0; index < blocks.size(); ++index) {
    std::thread([&] { blocks[index] = tested.try_allocate(1000); }).join();
  }
  CHECK(tested.stats().allocations == 64);
  CHECK(tested.stats().requested == 64000);
  CHECK(tested.stats().peak_requested == 64000);
  for (void* block : blocks) {
    std::thread([&] {
      tested.deallocate(block, 1000);
      (void)tested.try_allocate(SIZE_MAX);
    }).join();
  }
  CHECK(tested.stats().frees == 64);
  CHECK(tested.stats().requested == 0);
  CHECK(tested.stats().failed == 64);
  check_idle(tested);
}

TEST_CASE("blocks outlive the thread that allocated them") {
  pool tested(options{.capacity = 4 * mib});
  std::vector<void*> blocks;
  std::thread([&] {
    for (std::size_t bytes = 1; bytes < 256 * kib; bytes *= 2) blocks.push_back(tested.allocate(bytes));
  }).join();
  for (void* block : blocks) {
    CHECK(tested.owns(block));
    CHECK(tested.try_deallocate(block) == error::none);
  }
  check_idle(tested);
}

TEST_CASE("a thread-local object may free and allocate in its destructor, early or late") {
  pool tested(options{.capacity = mib});
  for (const bool before_the_pool : {true, false}) {
    CAPTURE(before_the_pool);
    for (int count = 0; count < 50; ++count) {
      std::thread([&] {
        // The first use constructs it, and destruction is in the opposite order.
        if (before_the_pool) late.used = &tested;
        fill_caches(tested);
        late.used = &tested;
        late.kept = tested.try_allocate(1000);
      }).join();
    }
    CHECK(tested.stats().bad_frees == 0);
    check_all_there(tested, 256);
    check_idle(tested);
  }
  check_owners();
}

TEST_CASE("a key's destructor, later than any thread-local object's, may free and allocate") {
  static std::atomic<pool*> used = nullptr;
  pool tested(options{.capacity = mib});
  used = &tested;
  pthread_key_t key;
  REQUIRE(pthread_key_create(&key, [](void* block) {
    used.load()->deallocate(block, 1000);
    used.load()->deallocate(used.load()->try_allocate(3000), 3000);
  }) == 0);
  for (int count = 0; count < 50; ++count) {
    std::thread([&] {
      fill_caches(tested);
      pthread_setspecific(key, tested.try_allocate(1000));
    }).join();
  }
  pthread_key_delete(key);
  CHECK(tested.stats().bad_frees == 0);
  check_all_there(tested, 256);
  check_idle(tested);
  check_owners();
}

TEST_CASE("a pool may end before the threads that used it") {
  const auto log = std::make_shared<source_log>();
  std::optional<pool> doomed(std::in_place, make_failing_source(log), options{.capacity = 4 * mib});
  std::latch used(4), gone(1);
  std::vector<std::thread> threads;
  for (int count = 0; count < 4; ++count) {
    threads.emplace_back([&] {
      fill_caches(*doomed);
      used.count_down();
      gone.wait();
    });
  }
  used.wait();
  doomed.reset();
  CHECK(log->reserved_ranges() == 0);
  gone.count_down();
  for (std::thread& thread : threads) thread.join();
  CHECK(log->reserved_ranges() == 0);
  ORDERLY_CHECK_CONTRACT(*log);
  check_owners();
}

TEST_CASE("a new pool in the place of an old one gets nothing from the threads' old caches") {
  std::optional<pool> tested;
  constexpr std::size_t rounds = 200;
  std::atomic<std::size_t> turn = 0;
  findings found;
  std::thread user([&] {
    for (std::size_t round = 0; round < rounds; ++round) {
      while (turn.load() != 2 * round + 1) std::this_thread::yield();
      fill_caches(*tested);
      void* block = tested->try_allocate(1000);
      found.expect(tested->owns(block), "a block of the pool before");
      tested->deallocate(block, 1000);
      ++turn;
    }
  });
  for (std::size_t round = 0; round < rounds; ++round) {
    tested.emplace(options{.capacity = 4 * mib});
    ++turn;
    while (turn.load() != 2 * round + 2) std::this_thread::yield();
    found.expect(tested->stats().bad_frees == 0, "a block of the pool before was freed");
    check_idle(*tested);
    tested.reset();
  }
  user.join();
  ORDERLY_CHECK_FINDINGS(found);
  check_owners();
}

TEST_CASE("one thread works with many pools at once") {
  std::vector<std::unique_ptr<pool>> pools;
  for (int count = 0; count < 100; ++count) pools.push_back(std::make_unique<pool>(options{.capacity = mib}));
  std::vector<std::vector<void*>> blocks(pools.size());
  for (int round = 0; round < 20; ++round) {
    for (std::size_t index = 0; index < pools.size(); ++index) {
      blocks[index].push_back(pools[index]->try_allocate(1000));
      REQUIRE(pools[index]->owns(blocks[index].back()));
    }
  }
  for (std::size_t index = 0; index < pools.size(); ++index) {
    const pool& other = *pools[(index + 1) % pools.size()];
    CHECK_FALSE(other.owns(blocks[index].front()));
    for (void* block : blocks[index]) CHECK(pools[index]->try_deallocate(block, 1000) == error::none);
  }
  for (std::size_t index = 0; index < pools.size(); index += 2) pools[index].reset();
  for (std::size_t index = 1; index < pools.size(); index += 2) {
    check_all_there(*pools[index], 4 * kib);
    check_idle(*pools[index]);
  }
}

TEST_CASE("a thread that uses more pools in turn than it has at hand still finds its caches") {
  std::vector<std::unique_ptr<pool>> pools;
  for (int i = 0; i < 40; ++i) pools.push_back(std::make_unique<pool>(options{.capacity = 1024 * mib}));
  for (int round = 0; round < 100; ++round) {
    for (const auto& each : pools) each->deallocate(each->allocate(4096), 4096);
  }
  for (const auto& each : pools) CHECK(each->stats().cached <= 64 * 1024);  // one batch, not one for each round
}

TEST_CASE("thousands of pools, one after the other, on one thread") {
  for (std::size_t count = 0; count < scaled(3000); ++count) {
    pool tested(options{.capacity = mib});
    void* block = tested.try_allocate(1000);
    REQUIRE(block != nullptr);
    REQUIRE(tested.try_deallocate(block, 1000) == error::none);
    REQUIRE(tested.try_deallocate(block, 1000) == error::double_free);
  }
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads and pools end in any order, at once") {
  constexpr std::size_t pool_count = 4;
  findings found;
  for (std::size_t round = 0; round < scaled(200); ++round) {
    std::vector<std::unique_ptr<pool>> pools;
    for (std::size_t count = 0; count < pool_count; ++count) {
      pools.push_back(std::make_unique<pool>(options{.capacity = 4 * mib}));
    }
    std::vector<std::thread> threads;
    std::vector<std::unique_ptr<std::latch>> done;
    for (std::size_t count = 0; count < pool_count; ++count) done.push_back(std::make_unique<std::latch>(4));
    for (std::size_t index = 0; index < 4; ++index) {
      threads.emplace_back([&, index] {
        for (std::size_t step = 0; step < pool_count; ++step) {
          pool& used = *pools[(index + step) % pool_count];
          fill_caches(used);
          void* block = used.try_allocate(1000);
          found.expect(used.try_deallocate(block, 1000) == error::none, "a good free was refused");
          done[(index + step) % pool_count]->count_down();
        }
      });
    }
    for (std::size_t index = 0; index < pool_count; ++index) {
      done[index]->wait();
      pools[index].reset();
    }
    for (std::thread& thread : threads) thread.join();
  }
  ORDERLY_CHECK_FINDINGS(found);
  check_owners();
}

#if !ORDERLY_TEST_UNDER_TSAN  // it starts no threads after a fork of a program with threads
TEST_CASE("a process forks while its threads are at work, and both go on") {
  pool tested(options{.capacity = 8 * mib, .on_bad_free = on_bad_free::count});
  void* const kept = tested.allocate(1000);
  std::atomic<bool> done = false;
  std::vector<std::thread> at_work;
  for (int i = 0; i < 2; ++i) {
    at_work.emplace_back([&, i] {
      while (!done.load(std::memory_order_relaxed)) {
        void* const block = tested.try_allocate(512);
        if (block != nullptr) tested.deallocate(block, 512);
        if (i == 0) tested.defragment();
      }
    });
  }
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      alarm(60);  // a child that hangs is a child that failed
      bool good = tested.try_deallocate(kept, 1000) == error::none;
      std::thread([&] {  // the others' fronts are anybody's
        for (int i = 0; i < 1000; ++i) {
          void* const block = tested.try_allocate(4096);
          good = good && block != nullptr;
          tested.deallocate(block, 4096);
        }
      }).join();
      tested.defragment();
      good = good && tested.try_allocate(4 * mib) != nullptr;  // all but what was in the others' hands
      _exit(good ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
  done.store(true, std::memory_order_relaxed);
  for (std::thread& each : at_work) each.join();
  tested.deallocate(kept, 1000);
  check_idle(tested);
}
#endif

TEST_CASE("thread-local objects call the pool late, while other threads begin") {
  pool tested(options{.capacity = 4 * mib});
  findings found;
  const std::size_t rounds = scaled(500);
  run_threads(4, [&](std::size_t) {
    for (std::size_t round = 0; round < rounds; ++round) {
      std::thread([&] {
        late.used = &tested;
        fill_caches(tested);
        late.kept = tested.try_allocate(1000);
        found.expect(late.kept != nullptr, "refused while there was room");
      }).join();
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(tested.stats().bad_frees == 0);
  check_all_there(tested, 256);
  check_idle(tested);
  check_owners();
}

TEST_CASE("threads exit while others run out of memory") {
  pool tested(options{.capacity = mib});
  findings found;
  const std::size_t rounds = scaled(400);
  run_threads(4, [&](std::size_t index) {
    for (std::size_t round = 0; round < rounds; ++round) {
      if (index != 0) {
        // At most 12 of the 16 chunks are in use, by all visitors together.
        std::thread([&] {
          void* blocks[4];
          for (void*& block : blocks) block = tested.try_allocate(64 * kib);
          for (void* block : blocks) found.expect(block != nullptr, "a visitor was refused");
          for (void* block : blocks) tested.deallocate(block);
        }).join();
        continue;
      }
      void* block = tested.try_allocate(256 * kib);
      if (block != nullptr) tested.deallocate(block, 256 * kib);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(tested.stats().bad_frees == 0);
  check_all_there(tested, 4 * kib);
  check_idle(tested);
}

TEST_CASE("threads come one after the other, while others look at what all have done") {
  for (std::size_t round = 0; round < scaled(20); ++round) {
    pool tested(options{.capacity = 4 * mib});
    std::atomic<std::size_t> come = 0;
    findings found;
    constexpr std::size_t threads = 16;
    run_threads(threads + 1, [&](std::size_t self) {
      if (self < threads) {
        while (come.load(std::memory_order_relaxed) < self) std::this_thread::yield();
        void* const block = tested.try_allocate(1000);
        come.fetch_add(1, std::memory_order_relaxed);
        found.expect(tested.try_deallocate(block, 1000) == error::none, "a good free was refused");
        return;
      }
      while (come.load(std::memory_order_relaxed) < threads)
        found.expect(tested.stats().allocations <= threads, "more blocks than there are threads");
    });
    ORDERLY_CHECK_FINDINGS(found);
    check_sound(tested);
  }
}

TEST_CASE("what comes home to a thread that exits, or has, is there for others without a pass") {
  constexpr std::size_t count = 16;  // fewer than a sender empties an inbox for
  constexpr std::size_t bytes = kib;
  alignas(bytes) static std::array<std::byte, count * bytes> buffer;
  findings found;
  for (std::size_t round = 0; round < scaled(4000); ++round) {
    options settings;
    settings.granule = bytes;
    pool tested(make_fixed_buffer_source(buffer.data(), buffer.size()), settings);
    tested.deallocate(tested.allocate(bytes), bytes);  // this thread has a front
    static_cast<void>(tested.defragment());
    std::vector<void*> blocks(count);
    std::atomic<bool> known = false;
    std::atomic<bool> taken = false;
    std::thread frees([&] {
      tested.deallocate(tested.try_allocate(bytes), bytes);  // it has a front of its own
      known = true;
      while (!taken.load()) std::this_thread::yield();
      for (void* const each : blocks) {
        for (std::size_t pause = 0; pause < round % 64; ++pause) std::atomic_signal_fence(std::memory_order_seq_cst);
        tested.deallocate(each, bytes);
      }
    });
    while (!known.load()) std::this_thread::yield();
    static_cast<void>(tested.defragment());
    std::thread([&] {
      for (void*& each : blocks) each = tested.try_allocate(bytes);
      taken = round % 2 == 0;
    }).join();
    taken = true;
    frees.join();
    const std::uint64_t passes = tested.stats().passes;
    for (void*& each : blocks) each = tested.try_allocate(bytes);
    for (void* const each : blocks) found.expect(each != nullptr, "a block is lost");
    found.expect(tested.stats().passes == passes, "a block lay where only a pass looks");
    for (void* const each : blocks) tested.deallocate(each, bytes);
  }
  ORDERLY_CHECK_FINDINGS(found);
}

#if defined(__x86_64__)

TEST_CASE("a thread is stopped at any instruction of its exit while its blocks come home: none is left lying") {
  if (sanitized) return;
  constexpr unsigned stride = 16;  // instructions from one stop to the next
  constexpr std::size_t count = 16;
  constexpr std::size_t bytes = kib;
  alignas(bytes) static std::array<std::byte, count * bytes> buffer;
  findings found;
  std::size_t stops = 0;
  bool over = false;
  for (unsigned steps = 1; !over; steps += stride, ++stops) {
    options settings;
    settings.granule = bytes;
    pool tested(make_fixed_buffer_source(buffer.data(), buffer.size()), settings);
    tested.deallocate(tested.allocate(bytes), bytes);  // this thread has a front
    static_cast<void>(tested.defragment());
    std::array<void*, count> blocks{};
    watched_exit exit;
    exit.steps = steps;
    std::thread home([&] {
      exit.thread.enter();
      thread_local end_of_exit last;  // older than what the pool keeps for the thread, so it ends later
      last.of = &exit;
      for (void*& each : blocks) each = tested.try_allocate(bytes);
      thread_local beginning_of_exit first;
      first.of = &exit;
    });
    while (!exit.thread.parked()) std::this_thread::yield();
    over = exit.end;
    for (void* const each : blocks) tested.deallocate(each, bytes);  // in whole parcels
    while (!exit.left) {
      if (exit.thread.parked()) {
        exit.thread.forget();
        exit.thread.release();
      }
      std::this_thread::yield();
    }
    home.join();
    const std::uint64_t passes = tested.stats().passes;
    for (void*& each : blocks) each = tested.try_allocate(bytes);
    found.expect(tested.stats().passes == passes, "stopped after ", steps,
                 " instructions: a block lay where only a pass looks");
    for (void* const each : blocks) {
      found.expect(each != nullptr, "stopped after ", steps, " instructions: a block is lost");
      tested.deallocate(each, bytes);
    }
  }
  ORDERLY_CHECK_FINDINGS(found);
  MESSAGE("stops: ", stops);
  CHECK(stops > 20);
}

#endif

}  // TEST_SUITE
