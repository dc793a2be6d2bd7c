// Threads and processes that end, in every way: with full caches, without a word, cancelled, killed in the middle of a call,
// and in static destruction.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include <csignal>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "orderly/orderly.h"
#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/process.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"
#include "support/wait.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

/// Leaves freed blocks of many sizes in the calling thread's caches, blocks of others on the way home, and frees what it is
/// given.
void fill_caches(pool& used, std::vector<void*>& foreign) {
  for (void* const block : foreign) used.deallocate(block, 700);
  foreign.clear();
  std::array<void*, 24> blocks{};
  std::size_t count = 0;
  for (std::size_t bytes = 256; bytes <= 32 * kib; bytes *= 2) {
    for (int i = 0; i < 3; ++i) blocks[count++] = used.try_allocate(bytes);
  }
  for (std::size_t i = 0; i < count; ++i) used.deallocate(blocks[i]);
  for (int i = 0; i < 4; ++i) foreign.push_back(used.try_allocate(700));
}

/// Every block of `bytes` that there is room for can be allocated, by this thread.
void check_all_there(pool& tested, std::size_t bytes) {
  std::vector<void*> blocks;
  while (void* const block = tested.try_allocate(bytes)) blocks.push_back(block);
  CHECK(blocks.size() == tested.capacity() / bytes);
  for (void* const block : blocks) tested.deallocate(block, bytes);
}

}  // namespace

#if defined(__linux__) && !defined(ORDERLY_TEST_SANITIZED)  // a sanitizer keeps books of its own on threads and mutexes

namespace {

/// Ends the thread as the system sees it: no destructor runs, and the C library does not hear of it.
[[noreturn]] void vanish() noexcept {
  syscall(SYS_exit, 0);
  std::abort();
}

/// Mutexes that the thread holds, or is about to: one that dies with its holder is locked for ever.
thread_local constinit std::atomic<int> mutexes_held{0};

template <class Function>
[[nodiscard]] Function* next(const char* name) noexcept {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
  static auto* const real = next<int(pthread_mutex_t*)>("pthread_mutex_lock");
  mutexes_held.fetch_add(1, std::memory_order_relaxed);
  return real(mutex);
}

int pthread_mutex_trylock(pthread_mutex_t* mutex) noexcept {
  static auto* const real = next<int(pthread_mutex_t*)>("pthread_mutex_trylock");
  mutexes_held.fetch_add(1, std::memory_order_relaxed);
  const int code = real(mutex);
  if (code != 0) mutexes_held.fetch_sub(1, std::memory_order_relaxed);
  return code;
}

int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept {
  static auto* const real = next<int(pthread_mutex_t*)>("pthread_mutex_unlock");
  const int code = real(mutex);
  mutexes_held.fetch_sub(1, std::memory_order_relaxed);
  return code;
}

}  // extern "C"

namespace {

/// Of a thread that is killed: what it held, as far as it has noted. At most one block more is on its way.
struct estate {
  struct slot {
    std::atomic<void*> block{nullptr};
    std::atomic<std::size_t> bytes{0};
  };
  std::array<slot, 24> slots;
};

/// One kill, in a pool of its own.
class murder {
 public:
  static constexpr std::size_t capacity = 32 * mib;  // so much that nobody is refused before the end
  static constexpr std::size_t granule = 4 * kib;
  static constexpr std::size_t largest = 300 * kib;
  static constexpr std::size_t root = 16 * 64 * kib;

  struct outcome {
    std::size_t lost = 0;     ///< bytes that nobody has
    std::size_t cached = 0;   ///< bytes that nobody can reach: in the front, or on the way to it
    bool good = true;
  };

