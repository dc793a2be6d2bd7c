// The pool on one thread: orderly/pool.hpp, orderly/options.hpp, orderly/stats.hpp.
#include "orderly/pool.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "support/audit.hpp"
#include "support/classes.hpp"
#include "support/failing_source.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

bool aligned(const void* pointer, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0;
}

/// Allocates blocks of `bytes` until the pool refuses.
std::vector<void*> exhaust(pool& from, std::size_t bytes) {
  std::vector<void*> blocks;
  while (void* block = from.try_allocate(bytes)) blocks.push_back(block);
  return blocks;
}

void free_all(pool& to, const std::vector<void*>& blocks, std::size_t bytes) {
  for (void* block : blocks) REQUIRE(to.try_deallocate(block, bytes) == error::none);
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("options have the documented defaults") {
  const pool fresh;
  CHECK(fresh.granule() == 256);
  CHECK(fresh.chunk() == 64 * kib);
  CHECK(fresh.capacity() >= 64 * mib);
  CHECK(fresh.capacity() % fresh.chunk() == 0);
  CHECK(fresh.limit() == fresh.capacity());
  CHECK(fresh.stats().capacity == fresh.capacity());
  CHECK(fresh.stats().limit == fresh.limit());
  CHECK(fresh.stats().committed == 0);
}

TEST_CASE("the capacity is rounded up to whole chunks, the limit down") {
  const pool rounded(options{.capacity = mib + 1, .limit = mib - 1});
  CHECK(rounded.capacity() == mib + 64 * kib);
  CHECK(rounded.limit() == mib - 64 * kib);
  const pool smallest(options{.capacity = 1});
  CHECK(smallest.capacity() == 64 * kib);
}

TEST_CASE("every granule and chunk in range makes a pool that works") {
  for (std::size_t granule = 16; granule <= 64 * kib; granule *= 2) {
    for (std::size_t chunk = std::max<std::size_t>(4 * kib, granule); chunk <= 4 * mib; chunk *= 4) {
      CAPTURE(granule);
      CAPTURE(chunk);
      pool made(options{.capacity = 8 * mib, .granule = granule, .chunk = chunk});
      CHECK(made.granule() == granule);
      CHECK(made.chunk() == chunk);
      void* block = made.try_allocate(granule + 1);
      REQUIRE(block != nullptr);
      CHECK(aligned(block, granule));
      CHECK(made.block_size(block) == 2 * granule);
      std::memset(block, 0x5a, 2 * granule);
      CHECK(made.try_deallocate(block, granule + 1) == error::none);
      check_idle(made);
    }
  }
}

TEST_CASE("a source with more than a pool can address is used as far as addresses go") {
  struct vast_source final : memory_source {  // of addresses that nobody touches
    [[nodiscard]] std::size_t granularity() const noexcept override { return 4 * kib; }
    [[nodiscard]] std::size_t preferred_chunk() const noexcept override { return 64 * kib; }
    [[nodiscard]] std::size_t capacity() const noexcept override { return std::size_t{6} << 40; }
    [[nodiscard]] bool is_virtual() const noexcept override { return true; }
    [[nodiscard]] void* reserve(std::size_t, std::size_t) noexcept override {
      return reinterpret_cast<void*>(std::uintptr_t{1} << 40);
    }
    void release(void*, std::size_t) noexcept override {}
    [[nodiscard]] bool commit(void*, std::size_t) noexcept override { return true; }
    [[nodiscard]] bool decommit(void*, std::size_t) noexcept override { return true; }
  };
  pool vast(std::make_unique<vast_source>());
  CHECK(vast.capacity() >= std::size_t{448} << 30);
  CHECK(vast.capacity() < std::size_t{6} << 40);
  for (const std::size_t bytes : {std::size_t{1}, mib, vast.capacity()}) {
    void* const block = vast.try_allocate(bytes);
    REQUIRE(block != nullptr);
    CHECK(vast.try_deallocate(block, bytes) == error::none);
  }
  CHECK_THROWS_AS(pool(std::make_unique<vast_source>(), options{.capacity = std::size_t{6} << 40}),
                  std::invalid_argument);
}

TEST_CASE("a block is usable over its whole length and distinct from every other") {
  pool tested(options{.capacity = 16 * mib});
  std::map<unsigned char*, std::size_t> blocks;
  for (std::size_t bytes = 1; bytes <= 1 * mib; bytes = bytes * 3 / 2 + 1) {
    for (int copy = 0; copy < 2; ++copy) {
      auto* block = static_cast<unsigned char*>(tested.allocate(bytes));
      const std::size_t length = tested.block_size(block);
      CHECK(length == class_length(bytes, 256));
      CHECK(length == tested.rounded(bytes));
      std::memset(block, static_cast<int>(blocks.size()), length);
      REQUIRE(blocks.emplace(block, length).second);
    }
  }
  check_sound(tested);
  const unsigned char* end = nullptr;
  for (const auto& [block, length] : blocks) {
    CHECK(block >= end);
    CHECK(block[0] == block[length - 1]);
    CHECK(block[0] == block[length / 2]);
    end = block + length;
  }
  for (const auto& [block, length] : blocks) tested.deallocate(block);
  CHECK(tested.stats().bad_frees == 0);
  check_idle(tested);
}

TEST_CASE("rounded follows the size classes and never lies about a block") {
  pool tested(options{.capacity = 64 * mib});
  for (std::size_t granules = 1; granules <= 4096; granules += granules < 70 ? 1 : 61) {
    for (const std::size_t bytes : {granules * 256 - 255, granules * 256 - 1, granules * 256}) {
      CAPTURE(bytes);
      REQUIRE(tested.rounded(bytes) == class_length(bytes, 256));
      void* block = tested.allocate(bytes);
      REQUIRE(tested.block_size(block) == tested.rounded(bytes));
      REQUIRE(tested.try_deallocate(block, bytes) == error::none);
    }
  }
  CHECK(tested.rounded(0) == 256);
  CHECK(tested.rounded(tested.capacity()) == tested.capacity());
  CHECK(tested.rounded(tested.capacity() + 1) == 0);
  CHECK(tested.rounded(SIZE_MAX) == 0);
  CHECK(tested.rounded(SIZE_MAX - 255) == 0);
}

TEST_CASE("blocks above a root are whole chunks, tight and monotone") {
  pool tested(options{.capacity = 256 * mib});
  std::size_t previous = 0;
  for (std::size_t bytes = mib + 1; bytes <= 200 * mib; bytes += bytes / 7 + 4093) {
    CAPTURE(bytes);
    const std::size_t length = tested.rounded(bytes);
    CHECK(length >= bytes);
    CHECK(length % tested.chunk() == 0);
    CHECK(length < bytes + bytes / 8 + tested.chunk());
    CHECK(length >= previous);
    previous = length;
    void* block = tested.allocate(bytes);
    CHECK(tested.block_size(block) == length);
    tested.deallocate(block, bytes);
  }
  check_idle(tested);
}

TEST_CASE("alignment: every power of two up to the chunk is honoured") {
  pool tested(options{.capacity = 64 * mib});
  for (std::size_t alignment = 1; alignment <= tested.chunk(); alignment *= 2) {
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{300}, std::size_t{5000}, 64 * kib + 1,
                                    100 * kib, 2 * mib + 1}) {
      CAPTURE(alignment);
      CAPTURE(bytes);
      void* first = tested.try_allocate(1);
      void* block = tested.try_allocate(bytes, alignment);
      REQUIRE(block != nullptr);
      CHECK(aligned(block, alignment));
      CHECK(aligned(block, tested.granule()));
      CHECK(tested.block_size(block) >= std::max<std::size_t>(1, bytes));
      CHECK(tested.try_deallocate(block, bytes) == error::none);
      CHECK(tested.try_deallocate(first, 1) == error::none);
    }
  }
  check_idle(tested);
}

