// The pool under many threads. Three oracles watch: a stamp in every block, a map of owners beside the memory, and
// the books of the pool at the end. Nothing of the tests orders what the pool itself must order: a block's bytes are
// touched by its owner alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "support/audit.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"
#include "support/watched_pool.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

constexpr backing every_backing[] = {backing::host, backing::fixed_buffer};

/// Nothing is live: the pool is whole, one free block in a buffer, nothing committed in virtual memory.
void check_empty(backing kind, watched_pool& watched, const findings& found) {
  ORDERLY_CHECK_FINDINGS(found);
  pool& tested = watched.get();
  check_sound(tested);  // with full caches
  check_idle(tested);
  if (kind == backing::host) {
    tested.trim();
    CHECK(tested.stats().committed == 0);
    CHECK(watched.log().committed() == 0);
    CHECK(watched.log().peak_committed() <= tested.stats().peak_committed);
  } else {
    CHECK(count_blocks(tested, block_state::free) == 1);
  }
  ORDERLY_CHECK_CONTRACT(watched.log());
}

/// Blocks of one thread, and places where threads leave blocks for each other.
class trader {
 public:
  using places = std::vector<std::atomic<owned_block*>>;

  trader(watched_pool& watched, places& shared, std::uint32_t self, std::uint64_t stream)
      : watched_(watched), shared_(shared), self_(self), random_(make_random(stream)) {}

  /// One step: mostly allocates while it holds little, mostly frees while it holds much, and swaps blocks with others.
  void step(std::size_t largest, std::size_t most_bytes) {
    const std::size_t action = uniform(random_, 0, 7);
    if (action == 0 && !held_.empty()) {
      swap();
    } else if (action < 5 && held_bytes_ < most_bytes) {
      take(log_uniform(random_, 1, largest));
    } else if (!held_.empty()) {
      give(uniform(random_, 0, held_.size() - 1));
    }
  }

  void give_all() {
    while (!held_.empty()) give(held_.size() - 1);
  }

 private:
  void take(std::size_t bytes) {
    const std::size_t alignment = uniform(random_, 0, 15) == 0 ? std::size_t{1} << uniform(random_, 0, 16) : 1;
    const owned_block block = watched_.allocate(bytes, alignment, self_);
    if (block.address == nullptr) return;
    held_.push_back(block);
    held_bytes_ += bytes;
  }

  void give(std::size_t index) {
    std::swap(held_[index], held_.back());
    watched_.deallocate(held_.back());
    held_bytes_ -= held_.back().bytes;
    held_.pop_back();
  }

  /// Leaves a block in a place and takes on what another thread left there, still under the other's stamp.
  void swap() {
    auto mine = std::make_unique<owned_block>(held_.back());
    held_bytes_ -= mine->bytes;
    held_.pop_back();
    const std::unique_ptr<owned_block> theirs(
        shared_[uniform(random_, 0, shared_.size() - 1)].exchange(mine.release(), std::memory_order_acq_rel));
    if (theirs == nullptr) return;
    held_.push_back(*theirs);
    held_bytes_ += theirs->bytes;
  }

  watched_pool& watched_;
  places& shared_;
  std::uint32_t self_;
  random_engine random_;
  std::vector<owned_block> held_;
  std::size_t held_bytes_ = 0;
};

struct trade {
  std::size_t threads;
  std::size_t steps;
  std::size_t largest;     // request
  std::size_t most_bytes;  // that a thread holds
};

/// Runs `threads` traders, and whatever `beside` does on one more thread until they are done.
template <class Beside>
void run_trade(backing kind, const options& settings, const trade& plan, const Beside& beside) {
  findings found;
  watched_pool watched(kind, settings, found);
  trader::places shared(16);
  std::atomic<std::size_t> working = plan.threads;
  run_threads(plan.threads + 1, [&](std::size_t index) {
    if (index == plan.threads) {
      while (working.load(std::memory_order_relaxed) != 0) beside(watched.get(), found);
      return;
    }
    trader self(watched, shared, static_cast<std::uint32_t>(index + 1), index);
    for (std::size_t step = 0; step < plan.steps; ++step) self.step(plan.largest, plan.most_bytes);
    self.give_all();
    working.fetch_sub(1, std::memory_order_relaxed);
  });
  for (std::atomic<owned_block*>& place : shared) {
    const std::unique_ptr<owned_block> left(place.load());
    if (left != nullptr) watched.deallocate(*left);
  }
  check_empty(kind, watched, found);
}

void do_nothing(pool&, findings&) { std::this_thread::yield(); }

/// All blocks of one size that a pool has, shared out among threads by whoever asks first.
class hoard {
 public:
  hoard(watched_pool& watched, std::size_t threads) : watched_(watched), blocks_(threads) {}

