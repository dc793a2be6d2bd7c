// What an out-of-memory handler may do, on any number of threads: the pool stands it, and every allocation has one outcome.
#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

TEST_SUITE("unit") {

TEST_CASE("handlers of two pools that allocate in each other end") {
  pool* others[2] = {};
  int calls[2] = {};
  const auto handler = [&](std::size_t self) {
    return [&, self](std::size_t) {
      ++calls[self];
      if (calls[self] < 1000) (void)others[1 - self]->try_allocate(mib);
      return false;
    };
  };
  pool one(options{.capacity = mib, .on_out_of_memory = handler(0)});
  pool two(options{.capacity = mib, .on_out_of_memory = handler(1)});
  others[0] = &one;
  others[1] = &two;
  void* const first = one.allocate(mib);
  void* const second = two.allocate(mib);
  CHECK(one.try_allocate(1) == nullptr);
  CHECK(calls[0] == 1);
  CHECK(calls[1] == 1);
  CHECK(two.try_allocate(1) == nullptr);
  CHECK(calls[0] == 2);
  CHECK(calls[1] == 2);
  one.deallocate(first);
  two.deallocate(second);
  check_idle(one);
  check_idle(two);
}

TEST_CASE("a handler makes, uses and destroys other pools, on its thread and on others") {
  int calls = 0;
  pool tested(options{.capacity = mib, .on_out_of_memory = [&](std::size_t) {
                        const auto make = [] {
                          pool another(options{.capacity = mib, .on_out_of_memory = [](std::size_t) { return false; }});
                          CHECK(another.try_allocate(2 * mib) == nullptr);
                          void* const block = another.allocate(1000);
                          another.deallocate(another.allocate(mib / 2), mib / 2);
                          another.deallocate(block, 1000);
                          check_idle(another);
                        };
                        make();
                        std::thread(make).join();
                        return ++calls < 3;
                      }});
  void* const all = tested.allocate(mib);
  CHECK_THROWS_AS((void)tested.allocate(1), out_of_memory);
  CHECK(calls == 3);
  tested.deallocate(all, mib);
  check_idle(tested);
}

TEST_CASE("a handler waits for another thread, which frees, trims, looks, and is refused itself") {
  pool* used = nullptr;
  void* held = nullptr;
  std::atomic<int> calls = 0;
  pool tested(options{.capacity = mib, .on_out_of_memory = [&](std::size_t) {
                        if (++calls > 1) return false;  // the other thread's
                        std::thread([&] {
                          (void)used->defragment();
                          (void)used->trim();
                          CHECK(used->stats().allocated == mib);
                          CHECK(used->try_allocate(1) == nullptr);
                          used->deallocate(held, mib);
                        }).join();
                        return true;
                      }});
  used = &tested;
  held = tested.allocate(mib);
  void* const block = tested.allocate(1000);
  CHECK(calls == 2);
  tested.deallocate(block, 1000);
  check_idle(tested);
}

TEST_CASE("an exception of a handler leaves no trace: the next request asks again") {
  int calls = 0;
  pool tested(options{.capacity = mib, .on_out_of_memory = [&](std::size_t) -> bool {
                        if (++calls % 2 != 0) throw calls;
                        return false;
                      }});
  void* const all = tested.allocate(mib);
  for (int round = 1; round <= 4; ++round) {
    if (round % 2 != 0)
      CHECK_THROWS_AS((void)tested.allocate(1), int);
    else
      CHECK_THROWS_AS((void)tested.allocate(1), out_of_memory);
    CHECK(calls == round);
  }
  CHECK(tested.stats().failed == 4);
  tested.deallocate(all, mib);
  check_idle(tested);
}

TEST_CASE("a handler of a pool in stream order waits for streams, frees in them, and may release one") {
  stream_pool* used = nullptr;
  std::vector<void*> live;
  stream_handle in = nullptr;
  int calls = 0;
  stream_options settings;
  settings.memory.on_out_of_memory = [&](std::size_t) {
    ++calls;
    if (live.empty()) return false;
    CHECK(used->synchronize());
    CHECK(used->try_allocate(2 * mib, in) == nullptr);
    used->deallocate(live.back(), mib, in);
    live.pop_back();
    CHECK(used->stream_synchronize(in));
    CHECK(used->release_stream(in));
    return true;
  };
  bench b(2, 2 * mib, software_schedule::lazy, settings);
  used = &*b.tested;
  in = b[0];
  for (int i = 0; i < 2; ++i) live.push_back(b.tested->allocate(mib, b[0]));
  void* const first = b.tested->allocate(mib, b[1]);
  void* const second = b.tested->allocate(mib, b[1]);
  CHECK_THROWS_AS((void)b.tested->allocate(mib, b[1]), out_of_memory);
  CHECK(calls == 3);
  b.tested->deallocate(first, mib, b[1]);
  b.tested->deallocate(second, mib, b[1]);
  check_idle(*b.tested);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("many threads in the handler at once: it is replaced, throws, frees, re-enters; nothing is lost") {
  // A handler is an option and stays; what it calls may change at any time.
  using action = std::function<bool(std::size_t)>;
  std::mutex mutex;
  std::shared_ptr<const action> current;
  std::vector<void*> reserve;
  pool* used = nullptr;
  std::atomic<std::size_t> calls = 0;
  struct given_up {};
  pool asks(options{.capacity = 2 * mib, .on_out_of_memory = [&](std::size_t bytes) {
                      ++calls;
                      std::shared_ptr<const action> now;
                      {
                        const std::lock_guard lock(mutex);
                        now = current;
                      }
                      return now != nullptr && (*now)(bytes);
                    }});
  used = &asks;
  const auto free_one = [&](std::size_t) {
    void* block = nullptr;
    {
      const std::lock_guard lock(mutex);
      if (reserve.empty()) return false;
      block = reserve.back();
      reserve.pop_back();
    }
    used->deallocate(block, 64 * kib);
    return true;
  };
  const action actions[] = {
      free_one,
      [](std::size_t) -> bool { throw given_up(); },
      [&](std::size_t bytes) {
        void* const block = used->try_allocate(bytes / 2);
        used->trim();
        used->defragment();
        (void)used->stats();
        used->deallocate(block, bytes / 2);
        return free_one(bytes);
      },
      [](std::size_t) {
        pool another(options{.capacity = mib});
        return another.try_allocate(2 * mib) != nullptr;
      },
  };
  std::atomic<std::size_t> outcomes = 0;
  const std::size_t rounds = scaled(400);
  run_threads(4, [&](std::size_t index) {
    std::vector<void*> held;
    for (std::size_t round = 0; round < rounds; ++round) {
      if (index == 0) {
        const std::lock_guard lock(mutex);
        current = std::make_shared<const action>(actions[round % 4]);
      }
      try {
        while (held.size() < 24) {
          held.push_back(asks.allocate(64 * kib));
          std::this_thread::yield();  // two threads want more than there is
        }
        ++outcomes;
      } catch (const given_up&) {
        ++outcomes;
      } catch (const out_of_memory&) {
        ++outcomes;
      }
      while (!held.empty()) {
        if (held.size() % 3 == 0) {
          const std::lock_guard lock(mutex);
          if (reserve.size() < 8) {
            reserve.push_back(held.back());
            held.pop_back();
            continue;
          }
        }
        asks.deallocate(held.back(), 64 * kib);
        held.pop_back();
      }
    }
  });
  for (void* const block : reserve) asks.deallocate(block, 64 * kib);
  CHECK(outcomes.load() == 4 * rounds);
  MESSAGE("calls of the handler: ", calls.load());
  CHECK(calls.load() > 50);
  check_idle(asks);
  void* const all = asks.try_allocate(2 * mib);
  CHECK(all != nullptr);
  asks.deallocate(all, 2 * mib);
}

}  // TEST_SUITE
