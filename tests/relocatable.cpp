// Blocks that move: whole chunks come free, contents go along, and nobody who has a block pinned notices.
#include "orderly/relocatable.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <ostream>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;
constexpr std::size_t chunk = 64 * kib;

/// Writes what only this block of this size holds.
void sign(relocatable_blocks& blocks, relocatable block, std::uint64_t name) {
  auto* const words = static_cast<std::uint64_t*>(blocks.pin(block));
  REQUIRE(words != nullptr);
  for (std::size_t i = 0; i < blocks.size(block) / 8; ++i) words[i] = name * 1000003 + i;
  blocks.unpin(block);
}
[[nodiscard]] bool is_signed(relocatable_blocks& blocks, relocatable block, std::uint64_t name) {
  const auto* const words = static_cast<const std::uint64_t*>(blocks.pin(block));
  bool right = words != nullptr;
  for (std::size_t i = 0; right && i < blocks.size(block) / 8; ++i) right = words[i] == name * 1000003 + i;
  blocks.unpin(block);
  return right;
}

struct kept {
  relocatable block;
  std::uint64_t name;
};

/// Blocks of each size in turn, until the pool is full; then every second is freed.
std::vector<kept> fill_half(relocatable_blocks& blocks, const std::vector<std::size_t>& sizes) {
  std::vector<kept> all;
  for (std::uint64_t i = 0;; ++i) {
    const relocatable block = blocks.try_allocate(sizes[i % sizes.size()]);
    if (block == relocatable::none) break;
    sign(blocks, block, i);
    all.push_back({block, i});
  }
  std::vector<kept> half;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i / sizes.size() % 2 == 0)
      CHECK(blocks.deallocate(all[i].block) == error::none);
    else
      half.push_back(all[i]);
  }
  return half;
}

relocation_statistics run(relocatable_blocks& blocks, const relocation_limits& limits = {}) {
  blocks.begin(limits);
  while (!blocks.step().empty()) {
  }
  const relocation_statistics done = blocks.end();
  CHECK(done.skipped == 0);  // nobody else is at work
  CHECK(done.chunks == done.planned);
  return done;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a handle names its block until it is freed; pinned blocks are not freed; bad handles change nothing") {
  pool tested(options{.capacity = mib, .on_bad_free = on_bad_free::count});
  relocatable_blocks blocks(tested);
  const relocatable block = blocks.allocate(1000);
  CHECK(block != relocatable::none);
  CHECK(blocks.size(block) == 1000);
  void* const address = blocks.pin(block);
  CHECK(address != nullptr);
  CHECK(blocks.pin(block) == address);
  CHECK(tested.owns(address));
  CHECK(blocks.deallocate(block) == error::pinned);
  blocks.unpin(block);
  CHECK(blocks.deallocate(block) == error::pinned);
  blocks.unpin(block);
  blocks.unpin(block);  // one too many
  CHECK(blocks.pin(block) == address);
  blocks.unpin(block);
  CHECK(blocks.deallocate(block) == error::none);
  const relocatable again = blocks.allocate(500);  // has the first one's record
  for (const relocatable bad : {block, relocatable::none, static_cast<relocatable>(77), static_cast<relocatable>(~0ULL)}) {
    CHECK(blocks.pin(bad) == nullptr);
    blocks.unpin(bad);
    CHECK(blocks.size(bad) == 0);
    CHECK(blocks.deallocate(bad) == error::stale_handle);
  }
  CHECK(blocks.size(again) == 500);
  CHECK(blocks.deallocate(again) == error::none);
  CHECK(tested.stats().bad_frees == 0);
  CHECK(blocks.try_allocate(2 * mib) == relocatable::none);
  CHECK_THROWS_AS((void)blocks.allocate(2 * mib), out_of_memory);
  check_idle(tested);
  pool gone(std::move(tested));
  CHECK_THROWS_AS(relocatable_blocks{tested}, std::invalid_argument);
}

TEST_CASE("the set frees what it has with it; ten thousand records come and go") {
  pool tested(options{.capacity = 16 * mib});
  {
    relocatable_blocks blocks(tested);
    std::vector<relocatable> all;
    for (int i = 0; i < 10000; ++i) all.push_back(blocks.allocate(256));
    for (int i = 0; i < 10000; i += 2) CHECK(blocks.deallocate(all[static_cast<std::size_t>(i)]) == error::none);
    CHECK(blocks.pin(all[1]) != nullptr);
  }
  check_idle(tested);
}