  /// Allocates until refused, or until it has that many.
  void take(std::size_t index, std::size_t bytes, std::size_t most = SIZE_MAX) {
    const auto owner = static_cast<std::uint32_t>(index + 1);
    while (blocks_[index].size() < most) {
      const owned_block block = watched_.allocate(bytes, 1, owner);
      if (block.address == nullptr) return;
      blocks_[index].push_back(block);
    }
  }

  void empty(std::size_t index) {
    for (const owned_block& block : blocks_[index]) watched_.deallocate(block);
    blocks_[index].clear();
  }

  [[nodiscard]] std::size_t count() const {
    std::size_t sum = 0;
    for (const std::vector<owned_block>& blocks : blocks_) sum += blocks.size();
    return sum;
  }

 private:
  watched_pool& watched_;
  std::vector<std::vector<owned_block>> blocks_;
};

/// Threads that stay alive, with full caches, exhaust the pool together, swap what they hold, and free it, for each of
/// the sizes in turn. Each time they must get every block that there is.
void exhaust_and_refill(backing kind, std::size_t threads, const std::vector<std::size_t>& sizes, std::size_t cycles) {
  findings found;
  watched_pool watched(kind, options{.capacity = mib}, found);
  hoard all(watched, threads);
  std::barrier together(static_cast<std::ptrdiff_t>(threads));
  run_threads(threads, [&](std::size_t index) {
    for (std::size_t cycle = 0; cycle < cycles; ++cycle) {
      const std::size_t bytes = sizes[cycle % sizes.size()];
      // In every third cycle one thread alone asks, and the others only hold what they have cached.
      if (cycle % 3 != 2 || cycle / 3 % threads == index) all.take(index, bytes);
      together.arrive_and_wait();
      if (index == 0) {
        found.expect(all.count() == mib / bytes, "cycle ", cycle, ", ", bytes, " bytes: ", all.count(), " blocks");
      }
      together.arrive_and_wait();
      all.empty((index + cycle) % threads);
      together.arrive_and_wait();
    }
  });
  check_empty(kind, watched, found);
}

/// Threads take and free more blocks than their caches hold, all at once, and stop with full caches.
void fill_all_caches(backing kind, std::size_t threads, std::size_t bytes, std::size_t rounds) {
  findings found;
  watched_pool watched(kind, options{.capacity = 4 * mib}, found);
  hoard all(watched, threads);
  std::barrier together(static_cast<std::ptrdiff_t>(threads));
  run_threads(threads, [&](std::size_t index) {
    for (std::size_t round = 0; round < rounds; ++round) {
      all.take(index, bytes, 2 * mib / bytes / threads);
      together.arrive_and_wait();
      all.empty(index);
    }
  });
  check_empty(kind, watched, found);
}

/// Threads fight for blocks that no cache takes and, their neighbours being live, no merge: they stay in one list all the
/// time. None may be forgotten there: at the end every block of the pool is found.
void fight_for_list(backing kind, std::size_t threads, std::size_t steps) {
  constexpr std::size_t alignment = 512;
  findings found;
  watched_pool watched(kind, options{.capacity = mib}, found);
  const auto take_all = [&watched] {
    std::vector<owned_block> blocks;
    while (true) {
      blocks.push_back(watched.allocate(1, alignment, 1));
      if (blocks.back().address != nullptr) continue;
      blocks.pop_back();
      return blocks;
    }
  };
  std::vector<owned_block> blocks = take_all();
  CHECK(blocks.size() == mib / alignment);
  const auto is_even = [](const owned_block& block) {
    return reinterpret_cast<std::uintptr_t>(block.address) / alignment % 2 == 0;
  };
  const auto odd = std::stable_partition(blocks.begin(), blocks.end(), is_even);
  std::for_each(odd, blocks.end(), [&](const owned_block& block) { watched.deallocate(block); });
  blocks.erase(odd, blocks.end());
  run_threads(threads, [&](std::size_t index) {
    const auto owner = static_cast<std::uint32_t>(index + 2);
    for (std::size_t step = 0; step < steps; ++step) {
      const owned_block pair[] = {watched.allocate(1, alignment, owner), watched.allocate(1, alignment, owner)};
      for (const owned_block& block : pair) {
        found.expect(block.address != nullptr, "refused while most blocks were free");
        if (block.address != nullptr) watched.deallocate(block);
      }
    }
  });
  const std::vector<owned_block> others = take_all();
  CHECK(blocks.size() + others.size() == mib / alignment);
  for (const owned_block& block : blocks) watched.deallocate(block);
  for (const owned_block& block : others) watched.deallocate(block);
  check_empty(kind, watched, found);
}

