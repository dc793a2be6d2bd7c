// Passes as a pool's user sees them: when one runs, what it takes back and from whom, and when a request is refused.
#include <doctest/doctest.h>

#include <csignal>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/decorated_source.hpp"
#include "support/failing_source.hpp"
#include "support/oracles.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;
constexpr std::size_t chunk = 64 * kib;

/// Names a block's owner in its bytes, until free_all().
void sign(void* block, std::size_t bytes) { stamp(block, bytes).put(reinterpret_cast<std::uintptr_t>(block)); }

/// Is it still so?
[[nodiscard]] bool is_signed(void* block, std::size_t bytes) {
  return stamp(block, bytes).remove(reinterpret_cast<std::uintptr_t>(block));
}

/// Frees all the blocks, each of that size.
void free_all(pool& tested, std::vector<void*>& blocks, std::size_t bytes) {
  for (void* block : blocks) CHECK(tested.try_deallocate(block, bytes) == error::none);
  blocks.clear();
}

/// Blocks of a size, until refused.
std::vector<void*> take_all(pool& tested, std::size_t bytes) {
  std::vector<void*> blocks;
  while (void* block = tested.try_allocate(bytes)) blocks.push_back(block);
  return blocks;
}

/// A point that threads pass only when it is opened, and that tells how many wait there.
class gate {
 public:
  void close() { set(false); }
  void open() { set(true); }
  /// True if the gate was closed at first.
  bool pass() {
    std::unique_lock hold(mutex_);
    const bool was_open = open_;
    ++waiting_;
    changed_.notify_all();
    changed_.wait(hold, [this] { return open_; });
    --waiting_;
    return !was_open;
  }
  void wait_for_waiting(int count) {
    std::unique_lock hold(mutex_);
    changed_.wait(hold, [&] { return waiting_ >= count; });
  }

 private:
  void set(bool open) {
    const std::lock_guard hold(mutex_);
    open_ = open;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int waiting_ = 0;
};

/// What stops the calls to a source, and whether a commit that was stopped is refused in the end; and what was committed.
struct controls {
  gate commits;
  gate decommits;
  std::atomic<bool> refuse_stopped = false;
  std::atomic<std::size_t> commit_calls = 0;
  std::atomic<std::size_t> committed_bytes = 0;  // by all calls
};

/// Host memory under control.
class gated_source final : public decorated_source {
 public:
  explicit gated_source(controls& by) : by_(by) {}

  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    const bool stopped = by_.commits.pass();
    ++by_.commit_calls;
    by_.committed_bytes += bytes;
    return !(stopped && by_.refuse_stopped) && decorated_source::commit(address, bytes);
  }
  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    by_.decommits.pass();
    return decorated_source::decommit(address, bytes);
  }

 private:
  controls& by_;
};

/// Host memory that tells a signal's handler whether its thread is in there.
class told_source final : public decorated_source {
 public:
  static inline thread_local std::atomic<bool> in_call = false;

  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    const call here;
    return decorated_source::commit(address, bytes);
  }
  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    const call here;
    return decorated_source::decommit(address, bytes);
  }

 private:
  struct call {
    call() noexcept { in_call.store(true, std::memory_order_relaxed); }
    call(const call&) = delete;
    call& operator=(const call&) = delete;
    ~call() { in_call.store(false, std::memory_order_relaxed); }
  };
};

/// A few blocks of one size live at a time, then a few of another, and so on. Sizes above a root: memory that is free
/// in one size is of no use to the other before it is moved. Returns the operations.
std::size_t alternate(pool& tested, std::size_t phases) {
  findings found;
  std::vector<void*> blocks;
  for (std::size_t phase = 0; phase < phases; ++phase) {
    const std::size_t bytes = phase % 2 == 0 ? 3 * mib : 6 * mib;
    for (std::size_t live = 0; live < 24 * mib; live += bytes) {
      blocks.push_back(tested.allocate(bytes));
      sign(blocks.back(), bytes);
    }
    for (void* const block : blocks) found.expect(is_signed(block, bytes), block, " was written by another owner");
    free_all(tested, blocks, bytes);
  }
  ORDERLY_CHECK_FINDINGS(found);
  return phases * 2 * 6;
}

/// Allocates blocks of size(step); before each goes what must, by chance, so that no more than `most` is live. Frees all.
void replace_at_random(pool& tested, std::size_t most, std::size_t steps,
                       const std::function<std::size_t(std::size_t)>& size) {
  random_engine random = make_random(3);
  std::vector<std::pair<void*, std::size_t>> held;
  std::size_t live = 0;
  for (std::size_t step = 0; step < steps; ++step) {
    const std::size_t bytes = size(step);
    for (; live + bytes > most; held.pop_back()) {
      std::swap(held[uniform(random, 0, held.size() - 1)], held.back());
      tested.deallocate(held.back().first);
      live -= held.back().second;
    }
    held.emplace_back(tested.allocate(bytes), bytes);
    live += bytes;
  }
  for (const auto& [block, bytes] : held) tested.deallocate(block);
}