TEST_CASE("size 0 counts as 1") {
  pool tested(options{.capacity = mib});
  void* first = tested.allocate(0);
  void* second = tested.allocate(0);
  CHECK(first != nullptr);
  CHECK(first != second);
  CHECK(tested.block_size(first) == 256);
  CHECK(tested.stats().requested == 2);
  CHECK(tested.try_deallocate(first, 0) == error::none);
  CHECK(tested.try_deallocate(second, 1) == error::none);
  check_idle(tested);
}

TEST_CASE("sizes above the capacity and near SIZE_MAX are out of memory, whatever the alignment") {
  pool tested(options{.capacity = 4 * mib});
  const std::size_t capacity = tested.capacity();
  std::uint64_t refused = 0;
  for (const std::size_t bytes : {capacity + 1, 2 * capacity, SIZE_MAX / 2, SIZE_MAX / 2 + 1, SIZE_MAX - 64 * kib,
                                  SIZE_MAX - 256, SIZE_MAX - 255, SIZE_MAX - 1, SIZE_MAX}) {
    for (const std::size_t alignment : {std::size_t{1}, std::size_t{256}, 64 * kib}) {
      CAPTURE(bytes);
      CAPTURE(alignment);
      CHECK_THROWS_AS((void)tested.allocate(bytes, alignment), out_of_memory);
      CHECK(tested.try_allocate(bytes, alignment) == nullptr);
      refused += 2;
    }
  }
  CHECK(tested.stats().failed == refused);
  CHECK(tested.stats().committed == 0);
  check_idle(tested);
}

