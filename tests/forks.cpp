// A process forks while its threads are inside the library: parent and child go on, and neither waits for a mutex whose
// holder it does not have.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <cerrno>
#include <csignal>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "annotate.hpp"
#include "atomic.hpp"
#include "orderly/orderly.h"
#include "orderly/pool.hpp"
#include "orderly/relocatable.hpp"
#include "orderly/relocatable_streams.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/decorated_source.hpp"
#include "support/process.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"
#include "support/wait.hpp"

// ThreadSanitizer starts no threads after a fork of a program with threads.
#if !ORDERLY_TEST_UNDER_TSAN

namespace {

int refused_handlers = 0;

}  // namespace

extern "C" int __register_atfork(void (*)(), void (*)(), void (*)(), void*);
extern "C" int pthread_atfork(void (*prepare)(), void (*parent)(), void (*child)()) noexcept {
  if (refused_handlers > 0) {
    --refused_handlers;
    return ENOMEM;
  }
  return __register_atfork(prepare, parent, child, nullptr);
}

using namespace orderly;
using namespace orderly::test;

namespace {

/// AddressSanitizer (of clang before 17, and of gcc) forks with its own locks as they are: a child waits for ever for one
/// that a thread held which it does not have. There, what takes them (allocating memory of the program, starting a thread)
/// and the fork exclude each other.
class sanitizer_door {
 public:
#ifdef ORDERLY_ADDRESS_SANITIZER
  sanitizer_door() { mutex_.lock(); }
  ~sanitizer_door() { mutex_.unlock(); }
  sanitizer_door(const sanitizer_door&) = delete;
  sanitizer_door& operator=(const sanitizer_door&) = delete;

 private:
  static inline std::mutex mutex_;
#else
  sanitizer_door() {}
#endif
};

/// Threads that have begun: before that they take the sanitizer's locks, and in their first use of a pool. As they do when
/// they end, so they end after the fork, or behind the door.
class roll_call {
 public:
  void here() { count_.fetch_add(1); }
  void wait_for(std::size_t all) const {
    while (count_.load() < all) std::this_thread::yield();
  }