TEST_CASE("every second block is freed: as many chunks come free as the free bytes make up, and a large block fits") {
  for (const std::size_t bytes : {256UL, 1000UL, 4096UL, 20000UL, 32768UL}) {
    CAPTURE(bytes);
    pool tested(options{.capacity = 32 * mib, .limit = 8 * mib});
    relocatable_blocks blocks(tested);
    const std::vector<kept> half = fill_half(blocks, {bytes});
    CHECK(tested.try_allocate(3 * mib) == nullptr);  // half is free, and no chunk
    const relocation_statistics done = run(blocks);
    CHECK(done.moves >= half.size() / 2 - 2);
    CHECK(done.moves <= half.size() / 2 + 1);
    CHECK(done.bytes == done.moves * bytes);
    CHECK(done.chunks >= 8 * mib / chunk / 2 - 1);
    for (const kept& each : half) CHECK(is_signed(blocks, each.block, each.name));
    // All that is free, but for the chunks that the live blocks share.
    const std::size_t live_chunks = 8 * mib / chunk - done.chunks;
    void* const large = tested.try_allocate(8 * mib - live_chunks * chunk);
    CHECK(large != nullptr);
    tested.deallocate(large);
    for (const kept& each : half) CHECK(blocks.deallocate(each.block) == error::none);
    check_idle(tested);
  }
}

TEST_CASE("a few blocks are left in each chunk: they end up in the fewest chunks that hold them") {
  for (const std::size_t of_each : {4UL, 8UL, 16UL}) {  // so many fit into a chunk; one is kept
    CAPTURE(of_each);
    const std::size_t bytes = chunk / of_each;
    pool tested(options{.capacity = 32 * mib, .limit = 8 * mib});
    relocatable_blocks blocks(tested);
    std::vector<relocatable> all;
    for (;;) {
      const relocatable block = blocks.try_allocate(bytes);
      if (block == relocatable::none) break;
      all.push_back(block);
    }
    std::vector<relocatable> kept;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i % of_each == 0)
        kept.push_back(all[i]);
      else
        CHECK(blocks.deallocate(all[i]) == error::none);
    }
    const relocation_statistics done = run(blocks);
    CHECK(8 * mib / chunk - done.chunks <= kept.size() / of_each + 1);
    for (const relocatable each : kept) CHECK(blocks.deallocate(each) == error::none);
    check_idle(tested);
  }
}

TEST_CASE("blocks of many sizes: chunks come free, and all keep their contents") {
  pool tested(options{.capacity = 64 * mib, .limit = 16 * mib});
  relocatable_blocks blocks(tested);
  random_engine random = make_random(0);
  std::vector<kept> all;
  for (std::uint64_t i = 0;; ++i) {
    const relocatable block = blocks.try_allocate(log_uniform(random, 1, 100 * kib));
    if (block == relocatable::none) break;
    sign(blocks, block, i);
    all.push_back({block, i});
  }
  std::shuffle(all.begin(), all.end(), random);
  while (all.size() % 3 != 0) {
    CHECK(blocks.deallocate(all.back().block) == error::none);
    all.pop_back();
  }
  for (std::size_t left = all.size() / 3; left > 0; --left) {
    CHECK(blocks.deallocate(all.back().block) == error::none);
    all.pop_back();
  }
  tested.trim();
  const std::size_t before = tested.stats().committed;
  const relocation_statistics done = run(blocks);
  CHECK(done.moves > 0);
  CHECK(done.chunks > 0);
  tested.trim();
  CHECK(tested.stats().committed <= before - done.chunks * chunk);
  for (const kept& each : all) CHECK(is_signed(blocks, each.block, each.name));
  for (const kept& each : all) CHECK(blocks.deallocate(each.block) == error::none);
  check_idle(tested);
}