/// Threads take and free blocks that no cache takes, each of another size than the last, so that blocks are made of what
/// other threads freed. There is always room, and nothing but the pool orders the threads.
void split_and_merge(backing kind, std::size_t threads, std::size_t steps) {
  findings found;
  watched_pool watched(kind, options{.capacity = mib}, found);
  run_threads(threads, [&](std::size_t index) {
    random_engine random = make_random(index);
    for (std::size_t step = 0; step < steps; ++step) {
      const std::size_t alignment = std::size_t{512} << uniform(random, 0, 7);
      const owned_block block = watched.allocate(alignment / 2, alignment, static_cast<std::uint32_t>(index + 1));
      found.expect(block.address != nullptr, "refused while there was room");
      if (block.address != nullptr) watched.deallocate(block);
    }
  });
  check_empty(kind, watched, found);
}

/// As many permits as there are blocks. A permit is held from before an allocation until after the free, so whoever
/// holds one is owed a block.
class permits {
 public:
  explicit permits(std::size_t count) : left_(static_cast<std::ptrdiff_t>(count)) {}

  [[nodiscard]] bool take() noexcept {
    if (left_.fetch_sub(1, std::memory_order_acq_rel) > 0) return true;
    left_.fetch_add(1, std::memory_order_acq_rel);
    return false;
  }
  void give() noexcept { left_.fetch_add(1, std::memory_order_acq_rel); }

 private:
  std::atomic<std::ptrdiff_t> left_;
};

/// Threads fill the pool to the last block, again and again, and no request may be refused that has a permit. A block
/// takes up `bytes`, because it is that long or aligned to that.
void never_refused(backing kind, std::size_t capacity, std::size_t threads, std::size_t bytes, bool aligned,
                   std::size_t steps) {
  findings found;
  watched_pool watched(kind, options{.capacity = capacity}, found);
  permits permitted(capacity / bytes);
  run_threads(threads, [&](std::size_t index) {
    random_engine random = make_random(index);
    std::vector<owned_block> held;
    for (std::size_t step = 0; step < steps; ++step) {
      const std::size_t burst = uniform(random, 1, 2 * capacity / bytes / threads + 1);
      while (held.size() < burst && permitted.take()) {
        const owned_block block =
            watched.allocate(aligned ? 1 : bytes, aligned ? bytes : 1, static_cast<std::uint32_t>(index + 1));
        found.expect(block.address != nullptr, "refused ", bytes, " bytes while they were free");
        if (block.address == nullptr) {
          permitted.give();
          break;
        }
        held.push_back(block);
      }
      while (held.size() > burst / 4) {
        watched.deallocate(held.back());
        held.pop_back();
        permitted.give();
      }
    }
    for (const owned_block& block : held) watched.deallocate(block);
  });
  check_empty(kind, watched, found);
}

/// Half of the threads only allocate, half only free what they are handed: all memory ends up in caches of threads
/// that never ask for any. No request with a permit may be refused.
void hand_over(backing kind, std::size_t pairs, std::size_t bytes, std::size_t steps) {
  findings found;
  watched_pool watched(kind, options{.capacity = mib}, found);
  permits permitted(mib / bytes);
  std::vector<std::vector<std::atomic<void*>>> rings(pairs);
  for (auto& ring : rings) ring = std::vector<std::atomic<void*>>(64);
  run_threads(2 * pairs, [&](std::size_t index) {
    std::vector<std::atomic<void*>>& ring = rings[index / 2];
    const auto owner = static_cast<std::uint32_t>(index / 2 + 1);
    for (std::size_t step = 0; step < steps; ++step) {
      std::atomic<void*>& place = ring[step % ring.size()];
      if (index % 2 != 0) {
        void* block;
        while ((block = place.exchange(nullptr, std::memory_order_acquire)) == nullptr) std::this_thread::yield();
        watched.deallocate({block, bytes, owner});
        permitted.give();
        continue;
      }
      while (place.load(std::memory_order_relaxed) != nullptr || !permitted.take()) std::this_thread::yield();
      owned_block block = watched.allocate(bytes, 1, owner);
      found.expect(block.address != nullptr, "refused ", bytes, " bytes while they were free");
      while (block.address == nullptr) block = watched.allocate(bytes, 1, owner);
      place.store(block.address, std::memory_order_release);
    }
  });
  check_empty(kind, watched, found);
}

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("random sizes, blocks freed by other threads, room enough") {
  for (const std::size_t threads : {2U, 4U, 8U}) {
    CAPTURE(threads);
    run_trade(backing::host, options{.capacity = 64 * mib}, {threads, scaled(200000) / threads, 100 * kib, mib},
              do_nothing);
  }
}

TEST_CASE("random sizes up to several roots") {
  run_trade(backing::host, options{.capacity = 128 * mib}, {4, scaled(20000), 5 * mib, 16 * mib}, do_nothing);
}

TEST_CASE("random sizes, always at the limit") {
  for (const backing kind : every_backing) {
    CAPTURE(static_cast<int>(kind));
    run_trade(kind, options{.capacity = 2 * mib}, {4, scaled(20000), 200 * kib, 2 * mib}, do_nothing);
  }
}