TEST_CASE("the capacity is the largest single request, for any number of chunks") {
  for (const std::size_t chunks : {std::size_t{1}, std::size_t{3}, std::size_t{15}, std::size_t{16}, std::size_t{17},
                                   std::size_t{31}, std::size_t{33}, std::size_t{100}}) {
    CAPTURE(chunks);
    pool tested(options{.capacity = chunks * 64 * kib});
    void* block = tested.try_allocate(tested.capacity());
    REQUIRE(block != nullptr);
    CHECK(tested.stats().committed == tested.capacity());
    CHECK(tested.try_allocate(1) == nullptr);
    tested.deallocate(block, tested.capacity());
    check_idle(tested);
  }
}

TEST_CASE("out_of_memory names the request, what is committed, and the limit") {
  pool tested(options{.capacity = mib});
  void* block = tested.allocate(mib);
  try {
    (void)tested.allocate(12345);
    FAIL("an allocation beyond the limit succeeded");
  } catch (const out_of_memory& refused) {
    CHECK(refused.requested() == 12345);
    CHECK(std::strstr(refused.what(), "12345") != nullptr);
    CHECK(std::strstr(refused.what(), "1048576") != nullptr);
  }
  tested.deallocate(block);
}

TEST_CASE("owns and block_size know every live block and nothing else") {
  pool tested(options{.capacity = 16 * mib});
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{300}, std::size_t{5000}, 100 * kib, mib, 3 * mib}) {
    CAPTURE(bytes);
    auto* block = static_cast<char*>(tested.allocate(bytes));
    const std::size_t length = tested.block_size(block);
    CHECK(tested.owns(block));
    CHECK(tested.owns(block + 1));
    CHECK(tested.owns(block + length / 2));
    CHECK(tested.owns(block + length - 1));
    CHECK(tested.block_size(block + 1) == 0);
    CHECK(tested.block_size(block + length - 1) == 0);
    if (length > 256) CHECK(tested.block_size(block + 256) == 0);
    CHECK_FALSE(tested.owns(block + length));
    tested.deallocate(block, bytes);
    CHECK_FALSE(tested.owns(block));
    CHECK_FALSE(tested.owns(block + length - 1));
    CHECK(tested.block_size(block) == 0);
  }
  int on_the_stack = 0;
  const auto on_the_heap = std::make_unique<int>();
  for (const void* stranger : {static_cast<const void*>(nullptr), static_cast<const void*>(&on_the_stack),
                               static_cast<const void*>(on_the_heap.get()), static_cast<const void*>(&tested),
                               reinterpret_cast<const void*>(UINTPTR_MAX), reinterpret_cast<const void*>(256)}) {
    CHECK_FALSE(tested.owns(stranger));
    CHECK(tested.block_size(stranger) == 0);
  }
}