/// What passes may be: those that a new pool's savings pay for, one for as many operations, and one for as much growth.
[[nodiscard]] std::size_t paid_for(std::size_t operations, std::size_t grown) {
  return ((std::size_t{8} << 20) + operations) / 32768 + 1 + grown / (32 * mib);
}

/// Asks for a block from its destructor: when the thread has given its caches back, and gets none any more.
struct late_request {
  pool* of = nullptr;
  ~late_request() {
    if (of != nullptr) CHECK(of->try_allocate(mib) == nullptr);
  }
};

/// Threads allocate and free blocks of whole chunks at random; each keeps to its share of the capacity, so all that is
/// live always fits. Returns the refusals.
std::size_t keep_to_shares(std::size_t threads, std::size_t share_chunks, std::size_t steps) {
  pool tested(options{.capacity = threads * share_chunks * chunk});
  findings found;
  std::atomic<std::size_t> refused = 0;
  // In the tree powers of two, which classes do not round; above a root any number.
  const std::vector<std::size_t> sizes{1, 1, 2, 4, 8, 16, 17, 24, 33};
  run_threads(threads, [&](std::size_t self) {
    random_engine random = make_random(self);
    std::vector<std::pair<void*, std::size_t>> held;
    std::size_t held_chunks = 0;
    const auto free_one = [&] {
      std::swap(held[uniform(random, 0, held.size() - 1)], held.back());
      const auto [block, chunks] = held.back();
      held.pop_back();
      held_chunks -= chunks;
      found.expect(is_signed(block, chunks * chunk), block, " was written by another owner");
      tested.deallocate(block, chunks * chunk);
    };
    for (std::size_t step = 0; step < steps; ++step) {
      const std::size_t chunks = sizes[uniform(random, 0, sizes.size() - 1)];
      while (held_chunks + chunks > share_chunks) free_one();
      void* block = tested.try_allocate(chunks * chunk);
      refused.fetch_add(block == nullptr, std::memory_order_relaxed);
      if (block == nullptr) continue;
      sign(block, chunks * chunk);
      held.emplace_back(block, chunks);
      held_chunks += chunks;
    }
    while (!held.empty()) free_one();
  });
  ORDERLY_CHECK_FINDINGS(found);
  check_sound(tested);
  check_idle(tested);
  tested.trim();
  CHECK(tested.stats().committed == 0);
  return refused;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("every trim and every defragment is a pass; what fits needs none") {
  pool tested(options{.capacity = 64 * mib});
  std::vector<void*> blocks;
  for (int count = 0; count < 100; ++count) blocks.push_back(tested.allocate(10 * kib));
  free_all(tested, blocks, 10 * kib);
  CHECK(tested.stats().passes == 0);
  tested.defragment();
  CHECK(tested.stats().passes == 1);
  tested.trim();
  CHECK(tested.stats().passes == 2);
  tested.trim(64 * mib);
  CHECK(tested.stats().passes == 3);
  tested.defragment();
  CHECK(tested.stats().passes == 4);
}

TEST_CASE("a trim releases what is above what is to be kept, the next one the rest, and all of it serves again") {
  const std::vector<std::size_t> sizes{10 * kib, 64 * kib, 300 * kib, mib, 3 * mib, 5 * mib + 64 * kib, 20 * mib};
  for (const std::size_t keep : {3 * mib, 7 * mib + 512 * kib, 12 * mib + 1, 15 * mib}) {  // less than the tree holds
    CAPTURE(keep);
    const auto log = std::make_shared<source_log>();
    pool tested(make_failing_source(log), options{.capacity = 512 * mib, .chunk = 512 * kib});
    for (int round = 0; round < 3; ++round) {
      void* const live = tested.allocate(2 * mib);
      std::vector<std::pair<void*, std::size_t>> held;
      for (const std::size_t bytes : sizes)
        for (int count = 0; count < 2; ++count) held.emplace_back(tested.allocate(bytes), bytes);
      for (const auto& [block, bytes] : held) sign(block, bytes);
      for (const auto& [block, bytes] : held) CHECK(is_signed(block, bytes));
      for (const auto& [block, bytes] : held) tested.deallocate(block, bytes);
      const std::size_t had = tested.stats().committed;
      CHECK(had == log->committed());
      const std::size_t part = tested.trim(keep);
      CHECK(had - part == log->committed());
      CHECK(had - part <= keep);
      CHECK(had - part + mib > keep);  // a trim takes a MiB at once
      CHECK(tested.trim() == had - part - 2 * mib);
      CHECK(log->committed() == 2 * mib);
      tested.deallocate(live);
      tested.trim();
      CHECK(log->committed() == 0);
      check_idle(tested);
    }
    ORDERLY_CHECK_CONTRACT(*log);
  }
}

/// What may lie idle in a pool that one thread uses, however little is live.
constexpr std::size_t least_slack = 20 * mib;

TEST_CASE("memory that lies idle in one size is moved to another before more is committed") {
  pool tested(options{.capacity = 256 * mib});
  alternate(tested, 2);
  const statistics stats = tested.stats();
  CHECK(stats.peak_requested == 24 * mib);
  CHECK(stats.peak_committed <= 24 * mib + least_slack + chunk);
  CHECK(stats.passes > 0);
}

TEST_CASE("small blocks that stay hold few chunks, however large those are") {
  pool tested(options{.capacity = 64 * mib, .chunk = 2 * mib});
  std::vector<void*> small;
  std::vector<void*> others;
  for (int count = 0; count < 112; ++count) others.push_back(tested.allocate(500 * kib));  // four to a chunk
  for (std::size_t hole = 0; hole < 12; ++hole) {
    tested.deallocate(std::exchange(others[4 * hole], nullptr), 500 * kib);
    for (int count = 0; count < 16; ++count) small.push_back(tested.allocate(30 * kib));  // as much as fits there
  }
  std::erase(others, nullptr);
  free_all(tested, others, 500 * kib);
  void* const rest = tested.try_allocate(48 * mib);
  CHECK(rest != nullptr);
  tested.deallocate(rest, 48 * mib);
  free_all(tested, small, 30 * kib);
}

TEST_CASE("how much may lie idle is the user's to say") {
  for (const double slack : {0.0, 0.5, 1.0, 16.0}) {
    CAPTURE(slack);
    pool tested(options{.capacity = 256 * mib, .slack = slack});
    alternate(tested, 2);
    const statistics stats = tested.stats();
    CHECK(static_cast<double>(stats.peak_committed) <= 24 * mib + std::max(slack * 24 * mib, 1.0 * least_slack) + chunk);
    if (slack >= 1) CHECK(stats.peak_committed == 48 * mib);  // nothing was moved
  }
}

TEST_CASE("what is reserved is committed at once, serves without the source, and is kept until trim") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 256 * mib, .limit = 128 * mib, .slack = 0});
  CHECK(tested.reserve(0) == 0);
  CHECK(tested.reserve(40 * mib + 1) == 40 * mib + chunk);
  CHECK(tested.stats().committed == 40 * mib + chunk);
  CHECK(log->committed() == 40 * mib + chunk);
  CHECK(tested.reserve(mib) == 40 * mib + chunk);
  const std::size_t calls = log->seen(source_log::call::commit);
  for (int round = 0; round < 3; ++round) {
    for (const std::size_t bytes : {mib, chunk, 256 * kib}) {
      std::vector<void*> blocks;
      for (std::size_t sum = 0; sum + bytes <= 32 * mib; sum += bytes) blocks.push_back(tested.allocate(bytes));
      free_all(tested, blocks, bytes);
    }
  }
  CHECK(log->seen(source_log::call::commit) == calls);
  CHECK(log->seen(source_log::call::decommit) == 0);
  // Beyond a root memory has to move; what is kept bounds what is given back for it.
  for (int round = 0; round < 3; ++round) {
    void* const large = tested.allocate(60 * mib);
    tested.deallocate(large);
    std::vector<void*> blocks = take_all(tested, 200 * kib);
    CHECK(blocks.size() >= 500);
    free_all(tested, blocks, 200 * kib);
    CHECK(tested.stats().committed >= 40 * mib + chunk);
  }
  CHECK(tested.reserve(SIZE_MAX) == 128 * mib);
  tested.trim(10 * mib);
  CHECK(tested.stats().committed <= 10 * mib);
  CHECK(log->committed() == tested.stats().committed);
  void* const block = tested.allocate(mib);
  CHECK(tested.reserve(20 * mib) >= 20 * mib);
  tested.deallocate(block);
  check_idle(tested);
}