TEST_CASE("limits bound each step, and a step moves one block at least") {
  pool tested(options{.capacity = 4 * mib, .limit = 2 * mib});
  relocatable_blocks blocks(tested);
  const std::vector<kept> half = fill_half(blocks, {4096});
  std::size_t steps = 0;
  std::size_t moves = 0;
  blocks.begin({.bytes = 10000});
  for (auto moved = blocks.step(); !moved.empty(); moved = blocks.step()) {
    CHECK(moved.size() <= 2);
    moves += moved.size();
    ++steps;
    for (const relocation& each : moved) {
      CHECK(blocks.pin(each.block) == each.to);
      blocks.unpin(each.block);
      CHECK_FALSE(tested.owns(each.from));
    }
  }
  CHECK(steps >= moves / 2);
  const relocation_statistics done = blocks.end();
  CHECK(done.moves == moves);
  CHECK(blocks.step().empty());  // no run
  CHECK(blocks.end().moves == 0);
  for (const relocation_limits limits : {relocation_limits{.bytes = 0}, relocation_limits{.moves = 0}}) {
    for (std::size_t i = 0; i < half.size(); i += 2) CHECK(is_signed(blocks, half[i].block, half[i].name));
    std::vector<relocatable> more;
    for (int i = 0; i < 100; ++i) more.push_back(blocks.allocate(4096));
    for (std::size_t i = 0; i < more.size(); i += 2) CHECK(blocks.deallocate(more[i]) == error::none);
    blocks.begin(limits);
    if (const auto moved = blocks.step(); !moved.empty()) CHECK(moved.size() == 1);
    blocks.end();
    for (std::size_t i = 1; i < more.size(); i += 2) CHECK(blocks.deallocate(more[i]) == error::none);
  }
}

TEST_CASE("what is pinned, or not of the set, stays, and so do the chunks that it lies in") {
  pool tested(options{.capacity = 4 * mib, .limit = 2 * mib});
  relocatable_blocks blocks(tested);
  const std::vector<kept> half = fill_half(blocks, {4096});
  std::vector<void*> addresses;
  for (const kept& each : half) addresses.push_back(blocks.pin(each.block));
  relocation_statistics done = run(blocks);
  CHECK(done.moves == 0);
  // Unpinned, planned for, and pinned again.
  for (const kept& each : half) blocks.unpin(each.block);
  blocks.begin();
  for (std::size_t i = 0; i < half.size(); ++i) CHECK(blocks.pin(half[i].block) == addresses[i]);
  CHECK(blocks.step().empty());
  done = blocks.end();
  CHECK(done.moves == 0);
  CHECK(done.skipped > half.size() / 3);
  for (const kept& each : half) blocks.unpin(each.block);

  // A block of the pool's own in each chunk.
  std::vector<void*> own;
  std::vector<void*> extra;
  while (void* const block = tested.try_allocate(2048)) extra.push_back(block);
  for (void* const block : extra) {
    const auto place = reinterpret_cast<std::uintptr_t>(block) / chunk;
    const bool known = std::any_of(own.begin(), own.end(), [&](void* other) {
      return reinterpret_cast<std::uintptr_t>(other) / chunk == place;
    });
    if (known)
      tested.deallocate(block);
    else
      own.push_back(block);
  }
  CHECK(run(blocks).moves == 0);
  for (void* const block : own) tested.deallocate(block);
  CHECK(run(blocks).moves > 0);
  for (const kept& each : half) CHECK(is_signed(blocks, each.block, each.name));
}

TEST_CASE("where copying fails or throws, blocks stay where they were, and the next step tries others") {
  pool tested(options{.capacity = 4 * mib, .limit = 2 * mib});
  int calls = 0;
  relocatable_blocks blocks(tested, [&](std::span<const relocation> moves) {
    ++calls;
    if (calls == 1) return false;
    if (calls == 2) throw std::runtime_error("the copier's");
    for (const relocation& each : moves) std::memcpy(each.to, each.from, each.bytes);
    return true;
  });
  const std::vector<kept> half = fill_half(blocks, {4096});
  const std::size_t requested = tested.stats().requested;
  blocks.begin({.moves = 5});
  CHECK(blocks.step().empty());
  CHECK(blocks.last_step_failed());
  CHECK(tested.stats().requested == requested);
  CHECK_THROWS_WITH_AS(blocks.step(), "the copier's", std::runtime_error);
  CHECK(tested.stats().requested == requested);
  CHECK(blocks.step().size() == 5);
  CHECK_FALSE(blocks.last_step_failed());
  CHECK(blocks.end().moves == 5);
  CHECK(tested.stats().requested == requested);
  for (const kept& each : half) CHECK(is_signed(blocks, each.block, each.name));
  for (const kept& each : half) CHECK(blocks.deallocate(each.block) == error::none);
  check_idle(tested);
}