TEST_CASE("a size of the same class, or none, frees a block too") {
  pool tested(options{.capacity = 4 * mib});
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{257}, std::size_t{4500}, 70 * kib}) {
    const std::size_t length = tested.rounded(bytes);
    for (const std::size_t freed_as : {std::size_t{0}, bytes, bytes + 1, length, length - 200}) {
      CAPTURE(bytes);
      CAPTURE(freed_as);
      CHECK(tested.try_deallocate(tested.allocate(bytes), freed_as) == error::none);
    }
  }
  check_idle(tested);
}

TEST_CASE("the counters count") {
  pool tested(options{.capacity = 2 * mib});
  void* first = tested.allocate(1000);
  void* second = tested.allocate(5000);
  statistics stats = tested.stats();
  CHECK(stats.requested == 6000);
  CHECK(stats.allocated == 1024 + 5120);
  CHECK(stats.allocations == 2);
  CHECK(stats.peak_requested == 6000);
  CHECK(stats.committed >= 64 * kib);
  CHECK(stats.peak_committed == stats.committed);

  tested.deallocate(first, 1000);
  CHECK(tested.stats().requested == 5000);
  CHECK(tested.stats().peak_requested == 6000);
  CHECK(tested.stats().frees == 1);
  CHECK(tested.try_allocate(4 * mib) == nullptr);
  CHECK(tested.stats().failed == 1);
  CHECK(tested.try_deallocate(first, 1000) == error::double_free);
  CHECK(tested.stats().bad_frees == 1);

  const std::uint64_t passes = tested.stats().passes;
  tested.defragment();
  CHECK(tested.stats().passes > passes);
  CHECK(tested.stats().cached == 0);
  tested.deallocate(second);
  tested.trim();
  stats = tested.stats();
  CHECK(stats.committed == 0);
  CHECK(stats.peak_committed >= 64 * kib);
  CHECK(stats.peak_requested == 6000);
  check_idle(tested);
}

TEST_CASE("for_each_block shows exactly the live blocks, in address order") {
  pool tested(options{.capacity = 16 * mib});
  std::map<void*, std::size_t> live;
  for (std::size_t bytes = 100; bytes < 3 * mib; bytes = bytes * 2 + 77) live[tested.allocate(bytes)] = bytes;
  for (int extra = 0; extra < 50; ++extra) tested.deallocate(tested.allocate(777), 777);
  check_sound(tested);
  std::map<void*, std::size_t> seen;
  tested.for_each_block([&](const block_info& block) {
    if (block.state != block_state::live) return;
    seen[block.address] = block.requested;
    CHECK(block.bytes == tested.block_size(block.address));
  });
  CHECK(seen == live);
  for (const auto& [block, bytes] : live) tested.deallocate(block, bytes);
  check_idle(tested);
}