TEST_CASE("what is reserved stays above the soft limit, until trim") {
  pool tested(options{.capacity = 1024 * mib, .soft_limit = 50 * mib});
  const auto idle_after_growth = [&] {
    void* const large = tested.allocate(5 * mib);  // has addresses of its own, so memory would move there
    tested.deallocate(large);
    return tested.stats().committed;
  };
  CHECK(tested.reserve(100 * mib) == 100 * mib);
  CHECK(idle_after_growth() >= 100 * mib);
  tested.trim();
  std::vector<void*> blocks;
  for (int block = 0; block < 90; ++block) blocks.push_back(tested.allocate(mib));
  free_all(tested, blocks, mib);
  CHECK(idle_after_growth() <= 55 * mib);
}

TEST_CASE("up to the release threshold a pool grows without a pass") {
  pool tested(options{.capacity = 1024 * mib, .release_threshold = 300 * mib, .slack = 0});
  for (const std::size_t bytes : {chunk, 40 * mib, mib, 5 * mib}) {
    std::vector<void*> blocks;
    for (std::size_t sum = 0; sum + bytes <= 60 * mib; sum += bytes) blocks.push_back(tested.allocate(bytes));
    free_all(tested, blocks, bytes);
  }
  CHECK(tested.stats().passes == 0);
  CHECK(tested.stats().committed > 100 * mib);
}