  [[nodiscard]] outcome run(std::uint64_t seed) {
    {  // from here on everything is committed, and nobody calls the source
      std::vector<void*> blocks;
      while (void* const block = tested_.try_allocate(64 * kib)) blocks.push_back(block);
      for (void* const block : blocks) tested_.deallocate(block, 64 * kib);
    }
    std::atomic<bool> died = false;
    std::atomic<bool> done = false;
    std::atomic<std::size_t> steps = 0;
    std::array<estate, 3> estates;
    std::vector<std::thread> threads;
    for (std::size_t index = 0; index < 3; ++index) {
      threads.emplace_back([&, index] {
        random_engine random = make_random(seed * 3 + index);
        step(random, estates[index]);  // the thread's books of the pool: malloc has locks of its own, which would die, too
        if (index == 0) victims_flag = &died;
        while (!done.load(std::memory_order_relaxed)) {
          step(random, estates[index]);
          if (index != 0) steps.fetch_add(1, std::memory_order_relaxed);
        }
      });
    }
    random_engine random = make_random(seed + 1'000'000);
    std::this_thread::sleep_for(std::chrono::microseconds(uniform(random, 500, 5000)));
    while (!died.load()) {
      pthread_kill(threads[0].native_handle(), SIGUSR2);
      std::this_thread::sleep_for(std::chrono::microseconds(uniform(random, 50, 500)));
    }
    threads[0].join();
    const std::size_t before = steps.load();
    while (steps.load() < before + 2000) std::this_thread::yield();  // the others go on
    done.store(true);
    threads[1].join();
    threads[2].join();
    outcome result;
    for (estate& left : estates) {
      for (estate::slot& each : left.slots) {
        void* const block = each.block.load();
        if (block != nullptr) result.good &= tested_.try_deallocate(block, each.bytes.load()) == error::none;
      }
    }
    for (auto& each : shared_) {
      void* const block = each.load();
      if (block != nullptr) result.good &= tested_.try_deallocate(block, 0) == error::none;
    }
    std::size_t room = 0;
    while (tested_.try_allocate(granule) != nullptr) room += granule;  // by a thread that has nothing
    result.cached = tested_.stats().cached;
    result.lost = capacity - room - result.cached;
    return result;
  }

  /// The signal's handler: here and now, unless a mutex would die too.
  static void strike(int) {
    if (victims_flag == nullptr || mutexes_held.load(std::memory_order_relaxed) != 0) return;
    victims_flag->store(true);
    vanish();
  }

 private:
  static inline thread_local std::atomic<bool>* victims_flag = nullptr;

  void step(random_engine& random, estate& mine) {
    estate::slot& slot = mine.slots[uniform(random, 0, mine.slots.size() - 1)];
    void* const block = slot.block.load(std::memory_order_relaxed);
    const std::size_t bytes = slot.bytes.load(std::memory_order_relaxed);
    if (block == nullptr) {
      const std::size_t wanted = uniform(random, 0, 9) == 0 ? uniform(random, 1, largest) : uniform(random, 1, 40 * kib);
      void* const made = tested_.try_allocate(wanted);
      slot.bytes.store(wanted, std::memory_order_relaxed);
      slot.block.store(made, std::memory_order_relaxed);
      return;
    }
    std::atomic<void*>& place = shared_[uniform(random, 0, shared_.size() - 1)];
    switch (uniform(random, 0, 2)) {
      case 0:  // others free it
        slot.block.store(nullptr, std::memory_order_relaxed);
        tested_.deallocate(place.exchange(block, std::memory_order_acq_rel));
        return;
      case 1:  // another's
        tested_.deallocate(place.exchange(nullptr, std::memory_order_acq_rel));
        return;
      default:
        slot.block.store(nullptr, std::memory_order_relaxed);
        tested_.deallocate(block, bytes);
    }
  }