TEST_CASE("trim gives back what is free and keeps what is live") {
  pool tested(options{.capacity = 16 * mib});
  std::vector<unsigned char*> kept;
  std::vector<void*> freed;
  for (int pair = 0; pair < 100; ++pair) {
    kept.push_back(static_cast<unsigned char*>(tested.allocate(1000)));
    std::memset(kept.back(), pair, 1000);
    freed.push_back(tested.allocate(70 * kib));
  }
  free_all(tested, freed, 70 * kib);
  const std::size_t before = tested.stats().committed;
  const std::size_t released = tested.trim();
  CHECK(released > 0);
  CHECK(tested.stats().committed == before - released);
  CHECK(tested.stats().committed >= 100 * 1024);
  CHECK(tested.stats().committed <= 100 * tested.chunk());
  for (int pair = 0; pair < 100; ++pair) {
    CHECK(kept[static_cast<std::size_t>(pair)][0] == pair);
    CHECK(kept[static_cast<std::size_t>(pair)][999] == pair);
    tested.deallocate(kept[static_cast<std::size_t>(pair)], 1000);
  }
  tested.trim();
  CHECK(tested.stats().committed == 0);
  CHECK(tested.trim() == 0);
  void* again = tested.allocate(1000);
  std::memset(again, 1, 1000);
  tested.deallocate(again, 1000);
  check_idle(tested);
}

TEST_CASE("a free chunk is found to be committed, whatever it was when it was free before") {
  pool tested(options{.capacity = 16 * mib, .limit = 192 * kib});
  const auto use = [&tested](std::size_t bytes) {
    tested.deallocate(tested.allocate(bytes), bytes);
    tested.defragment();
  };
  use(64 * kib);   // the second chunk is free, and has no memory
  use(128 * kib);  // now it has
  void* block = tested.allocate(64 * kib);
  CHECK(tested.stats().committed == 128 * kib);
  SUBCASE("by trim") {
    CHECK(tested.trim() == 64 * kib);
    CHECK(tested.stats().committed == 64 * kib);
  }
  SUBCASE("by an allocation that needs it") {
    void* other = tested.try_allocate(128 * kib);
    CHECK(other != nullptr);
    tested.deallocate(other);
  }
  tested.deallocate(block);
  check_idle(tested);
}

TEST_CASE("trim keeps what it is told to keep, and little less") {
  pool tested(options{.capacity = 4 * mib});
  free_all(tested, exhaust(tested, 64 * kib), 64 * kib);
  CHECK(tested.stats().committed <= 4 * mib);
  for (const std::size_t keep : {5 * mib, 3 * mib + 1, mib, 65 * kib, std::size_t{1}, std::size_t{0}}) {
    CAPTURE(keep);
    const std::size_t before = tested.stats().committed;
    const std::size_t released = tested.trim(keep);
    const std::size_t after = tested.stats().committed;
    CHECK(after <= keep);
    CHECK(before - after == released);
    if (before <= keep) CHECK(released == 0);
    if (before > keep) CHECK(after + 16 * tested.chunk() > keep);  // at most a root too much
  }
}

TEST_CASE("defragment empties the caches and says how much came back") {
  pool tested(options{.capacity = 4 * mib});
  std::vector<void*> blocks;
  for (int count = 0; count < 200; ++count) blocks.push_back(tested.allocate(600));
  free_all(tested, blocks, 600);
  const std::size_t cached = tested.stats().cached;
  CHECK(tested.defragment() == cached);
  CHECK(tested.stats().cached == 0);
  CHECK(tested.defragment() == 0);
  check_idle(tested);
}

TEST_CASE("a full pool hands out every block of a size exactly, again and again") {
  for (const std::size_t bytes : {std::size_t{256}, std::size_t{1024}, std::size_t{4096}, 64 * kib, 256 * kib, mib}) {
    pool tested(options{.capacity = 2 * mib});
    for (int cycle = 0; cycle < 5; ++cycle) {
      CAPTURE(bytes);
      const std::vector<void*> blocks = exhaust(tested, bytes);
      CHECK(blocks.size() == 2 * mib / bytes);
      CHECK(tested.stats().requested == 2 * mib);
      CHECK(tested.stats().committed == 2 * mib);
      free_all(tested, blocks, bytes);
    }
    check_idle(tested);
  }
}