TEST_CASE("a reserve that the source refuses keeps what it got, and the pool goes on") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 64 * mib});
  log->refuse(source_log::call::commit, 5, 5);
  const std::size_t got = tested.reserve(30 * mib);
  CHECK(got == 4 * mib);
  CHECK(log->committed() == got);
  log->refuse_none();
  CHECK(tested.reserve(30 * mib) == 30 * mib);
  check_idle(tested);
  log->refuse_all(source_log::call::commit);
  CHECK(tested.reserve(64 * mib) == 30 * mib);
  CHECK(tested.reserve(SIZE_MAX) == 30 * mib);
  tested.trim();
  CHECK(tested.reserve(64 * mib) == 0);
  CHECK(log->committed() == 0);
  ORDERLY_CHECK_CONTRACT(*log);
}

TEST_CASE("what a reserve did not get is not kept for it: memory that lies idle moves as ever") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 256 * mib});
  log->refuse(source_log::call::commit, 5, 5);
  CHECK(tested.reserve(200 * mib) == 4 * mib);
  log->refuse_none();
  alternate(tested, 2);
  CHECK(tested.stats().peak_committed <= 24 * mib + least_slack + chunk);
}

TEST_CASE("below the release threshold the pool gives nothing back by itself; above the soft limit nothing lies idle") {
  const auto held_after = [](const options& settings) {
    pool tested(settings);
    const auto phase = [&](std::size_t bytes, std::size_t sum) {
      std::vector<void*> blocks;
      for (std::size_t had = 0; had + bytes <= sum; had += bytes) blocks.push_back(tested.allocate(bytes));
      free_all(tested, blocks, bytes);
    };
    phase(chunk, 200 * mib);
    // Large blocks have addresses of their own, so what the small ones left is idle.
    for (int round = 0; round < 4; ++round) phase(40 * mib, 120 * mib);
    return tested.stats().peak_committed;
  };
  const std::size_t plain = held_after(options{.capacity = 1024 * mib, .slack = 0});
  CHECK(plain <= 240 * mib);
  CHECK(held_after(options{.capacity = 1024 * mib, .release_threshold = 300 * mib, .slack = 0}) >= 300 * mib);
  CHECK(held_after(options{.capacity = 1024 * mib, .slack = 16}) >= 300 * mib);
  CHECK(held_after(options{.capacity = 1024 * mib, .soft_limit = 210 * mib, .slack = 16}) <= 210 * mib);
  CHECK_THROWS_WITH_AS(pool(options{.capacity = mib, .release_threshold = mib + 1}),
                       "orderly::pool: release_threshold 1048577 is above the limit, 1048576", std::invalid_argument);
  CHECK_THROWS_AS(pool(options{.capacity = 4 * mib, .limit = mib, .release_threshold = 2 * mib}), std::invalid_argument);
  CHECK_THROWS_WITH_AS(pool(options{.capacity = 4 * mib, .release_threshold = 2 * mib, .soft_limit = mib}),
                       "orderly::pool: soft_limit 1048576 is below release_threshold, 2097152", std::invalid_argument);
}

TEST_CASE("what is kept moves, and is not given back") {
  const auto least_after = [](pool& tested, const std::function<void()>& step) {
    std::size_t least = SIZE_MAX;
    for (int count = 0; count < 12; ++count) {
      step();
      least = std::min(least, tested.stats().committed);
    }
    return least;
  };
  for (const std::size_t idle : {60 * mib, 100 * mib, 200 * mib}) {  // one piece, of which little would have to go
    CAPTURE(idle);
    pool tested(options{.capacity = 1024 * mib, .release_threshold = 300 * mib, .slack = 0});
    tested.deallocate(tested.allocate(idle));
    while (tested.stats().committed < 300 * mib) static_cast<void>(tested.allocate(mib));
    CHECK(least_after(tested, [&] { static_cast<void>(tested.allocate(20 * mib)); }) >= 300 * mib);
    CHECK(tested.stats().passes > 0);
    CHECK(tested.stats().peak_committed <= 300 * mib + 300 * mib / 8 + 240 * mib);
  }
  pool tested(options{.capacity = 4096 * mib, .slack = 0});
  tested.reserve(300 * mib);
  std::size_t round = 0;
  CHECK(least_after(tested, [&] {
          const std::size_t bytes = round++ % 2 == 0 ? 40 * mib : 70 * mib;  // in slots of different orders
          tested.deallocate(tested.allocate(bytes));
        }) >= 300 * mib);
}