TEST_CASE("one plain allocation: what is live goes to its beginning") {
  std::vector<std::byte> memory(34 * mib);
  void* start = memory.data();
  std::size_t room = memory.size();
  REQUIRE(std::align(2 * mib, 32 * mib, start, room) != nullptr);
  pool tested(make_fixed_buffer_source(start, 32 * mib));
  relocatable_blocks blocks(tested);
  const std::vector<kept> half = fill_half(blocks, {20000});
  CHECK(tested.try_allocate(8 * mib) == nullptr);
  const relocation_statistics done = run(blocks);
  CHECK(done.chunks >= 7);
  void* const large = tested.try_allocate(8 * mib);
  CHECK(large != nullptr);
  tested.deallocate(large);
  for (const kept& each : half) CHECK(is_signed(blocks, each.block, each.name));
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads use, keep pinned, allocate and free blocks while others are moved; old handles name nothing") {
  pool tested(options{.capacity = 64 * mib, .limit = 16 * mib, .on_bad_free = on_bad_free::count});
  findings found;
  relocatable_blocks blocks(tested, [&](std::span<const relocation> moves) {
    for (const relocation& each : moves) {  // long enough for others to come in between, if they could
      found.expect(each.bytes == blocks.size(each.block), each.bytes, " bytes are copied: another block's");
      std::memcpy(each.to, each.from, each.bytes / 2);
      std::this_thread::yield();
      std::memcpy(static_cast<char*>(each.to) + each.bytes / 2, static_cast<char*>(each.from) + each.bytes / 2,
                  each.bytes - each.bytes / 2);
    }
    return true;
  });
  std::atomic<bool> done = false;
  std::atomic<std::size_t> moved = 0;
  std::atomic<std::size_t> runs = 0;  // relaxed, as `done`: they order nothing
  std::thread mover([&] {
    while (!done.load(std::memory_order_relaxed)) {
      blocks.begin({.bytes = 256 * kib});
      while (true) {
        const auto moves = blocks.step();
        if (moves.empty()) break;
        moved.fetch_add(moves.size(), std::memory_order_relaxed);
      }
      blocks.end();
      runs.fetch_add(1, std::memory_order_relaxed);
    }
  });
  const std::size_t rounds = scaled(40000);
  run_threads(3, [&](std::size_t index) {
    random_engine random = make_random(index);
    constexpr std::size_t most_kept_pinned = 2;  // few, so that most chunks can be emptied
    struct own_block {
      relocatable block;
      std::uint64_t seed;
      void* pinned = nullptr;  // where it has stayed pinned since its last use
    };
    std::vector<own_block> own;
    std::size_t kept_pinned = 0;
    std::vector<relocatable> freed(16, relocatable::none);  // their records are anybody's
    // Pinned once, or twice if it was before: all of it has the seed, and then the next one.
    const auto use = [&](own_block& of) {
      auto* const words = static_cast<std::uint64_t*>(blocks.pin(of.block));
      found.expect(words != nullptr, "a live handle could not be pinned");
      if (words == nullptr) return;
      found.expect(of.pinned == nullptr || of.pinned == words, "a pinned block was moved");
      const std::size_t count = blocks.size(of.block) / 8;
      for (std::size_t i = 0; i < count; i += 7) found.expect(words[i] == of.seed, "contents changed");
      ++of.seed;
      std::fill_n(words, count, of.seed);  // plain: a move that overlaps a use is a race
      if (of.pinned == nullptr && kept_pinned < most_kept_pinned) {
        of.pinned = words;
        ++kept_pinned;
        return;
      }
      blocks.unpin(of.block);
      if (of.pinned == nullptr) return;
      found.expect(blocks.deallocate(of.block) == error::pinned, "a pinned block was freed");
      blocks.unpin(of.block);
      of.pinned = nullptr;
      --kept_pinned;
    };
    const auto release = [&](own_block& of) {  // as it is, moving or not
      if (of.pinned != nullptr) use(of);
      found.expect(blocks.deallocate(of.block) == error::none, "a free was refused");
    };
    for (std::size_t round = 0; round < rounds; ++round) {
      if (round % 1024 == 1023) {  // whatever is pinned now lives through the whole of a run
        const std::size_t before = runs.load(std::memory_order_relaxed);
        while (runs.load(std::memory_order_relaxed) < before + 2) std::this_thread::yield();
      }
      if (own.size() < 300 && uniform(random, 0, 1) == 0) {
        const relocatable block = blocks.try_allocate(log_uniform(random, 16, 20 * kib));
        if (block == relocatable::none) continue;
        auto* const words = static_cast<std::uint64_t*>(blocks.pin(block));
        std::fill_n(words, blocks.size(block) / 8, round);
        blocks.unpin(block);
        own.push_back({block, round});
        continue;
      }
      if (own.empty()) continue;
      const std::size_t at = uniform(random, 0, own.size() - 1);
      if (uniform(random, 0, 7) != 0) {
        use(own[at]);
        continue;
      }
      release(own[at]);
      relocatable& old = freed[round % freed.size()];
      found.expect(blocks.size(old) == 0, "a handle that was freed tells the size of another block");
      found.expect(blocks.pin(old) == nullptr, "a handle that was freed pins another block");
      found.expect(blocks.deallocate(old) == error::stale_handle, "a handle that was freed frees another block");
      old = own[at].block;
      own[at] = own.back();
      own.pop_back();
    }
    for (own_block& each : own) release(each);
  });
  done.store(true, std::memory_order_relaxed);
  mover.join();
  ORDERLY_CHECK_FINDINGS(found);
  MESSAGE("blocks moved: ", moved.load(), " in ", runs.load(), " runs");
  CHECK(moved.load() > 0);
  CHECK(tested.stats().bad_frees == 0);
  check_idle(tested);
}