  pool tested_{options{.capacity = capacity, .granule = granule, .on_bad_free = on_bad_free::count}};
  std::array<std::atomic<void*>, 16> shared_{};
};

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("threads killed at random instructions, with full caches: what is lost, at most") {
  struct sigaction kill = {};
  kill.sa_handler = murder::strike;
  struct sigaction before = {};
  REQUIRE(sigaction(SIGUSR2, &kill, &before) == 0);
  const std::size_t rounds = scaled(128);
  std::atomic<std::size_t> turn = 0;
  std::atomic<std::size_t> most_lost = 0, with_front = 0, with_loss = 0;
  findings found;
  // Side by side, because a request that is refused waits seconds for a thread that died in the middle of a call.
  run_threads(24, [&](std::size_t) {
    for (std::size_t round = turn++; round < rounds; round = turn++) {
      const auto scene = std::make_unique<murder>();
      const murder::outcome result = scene->run(round);
      found.expect(result.good, "a block of the dead thread was not as it left it, round ", round);
      // In its hands: a block on its way in or out, or two that changed places; and a batch of a cache, or a node.
      found.expect(result.lost <= murder::root + 2 * 320 * kib, "lost ", result.lost, " bytes in round ", round);
      if (result.lost > most_lost) most_lost = result.lost;
      with_front += result.cached != 0;
      with_loss += result.lost != 0;
    }
  });
  sigaction(SIGUSR2, &before, nullptr);
  MESSAGE("threads killed: ", rounds, ", with a loss: ", with_loss.load(), " (at most ", most_lost.load(),
          " bytes), inside their fronts: ", with_front.load());
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("threads that vanish between calls with full caches lose nothing, also more of them than a pool has caches") {
  pool tested(options{.capacity = 64 * mib, .on_bad_free = on_bad_free::count});
  const std::size_t threads = scaled(5000);
  std::vector<void*> foreign;
  for (std::size_t count = 0; count < threads; ++count) {
    std::thread([&] {
      fill_caches(tested, foreign);
      vanish();
    }).join();
    if (count % 64 == 0) tested.defragment();
  }
  for (void* const block : foreign) tested.deallocate(block, 700);
  MESSAGE("threads that vanished: ", threads);
  CHECK(tested.stats().bad_frees == 0);
  CHECK(tested.stats().failed == 0);
  check_all_there(tested, 4 * kib);
  check_all_there(tested, 64 * kib);
  check_idle(tested);
  tested.trim();
  CHECK(tested.stats().committed == 0);
}

TEST_CASE("threads that vanish leave what they freed in streams to the streams, and their pool can end") {
  bench b(3, 16 * mib);
  const std::size_t threads = scaled(300);
  for (std::size_t count = 0; count < threads; ++count) {
    std::thread([&] {
      for (std::size_t bytes = 256; bytes <= 32 * kib; bytes *= 2) {
        void* const block = b.tested->try_allocate(bytes, b[count % 3]);
        b.tested->deallocate(block, bytes, b[(count + bytes / 256) % 3]);
      }
      vanish();
    }).join();
  }
  check_idle(*b.tested);
  b.tested.reset();
}

}  // TEST_SUITE

#endif

TEST_SUITE("stress") {

TEST_CASE("ten thousand threads exit with full caches: not a block, not a byte is lost") {
  pool tested(options{.capacity = 4 * mib});
  const std::size_t threads = scaled(10000);
  std::vector<void*> foreign;
  for (std::size_t count = 0; count < threads; ++count) std::thread([&] { fill_caches(tested, foreign); }).join();
  for (void* const block : foreign) tested.deallocate(block, 700);
  MESSAGE("threads that exited: ", threads);
  CHECK(tested.stats().bad_frees == 0);
  CHECK(tested.stats().failed == 0);
  CHECK(tested.stats().allocations == tested.stats().frees);
  for (const std::size_t bytes : {std::size_t{256}, 4 * kib, 64 * kib, mib}) check_all_there(tested, bytes);
  check_idle(tested);
  tested.trim();
  CHECK(tested.stats().committed == 0);
}

TEST_CASE("ten thousand threads exit with full caches of streams: not a block, not a byte is lost") {
  bench b(4, 16 * mib);
  const std::size_t threads = scaled(10000);
  for (std::size_t count = 0; count < threads; ++count) {
    std::thread([&] {
      for (std::size_t bytes = 256; bytes <= 16 * kib; bytes *= 2) {
        void* const block = b.tested->try_allocate(bytes, b[count % 4]);
        b.tested->deallocate(block, bytes, b[(count + bytes / 1024) % 4]);
      }
    }).join();
  }
  MESSAGE("threads that exited, with streams: ", threads);
  CHECK(b.tested->stats().memory.bad_frees == 0);
  check_idle(*b.tested);
  void* const all = b.tested->try_allocate(16 * mib, b[0]);
  CHECK(all != nullptr);
  b.tested->deallocate(all, 16 * mib, b[0]);
  check_idle(*b.tested);
}

TEST_CASE("a thread that is cancelled ends outside of the library, and gives back what it has") {
  const auto handler = [](std::size_t) {
    pthread_testcancel();
    return false;
  };
  pool tested(options{.capacity = mib, .on_out_of_memory = handler});
  const auto run = [&](const char* what, const std::function<void()>& body) {
    CAPTURE(what);
    bool ended = false;
    std::thread thread([&] {
      std::vector<void*> foreign;
      fill_caches(tested, foreign);
      for (void* const block : foreign) tested.deallocate(block, 700);
      pthread_cancel(pthread_self());  // at the next point that allows it
      body();
      ended = true;
      pthread_testcancel();
      ended = false;
    });
    thread.join();
    check_idle(tested);
    check_all_there(tested, 4 * kib);
    return ended;
  };
  {
    const captured_stderr quiet;
    CHECK(run("print", [&] { tested.deallocate(&tested); }));  // it prints
  }
  CHECK(run("passes", [&] { tested.trim(), tested.defragment(); }));
  CHECK(run("another pool", [&] { const pool other(options{.capacity = mib}); }));
  // The handler is the program's, and may allow it: what is under way unwinds.
  void* all = nullptr;
  CHECK_FALSE(run("handler", [&] {
    all = tested.allocate(mib);
    const std::unique_ptr<void, std::function<void(void*)>> last(all, [&](void* block) { tested.deallocate(block, mib); });
    (void)tested.allocate(1);
  }));
}

TEST_CASE("a thread that is cancelled while it waits for one that stands still goes on to its end") {
  static std::atomic<bool> hold_on, holds;
  struct sigaction stop = {};
  stop.sa_handler = [](int) {
    holds.store(true);
    while (hold_on.load()) {
    }
  };
  struct sigaction before = {};
  REQUIRE(sigaction(SIGUSR1, &stop, &before) == 0);
  pool tested(options{.capacity = 2 * mib});
  std::atomic<bool> done = false;
  std::thread stopped([&] {
    while (!done.load(std::memory_order_relaxed)) tested.deallocate(tested.try_allocate(mib / 4), mib / 4);
  });
  hold_on.store(true);
  give_way();
  pthread_kill(stopped.native_handle(), SIGUSR1);
  REQUIRE(comes(holds));
  bool waited = false;
  std::thread([&] {
    pthread_cancel(pthread_self());
    for (int i = 0; i < 3; ++i) (void)tested.try_allocate(2 * mib);
    waited = true;
    pthread_testcancel();
  }).join();
  CHECK(waited);
  hold_on.store(false);
  done.store(true);
  stopped.join();
  sigaction(SIGUSR1, &before, nullptr);
}

TEST_CASE("a cycle of exhaustion and refill in every order, ten thousand times: each time one block of all comes back") {
  pool tested(options{.capacity = mib, .granule = 4 * kib});
  const std::size_t cycles = scaled(10000);
  std::size_t refused = 0, cut = 0;
  for (std::size_t bytes = 4 * kib; bytes <= mib; bytes *= 2) {
    std::vector<void*> blocks(mib / bytes);
    for (std::size_t cycle = 0; cycle < cycles; ++cycle) {
      for (void*& block : blocks) refused += (block = tested.try_allocate(bytes)) == nullptr;
      // In another order each time.
      for (std::size_t i = 0; i < blocks.size(); ++i)
        tested.deallocate(blocks[(i * 7 + cycle) % blocks.size()], bytes);
      void* const all = tested.try_allocate(mib);
      cut += all == nullptr;
      tested.deallocate(all, mib);
    }
    CHECK(refused == 0);
    CHECK(cut == 0);
  }
  MESSAGE("cycles of exhaustion and refill: ", cycles, " in each of 9 orders");
  check_idle(tested);
}

}  // TEST_SUITE

// ------------------------------------------------------------------------------------------------ ends of processes

namespace {

/// A pool in a static object, and who frees into it when.
struct late_user {
  std::function<void()> last;
  ~late_user() {
    if (last) last();
  }
};

thread_local late_user of_thread;

/// The status of a child that runs `body`, then leaves by exit(): static destruction and handlers run there.
[[nodiscard]] child_end exiting(const std::function<void()>& body) {
  return run_child([&] {
    alarm(60);
    body();
    std::exit(0);
  });
}

/// Says from static destruction that something was wrong.
void demand(bool good) {
  if (!good) _exit(9);
}

[[nodiscard]] bool serves(pool& used) {
  void* const block = used.try_allocate(1000);
  return block != nullptr && used.try_deallocate(block, 1000) == error::none &&
         used.try_deallocate(block, 1000) == error::double_free;
}

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("a static pool is used by handlers of exit, by older static objects never, by younger ones") {
  const child_end end = exiting([] {
    static pool of_process(options{.capacity = mib, .on_bad_free = on_bad_free::count});
    static void* kept = of_process.allocate(1000);
    static late_user younger;
    younger.last = [] {
      demand(serves(of_process));
      demand(of_process.try_deallocate(kept, 1000) == error::none);
      of_process.trim();
      std::puts("younger");
    };
    std::atexit([] { demand(serves(of_process)); });
    of_thread.last = [] { demand(serves(of_process)); };  // before any static object
    std::thread([] { (void)of_process.allocate(100); }).join();
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 0);
}

TEST_CASE("a pool that is never destroyed, and one on the heap that a static object destroys") {
  const child_end end = exiting([] {
    static pool& for_ever = *new pool(options{.capacity = mib});
    static std::unique_ptr<pool> owned = std::make_unique<pool>(options{.capacity = mib});
    static late_user older;
    static late_user younger;
    older.last = [] {
      demand(serves(for_ever));
      owned.reset();
      pool made_late(options{.capacity = mib});
      demand(serves(made_late));
    };
    younger.last = [] { demand(serves(*owned) && serves(for_ever)); };
    demand(serves(*owned) && serves(for_ever));
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 0);
}

TEST_CASE("a pool in stream order, its device and its streams in static objects") {
  const child_end end = exiting([] {
    static const software_device device;
    static stream_pool streams(make_host_source(), device.driver(), [] {
      stream_options settings;
      settings.memory.capacity = 4 * mib;
      return settings;
    }());
    static software_stream in(device);
    static late_user younger;
    younger.last = [] {
      void* const block = streams.try_allocate(1000, in.handle());
      demand(block != nullptr && streams.try_deallocate(block, 1000, in.handle()) == error::none);
      demand(streams.synchronize());
    };
    of_thread.last = [] { streams.deallocate(streams.try_allocate(1000, in.handle()), 1000, in.handle()); };
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 0);
}

TEST_CASE("a process exits while threads are at work in a pool that stays") {
  const child_end end = exiting([] {
    static pool& for_ever = *new pool(options{.capacity = 16 * mib});
    for (int i = 0; i < 3; ++i) {
      std::thread([] {
        for (;;) for_ever.deallocate(for_ever.try_allocate(1000), 1000);
      }).detach();
    }
    static late_user older;
    older.last = [] { demand(serves(for_ever)); };
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 0);
}

TEST_CASE("the C interface in static destruction") {
  const child_end end = exiting([] {
    static orderly_pool* made = nullptr;
    static late_user last;
    const orderly_options settings = {mib, 0, 0, 0};
    orderly_pool_create_host(&settings, &made);
    last.last = [] {
      void* const block = orderly_allocate(made, 1000);
      demand(orderly_deallocate(made, block, 1000) == ORDERLY_OK);
      orderly_pool_destroy(made);
      demand(orderly_deallocate(made, block, 1000) == ORDERLY_ERROR_POOL_GONE);
    };
    std::atexit([] { demand(orderly_owns(made, &made) == 0); });
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 0);
}

TEST_CASE("a pool ends before threads that hold caches, and threads end before static objects that hold pools") {
  const child_end end = exiting([] {
    static std::optional<pool> doomed(std::in_place, options{.capacity = mib});
    static std::atomic<bool> used = false, gone = false;
    static std::thread waits([] {
      demand(serves(*doomed));
      of_thread.last = [] { demand(!pool(options{.capacity = mib}).owns(&used)); };
      used.store(true);
      while (!gone.load()) std::this_thread::yield();
    });
    static late_user last;
    last.last = [] {
      doomed.reset();
      gone.store(true);
      waits.join();
    };
    while (!used.load()) std::this_thread::yield();
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 0);
}

}  // TEST_SUITE