TEST_CASE("what is kept moves at the limit, too, and all of it serves") {
  pool tested(options{.capacity = 300 * mib});
  CHECK(tested.reserve(300 * mib) == 300 * mib);
  tested.deallocate(tested.allocate(200 * mib));
  std::vector<void*> blocks;
  while (void* const block = tested.try_allocate(mib)) {
    blocks.push_back(block);
    CHECK(tested.stats().committed >= 299 * mib);
  }
  CHECK(blocks.size() == 300);
  free_all(tested, blocks, mib);
}

TEST_CASE("a pass at what is kept leaves room to grow: not each commit takes one") {
  pool tested(options{.capacity = 1024 * mib, .release_threshold = 300 * mib, .slack = 0});
  tested.deallocate(tested.allocate(200 * mib));
  for (int count = 0; count < 300; ++count) static_cast<void>(tested.allocate(mib));
  CHECK(tested.stats().passes >= 1);
  CHECK(tested.stats().passes <= 10);
}

TEST_CASE("a soft limit holds while memory lies idle: what is reserved serves blocks of any size") {
  const auto log = std::make_shared<source_log>();
  const options both{.capacity = 4096 * mib, .release_threshold = 512 * mib, .soft_limit = 512 * mib};
  pool tested(make_failing_source(log), both);
  CHECK(tested.reserve(512 * mib) == 512 * mib);
  std::vector<void*> blocks;
  for (const std::size_t bytes : {200 * mib, 7 * mib, 90 * mib, mib, 150 * mib}) {
    blocks.push_back(tested.allocate(bytes));
    CHECK(tested.stats().committed == 512 * mib);
  }
  CHECK(log->peak_committed() == 512 * mib);
  blocks.push_back(tested.allocate(100 * mib));  // live
  CHECK(tested.stats().committed == 548 * mib);
  for (void* const block : blocks) tested.deallocate(block);
}

TEST_CASE("a soft limit holds where few large blocks come and go") {
  pool tested(options{.capacity = 8192 * mib, .soft_limit = 256 * mib});
  random_engine random = make_random(3);
  replace_at_random(tested, 200 * mib, 3000, [&](std::size_t) { return uniform(random, 2, 50) * mib; });
  CHECK(tested.stats().peak_committed <= 256 * mib);
}

TEST_CASE("without a limit as much as is live may lie idle, and hardly more, where few large blocks come and go") {
  for (const std::size_t live : {64 * mib, 200 * mib, 800 * mib}) {
    CAPTURE(live);
    random_engine random = make_random(4);
    const auto by_chance = [&](std::size_t) { return uniform(random, 16, live / mib * 2) * mib / 16; };
    const auto by_power = [&](std::size_t) { return mib << uniform(random, 0, 5); };
    const auto by_phase = [](std::size_t step) { return std::size_t{3 * mib} << step / 500 % 5; };  // slots of their own
    for (const auto& size : std::vector<std::function<std::size_t(std::size_t)>>{by_chance, by_power, by_phase}) {
      controls by;
      pool tested(std::make_unique<gated_source>(by), options{.capacity = 16 * 1024 * mib});
      replace_at_random(tested, live, 40000, size);
      const statistics stats = tested.stats();
      CHECK(stats.peak_requested <= live);
      CHECK(stats.peak_committed <= 2 * live + 32 * mib);  // by which growth pays for the first pass there
      CHECK(stats.passes <= paid_for(stats.allocations + stats.frees, by.committed_bytes));
    }
  }
}

TEST_CASE("where little is live memory gives way to sizes that change all the time, until nothing moves any more") {
  controls by;
  pool tested(std::make_unique<gated_source>(by), options{.capacity = 1024 * mib});
  const auto by_phase = [](std::size_t step) { return std::size_t{3 * mib} << step / 8 % 4; };
  replace_at_random(tested, 24 * mib, 10000, by_phase);
  const std::size_t calls = by.commit_calls;
  replace_at_random(tested, 24 * mib, 3200, by_phase);
  CHECK(by.commit_calls == calls);
  CHECK(tested.stats().peak_committed == 4 * 24 * mib);
}

TEST_CASE("growth of what is live takes no pass") {
  pool tested(options{.capacity = 16 * 1024 * mib});
  random_engine random = make_random(5);
  while (tested.stats().requested < 8192 * mib) {
    const std::size_t bytes = uniform(random, 1, 16) * mib;
    CHECK(tested.try_allocate(bytes) != nullptr);
  }
  CHECK(tested.stats().passes == 0);
}