TEST_CASE("random sizes while another thread trims, defragments and looks") {
  const auto beside = [](pool& tested, findings& found) {
    tested.trim(mib);
    const statistics stats = tested.stats();
    found.expect(stats.committed <= stats.limit, "committed ", stats.committed, " above the limit");
    tested.defragment();
    std::uintptr_t end = 0;
    tested.for_each_block([&](const block_info& block) {
      found.expect(reinterpret_cast<std::uintptr_t>(block.address) >= end, block.address, " is out of order");
      end = reinterpret_cast<std::uintptr_t>(block.address) + 1;
    });
  };
  for (const backing kind : every_backing) {
    CAPTURE(static_cast<int>(kind));
    run_trade(kind, options{.capacity = 8 * mib}, {3, scaled(20000), 100 * kib, mib}, beside);
  }
}

TEST_CASE("small granules and small chunks") {
  run_trade(backing::host, options{.capacity = 4 * mib, .granule = 16, .chunk = 4 * kib},
            {4, scaled(50000), 20 * kib, mib}, do_nothing);
  run_trade(backing::host, options{.capacity = 16 * mib, .granule = 64 * kib, .chunk = 64 * kib},
            {4, scaled(20000), mib, 8 * mib}, do_nothing);
}

TEST_CASE("exhaust and refill: every block is found, one size") {
  for (const backing kind : every_backing) {
    for (const std::size_t threads : {2U, 4U, 16U}) {
      for (const std::size_t bytes : {std::size_t{256}, 4 * kib, 64 * kib}) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(threads);
        CAPTURE(bytes);
        exhaust_and_refill(kind, threads, {bytes}, scaled(bytes < kib ? 20 : 200));
      }
    }
  }
}

TEST_CASE("exhaust and refill: every block is found, sizes in turn") {
  for (const backing kind : every_backing) {
    for (const std::size_t threads : {2U, 3U, 8U}) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(threads);
      exhaust_and_refill(kind, threads, {256, 64 * kib, 4 * kib, mib, 512, 256 * kib, 2 * kib, 16 * kib}, scaled(64));
    }
  }
}

TEST_CASE("with full caches and no thread at work the books are exact") {
  for (const backing kind : every_backing) {
    for (const std::size_t bytes : {std::size_t{256}, 4 * kib, 16 * kib}) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(bytes);
      for (std::size_t run = 0; run < scaled(40); ++run) fill_all_caches(kind, 8, bytes, 5);
    }
  }
}

TEST_CASE("blocks are made of what other threads freed") {
  for (const backing kind : every_backing) {
    for (const std::size_t threads : {2U, 4U}) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(threads);
      split_and_merge(kind, threads, scaled(400000) / threads);
    }
  }
}

TEST_CASE("a list that many threads fight for forgets nothing") {
  for (const backing kind : every_backing) {
    for (const std::size_t threads : {2U, 4U, 16U}) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(threads);
      fight_for_list(kind, threads, scaled(800000) / threads);
    }
  }
}

TEST_CASE("a request is never refused while frees that have ended left memory for it") {
  for (const backing kind : every_backing) {
    for (const std::size_t threads : {2U, 4U, 16U}) {
      for (const std::size_t bytes : {std::size_t{256}, 4 * kib, 64 * kib, 256 * kib}) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(threads);
        CAPTURE(bytes);
        never_refused(kind, mib, threads, bytes, false, scaled(bytes < kib ? 30 : 300));
      }
    }
  }
}

TEST_CASE("nor when blocks are aligned, and come and go past all caches") {
  for (const backing kind : every_backing) {
    for (const std::size_t threads : {2U, 4U, 16U}) {
      for (const std::size_t bytes : {512U, 4096U, 65536U}) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(threads);
        CAPTURE(bytes);
        never_refused(kind, mib, threads, bytes, true, scaled(bytes < kib ? 30 : 300));
      }
    }
  }
}

TEST_CASE("nor when the pool has two blocks, and one is being merged with the other") {
  for (const backing kind : every_backing) {
    for (const std::size_t threads : {2U, 4U}) {
      for (const bool aligned : {false, true}) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(threads);
        CAPTURE(aligned);
        never_refused(kind, 64 * kib, threads, 32 * kib, aligned, scaled(100000));
      }
    }
  }
}

TEST_CASE("nor when all memory lies in caches of threads that only free") {
  for (const backing kind : every_backing) {
    for (const std::size_t bytes : {std::size_t{1024}, 16 * kib, 64 * kib, 512 * kib}) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(bytes);
      hand_over(kind, 1, bytes, scaled(20000));
      hand_over(kind, 4, bytes, scaled(3000));
    }
  }
}

}  // TEST_SUITE