TEST_CASE("memory freed in one size serves every other") {
  pool tested(options{.capacity = 2 * mib});
  const std::size_t sizes[] = {256, 64 * kib, 512, mib, 4096, 2 * mib, 768, 128 * kib};
  for (int cycle = 0; cycle < 3; ++cycle) {
    for (const std::size_t bytes : sizes) {
      CAPTURE(bytes);
      const std::vector<void*> blocks = exhaust(tested, bytes);
      CHECK(blocks.size() >= 2 * mib / std::bit_ceil(bytes));
      CHECK(tested.stats().committed <= tested.limit());
      free_all(tested, blocks, bytes);
    }
  }
  check_idle(tested);
}

TEST_CASE("no allocation brings committed above the limit, and the whole limit can be used") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 64 * mib, .limit = 3 * mib + 5});
  CHECK(tested.limit() == 3 * mib);
  for (const std::size_t bytes : {64 * kib, std::size_t{256}, 192 * kib, 128 * kib, 3 * mib}) {
    CAPTURE(bytes);
    const std::vector<void*> blocks = exhaust(tested, bytes);
    CHECK(blocks.size() == 3 * mib / bytes);
    CHECK(tested.stats().committed == log->committed());
    free_all(tested, blocks, bytes);
  }
  CHECK(log->peak_committed() == 3 * mib);
  CHECK(tested.try_allocate(3 * mib + 1) == nullptr);
  check_idle(tested);
  ORDERLY_CHECK_CONTRACT(*log);
}

TEST_CASE("a chunk that holds one small block costs the others nothing") {
  pool tested(options{.capacity = 64 * mib, .limit = 4 * mib});
  const std::vector<void*> blocks = exhaust(tested, 256);
  REQUIRE(blocks.size() == 4 * mib / 256);
  std::map<std::uintptr_t, void*> survivors;
  for (void* block : blocks) {
    const std::uintptr_t root = reinterpret_cast<std::uintptr_t>(block) / (16 * tested.chunk());
    if (!survivors.emplace(root, block).second) REQUIRE(tested.try_deallocate(block, 256) == error::none);
  }
  const std::size_t free_chunks = 4 * mib / tested.chunk() - survivors.size();
  const std::vector<void*> large = exhaust(tested, 64 * kib);
  CHECK(large.size() == free_chunks);
  free_all(tested, large, 64 * kib);
  void* largest = tested.try_allocate(free_chunks * tested.chunk());
  CHECK(largest != nullptr);
  tested.deallocate(largest);
  for (const auto& [root, block] : survivors) tested.deallocate(block, 256);
  check_idle(tested);
}

TEST_CASE("at hand is what this thread freed, and nothing that takes more than that") {
  bool asked = false;
  pool from({.capacity = 8 * mib, .on_out_of_memory = [&](std::size_t) { return !(asked = true); }});
  CHECK(from.allocate_at_hand(1000) == nullptr);  // the thread's first use is not brief
  void* const block = from.allocate(1000);
  REQUIRE(from.deallocate_at_hand(block, 1000));
  const books before = books_of(from);
  CHECK_FALSE(from.deallocate_at_hand(block, 1000));
  CHECK_FALSE(from.deallocate_at_hand(nullptr, 1000));
  CHECK_FALSE(from.deallocate_at_hand(&asked, 1000));
  CHECK(from.allocate_at_hand(9 * mib) == nullptr);
  CHECK(from.allocate_at_hand(2 * mib) == nullptr);
  CHECK(from.allocate_at_hand(0) == nullptr);
  CHECK(same_books(before, books_of(from)));
  CHECK(from.stats().bad_frees == 0);
  CHECK(from.stats().failed == 0);
  CHECK_FALSE(asked);
  void* const again = from.allocate_at_hand(1000);
  CHECK(again == block);
  CHECK_FALSE(from.deallocate_at_hand(again, 50 * kib));
  CHECK_FALSE(from.deallocate_at_hand(static_cast<char*>(again) + 256, 1000));
  bool elsewhere = true;
  std::thread([&] { elsewhere = from.deallocate_at_hand(again, 1000); }).join();
  CHECK_FALSE(elsewhere);
  CHECK(from.try_deallocate(again, 1000) == error::none);
  pool moved(std::move(from));
  CHECK(from.allocate_at_hand(1000) == nullptr);
  CHECK_FALSE(from.deallocate_at_hand(again, 1000));
  check_idle(moved);
}