TEST_CASE("above a soft limit that what is live exceeds, a block takes over the memory of the last one") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 4096 * mib, .soft_limit = 256 * mib});
  void* const live = tested.allocate(250 * mib);
  tested.deallocate(tested.allocate(31 * mib));
  const std::size_t calls = log->seen(source_log::call::commit);
  const std::size_t had = tested.stats().committed;
  for (int round = 0; round < 20; ++round) {
    tested.deallocate(tested.allocate(30 * mib));  // cuts a MiB off
    CHECK(tested.stats().committed == had - mib);
    void* const block = tested.allocate(31 * mib);  // and commits one: the other thirty are not to be released for it
    CHECK(log->seen(source_log::call::decommit) == static_cast<std::size_t>(round) + 1);
    CHECK(log->seen(source_log::call::commit) == calls + static_cast<std::size_t>(round) + 1);
    tested.deallocate(block);
  }
  tested.deallocate(live);
}

TEST_CASE("at the limit no more is given back than what is missing") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 4096 * mib, .limit = 512 * mib, .slack = 16});
  void* const live = tested.allocate(256 * mib);
  std::vector<void*> blocks;
  for (int count = 0; count < 120; ++count) blocks.push_back(tested.allocate(mib));
  free_all(tested, blocks, mib);
  REQUIRE(log->committed() == 376 * mib);
  void* const block = tested.try_allocate(150 * mib);  // 136 are there to be had
  CHECK(block != nullptr);
  CHECK(log->committed() > 512 * mib - 2 * mib);
  CHECK(tested.stats().committed <= 512 * mib);
  tested.deallocate(block);
  tested.deallocate(live);
}

TEST_CASE("where sizes change all the time, passes are paid for by operations, and memory gives way") {
  pool tested(options{.capacity = 256 * mib, .slack = 0});
  const std::size_t operations = alternate(tested, 2000);
  CHECK(tested.stats().passes <= ((8 << 20) + operations) / 32768 + 1);
  CHECK(tested.stats().failed == 0);
}

TEST_CASE("what another, sleeping thread caches is taken back under pressure, and the thread goes on") {
  for (const std::size_t bytes : {std::size_t{256}, 4 * kib, chunk}) {
    CAPTURE(bytes);
    pool tested(options{.capacity = 4 * mib});
    std::barrier stage(2);
    findings found;
    std::thread sleeper([&] {
      std::vector<void*> blocks = take_all(tested, bytes);
      found.expect(blocks.size() == 4 * mib / bytes, blocks.size(), " blocks at first");
      for (void* block : blocks) tested.deallocate(block, bytes);
      stage.arrive_and_wait();  // it sleeps, with full caches
      stage.arrive_and_wait();
      blocks = take_all(tested, bytes);
      found.expect(blocks.size() == 4 * mib / bytes, blocks.size(), " blocks after its sleep");
      for (void* block : blocks) tested.deallocate(block, bytes);
    });
    stage.arrive_and_wait();
    CHECK(tested.stats().cached != 0);
    std::vector<void*> blocks = take_all(tested, 2 * mib);
    CHECK(blocks.size() == 2);
    CHECK(tested.stats().cached == 0);
    CHECK(tested.stats().passes > 0);
    free_all(tested, blocks, 2 * mib);
    stage.arrive_and_wait();
    sleeper.join();
    ORDERLY_CHECK_FINDINGS(found);
    check_idle(tested);
  }
}

TEST_CASE("what a sleeping thread has freed of another's blocks is taken back too") {
  pool tested(options{.capacity = 4 * mib});
  std::vector<void*> blocks = take_all(tested, 256);
  CHECK(blocks.size() == 4 * mib / 256);
  for (int count = 0; count < 5; ++count) {  // an odd number is left, whatever number is sent home at once
    tested.deallocate(blocks.back(), 256);
    blocks.pop_back();
  }
  std::barrier stage(2);
  std::thread sleeper([&] {
    for (void* block : blocks) tested.deallocate(block, 256);
    stage.arrive_and_wait();
    stage.arrive_and_wait();
  });
  stage.arrive_and_wait();
  void* all = tested.try_allocate(4 * mib);
  CHECK(all != nullptr);
  tested.deallocate(all, 4 * mib);
  stage.arrive_and_wait();
  sleeper.join();
  check_idle(tested);
}

TEST_CASE("a request is refused when all is live, at one pass, and served as soon as one block is free") {
  pool tested(options{.capacity = 2 * mib});
  std::vector<void*> blocks = take_all(tested, 4 * kib);
  CHECK(blocks.size() == 512);
  for (const std::size_t bytes : {std::size_t{1}, 4 * kib, mib, 2 * mib}) {
    const std::uint64_t passes = tested.stats().passes;
    CHECK(tested.try_allocate(bytes) == nullptr);
    CHECK(tested.stats().passes == passes + 1);
  }
  CHECK(tested.try_deallocate(blocks.back(), 4 * kib) == error::none);
  blocks.back() = tested.try_allocate(4 * kib);
  CHECK(blocks.back() != nullptr);
  free_all(tested, blocks, 4 * kib);
}