TEST_CASE("who frees a block that another has let go of comes behind its last use") {
  pool tested(options{.capacity = 4 * mib});
  relocatable_blocks blocks(tested);
  findings found;
  constexpr std::size_t bytes = kib;
  std::atomic<std::size_t> turn = 0;
  std::vector<relocatable> shared(scaled(4000), relocatable::none);
  run_threads(2, [&](std::size_t self) {
    for (std::size_t round = 0; round < shared.size(); ++round) {
      if (self == 1) {  // uses what is there; nothing but the pins tells the other when
        while (turn.load(std::memory_order_acquire) <= round) std::this_thread::yield();
        if (auto* const words = static_cast<std::uint64_t*>(blocks.pin(shared[round]))) {
          std::fill_n(words, bytes / 8, round);  // plain, as below
          found.expect(words[bytes / 8 - 1] == round, "a pinned block was written by another");
          blocks.unpin(shared[round]);
        }
        continue;
      }
      shared[round] = blocks.allocate(bytes);
      turn.store(round + 1, std::memory_order_release);
      if (round % 2 == 0) std::this_thread::yield();
      while (blocks.deallocate(shared[round]) == error::pinned) {
      }
      void* const again = tested.allocate(bytes);
      std::fill_n(static_cast<std::uint64_t*>(again), bytes / 8, ~round);
      found.expect(*static_cast<std::uint64_t*>(again) == ~round, "a block was used after it was freed");
      tested.deallocate(again, bytes);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("handles are made up while their records are made") {
  constexpr std::size_t page = 4096;  // records that are made at once
  constexpr std::size_t count = 16 * page;
  const auto made_up = [](std::size_t record) {
    return static_cast<relocatable>(std::uint64_t{1} << 32 | (record + 1));
  };
  pool tested(options{.capacity = 64 * mib});
  relocatable_blocks blocks(tested);
  findings found;
  std::atomic<bool> over = false;
  std::atomic<std::size_t> looks = 0;  // relaxed, as `over`: they order nothing
  run_threads(2, [&](std::size_t self) {
    if (self == 0) {
      for (std::size_t i = 0; i < count; ++i) {
        static_cast<void>(blocks.allocate(256));
        if (i % page != 0) continue;
        const std::size_t before = looks.load(std::memory_order_relaxed);
        while (looks.load(std::memory_order_relaxed) == before) std::this_thread::yield();
      }
      over.store(true, std::memory_order_relaxed);
      return;
    }
    while (!over.load(std::memory_order_relaxed)) {
      for (std::size_t record = 0; record < count; record += page) {
        const std::size_t bytes = blocks.size(made_up(record));
        found.expect(bytes == 0 || bytes == 256, bytes, " bytes of a record that is just being made");
      }
      looks.fetch_add(1, std::memory_order_relaxed);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(blocks.size(made_up(count - 1)) == 256);
}

TEST_CASE("runs begin while the first block's record is made") {
  pool tested(options{.capacity = 4 * mib});
  for (std::size_t round = 0; round < scaled(400); ++round) {
    relocatable_blocks blocks(tested);
    relocatable block = relocatable::none;
    std::atomic<bool> over = false;
    run_threads(2, [&](std::size_t self) {
      if (self == 0) {
        block = blocks.allocate(1000);
        over.store(true, std::memory_order_relaxed);
      } else {
        while (!over.load(std::memory_order_relaxed)) blocks.begin();
      }
    });
    CHECK(blocks.end().moves == 0);
    CHECK(blocks.deallocate(block) == error::none);
  }
  check_idle(tested);
}

}  // TEST_SUITE