TEST_CASE("the out-of-memory handler is asked until it declines") {
  std::vector<std::size_t> asked;
  pool tested(options{.capacity = mib, .on_out_of_memory = [&](std::size_t bytes) {
                        asked.push_back(bytes);
                        return asked.size() % 3 != 0;
                      }});
  void* block = tested.allocate(mib);
  CHECK(asked.empty());
  CHECK(tested.try_allocate(5000) == nullptr);
  CHECK(asked == std::vector<std::size_t>{5000, 5000, 5000});
  CHECK_THROWS_AS((void)tested.allocate(6000), out_of_memory);
  CHECK(asked.size() == 6);
  CHECK(tested.stats().failed == 2);
  tested.deallocate(block);
  CHECK(tested.try_allocate(5000) != nullptr);
  CHECK(asked.size() == 6);
}

TEST_CASE("the out-of-memory handler may free, and the allocation then succeeds") {
  pool* used = nullptr;
  std::vector<void*> reserve;
  pool tested(options{.capacity = mib, .on_out_of_memory = [&](std::size_t) {
                        if (reserve.empty()) return false;
                        used->deallocate(reserve.back(), 64 * kib);
                        reserve.pop_back();
                        return true;
                      }});
  used = &tested;
  reserve = exhaust(tested, 64 * kib);
  CHECK(reserve.size() == 16);
  CHECK(exhaust(tested, 256 * kib).size() == 4);
  CHECK(reserve.empty());
  CHECK(tested.stats().failed == 2);
  CHECK(tested.stats().allocations == 20);
  CHECK(tested.stats().frees == 16);
}

TEST_CASE("the out-of-memory handler may call anything of the pool") {
  pool* used = nullptr;
  int depth = 0;
  void* held = nullptr;
  pool tested(options{.capacity = mib, .on_out_of_memory = [&](std::size_t) {
                        if (depth != 0) return false;
                        ++depth;
                        CHECK(used->try_allocate(100) == nullptr);
                        --depth;
                        used->trim();
                        used->defragment();
                        CHECK(used->stats().allocated == mib);
                        CHECK(used->owns(held));
                        used->deallocate(held, mib);
                        held = used->try_allocate(64 * kib);
                        return true;
                      }});
  used = &tested;
  held = tested.allocate(mib);
  void* block = tested.allocate(512 * kib);
  CHECK(block != nullptr);
  CHECK(tested.stats().failed == 1);  // the handler's own
  tested.deallocate(block);
  tested.deallocate(held);
  check_idle(tested);
}

TEST_CASE("an exception of the out-of-memory handler leaves allocate, and fails try_allocate") {
  struct given_up {};
  pool tested(options{.capacity = mib, .on_out_of_memory = [](std::size_t) -> bool { throw given_up(); }});
  void* block = tested.allocate(mib);
  CHECK_THROWS_AS((void)tested.allocate(1), given_up);
  CHECK(tested.try_allocate(1) == nullptr);
  CHECK(tested.stats().failed == 2);
  tested.deallocate(block);
  CHECK(tested.try_deallocate(tested.allocate(mib)) == error::none);
  check_idle(tested);
}

TEST_CASE("a moved pool keeps its blocks, handlers and counters") {
  int refusals = 0;
  pool first(options{.capacity = mib, .on_bad_free = [&](const bad_free&) { ++refusals; }});
  auto* block = static_cast<char*>(first.allocate(1000));
  std::memset(block, 7, 1000);
  pool second(std::move(first));
  CHECK(second.owns(block));
  CHECK(second.stats().requested == 1000);
  CHECK(block[999] == 7);
  second.deallocate(block + 256, 10);
  CHECK(refusals == 1);
  second.deallocate(block, 1000);
  CHECK(refusals == 1);
  check_idle(second);
}

