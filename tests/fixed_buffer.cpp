// Pools over one plain buffer: nothing is committed piecewise, and blocks split and merge across the whole range.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/random.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

/// Memory of the given size and alignment (at least 256) between two guards that must stay as they are.
class buffer {
 public:
  buffer(std::size_t bytes, std::size_t alignment)
      : bytes_(bytes),
        memory_(static_cast<char*>(std::aligned_alloc(alignment, alignment + whole(bytes + guard, alignment)))),
        start_(memory_.get() + alignment) {
    if (memory_ == nullptr) throw std::bad_alloc();
    std::memset(start_ - guard, 0x77, guard);
    std::memset(start_ + bytes_, 0x77, guard);
  }

  [[nodiscard]] char* start() const noexcept { return start_; }
  [[nodiscard]] bool holds(const void* pointer, std::size_t bytes) const noexcept {
    const auto* first = static_cast<const char*>(pointer);
    return first >= start_ && bytes <= bytes_ && first <= start_ + (bytes_ - bytes);
  }
  [[nodiscard]] bool intact() const noexcept {
    for (std::size_t index = 0; index < guard; ++index) {
      if ((start_ - guard)[index] != 0x77 || start_[bytes_ + index] != 0x77) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t guard = 256;
  static std::size_t whole(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }
  struct free_memory {
    void operator()(char* memory) const noexcept { std::free(memory); }
  };

  std::size_t bytes_;
  std::unique_ptr<char, free_memory> memory_;
  char* start_;
};

std::vector<void*> exhaust(pool& from, std::size_t bytes, const buffer& within) {
  std::vector<void*> blocks;
  while (void* block = from.try_allocate(bytes)) {
    REQUIRE(within.holds(block, from.block_size(block)));
    std::memset(block, 0x11, from.block_size(block));
    blocks.push_back(block);
  }
  return blocks;
}

void free_all(pool& to, const std::vector<void*>& blocks, std::size_t bytes) {
  for (void* block : blocks) REQUIRE(to.try_deallocate(block, bytes) == error::none);
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a buffer is used from its first byte to its last") {
  const buffer memory(4 * mib, 4 * mib);
  pool tested(make_fixed_buffer_source(memory.start(), 4 * mib), options{.capacity = 4 * mib});
  CHECK(tested.capacity() == 4 * mib);
  for (std::size_t bytes = 256; bytes <= 4 * mib; bytes *= 2) {
    CAPTURE(bytes);
    const std::vector<void*> blocks = exhaust(tested, bytes, memory);
    CHECK(blocks.size() == 4 * mib / bytes);
    free_all(tested, blocks, bytes);
  }
  check_idle(tested);
  CHECK(memory.intact());
}

TEST_CASE("when everything is freed, the buffer is one block again") {
  const buffer memory(2 * mib, 2 * mib);
  pool tested(make_fixed_buffer_source(memory.start(), 2 * mib), options{.capacity = 2 * mib});
  random_engine random = make_random(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<void*> blocks;
    while (void* block = tested.try_allocate(log_uniform(random, 1, 200 * kib))) blocks.push_back(block);
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (void* block : blocks) REQUIRE(tested.try_deallocate(block) == error::none);
    tested.defragment();
    REQUIRE(count_blocks(tested, block_state::free) == 1);
    void* whole = tested.try_allocate(2 * mib);
    REQUIRE(whole == memory.start());
    tested.deallocate(whole);
  }
  check_idle(tested);
}

TEST_CASE("the blocks tile the buffer at every step") {
  constexpr std::size_t length = mib;
  const buffer memory(length, length);
  pool tested(make_fixed_buffer_source(memory.start(), length), options{.capacity = length});
  random_engine random = make_random(2);
  std::vector<void*> live;
  for (int step = 0; step < 500; ++step) {
    if (void* block = uniform(random, 0, 2) != 0 ? tested.try_allocate(log_uniform(random, 1, 60 * kib)) : nullptr) {
      live.push_back(block);
    } else if (!live.empty()) {
      std::swap(live[uniform(random, 0, live.size() - 1)], live.back());
      tested.deallocate(live.back());
      live.pop_back();
    }
    const char* end = memory.start();
    bool gapless = true;
    tested.for_each_block([&](const block_info& block) {
      gapless &= block.address == end;
      end += block.bytes;
    });
    REQUIRE(gapless);
    REQUIRE(end == memory.start() + length);
  }
}

TEST_CASE("a buffer whose size is no power of two is used whole") {
  for (const std::size_t length : {std::size_t{256}, 3 * kib, 64 * kib + 256, 192 * kib, mib - 256, mib + 64 * kib,
                                   3 * mib + 768}) {
    CAPTURE(length);
    const buffer memory(length, 4 * mib);
    pool tested(make_fixed_buffer_source(memory.start(), length), options{.capacity = length});
    CHECK(tested.capacity() == length);
    for (int round = 0; round < 3; ++round) {
      const std::vector<void*> blocks = exhaust(tested, 256, memory);
      CHECK(blocks.size() == length / 256);
      free_all(tested, blocks, 256);
      // One block for each bit of the length, largest first.
      std::vector<void*> largest;
      for (std::size_t rest = length; rest != 0; rest -= std::bit_floor(rest)) {
        largest.push_back(tested.try_allocate(std::bit_floor(rest)));
        CHECK(largest.back() != nullptr);
      }
      CHECK(tested.try_allocate(1) == nullptr);
      for (void* block : largest) CHECK(tested.try_deallocate(block) == error::none);
    }
    check_idle(tested);
    CHECK(count_blocks(tested, block_state::free) == static_cast<std::size_t>(std::popcount(length / 256)));
    CHECK(memory.intact());
  }
}

TEST_CASE("a buffer aligned to no more than the granule gives whole granules") {
  const buffer memory(mib + 256, 256);
  pool tested(make_fixed_buffer_source(memory.start(), mib + 256), options{.capacity = mib + 256});
  const std::vector<void*> blocks = exhaust(tested, 1000, memory);
  CHECK(blocks.size() >= mib / 1024);
  for (void* block : blocks) CHECK(reinterpret_cast<std::uintptr_t>(block) % 256 == 0);
  free_all(tested, blocks, 1000);
  check_idle(tested);
  CHECK(memory.intact());
}

TEST_CASE("memory that is there already stays committed") {
  const buffer memory(mib, mib);
  pool tested(make_fixed_buffer_source(memory.start(), mib), options{.capacity = mib});
  const std::size_t committed = tested.stats().committed;
  CHECK(committed == mib);
  void* block = tested.allocate(1000);
  std::memset(block, 3, 1000);
  CHECK(tested.trim() == 0);
  CHECK(tested.stats().committed == committed);
  CHECK(static_cast<char*>(block)[999] == 3);
  tested.deallocate(block, 1000);
  CHECK(tested.trim() == 0);
  check_idle(tested);
}

TEST_CASE("pools on two halves of one buffer tell their blocks apart") {
  const buffer memory(mib, mib);
  pool lower(make_fixed_buffer_source(memory.start(), mib / 2), options{.capacity = mib / 2});
  pool upper(make_fixed_buffer_source(memory.start() + mib / 2, mib / 2), options{.capacity = mib / 2});
  void* low = lower.allocate(mib / 2);
  void* high = upper.allocate(mib / 2);
  CHECK(low == memory.start());
  CHECK(high == memory.start() + mib / 2);
  CHECK(lower.try_deallocate(high) == error::wrong_pool);
  CHECK(upper.try_deallocate(low) == error::wrong_pool);
  CHECK(lower.try_deallocate(low) == error::none);
  CHECK(upper.try_deallocate(high) == error::none);
  CHECK_FALSE(lower.owns(memory.start() + mib / 2));
}

}  // TEST_SUITE