TEST_CASE("a request above the limit is refused without a pass") {
  pool tested(options{.capacity = 8 * mib, .limit = 2 * mib});
  CHECK(tested.try_allocate(3 * mib) == nullptr);
  CHECK(tested.try_allocate(9 * mib) == nullptr);
  CHECK(tested.stats().passes == 0);
  CHECK(tested.stats().failed == 2);
}

TEST_CASE("requests that queue up behind a pass which must refuse them are refused by few passes") {
  constexpr std::size_t threads = 16;
  controls by;
  pool tested(std::make_unique<gated_source>(by), options{.capacity = 4 * mib});
  std::vector<void*> blocks = take_all(tested, mib);
  REQUIRE(blocks.size() == 4);
  tested.deallocate(blocks.back(), mib);
  blocks.pop_back();
  const std::uint64_t before = tested.stats().passes;
  by.decommits.close();
  // The first asks for more than is left, and its pass stops while it gives back what is free; the others queue up.
  std::thread first([&] { CHECK(tested.try_allocate(2 * mib) == nullptr); });
  by.decommits.wait_for_waiting(1);
  std::atomic<std::size_t> refused = 0;
  std::thread others([&] {
    run_threads(threads, [&](std::size_t) { refused += tested.try_allocate(2 * mib) == nullptr; });
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  by.decommits.open();
  first.join();
  others.join();
  CHECK(refused == threads);
  CHECK(tested.stats().failed == threads + 2);  // the fill's last request among them
  CHECK(tested.stats().passes - before <= 1 + threads / 2);
  free_all(tested, blocks, mib);
}

TEST_CASE("a request waits for a thread in the middle of a call, which may leave memory for it") {
  controls by;
  pool tested(std::make_unique<gated_source>(by), options{.capacity = 2 * mib});
  void* block = tested.allocate(mib);
  by.commits.close();
  by.refuse_stopped = true;
  // The first has claimed what the limit leaves, and will not get it from the source.
  std::thread first([&] { CHECK(tested.try_allocate(mib) == nullptr); });
  by.commits.wait_for_waiting(1);
  void* other = nullptr;
  std::thread second([&] { other = tested.try_allocate(mib); });
  while (tested.stats().passes == 0) std::this_thread::yield();  // the second presses for memory
  by.commits.open();
  second.join();
  first.join();
  CHECK(other != nullptr);
  tested.deallocate(other, mib);
  tested.deallocate(block, mib);
  check_idle(tested);
}

TEST_CASE("a request waits as long as another thread waits for the source, which may leave memory for it") {
  controls by;
  pool tested(std::make_unique<gated_source>(by), options{.capacity = chunk});
  by.commits.close();
  void* first = nullptr;
  void* second = nullptr;
  std::thread slow([&] { first = tested.try_allocate(256); });
  by.commits.wait_for_waiting(1);
  std::thread waiting([&] { second = tested.try_allocate(256); });  // the other's chunk has room for it
  while (tested.stats().passes == 0) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(3500));  // longer than for a stopped thread
  CHECK(tested.stats().failed == 0);
  by.commits.open();
  slow.join();
  waiting.join();
  CHECK(first != nullptr);
  CHECK(second != nullptr);
  tested.deallocate(first, 256);
  tested.deallocate(second, 256);
  check_idle(tested);
}

TEST_CASE("a thread that the system has stopped keeps what it holds, and refuses nobody for ever") {
  enum class answer { none, not_here, stopped };
  static thread_local std::atomic<bool> in_call = false;
  static std::atomic<answer> answered;
  static std::atomic<bool> hold_on;
  struct sigaction stop = {};
  stop.sa_handler = [](int) {
    // In the source it would be waited for, as long as it takes.
    if (!in_call || told_source::in_call) return answered.store(answer::not_here, std::memory_order_relaxed);
    answered.store(answer::stopped, std::memory_order_relaxed);
    while (hold_on.load(std::memory_order_relaxed)) {
    }
    answered.store(answer::none, std::memory_order_relaxed);
  };
  struct sigaction before = {};
  REQUIRE(sigaction(SIGUSR1, &stop, &before) == 0);
  pool tested(std::make_unique<told_source>(), options{.capacity = 2 * mib});
  std::atomic<bool> begun = false;
  std::atomic<bool> done = false;
  std::thread stopped([&] {
    while (!done.load(std::memory_order_relaxed)) {
      in_call.store(true, std::memory_order_relaxed);
      void* const block = tested.try_allocate(mib / 4);
      if (block != nullptr) tested.deallocate(block, mib / 4);
      in_call.store(false, std::memory_order_relaxed);
      begun.store(true, std::memory_order_relaxed);
    }
  });
  while (!begun.load(std::memory_order_relaxed)) std::this_thread::yield();  // a first use takes a mutex
  int returned = 0;
  int held_up = 0;
  while (returned < 4 && held_up < 2) {
    // With one block live the other thread is in calls that succeed, with all of them in passes; what is asked for below
    // is refused in any case, so it has to look into the front of the thread that has stopped.
    std::vector<void*> live;
    while (live.size() < (returned % 2 == 0 ? 1 : 8)) {
      void* const block = tested.try_allocate(mib / 4);
      if (block == nullptr) break;
      live.push_back(block);
    }
    answered.store(answer::none, std::memory_order_relaxed);
    hold_on.store(true, std::memory_order_relaxed);
    REQUIRE(pthread_kill(stopped.native_handle(), SIGUSR1) == 0);
    while (answered.load(std::memory_order_relaxed) == answer::none) std::this_thread::yield();
    if (answered.load(std::memory_order_relaxed) == answer::not_here) {
      free_all(tested, live, mib / 4);
      continue;
    }
    // It may have stopped a few instructions before the source was told, or after, when the pool counts it as in there.
    // Then somebody has to let it go on.
    std::atomic<bool> over = false;
    std::thread rescue([&] {
      for (int i = 0; i < 1500 && !over.load(std::memory_order_relaxed); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      hold_on.store(false, std::memory_order_relaxed);
    });
    CHECK((live.empty() || tested.try_allocate(2 * mib) == nullptr));  // returns, whatever the other holds
    ++(hold_on.load(std::memory_order_relaxed) ? returned : held_up);
    over.store(true, std::memory_order_relaxed);
    rescue.join();  // which ends the stop
    while (answered.load(std::memory_order_relaxed) != answer::none) std::this_thread::yield();
    free_all(tested, live, mib / 4);
  }
  CHECK(returned == 4);
  done.store(true, std::memory_order_relaxed);
  stopped.join();
  sigaction(SIGUSR1, &before, nullptr);
  void* const all = tested.try_allocate(2 * mib);
  CHECK(all != nullptr);
  tested.deallocate(all, 2 * mib);
  check_idle(tested);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("a request waits for a thread without caches in the middle of a call, which may leave memory for it") {
  for (std::size_t round = 0; round < scaled(20); ++round) {
    controls by;
    pool tested(std::make_unique<gated_source>(by), options{.capacity = 2 * mib});
    void* const block = tested.allocate(mib);
    by.commits.close();
    by.refuse_stopped = true;
    // The first has claimed what the limit leaves, and will not get it from the source.
    std::thread first([&] {
      thread_local late_request late;  // older than the thread's caches, so it ends later
      late.of = &tested;
      pool other(options{.capacity = mib});
      other.deallocate(other.allocate(256), 256);
    });
    by.commits.wait_for_waiting(1);
    void* got = nullptr;
    std::thread second([&] { got = tested.try_allocate(mib); });
    while (tested.stats().passes == 0) std::this_thread::yield();  // the second presses for memory
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    by.commits.open();
    second.join();
    first.join();
    CHECK(got != nullptr);
    tested.deallocate(got, mib);
    tested.deallocate(block, mib);
    check_idle(tested);
  }
}

TEST_CASE("threads that keep to their shares of the capacity are never refused, whatever the sizes") {
  for (const std::size_t threads : {2U, 3U, 4U, 8U, 16U}) {
    CAPTURE(threads);
    CHECK(keep_to_shares(threads, 40, scaled(100000) / threads) == 0);
  }
}

TEST_CASE("a reserve up to the limit gets there beside threads that grow") {
  constexpr std::size_t chunks = 64;
  constexpr std::size_t growing = 2;
  pool tested(options{.capacity = chunks * chunk});
  std::barrier step(growing + 1);
  findings found;
  run_threads(growing + 1, [&](std::size_t self) {
    for (std::size_t round = 0; round < scaled(5000); ++round) {
      std::vector<void*> blocks;
      step.arrive_and_wait();
      if (self == growing) {
        const std::size_t reached = tested.reserve(chunks * chunk);
        found.expect(reached == chunks * chunk, reached / chunk, " chunks");
      } else {
        for (std::size_t count = 0; count < chunks / 4; ++count) {
          blocks.push_back(tested.try_allocate(chunk));
          found.expect(blocks.back() != nullptr, "refused");
        }
      }
      step.arrive_and_wait();
      for (void* const block : blocks) tested.deallocate(block, chunk);
      step.arrive_and_wait();
      if (self == growing) tested.trim();
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("sizes that change all the time, on many threads") {
  pool tested(options{.capacity = 1024 * mib});
  run_threads(4, [&](std::size_t) { alternate(tested, scaled(100)); });
  CHECK(tested.stats().failed == 0);
  CHECK(tested.stats().peak_committed <= tested.limit());
  check_idle(tested);
}

}  // TEST_SUITE