TEST_CASE("a moved-from pool refuses everything and breaks nothing") {
  pool first(options{.capacity = mib});
  void* block = first.allocate(1000);
  const pool second(std::move(first));
  CHECK(first.try_allocate(1) == nullptr);
  CHECK_THROWS_AS((void)first.allocate(1), std::exception);
  CHECK(first.try_deallocate(block, 1000) == error::pool_gone);
  CHECK(first.try_deallocate(nullptr) == error::none);
  CHECK_THROWS_AS(first.deallocate_or_throw(block), bad_free_error);
  CHECK_FALSE(first.owns(block));
  CHECK(first.block_size(block) == 0);
  CHECK(first.trim() == 0);
  CHECK(first.defragment() == 0);
  CHECK(first.stats().committed == 0);
  CHECK(first.rounded(1) == 0);
  CHECK(count_blocks(first, block_state::live) == 0);
  CHECK(second.owns(block));
}

TEST_CASE("move assignment releases what the target held; to itself it changes nothing") {
  const auto log = std::make_shared<source_log>();
  pool target(make_failing_source(log), options{.capacity = mib});
  (void)target.allocate(1000);
  CHECK(log->reserved_ranges() > 0);
  pool replacement(options{.capacity = 2 * mib});
  void* block = replacement.allocate(1000);
  target = std::move(replacement);
  CHECK(log->reserved_ranges() == 0);
  CHECK(log->committed() == 0);
  CHECK(target.capacity() == 2 * mib);
  pool& alias = target;
  target = std::move(alias);
  CHECK(target.owns(block));
  replacement = pool(options{.capacity = mib});
  CHECK(replacement.try_deallocate(replacement.allocate(1)) == error::none);
  ORDERLY_CHECK_CONTRACT(*log);
}

TEST_CASE("destruction releases live blocks with the pool") {
  const auto log = std::make_shared<source_log>();
  {
    pool doomed(make_failing_source(log), options{.capacity = 8 * mib});
    for (std::size_t bytes = 1; bytes < 2 * mib; bytes *= 3) std::memset(doomed.allocate(bytes), 1, bytes);
    CHECK(log->committed() > 0);
  }
  CHECK(log->reserved_ranges() == 0);
  CHECK(log->committed() == 0);
  ORDERLY_CHECK_CONTRACT(*log);
}

TEST_CASE("the pool never touches the memory that it manages") {
  // A source of addresses alone: any access to them would end the process.
  class addresses final : public memory_source {
   public:
    std::size_t granularity() const noexcept override { return 4096; }
    bool is_virtual() const noexcept override { return true; }
    void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
      next_ = (next_ + alignment - 1) / alignment * alignment;
      return reinterpret_cast<void*>(std::exchange(next_, next_ + bytes));
    }
    void release(void*, std::size_t) noexcept override {}
    bool commit(void*, std::size_t) noexcept override { return true; }
    bool decommit(void*, std::size_t) noexcept override { return true; }

   private:
    std::uintptr_t next_ = std::uintptr_t{1} << 60;  // not canonical on x86-64, not mapped elsewhere
  };
  pool tested(std::make_unique<addresses>(), options{.capacity = 16 * mib});
  CHECK(tested.chunk() >= 4096);
  std::vector<std::pair<void*, std::size_t>> blocks;
  for (std::size_t bytes = 1; bytes < 4 * mib; bytes = bytes * 2 + 1) {
    blocks.emplace_back(tested.allocate(bytes), bytes);
  }
  for (const auto& [block, bytes] : blocks) CHECK(tested.try_deallocate(block, bytes) == error::none);
  CHECK(tested.try_deallocate(blocks.front().first) == error::double_free);
  check_idle(tested);
  tested.trim();
  CHECK(tested.stats().committed == 0);
}

}  // TEST_SUITE
