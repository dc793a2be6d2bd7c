// Bad frees: what the report tells, and threads that free one block at once. Every kind of bad free through every way to
// free is in bad_input/.
#include <doctest/doctest.h>

#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <set>
#include <thread>
#include <utility>

#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/lockstep_threads.hpp"
#include "support/parks.hpp"
#include "support/process.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;
constexpr std::size_t capacity = 8 * mib;

alignas(256) char static_memory[512];

/// Everything that is left can be allocated, and nothing of it twice.
void check_every_block_once(pool& tested, std::size_t bytes, std::size_t count) {
  std::set<void*> blocks;
  while (void* block = tested.try_allocate(bytes)) REQUIRE(blocks.insert(block).second);
  CHECK(blocks.size() == count);
  for (void* block : blocks) CHECK(tested.try_deallocate(block, bytes) == error::none);
}

/// In each round one thread allocates a block and `threads` of them, that one included or not, free it at once. Returns
/// how many of the frees succeeded.
std::size_t race_to_free(pool& tested, std::size_t bytes, std::size_t threads, std::size_t rounds, bool allocator_too) {
  std::atomic<void*> block = nullptr;
  std::atomic<std::size_t> accepted = 0;
  std::atomic<std::size_t> arrived = 0;
  findings found;
  // Short of a processor for each thread the race is rare: spin first, so that they leave together.
  const auto meet = [&](std::size_t count) {
    ++arrived;
    for (int spin = 0; arrived < count * threads; ++spin) {
      if (spin >= 1000) std::this_thread::yield();
    }
  };
  run_threads(threads, [&](std::size_t index) {
    for (std::size_t round = 0; round < rounds; ++round) {
      if (index == 0) block = tested.try_allocate(bytes);
      meet(2 * round + 1);
      if (index != 0 || allocator_too) {
        const error code = tested.try_deallocate(block, bytes);
        accepted += code == error::none;
        found.expect(code == error::none || code == error::double_free, to_string(code));
      }
      meet(2 * round + 2);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  return accepted;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("the abort handler lets a good free pass") {
  const child_end end = run_child([] {
    pool tested(options{.capacity = capacity, .on_bad_free = on_bad_free::abort});
    tested.deallocate(tested.allocate(1000), 1000);
    tested.deallocate(nullptr, 1000);
    tested.deallocate(tested.allocate(1000));
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 0);
  CHECK(end.output.empty());
}

TEST_CASE("the report tells of the block that the pointer falls in") {
  pool tested(options{.capacity = capacity});
  auto* block = static_cast<char*>(tested.allocate(1000));
  bad_free report;
  CHECK(tested.try_deallocate(block + 300, 5, &report) == error::misaligned_pointer);
  CHECK(tested.try_deallocate(block + 256, 5, &report) == error::interior_pointer);
  CHECK(report.block == block);
  CHECK(report.block_bytes == 1024);
  CHECK(report.block_requested == 1000);
  CHECK(report.state == block_state::live);
  CHECK(tested.try_deallocate(block, 5, &report) == error::size_mismatch);
  CHECK(report.block == block);
  CHECK(report.block_bytes == 1024);
  CHECK(report.bytes == 5);
  CHECK(tested.try_deallocate(block, 1000, &report) == error::none);
  CHECK(tested.try_deallocate(block, 1000, &report) == error::double_free);
  CHECK(report.block == block);
  CHECK(report.block_requested == 0);
  const bool at_rest = report.state == block_state::cached || report.state == block_state::free;
  CHECK(at_rest);
  CHECK(tested.try_deallocate(static_memory, 1, &report) == error::foreign_pointer);
  CHECK(report.block == nullptr);
  CHECK(report.state == block_state::none);
}

TEST_CASE("deallocate on a moved-from pool harms nobody") {
  pool source(options{.capacity = capacity});
  void* block = source.allocate(1000);
  pool target(std::move(source));
  const captured_stderr capture;
  source.deallocate(block, 1000);
  source.deallocate(block);
  source.deallocate(nullptr);
  CHECK(target.owns(block));
  CHECK(target.stats().bad_frees == 0);
  CHECK(target.try_deallocate(block, 1000) == error::none);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("of many frees of one block at once, by threads that did not allocate it, exactly one succeeds") {
  for (const std::size_t bytes : {std::size_t{256}, std::size_t{1000}, 64 * kib, 2 * mib}) {
    CAPTURE(bytes);
    pool tested(options{.capacity = capacity});
    const std::size_t rounds = scaled(2000);
    CHECK(race_to_free(tested, bytes, 4, rounds, false) == rounds);
    CHECK(tested.stats().bad_frees == rounds * 2);
    check_idle(tested);
  }
}

TEST_CASE("when the thread that allocated it races too, the block is free once, and the books say so") {
  for (const std::size_t bytes : {std::size_t{256}, std::size_t{1000}, 64 * kib, 2 * mib}) {
    CAPTURE(bytes);
    pool tested(options{.capacity = capacity});
    void* kept = tested.allocate(mib);
    const std::size_t rounds = scaled(5000);
    // At its home a block is freed by a look and a store; a free elsewhere that falls between the two is told later.
    CHECK(race_to_free(tested, bytes, 2, rounds, true) >= rounds);
    check_every_block_once(tested, bytes, (capacity - mib) / tested.rounded(bytes));
    tested.defragment();
    CHECK(tested.stats().requested == mib);
    CHECK(tested.stats().bad_frees == rounds);
    tested.deallocate(kept, mib);
    check_idle(tested);
  }
}

#if defined(__x86_64__)  // elsewhere no thread is stopped at a chosen instruction

TEST_CASE("a free is stopped at any instruction while another frees the block: it is free once, and the books say so") {
  if (sanitized) return;
  constexpr std::size_t rounds = 80;
  struct kind {
    std::size_t bytes;
    bool by_allocator;
    unsigned stride;  ///< instructions from one stop to the next, fewer than the step from live takes
  };
  for (const kind& each : {kind{256, false, 4}, {1000, true, 2}, {2 * mib, false, 10}}) {
    const std::size_t bytes = each.bytes;
    const bool by_allocator = each.by_allocator;
    CAPTURE(bytes);
    CAPTURE(by_allocator);
    pool tested(options{.capacity = capacity, .on_bad_free = on_bad_free::count});
    lockstep_threads others(2);
    parkable stopped;
    std::atomic<void*> block = nullptr;
    std::atomic<std::size_t> begun = 0;
    std::atomic<std::size_t> over = 0;
    std::atomic<std::size_t> accepted = 0;
    std::thread frees([&] {
      stopped.enter();
      for (std::size_t round = 1; round <= rounds; ++round) {
        while (begun.load() != round) std::this_thread::yield();
        if (by_allocator) block = tested.try_allocate(bytes);
        stopped.park(each.stride * static_cast<unsigned>(round));
        accepted += tested.try_deallocate(block, bytes) == error::none;
        while (over.load() != round) std::this_thread::yield();
      }
      stopped.leave();
    });
    for (std::size_t round = 1; round <= rounds; ++round) {
      if (!by_allocator) others.run(1, [&] { block = tested.try_allocate(bytes); });
      stopped.forget();
      begun = round;
      while (!stopped.parked()) std::this_thread::yield();
      accepted += tested.try_deallocate(block, bytes) == error::none;
      stopped.release();
      over = round;
    }
    frees.join();
    if (by_allocator)
      CHECK(accepted >= rounds);  // as above
    else
      CHECK(accepted == rounds);
    check_every_block_once(tested, bytes, capacity / tested.rounded(bytes));
    tested.defragment();
    CHECK(tested.stats().bad_frees == rounds);
    check_idle(tested);
  }
}

#endif

TEST_CASE("a double free that races with the first leaves the books exact, whatever the block is used for next") {
  pool tested(options{.capacity = capacity, .on_bad_free = on_bad_free::count});
  std::atomic<void*> racing = nullptr;
  std::atomic<void*> lawful = nullptr;
  std::atomic<std::size_t> turn = 0;  // odd: the other's
  const std::size_t rounds = scaled(200000);
  const auto wait_for_turn = [&](std::size_t number) {
    for (int spins = 0; turn.load(std::memory_order_acquire) != number; ++spins) {
      if (spins > 10000) std::this_thread::yield();
    }
  };
  std::thread other([&] {
    tested.deallocate(tested.allocate(1), 1);  // its front is there
    for (std::size_t round = 0; round < rounds; ++round) {
      wait_for_turn(2 * round + 1);
      if (void* const block = racing.exchange(nullptr)) tested.deallocate(block, 1);
      if (void* const block = lawful.exchange(nullptr)) tested.deallocate(block, 256);
      turn.store(2 * round + 2, std::memory_order_release);
    }
  });
  for (std::size_t round = 0; round < rounds; ++round) {
    void* const block = tested.allocate(round % 2 == 0 ? 1 : 256);
    (round % 2 == 0 ? racing : lawful).store(block, std::memory_order_relaxed);
    turn.store(2 * round + 1, std::memory_order_release);
    if (round % 2 == 0) {  // as the other does, at about the same time
      std::atomic<std::size_t> delay = round / 2 % 40;
      while (delay.load(std::memory_order_relaxed) != 0) delay.fetch_sub(1, std::memory_order_relaxed);
      tested.deallocate(block, 1);
    }
    wait_for_turn(2 * round + 2);
  }
  other.join();
  tested.defragment();
  const statistics stats = tested.stats();
  CHECK(stats.requested == 0);
  CHECK(stats.allocated == 0);
  CHECK(stats.allocations == stats.frees);
  CHECK(stats.bad_frees == rounds / 2);
  check_idle(tested);
}

TEST_CASE("bad frees of every kind while other threads work cost the others nothing") {
  pool tested(options{.capacity = capacity, .on_bad_free = on_bad_free::count});
  auto* kept = static_cast<char*>(tested.allocate(1000));
  auto* freed = static_cast<char*>(tested.allocate(3 * mib));
  tested.deallocate(freed, 3 * mib);
  const std::size_t rounds = scaled(50000);
  findings found;
  run_threads(4, [&](std::size_t index) {
    for (std::size_t round = 0; round < rounds; ++round) {
      if (index % 2 == 0) {
        void* block = tested.try_allocate(1 + round % 5000);
        found.expect(tested.try_deallocate(block) == error::none, "a good free was refused");
        continue;
      }
      found.expect(tested.try_deallocate(kept + 256) == error::interior_pointer, "interior");
      found.expect(tested.try_deallocate(kept, 5000) == error::size_mismatch, "size");
      found.expect(tested.try_deallocate(kept + 1) == error::misaligned_pointer, "misaligned");
      found.expect(tested.try_deallocate(static_memory) == error::foreign_pointer, "foreign");
      found.expect(tested.try_deallocate(freed) == error::double_free, "double");
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(tested.stats().bad_frees == 2 * 5 * rounds);
  CHECK(tested.try_deallocate(kept, 1000) == error::none);
  check_idle(tested);
}

}  // TEST_SUITE