 private:
  std::atomic<std::size_t> count_ = 0;
};

/// Forks, runs `body` in the child, and says whether it returned true; a child that hangs has failed.
[[nodiscard]] bool in_child(const std::function<bool()>& body) {
  pid_t child = -1;
  {
    const sanitizer_door shut;
    child = fork();
  }
  if (child == 0) {
    std::signal(SIGALRM, SIG_DFL);
    alarm(60);
    std::signal(SIGABRT, SIG_DFL);
    std::signal(SIGSEGV, SIG_DFL);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// What others may hold at the fork: a batch for each, and a node of up to a root that is being split or merged.
[[nodiscard]] std::size_t most_lost(std::size_t threads) { return threads * (mib + 64 * kib); }

/// Bytes that can be had in blocks of one chunk.
[[nodiscard]] std::size_t room_of(pool& tested) {
  std::vector<void*> blocks;
  while (void* const block = tested.try_allocate(64 * kib)) blocks.push_back(block);
  for (void* const block : blocks) tested.deallocate(block, 64 * kib);
  return blocks.size() * 64 * kib;
}

/// Streams whose work is done at once, and that have no mutex: of a device's own locks a fork knows nothing.
class instant_driver final : public stream_driver {
 public:
  std::uint64_t identity(stream_handle stream) noexcept override {
    if (met.fetch_add(1) + 1 == linger_at) {  // under the pass mutex
      inside.store(true);
      give_way();
    }
    return reinterpret_cast<std::uintptr_t>(stream);
  }
  bool is_per_thread(stream_handle) noexcept override { return false; }
  std::uint64_t capture(stream_handle) noexcept override { return 0; }
  event_handle record(stream_handle) noexcept override { return this; }
  bool wait(stream_handle, event_handle) noexcept override { return true; }
  event_status query(event_handle) noexcept override { return event_status::complete; }
  bool synchronize(event_handle) noexcept override { return true; }
  void release(event_handle) noexcept override {}

  int linger_at = 0;
  std::atomic<int> met = 0;
  std::atomic<bool> inside = false;
};

[[nodiscard]] stream_handle named(std::uintptr_t number) { return reinterpret_cast<stream_handle>(64 * number); }

/// A source on top of another pool, with a door in decommit().
class upstream_source final : public decorated_source {
 public:
  explicit upstream_source(pool& upstream) : upstream_(upstream) {}
  std::size_t preferred_chunk() const noexcept override { return 64 * kib; }
  std::size_t capacity() const noexcept override { return mib; }
  bool decommit(void* address, std::size_t bytes) noexcept override {
    if (inside) inside();
    upstream_.trim();
    return decorated_source::decommit(address, bytes);
  }
  static inline std::function<void()> inside;

 private:
  pool& upstream_;
};

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("where fork handlers cannot be had, a pool is refused, and the next one is not") {
  const child_end end = run_child([] {  // in a process without pools
    refused_handlers = 1;
    bool refused = false;
    try {
      pool none(options{.capacity = mib});
    } catch (const std::bad_alloc&) {
      refused = true;
    }
    pool tested(options{.capacity = mib});
    _exit(refused && tested.try_allocate(1) != nullptr ? 3 : 1);
  });
  CHECK(end.status == 3);
}

TEST_CASE("fork while others allocate, free, trim, begin, end, and make pools: the child has all but what they held") {
  const std::size_t rounds = scaled(200);
  pool tested(options{.capacity = 8 * mib, .on_bad_free = on_bad_free::count});
  std::atomic<bool> done = false;
  std::vector<std::thread> others;
  constexpr std::size_t count = 4;
  roll_call begun;
  for (std::size_t index = 0; index < count; ++index) {
    others.emplace_back([&, index] {
      random_engine random = make_random(index);
      tested.deallocate(tested.try_allocate(1), 1);
      begun.here();
      while (!done.load(std::memory_order_relaxed)) {
        // Less than a MiB in all, so that nobody is refused.
        void* const block = tested.try_allocate(log_uniform(random, 1, 100 * kib));
        if (index == 0) tested.defragment();
        if (index == 1) tested.trim(mib);
        if (index == 2) {
          const sanitizer_door shut;
          std::thread([&] { tested.deallocate(tested.try_allocate(300), 300); }).join();
        }
        if (index == 3) {
          const sanitizer_door shut;
          const orderly_options settings{mib, 0, 0, 0};
          orderly_pool* another = nullptr;
          orderly_pool_create_host(&settings, &another);
          orderly_pool_destroy(another);
        }
        tested.deallocate(block);
      }
    });
  }
  begun.wait_for(count);
  std::size_t good = 0;
  for (std::size_t round = 0; round < rounds; ++round) {
    void* const kept = tested.allocate(1000);
    good += in_child([&] {
      const std::size_t held = count * 112 * kib + 64 * kib;  // and the block that is kept
      bool right = room_of(tested) + most_lost(count) + held >= tested.capacity();
      right = right && tested.try_deallocate(kept, 1000) == error::none;
      right = right && tested.try_deallocate(kept, 1000) == error::double_free;
      std::thread([&] {  // another thread in the child
        for (int i = 0; i < 100; ++i) tested.deallocate(tested.try_allocate(4096), 4096);
        tested.defragment();
      }).join();
      tested.trim();
      right = right && detail::asymmetric_barrier::heavy();
      const orderly_options settings{mib, 0, 0, 0};
      orderly_pool* another = nullptr;
      right = right && orderly_pool_create_host(&settings, &another) == ORDERLY_OK;
      right = right && orderly_allocate(another, 1) != nullptr;
      orderly_pool_destroy(another);
      pool gone(std::move(tested));  // destroyed
      return right;
    });
    CHECK(tested.try_deallocate(kept, 1000) == error::none);
  }
  done.store(true, std::memory_order_relaxed);
  for (std::thread& each : others) each.join();
  CHECK(good == rounds);
  MESSAGE("children that went on: ", good);
  check_idle(tested);
  CHECK(room_of(tested) == tested.capacity());
}

TEST_CASE("a child's child goes on as well") {
  pool tested(options{.capacity = mib});
  void* const block = tested.allocate(1000);
  CHECK(in_child([&] {
    return in_child([&] {
      return tested.try_deallocate(block, 1000) == error::none && room_of(tested) == mib;
    }) && tested.try_deallocate(block, 1000) == error::none;
  }));
  tested.deallocate(block, 1000);
  check_idle(tested);
}

TEST_CASE("fork inside an out-of-memory handler, a bad-free handler, and a walk over the blocks") {
  pool* used = nullptr;
  std::vector<void*> live;
  std::size_t good = 0;
  const auto child_frees_all = [&] {
    good += in_child([&] {
      for (void* const block : live) used->deallocate(block);
      const statistics stats = used->stats();
      return stats.allocated == 0 && used->try_allocate(mib) != nullptr;
    });
  };
  pool tested(options{.capacity = mib,
                      .on_out_of_memory =
                          [&](std::size_t) {
                            child_frees_all();
                            return false;
                          },
                      .on_bad_free = [&](const bad_free&) { child_frees_all(); }});
  used = &tested;
  while (void* const block = tested.try_allocate(100 * kib)) live.push_back(block);
  CHECK(good == 1);
  tested.deallocate(static_cast<char*>(live[0]) + 1);
  CHECK(good == 2);
  tested.for_each_block([&](const block_info& block) {
    if (block.address == live[0]) child_frees_all();
  });
  CHECK(good == 3);
  // In the child of the handler the allocation that called it goes on.
  const pid_t parent = getpid();
  pool goes_on(options{.capacity = mib, .on_out_of_memory = [&](std::size_t) {
                         const pid_t child = fork();
                         if (child == 0) {
                           used->deallocate(live[9]);
                           return true;
                         }
                         int status = -1;
                         waitpid(child, &status, 0);
                         good += WIFEXITED(status) && WEXITSTATUS(status) == 0;
                         return false;
                       }});
  used = &goes_on;
  std::vector<void*> filled;
  for (int i = 0; i < 16; ++i) filled.push_back(goes_on.allocate(64 * kib));
  std::swap(filled, live);
  void* const more = goes_on.try_allocate(64 * kib);
  if (getpid() != parent) _exit(more == live[9] ? 0 : 1);
  CHECK(more == nullptr);
  CHECK(good == 4);
  for (void* const block : live) goes_on.deallocate(block);
  for (void* const block : filled) tested.deallocate(block);
  check_idle(goes_on);
  check_idle(tested);
}

TEST_CASE("a fork meets a thread that binds its 65th stream: neither waits for the other") {
  const child_end end = run_child([] {
    alarm(60);
    const auto driver = std::make_shared<instant_driver>();
    driver->linger_at = 65;  // the thread's book of lanes is full
    stream_options settings;
    settings.memory.capacity = 64 * mib;
    stream_pool tested(make_host_source(), driver, settings);
    std::thread binds([&] {
      for (std::uintptr_t stream = 1; stream <= 70; ++stream) {
        tested.deallocate(tested.try_allocate(100, named(stream)), 100, named(stream));
      }
    });
    const bool met = comes(driver->inside);
    const bool good = in_child([&] { return tested.try_allocate(100, named(1)) != nullptr; });
    binds.join();
    _exit(met && good ? 3 : 1);
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 3);
}

TEST_CASE("a fork meets a pass whose source is another pool's: neither waits for the other") {
  const child_end end = run_child([] {
    alarm(60);
    pool upstream(options{.capacity = mib});
    pool tested(std::make_unique<upstream_source>(upstream), options{.capacity = mib});
    std::atomic<bool> inside = false;
    upstream_source::inside = [&] {
      inside.store(true);
      give_way();
    };
    tested.deallocate(tested.allocate(64 * kib), 64 * kib);
    std::thread trims([&] { tested.trim(); });
    const bool met = comes(inside);
    upstream_source::inside = nullptr;  // of this process; the thread is past it
    const bool good = in_child([&] { return tested.try_allocate(64 * kib) != nullptr && tested.trim() == 0; });
    trims.join();
    _exit(met && good ? 3 : 1);
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 3);
}

TEST_CASE("a request of the child does not wait for a thread of the parent that was in the source") {
  static std::atomic<bool> inside, open;
  class slow_source final : public decorated_source {
   public:
    std::size_t preferred_chunk() const noexcept override { return 64 * kib; }
    std::size_t capacity() const noexcept override { return mib; }
    bool commit(void* address, std::size_t bytes) noexcept override {
      if (!inside.exchange(true))
        while (!open.load()) std::this_thread::yield();
      return decorated_source::commit(address, bytes);
    }
  };
  static std::atomic<bool> stopped;
  pool tested(std::make_unique<slow_source>(), options{.capacity = mib});
  std::thread grows([&] { tested.deallocate(tested.try_allocate(64 * kib), 64 * kib); });
  REQUIRE(comes(inside));
  CHECK(in_child([&] {
    // A thread of the child stops, most likely inside a call of its own: this one gives it up after some seconds.
    struct sigaction stop = {};
    stop.sa_handler = [](int) {
      stopped.store(true);
      while (true) pause();
    };
    sigaction(SIGUSR1, &stop, nullptr);
    std::thread busy([&] {
      while (true) tested.deallocate(tested.try_allocate(mib / 4), mib / 4);  // past every front
    });
    give_way();
    pthread_kill(busy.native_handle(), SIGUSR1);
    bool right = comes(stopped);
    (void)tested.try_allocate(mib);
    busy.detach();
    return right;
  }));
  open.store(true);
  grows.join();
  check_idle(tested);
}

TEST_CASE("what comes home in the child to a thread that it does not have serves the child") {
  constexpr std::size_t bytes = 4 * kib;
  pool tested(options{.capacity = 64 * mib});
  std::vector<void*> blocks;
  std::atomic<bool> allocated = false;
  std::atomic<bool> leave = false;
  std::thread home([&] {
    for (int i = 0; i < 24; ++i) blocks.push_back(tested.allocate(bytes));
    allocated = true;
    static_cast<void>(comes(leave));
  });
  REQUIRE(comes(allocated));
  tested.deallocate(tested.allocate(64), 64);  // this thread has a cache of its own
  CHECK(in_child([&] {
    bool right = true;
    for (void* const block : blocks) right = right && tested.try_deallocate(block, bytes) == error::none;
    for (std::size_t i = 0; i < blocks.size(); ++i)
      right = right && std::ranges::count(blocks, tested.try_allocate(bytes)) == 1;
    return right;
  }));
  leave = true;
  home.join();
  for (void* const block : blocks) tested.deallocate(block, bytes);
  check_idle(tested);
}

TEST_CASE("fork while others work in streams: the child's pool goes on in every stream") {
  stream_options settings;
  settings.memory.capacity = 4 * mib;
  stream_pool tested(make_host_source(), std::make_shared<instant_driver>(), settings);
  std::atomic<bool> done = false;
  std::vector<std::thread> others;
  roll_call begun;
  for (std::uintptr_t index = 1; index <= 2; ++index) {
    others.emplace_back([&, index] {
      tested.deallocate(tested.try_allocate(1, named(index)), 1, named(index));
      begun.here();
      for (std::uintptr_t turn = 0; !done.load(std::memory_order_relaxed); ++turn) {
        const sanitizer_door shut;  // events are noted in memory of the program
        const stream_handle in = named(index + turn % 2);
        void* const block = tested.try_allocate(100 * kib, in);
        (void)tested.record_stream(block, named(3));
        tested.deallocate(block, 100 * kib, in);
        if (turn % 16 == 0) (void)tested.synchronize();
        if (turn % 64 == 0) {
          std::thread([&] { tested.deallocate(tested.try_allocate(100, in), 100, in); }).join();
        }
      }
    });
  }
  begun.wait_for(2);
  const std::size_t rounds = scaled(100);
  std::size_t good = 0;
  for (std::size_t round = 0; round < rounds; ++round) {
    void* const kept = tested.try_allocate(1000, named(1));
    good += in_child([&] {
      bool right = kept != nullptr && tested.try_deallocate(kept, 1000, named(2)) == error::none;
      for (std::uintptr_t stream = 1; stream <= 4; ++stream) {
        void* const block = tested.try_allocate(200 * kib, named(stream));
        right = right && tested.try_deallocate(block, 200 * kib, named(stream)) == error::none;
      }
      (void)tested.synchronize();
      right = right && tested.release_stream(named(1));
      const stream_pool gone(std::move(tested));
      return right;
    });
    CHECK(tested.try_deallocate(kept, 1000, named(1)) == error::none);
  }
  done.store(true);
  for (std::thread& each : others) each.join();
  CHECK(good == rounds);
  MESSAGE("children that went on with streams: ", good);
  check_idle(tested);
}

TEST_CASE("fork while others move, use and free blocks: the child moves, uses and frees them, too") {
  pool tested(options{.capacity = 16 * mib, .limit = 4 * mib, .on_bad_free = on_bad_free::count});
  std::optional<relocatable_blocks> blocks(std::in_place, tested);
  std::vector<relocatable> kept;
  for (int i = 0; i < 800; ++i) {
    const relocatable made = blocks->allocate(4000);
    if (i % 2 == 0)
      CHECK(blocks->deallocate(made) == error::none);
    else
      kept.push_back(made);
  }
  std::atomic<bool> done = false;
  std::vector<std::thread> others;
  roll_call begun;
  others.emplace_back([&] {
    begun.here();
    while (!done.load(std::memory_order_relaxed)) {
      const sanitizer_door shut;  // it takes memory of the program
      blocks->begin({.moves = 4});
      while (!blocks->step().empty()) {
      }
      blocks->end();
    }
  });
  for (int index = 0; index < 2; ++index) {
    others.emplace_back([&, index] {
      random_engine random = make_random(static_cast<std::size_t>(index));
      static_cast<void>(blocks->deallocate(blocks->try_allocate(1)));
      begun.here();
      while (!done.load(std::memory_order_relaxed)) {
        const relocatable made = blocks->try_allocate(log_uniform(random, 1, 8 * kib));
        if (void* const at = blocks->pin(made)) *static_cast<char*>(at) = 1;
        blocks->unpin(made);
        static_cast<void>(blocks->deallocate(made));
      }
    });
  }
  begun.wait_for(3);
  const std::size_t rounds = scaled(200);
  std::size_t good = 0;
  for (std::size_t round = 0; round < rounds; ++round) {
    good += in_child([&] {
      bool right = true;
      for (const relocatable each : kept) {
        right = right && blocks->pin(each) != nullptr;
        blocks->unpin(each);
      }
      blocks->begin();
      while (!blocks->step().empty()) {
      }
      blocks->end();
      for (const relocatable each : kept) right = right && blocks->deallocate(each) == error::none;
      return right && blocks->try_allocate(4000) != relocatable::none;
    });
    if (round % 16 == 0) {  // there is something to move again
      for (std::size_t i = round / 16 % 2; i < kept.size(); i += 2) {
        CHECK(blocks->deallocate(kept[i]) == error::none);
        kept[i] = blocks->allocate(4000);
      }
    }
  }
  done.store(true, std::memory_order_relaxed);
  for (std::thread& each : others) each.join();
  CHECK(good == rounds);
  MESSAGE("children that went on with blocks that move: ", good);
  blocks.reset();
  check_idle(tested);
}

TEST_CASE("fork while others move, use and free blocks in streams; also in the middle of a free that waits for copies") {
  /// In whose streams a wait takes its time once it is told to.
  class lingering_driver final : public stream_driver {
   public:
    std::uint64_t identity(stream_handle stream) noexcept override { return reinterpret_cast<std::uintptr_t>(stream); }
    bool is_per_thread(stream_handle) noexcept override { return false; }
    std::uint64_t capture(stream_handle) noexcept override { return 0; }
    event_handle record(stream_handle) noexcept override { return this; }
    bool wait(stream_handle stream, event_handle) noexcept override {
      if (stream == named(9) && !inside.exchange(true)) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      return true;
    }
    event_status query(event_handle) noexcept override { return event_status::complete; }
    bool synchronize(event_handle) noexcept override { return true; }
    void release(event_handle) noexcept override {}
    std::atomic<bool> inside = true;
  };
  const auto driver = std::make_shared<lingering_driver>();
  stream_options settings;
  settings.memory.capacity = 16 * mib;
  settings.memory.limit = 4 * mib;
  stream_pool tested(make_host_source(), driver, settings);
  std::optional<relocatable_stream_blocks> blocks(std::in_place, tested, [](std::span<const relocation> moves, stream_handle) {
    for (const relocation& each : moves) std::memcpy(each.to, each.from, each.bytes);
    return true;
  });
  std::size_t good = 0;
  const std::size_t rounds = scaled(100);
  for (std::size_t round = 0; round < rounds; ++round) {
    std::vector<relocatable> kept;
    for (int i = 0; i < 800; ++i) kept.push_back(blocks->allocate(4000, named(1)));
    for (std::size_t i = 0; i < kept.size(); i += 2) CHECK(blocks->deallocate(kept[i], named(1)) == error::none);
    CHECK(tested.synchronize());
    std::vector<relocation> moves;
    std::atomic<bool> knows_its_stream = false;
    std::atomic<bool> forks_now = false;
    std::atomic<bool> child_ended = false;
    const auto stay = [&] { CHECK(comes(child_ended, std::chrono::minutes(2))); };
    std::thread frees([&] {
      CHECK(blocks->pin(kept[1], named(3)) != nullptr);
      blocks->unpin(kept[1], named(3));
      knows_its_stream.store(true);
      CHECK(comes(forks_now));
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      CHECK(blocks->deallocate(moves[1].block, named(3)) == error::none);
      stay();
    });
    REQUIRE(comes(knows_its_stream));
    blocks->begin({.moves = 20});
    static_cast<void>(blocks->step(named(2)));
    moves = blocks->step(named(2));
    REQUIRE(moves.size() > 8);
    // One makes a stream wait, under the mutex of events; the process wants to fork, and waits for that; another marks a
    // block that it is to free, and waits for both. Or one is in a step.
    driver->inside.store(false);
    std::thread pins([&] {
      static_cast<void>(blocks->pin(moves[0].block, named(9)));
      blocks->unpin(moves[0].block, named(9));
      stay();
    });
    REQUIRE(comes(driver->inside));
    roll_call begun;
    std::thread moves_on([&] {
      begun.here();
      if (round % 2 != 0) {
        const sanitizer_door shut;
        static_cast<void>(blocks->step(named(2)));
      }
      stay();
    });
    begun.wait_for(1);
    forks_now.store(true);
    good += in_child([&] {
      bool right = true;
      for (std::size_t i = 1; i < kept.size(); i += 2) {
        const bool there = blocks->pin(kept[i], named(4)) != nullptr;
        blocks->unpin(kept[i], named(4));
        right = right && (there || kept[i] == moves[1].block);
      }
      blocks->begin();
      while (!blocks->step(named(5)).empty()) {
      }
      blocks->end();
      for (std::size_t i = 1; i < kept.size(); i += 2) {
        const error code = blocks->deallocate(kept[i], named(4));
        // What the others had in their hands they have in the child for ever.
        right = right && (code == error::none || kept[i] == moves[0].block || kept[i] == moves[1].block);
      }
      return right;
    });
    child_ended.store(true);
    pins.join();
    frees.join();
    moves_on.join();
    blocks->end();
    for (std::size_t i = 1; i < kept.size(); i += 2) static_cast<void>(blocks->deallocate(kept[i], named(1)));
    static_cast<void>(tested.release_stream(named(9)));
    static_cast<void>(tested.release_stream(named(3)));
    CHECK(tested.stats().memory.allocated == 0);
  }
  CHECK(good == rounds);
  MESSAGE("children that went on with blocks that move in streams: ", good);
  blocks.reset();
  check_idle(tested);
}

}  // TEST_SUITE

#endif
