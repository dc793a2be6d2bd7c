// Reports: their figures agree with the pool and with each other, what they say would help does help, and they take no memory.
#include "orderly/report.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "geometry.hpp"
#include "orderly/pool.hpp"
#include "orderly/relocatable.hpp"
#include "orderly/stream_pool.hpp"
#include "orderly/tag.hpp"
#include "support/audit.hpp"
#include "support/decorated_source.hpp"
#include "support/failing_source.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

#ifndef ORDERLY_TEST_SANITIZED  // their runtimes have the operators

namespace {

std::atomic<std::size_t> allocations{0};  // of the program, in all threads

}  // namespace

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* const made = std::malloc(bytes == 0 ? 1 : bytes)) return made;
  throw std::bad_alloc();
}
// Not inline: gcc would see free() of what it takes for another's operator new.
[[gnu::noinline]] void operator delete(void* made) noexcept { std::free(made); }
[[gnu::noinline]] void operator delete(void* made, std::size_t) noexcept { std::free(made); }

#endif

using namespace orderly;
using namespace orderly::test;

using remedy = memory_report::remedy;

namespace {

/// The equation that report.hpp states. No other thread.
void check_figures(const memory_report& r) {
  CHECK(r.committed == r.live + r.cached + r.scattered + r.idle);
  CHECK(r.live_requested <= r.live);
  CHECK(r.largest_now <= r.largest_grown);
  CHECK(r.largest_grown <= r.capacity);
  CHECK(r.fragmentation >= 0);
  CHECK(r.fragmentation <= 100);
  std::size_t cached = r.rest.cached + r.rest.held + r.graphs;
  for (std::size_t i = 0; i < r.lane_count; ++i) cached += r.lanes[i].cached + r.lanes[i].held;
  CHECK(cached == r.cached);
}

[[nodiscard]] memory_report report_of_refusal(pool& tested, std::size_t bytes, std::size_t alignment = 1) {
  try {
    static_cast<void>(tested.allocate(bytes, alignment));
  } catch (const out_of_memory& refused) {
    const memory_report r = refused.report();
    CHECK(r.requested == bytes);
    CHECK(refused.requested() == bytes);
    return r;
  }
  FAIL("it was not refused");
  return {};
}

[[nodiscard]] bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

[[nodiscard]] options bounded(std::size_t capacity, std::size_t limit = 0) {
  options o;
  o.capacity = capacity;
  o.limit = limit;
  return o;
}

/// Blocks that come and go until little is left, in the same way each time.
struct traffic {
  explicit traffic(pool& in) : tested(in) {}
  ~traffic() {
    for (const auto& [block, bytes] : blocks) tested.deallocate(block, bytes);
  }
  traffic(const traffic&) = delete;
  traffic& operator=(const traffic&) = delete;

  void go(random_engine& random, std::size_t rounds, std::size_t most) {
    for (std::size_t i = 0; i < rounds; ++i) {
      if (!blocks.empty() && uniform(random, 0, 2) == 0) {
        const std::size_t at = uniform(random, 0, blocks.size() - 1);
        tested.deallocate(blocks[at].first, blocks[at].second);
        blocks[at] = blocks.back();
        blocks.pop_back();
        continue;
      }
      const std::size_t bytes = log_uniform(random, 1, most);
      if (void* const block = tested.try_allocate(bytes)) blocks.emplace_back(block, bytes);
    }
  }

  /// Frees the others.
  void keep_one_in(random_engine& random, std::size_t count) {
    std::erase_if(blocks, [&](const auto& each) {
      if (uniform(random, 1, count) == 1) return false;
      tested.deallocate(each.first, each.second);
      return true;
    });
  }

  pool& tested;
  std::vector<std::pair<void*, std::size_t>> blocks;
};

/// Would a request of that length find memory in this free block that is committed? The block is halved as far as the
/// request allows, and each time the half is kept that has more of it, or the first; a slot is not halved, and serves
/// what needs more than half of it.
[[nodiscard]] bool serves(const source_log& log, const detail::geometry& shape, const block_info& free,
                          std::size_t length) {
  const auto* at = static_cast<const std::byte*>(free.address);
  const auto* const start = static_cast<const std::byte*>(log.ranges().front().address);
  const std::uint64_t granule = static_cast<std::uint64_t>(at - start) >> shape.granule_shift;
  if (granule >= shape.tree_granules) {
    unsigned order = shape.top_order;
    while (shape.slot_granule[order] > granule) --order;
    return 2 * length > shape.bytes(std::uint64_t{1} << order) && log.is_committed(at, length);
  }
  const auto committed = [&](const std::byte* half, std::size_t bytes) {
    std::size_t count = 0;
    for (std::size_t done = 0; done < bytes; done += shape.chunk_bytes())
      count += log.is_committed(half + done, shape.chunk_bytes());
    return count;
  };
  std::size_t bytes = free.bytes;
  while (length <= bytes / 2) {
    bytes /= 2;
    if (bytes >= shape.chunk_bytes() && committed(at, bytes) < committed(at + bytes, bytes)) at += bytes;
  }
  return length <= bytes && log.is_committed(at, length);
}

[[nodiscard]] bool is_served(pool& tested, std::size_t bytes) {
  void* const block = tested.try_allocate(bytes);
  tested.deallocate(block, bytes);
  tested.defragment();
  return block != nullptr;
}

/// What is said to fit into what is committed, as it lies, fits into a free block, and no more is served while the
/// source does nothing. Pre: nothing is cached.
void check_largest(pool& tested, source_log& log, const detail::geometry& shape) {
  const std::size_t largest = tested.report().largest_now;
  const std::size_t length = tested.rounded(largest);
  bool fits = largest == 0;
  tested.for_each_block([&](const block_info& block) {
    fits = fits || (block.state == block_state::free && serves(log, shape, block, length));
  });
  CHECK(fits);
  log.refuse_all(source_log::call::commit);
  log.refuse_all(source_log::call::decommit);
  CHECK_FALSE(is_served(tested, largest + 1));
  log.refuse_none();
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("figures agree with each other and with the pool; the largest request is served, one byte more is not") {
  for (const bool flat : {false, true}) {
    for (std::uint64_t round = 0; round < 30; ++round) {
      CAPTURE(flat);
      CAPTURE(round);
      random_engine random = make_random(round);
      const std::size_t capacity = 16 * mib;
      const auto buffer = std::make_unique<std::byte[]>(capacity + 4096);
      void* start = buffer.get();
      std::size_t space = capacity + 4096;
      REQUIRE(std::align(4096, capacity, start, space) != nullptr);
      auto source = flat ? make_fixed_buffer_source(start, capacity) : make_host_source();
      pool tested(std::move(source), bounded(capacity, round % 2 == 0 || flat ? 0 : 6 * mib));
      traffic blocks(tested);
      blocks.go(random, 200 + 40 * round, round % 3 == 0 ? 20'000 : 4 * mib);
      check_figures(tested.report());
      tested.defragment();
      const memory_report r = tested.report();
      check_figures(r);
      CHECK(r.cached == 0);
      CHECK(r.live_blocks == blocks.blocks.size());
      CHECK(r.limit == tested.limit());
      CHECK(r.live_requested == tested.stats().requested);
      if (flat) {
        std::size_t largest = 0;
        std::size_t free = 0;
        tested.for_each_block([&](const block_info& block) {
          if (block.state == block_state::free) largest = std::max(largest, block.bytes), free += block.bytes;
        });
        CHECK(r.largest_now == largest);
        CHECK(r.idle == largest);
        CHECK(r.scattered == free - largest);
      }
      if (r.largest_now != 0) {
        void* const block = tested.try_allocate(r.largest_now);
        CHECK(block != nullptr);
        // It need not take the piece that is meant, if it may commit another: see what is set aside in buddy.hpp.
        CHECK(tested.stats().committed <= r.committed + std::max(r.largest_now, r.chunk));
        tested.deallocate(block, r.largest_now);
        tested.defragment();
      }
      if (r.largest_grown != 0) {
        void* const block = tested.try_allocate(r.largest_grown);
        CHECK(block != nullptr);
        tested.deallocate(block, r.largest_grown);
      }
      CHECK(tested.try_allocate(r.largest_grown + 1) == nullptr);
    }
  }
}

TEST_CASE("what lies in one piece begins where a block would, and ends where a class does") {
  constexpr std::size_t chunk = 4 * kib;  // so that there are 64 in what is split and merged
  options o = bounded(64 * mib);
  o.chunk = chunk;
  pool tested(o);
  std::array<void*, 64> blocks{};
  const auto allocate = [&](std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) blocks[i] = tested.allocate(chunk);
    std::sort(blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(count));
  };
  const auto free = [&](std::size_t first, std::size_t end) {
    for (std::size_t i = first; i < end; ++i) tested.deallocate(blocks[i], chunk);
  };
  // The first chunk of sixteen is not committed, those behind it are.
  allocate(16);
  free(0, 1);
  tested.trim();
  free(1, 16);
  tested.defragment();
  memory_report r = tested.report();
  CHECK(r.committed == 15 * chunk);
  CHECK(r.idle == 15 * chunk);
  CHECK(r.largest_now == 8 * chunk);  // half of the sixteen
  CHECK(r.largest_grown > 63 * chunk);
  blocks[0] = tested.allocate(r.largest_now);
  CHECK(tested.stats().committed == 15 * chunk);
  tested.deallocate(blocks[0]);
  // Seventeen of 64 are: a request of as many would get eighteen.
  tested.trim();
  allocate(64);
  free(17, 64);
  tested.trim();
  free(0, 17);
  tested.defragment();
  r = tested.report();
  CHECK(r.committed == 17 * chunk);
  CHECK(r.largest_now == 16 * chunk);
  // Of sixteen, three of the first half and four single ones of the second, which is what a split keeps.
  tested.trim();
  allocate(16);
  for (const std::size_t i : {3UL, 4UL, 5UL, 6UL, 7UL, 8UL, 10UL, 12UL, 14UL}) free(i, i + 1);
  tested.trim();
  free(0, 3);
  for (const std::size_t i : {9UL, 11UL, 13UL, 15UL}) free(i, i + 1);
  tested.defragment();
  r = tested.report();
  CHECK(r.committed == 7 * chunk);
  CHECK(r.largest_now == chunk);
  for (const std::size_t count : {1UL, 3UL}) {
    CAPTURE(count);
    void* const block = tested.allocate(count * chunk);
    CHECK((tested.stats().committed == 7 * chunk) == (count == 1));
    tested.deallocate(block, count * chunk);
    tested.defragment();
  }
  // A slot serves what has more than half its chunks.
  o.limit = o.release_threshold = 128 * chunk;
  for (const std::size_t taken : {60UL, 64UL}) {
    CAPTURE(taken);
    pool bounded_pool(o);
    bounded_pool.deallocate(bounded_pool.allocate(128 * chunk));
    void* const block = bounded_pool.allocate(taken * chunk);
    r = bounded_pool.report();
    check_figures(r);
    CHECK(r.idle == (128 - taken) * chunk);
    CHECK(r.largest_now == (taken < 64 ? r.idle : 0));
    bounded_pool.deallocate(block);
  }
}

TEST_CASE("half is free, but in no piece: the report says so, and each way out that it names leads out") {
  const auto fill = [](pool& tested, relocatable_blocks& blocks, std::size_t count) {
    std::vector<relocatable> all;
    while (count == 0 || all.size() < count) {
      const relocatable block = blocks.try_allocate(1000);
      if (block == relocatable::none) break;
      all.push_back(block);
    }
    for (std::size_t i = 0; i < all.size(); i += 2) CHECK(blocks.deallocate(all[i]) == error::none);
    tested.defragment();
    return all.size();
  };
  const std::size_t limit = 8 * mib;
  pool tested(bounded(64 * mib, limit));
  relocatable_blocks blocks(tested);
  const std::size_t count = fill(tested, blocks, 0);
  const memory_report r = report_of_refusal(tested, 3 * mib);
  check_figures(r);
  CHECK(r.needed == 3 * mib);
  CHECK(r.committed == limit);
  CHECK(r.live == limit / 2);
  CHECK(r.scattered == limit / 2);
  CHECK(r.idle == 0);
  CHECK(r.fragmentation == 50);
  CHECK(r.largest_now == 1024);
  CHECK(r.largest_grown == 1024);
  CHECK(r.tried.by_limit);
  CHECK(r.tried.passes == 1);
  CHECK_FALSE(r.tried.by_source);
  CHECK(r.tried.handler_calls == 0);

  // To ask for less.
  REQUIRE(r.find(remedy::ask_for_less) != nullptr);
  void* const less = tested.try_allocate(r.find(remedy::ask_for_less)->bytes);
  CHECK(less != nullptr);
  tested.deallocate(less);
  // A higher limit, and no lower one.
  REQUIRE(r.find(remedy::raise_limit) != nullptr);
  const std::size_t enough = r.find(remedy::raise_limit)->bytes;
  CHECK(enough == limit + 3 * mib);
  CHECK(r.find(remedy::raise_capacity) == nullptr);
  for (const std::size_t fewer : {std::size_t{0}, std::size_t{64 * kib}}) {
    pool other(bounded(64 * mib, enough - fewer));
    relocatable_blocks same(other);
    CHECK(fill(other, same, count) == count);
    CHECK((other.try_allocate(3 * mib) != nullptr) == (fewer == 0));
  }
  // To move blocks.
  REQUIRE(r.find(remedy::relocate) != nullptr);
  CHECK(r.find(remedy::relocate)->count == limit / 2 / (64 * kib));
  blocks.begin();
  while (!blocks.step().empty()) {
  }
  CHECK(blocks.end().chunks <= r.find(remedy::relocate)->count);
  CHECK(tested.report(3 * mib).find(remedy::raise_limit) == nullptr);
  void* const block = tested.try_allocate(3 * mib);
  CHECK(block != nullptr);
  tested.deallocate(block);

  const std::string text = r.message();
  for (const char* part : {"3145728 bytes (3.0 MiB) requested", "committed:   8.0 MiB; limit 8.0 MiB, capacity 64.0 MiB", "live:        4.0 MiB",
                           "4.0 MiB scattered", "fragmentation 50.0 %", "1.0 KiB as it lies", "the limit allows no more",
                           "a limit of at least 11534336 bytes, 3.0 MiB more", "at most 64 chunks of 64.0 KiB",
                           "at most 1024 bytes", "see options::account_tags"}) {
    CAPTURE(part);
    CHECK(contains(text, part));
  }
}

TEST_CASE("a request that exceeds the capacity or the limit by itself is told so, and that no pass was tried") {
  pool tested(bounded(64 * mib, 8 * mib));
  memory_report r = report_of_refusal(tested, 100 * mib);
  CHECK(r.tried.passes == 0);
  REQUIRE(r.find(remedy::raise_capacity) != nullptr);
  CHECK(r.find(remedy::raise_capacity)->bytes == 100 * mib);
  r = report_of_refusal(tested, 10 * mib + 1);
  CHECK(r.find(remedy::raise_capacity) == nullptr);
  REQUIRE(r.find(remedy::raise_limit) != nullptr);
  CHECK(r.find(remedy::raise_limit)->bytes == 10 * mib + 64 * kib);
  CHECK(r.find(remedy::relocate) == nullptr);
  REQUIRE(r.find(remedy::ask_for_less) != nullptr);
  CHECK(r.find(remedy::ask_for_less)->bytes == 8 * mib);
  r = report_of_refusal(tested, SIZE_MAX);
  CHECK(r.needed == SIZE_MAX);
  REQUIRE(r.find(remedy::raise_capacity) != nullptr);
  CHECK(r.find(remedy::raise_capacity)->bytes == SIZE_MAX);
}

TEST_CASE("a request that would be refused: what is idle counts towards the limit that it needs, before and after") {
  const std::size_t enough = 10 * mib;
  for (const std::size_t limit : {8 * mib, enough - 64 * kib, enough}) {
    CAPTURE(limit);
    pool tested(bounded(64 * mib, limit));
    void* const stays = tested.allocate(4 * mib);
    tested.deallocate(tested.allocate(4 * mib));
    for (const memory_report& r : {tested.report(6 * mib), limit == enough ? memory_report() : report_of_refusal(tested, 6 * mib)}) {
      const memory_report::advice* const advice = r.find(remedy::raise_limit);
      CHECK((advice == nullptr) == (limit == enough));
      if (advice != nullptr) CHECK(advice->bytes == enough);
    }
    CHECK((tested.try_allocate(6 * mib) != nullptr) == (limit == enough));
    tested.deallocate(stays);
  }
}

TEST_CASE("memory that was there from the start: how much more it takes, and how much of it lies in pieces") {
  const std::size_t capacity = 4 * mib;
  bench b(0, capacity);
  const std::unique_ptr<std::byte[], bench::aligned_delete> buffer(new (std::align_val_t{4096}) std::byte[capacity]);
  pool tested(make_fixed_buffer_source(buffer.get(), capacity), bounded(capacity));
  std::vector<void*> blocks;
  while (void* const block = tested.try_allocate(100 * kib)) blocks.push_back(block);
  for (std::size_t i = 0; i < blocks.size(); i += 2) tested.deallocate(blocks[i]);
  const memory_report r = report_of_refusal(tested, mib);
  check_figures(r);
  CHECK(r.chunk == 0);
  CHECK(r.find(remedy::raise_limit) == nullptr);
  CHECK(r.scattered > mib);
  REQUIRE(r.find(remedy::more_memory) != nullptr);
  CHECK(r.find(remedy::more_memory)->bytes == mib - r.idle);
  REQUIRE(r.find(remedy::relocate) != nullptr);
  CHECK(r.find(remedy::relocate)->bytes == r.scattered + r.idle);
  CHECK(contains(r.message(), "in one piece"));
  for (std::size_t i = 1; i < blocks.size(); i += 2) tested.deallocate(blocks[i]);
}

TEST_CASE("nothing was refused: a report on request says what is there, and no more") {
  pool tested(bounded(64 * mib));
  void* const block = tested.allocate(1000);
  memory_report r = tested.report();
  check_figures(r);
  CHECK(r.requested == 0);
  CHECK(r.tried.passes == 0);
  CHECK(r.find(remedy::raise_limit) == nullptr);
  CHECK(r.find(remedy::ask_for_less) == nullptr);
  CHECK(contains(r.message(), "orderly: memory\n"));
  CHECK_FALSE(contains(r.message(), "tried"));
  r = tested.report(10 * mib);  // it would be served
  CHECK(r.requested == 10 * mib);
  CHECK(r.find(remedy::raise_limit) == nullptr);
  tested.deallocate(block, 1000);
  r = tested.report();
  REQUIRE(r.find(remedy::reclaim) != nullptr);
  CHECK(r.find(remedy::reclaim)->bytes == r.cached);
  tested.trim();
  CHECK(tested.report().help_count == 0);
  CHECK(tested.report().committed == 0);
  CHECK(tested.report().fragmentation == 0);
  const pool moved(std::move(tested));
  CHECK(tested.report(100).capacity == 0);
  CHECK(moved.report().capacity == 64 * mib);
}

TEST_CASE("memory that streams may still use: whose it is, and that waiting helps") {
  for (const bool wait : {false, true}) {
    CAPTURE(wait);
    stream_options settings;
    settings.wait_before_refusing = wait;
    settings.memory.limit = 8 * mib;
    bench b(2, 64 * mib, software_schedule::lazy, settings);
    // Two slots, each freed behind work, and a request that needs the chunks of both.
    std::array<void*, 2> blocks{b.tested->allocate(4 * mib, b[0]), b.tested->allocate(4 * mib, b[1])};
    for (std::size_t i = 0; i < 2; ++i) {
      b.stream[i].enqueue([] {});
      b.tested->deallocate(blocks[i], 4 * mib, b[i]);
    }
    memory_report r = b.tested->report(6 * mib);
    check_figures(r);
    CHECK(r.lane_count == 2);
    CHECK(r.lanes[0].held == 4 * mib);
    CHECK((r.lanes[0].stream == b[0] || r.lanes[0].stream == b[1]));
    CHECK(r.lanes[0].stream != r.lanes[1].stream);
    REQUIRE(r.find(remedy::synchronize) != nullptr);
    CHECK(r.find(remedy::synchronize)->bytes == 8 * mib);
    CHECK(contains(r.message(), "stream 0x"));
    if (wait) {
      CHECK(b.tested->try_allocate(6 * mib, b[0]) != nullptr);
      continue;
    }
    try {
      static_cast<void>(b.tested->allocate(6 * mib, b[0]));
      FAIL("it was not refused");
    } catch (const out_of_memory& refused) {
      r = refused.report();
    }
    check_figures(r);
    CHECK(r.find(remedy::let_wait) != nullptr);
    CHECK_FALSE(r.tried.waited);
    REQUIRE(r.find(remedy::synchronize) != nullptr);
    CHECK(r.find(remedy::synchronize)->bytes == 8 * mib);
    CHECK(r.find(remedy::raise_limit) != nullptr);
    CHECK(b.tested->synchronize());
    void* const block = b.tested->try_allocate(6 * mib, b[0]);
    CHECK(block != nullptr);
    b.tested->deallocate(block, 6 * mib, b[0]);
    check_idle(*b.tested);
  }
}

TEST_CASE("of many streams those that keep most are named, and the rest is summed up") {
  constexpr std::size_t streams = 12;
  bench b(streams, 256 * mib);
  std::vector<void*> blocks;
  for (std::size_t i = 0; i < streams; ++i) blocks.push_back(b.tested->allocate((i + 1) * 2 * mib, b[i]));
  for (std::size_t i = 0; i < streams; ++i) {
    b.stream[i].enqueue([] {});
    b.tested->deallocate(blocks[i], (i + 1) * 2 * mib, b[i]);
  }
  const memory_report r = b.tested->report();
  check_figures(r);
  CHECK(r.lane_count == 8);
  CHECK(r.more_lanes == 4);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(r.lanes[i].stream == b[streams - 1 - i]);
    CHECK(r.lanes[i].held + r.lanes[i].cached == (streams - i) * 2 * mib);
  }
  CHECK(r.rest.held + r.rest.cached == (1 + 2 + 3 + 4) * 2 * mib);
  CHECK(contains(r.message(), "4 more: "));
  const stream_handle last = b[streams - 1];
  b.tested->release_stream(last);
  CHECK(b.tested->report().lanes[0].released);
  check_idle(*b.tested);
}

TEST_CASE("what a graph keeps") {
  bench b(1, 64 * mib);
  REQUIRE(b.tested->begin_capture(b[0]) == error::none);
  REQUIRE(b.stream[0].begin_capture());
  void* const block = b.tested->allocate(3 * mib, b[0]);
  b.tested->deallocate(block, 3 * mib, b[0]);
  CHECK(b.tested->end_capture(b[0]) == error::none);
  auto graph = std::make_unique<std::optional<software_graph>>(b.stream[0].end_capture());
  const memory_report r = b.tested->report();
  check_figures(r);
  CHECK(r.graphs == 3 * mib);
  REQUIRE(r.find(remedy::end_graphs) != nullptr);
  CHECK(r.find(remedy::end_graphs)->bytes == 3 * mib);
  CHECK(contains(r.message(), "graphs: 3.0 MiB"));
  graph.reset();
  check_idle(*b.tested);
}

TEST_CASE("a source that refuses: what it says, and how much the limit leaves") {
  class poor_source final : public decorated_source {
   public:
    [[nodiscard]] bool is_host_memory() const noexcept override { return true; }
    [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
      if (committed_ + bytes > 4 * mib) return false;
      committed_ += bytes;
      return decorated_source::commit(address, bytes);
    }
    void why_refused(char* text, std::size_t bytes) const noexcept override {
      std::snprintf(text, bytes, "cuMemCreate: out of memory, after %zu bytes%s", committed_, std::string(1000, '!').c_str());
    }
    [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
      committed_ -= bytes;
      return decorated_source::decommit(address, bytes);
    }

   private:
    std::size_t committed_ = 0;
  };
  pool tested(std::make_unique<poor_source>(), bounded(64 * mib, 32 * mib));
  void* const block = tested.allocate(3 * mib);
  const memory_report r = report_of_refusal(tested, 2 * mib);
  CHECK(r.tried.by_source);
  CHECK_FALSE(r.tried.by_limit);
  CHECK(std::strncmp(r.tried.source_error, "cuMemCreate: out of memory, after 3145728 bytes!!!", 50) == 0);
  CHECK(std::strlen(r.tried.source_error) == sizeof r.tried.source_error - 1);
  REQUIRE(r.find(remedy::elsewhere) != nullptr);
  CHECK(r.find(remedy::elsewhere)->bytes == 29 * mib);
  CHECK(r.find(remedy::raise_limit) == nullptr);
  CHECK(contains(r.message(), "the source refused to commit: cuMemCreate: out of memory"));
  tested.deallocate(block);
  check_idle(tested);
}

TEST_CASE("a handler gets the report of the request that it is called for, and of no other") {
  pool* used = nullptr;
  pool other(bounded(mib));
  std::vector<memory_report> seen;
  options o = bounded(mib);
  o.on_out_of_memory = [&](std::size_t bytes) {
    seen.push_back(used->report());
    CHECK(seen.back().requested == bytes);
    CHECK(used->report(bytes).tried.passes == seen.back().tried.passes);
    CHECK(used->report(bytes + 1).tried.passes == 0);
    CHECK(other.report().requested == 0);
    std::thread([&] { CHECK(used->report().requested == 0); }).join();
    return seen.size() % 3 != 0;
  };
  pool tested(o);
  used = &tested;
  void* const all = tested.allocate(mib);
  const memory_report r = report_of_refusal(tested, 5000);
  CHECK(r.tried.handler_calls == 3);
  CHECK(r.tried.passes == 3);
  REQUIRE(seen.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(seen[i].tried.passes == i + 1);
    CHECK(seen[i].tried.handler_calls == i + 1);
    CHECK(seen[i].tried.by_limit);
  }
  CHECK(contains(r.message(), "the handler was called 3 times"));
  CHECK(tested.try_allocate(5000) == nullptr);
  REQUIRE(seen.size() == 6);
  CHECK(seen.back().tried.passes == 3);
  CHECK(tested.report().requested == 0);
  tested.deallocate(all);
}

TEST_CASE("the ten tags that hold most") {
  options o = bounded(64 * mib);
  o.account_tags = true;
  pool tested(o);
  std::vector<std::pair<void*, std::size_t>> blocks;
  const std::string long_name(100, 'n');
  for (std::size_t i = 0; i < 15; ++i) {
    const tag_scope scope(i == 14 ? long_name : "report " + std::to_string(i));
    for (std::size_t k = 0; k <= i; ++k) blocks.emplace_back(tested.allocate(10'000 * (i + 1)), 10'000 * (i + 1));
  }
  const memory_report r = tested.report();
  CHECK(r.tags_accounted);
  CHECK(r.tag_count == 10);
  CHECK(std::string(r.tags[0].name) == long_name.substr(0, 47));
  for (std::size_t i = 0; i < 10; ++i) {
    CHECK(r.tags[i].blocks == 15 - i);
    CHECK(r.tags[i].requested == 10'000 * (15 - i) * (15 - i));
    CHECK(r.tags[i].peak_requested == r.tags[i].requested);
    CHECK(r.tags[i].allocated >= r.tags[i].requested);
    if (i != 0) CHECK(std::string(r.tags[i].name) == "report " + std::to_string(14 - i));
  }
  CHECK(contains(r.message(), "report 13: 1.9 MiB requested in 14 blocks, peak 1.9 MiB\n"));
  for (const auto& [block, bytes] : blocks) tested.deallocate(block, bytes);
  CHECK(tested.report().tag_count == 0);
}

TEST_CASE("an alignment counts in what is needed") {
  constexpr std::size_t capacity = 64 * kib;
  struct aligned_delete {
    void operator()(std::byte* bytes) const noexcept { ::operator delete[](bytes, std::align_val_t{capacity}); }
  };
  const std::unique_ptr<std::byte[], aligned_delete> buffer(new (std::align_val_t{capacity}) std::byte[capacity]);
  pool tested(make_fixed_buffer_source(buffer.get(), capacity), bounded(capacity));
  void* const all = tested.allocate(capacity);
  CHECK(report_of_refusal(tested, 1000).needed == kib);
  const memory_report r = report_of_refusal(tested, 1000, capacity);
  CHECK(r.needed == 4 * kib);  // the length is a multiple of a sixteenth of the alignment
  REQUIRE(r.find(remedy::more_memory) != nullptr);
  CHECK(r.find(remedy::more_memory)->bytes == 4 * kib);
  tested.deallocate(all);
}

TEST_CASE("text is cut to what it is given, ends with a zero, and never outgrows its bound") {
  memory_report r;
  const auto most = std::numeric_limits<std::size_t>::max();
  r.requested = r.needed = r.capacity = r.live = r.live_requested = r.cached = r.scattered = r.idle = most;
  r.limit = most - 1;
  r.committed = r.peak_requested = r.chunk = r.largest_now = r.largest_grown = r.graphs = r.more_lanes = most;
  r.live_blocks = most;
  r.fragmentation = 100;
  r.rest = {&r, true, most, most};
  r.lanes.fill(r.rest);
  r.lane_count = r.lanes.size();
  r.tried = {true, true, true, ~0U, true, true, true, most, most, true, ~0U, {}};
  std::memset(r.tried.source_error, 'e', sizeof r.tried.source_error - 1);
  for (std::size_t i = 0; i < r.helps.size(); ++i) r.helps[i] = {static_cast<remedy>(i % 11), most, most};
  r.help_count = r.helps.size();
  r.tags_accounted = true;
  for (memory_report::tag_figures& each : r.tags) {
    std::memset(each.name, 't', sizeof each.name - 1);
    each.requested = each.allocated = each.peak_requested = most;
    each.blocks = most;
  }
  r.tag_count = r.tags.size();
  std::vector<char> text(memory_report::most_text, 'x');
  const std::size_t length = r.print(text.data(), text.size());
  CHECK(length < memory_report::most_text);
  CHECK(std::strlen(text.data()) == length);
  CHECK(r.message() == text.data());
  const std::string whole = r.message();
  CHECK(whole.back() == '\n');
  CHECK(r.print(nullptr, 0) == length);
  for (const std::size_t room : {std::size_t{1}, std::size_t{2}, std::size_t{100}, length, length + 1}) {
    CAPTURE(room);
    std::fill(text.begin(), text.end(), 'x');
    CHECK(r.print(text.data(), room) == length);
    CHECK(std::string(text.data()) == whole.substr(0, room - 1));
    CHECK((room >= text.size() || text[room] == 'x'));
  }
}

#ifndef ORDERLY_TEST_SANITIZED
TEST_CASE("neither a refusal nor a report takes memory of the program") {
  options o = bounded(4 * mib);
  o.account_tags = true;
  pool tested(o);
  bench b(3, 4 * mib);
  std::array<char, memory_report::most_text> text;
  const auto refuse = [&] {
    CHECK_THROWS_AS(static_cast<void>(tested.allocate(8 * mib)), out_of_memory);
  };
  void* const block = tested.allocate(4 * mib);
  refuse();  // what is made once, is
  std::size_t before = allocations;
  try {
    static_cast<void>(tested.allocate(1));
  } catch (const out_of_memory& refused) {
    refused.report().print(text.data(), text.size());
    before = allocations - before;
  }
  CHECK(before == 0);
  tested.deallocate(block);
  void* const streams_block = b.tested->allocate(4 * mib, b[0]);
  CHECK(b.tested->try_allocate(1, b[0]) == nullptr);
  before = allocations;
  static_cast<void>(b.tested->report(mib));
  CHECK(allocations == before);
  b.tested->deallocate(streams_block, 4 * mib, b[0]);
}
#endif

}

TEST_SUITE("stress") {

TEST_CASE("random heaps: figures add up, the largest request is the largest, the named limit the lowest that will do") {
  for (std::uint64_t round = 0; round < scaled(200); ++round) {
    CAPTURE(round);
    random_engine random = make_random(1000 + round);
    constexpr std::size_t most = 16 * mib;  // up to such limits caches are bounded alike
    options o = bounded(64 * mib, most);
    o.chunk = 4 * kib << 2 * uniform(random, 0, 2);
    const std::uint64_t seed = random();
    const auto build = [seed](pool& in, traffic& blocks) {
      random_engine same(seed);
      for (std::size_t left = uniform(same, 1, 6); left != 0; --left) {
        if (in.stats().requested < 2 * mib) blocks.go(same, uniform(same, 1, 60), log_uniform(same, 1000, mib));
        if (uniform(same, 0, 1) == 0) blocks.keep_one_in(same, uniform(same, 1, 20));
        if (uniform(same, 0, 1) == 0) in.trim(in.stats().committed / 4 * uniform(same, 0, 3));
        if (uniform(same, 0, 3) == 0) in.reserve(uniform(same, 1, 2 * mib));
        if (uniform(same, 0, 3) == 0) in.defragment();
      }
    };
    // Whatever the limit is from its peak on, the heap is the same.
    std::size_t peak = 0;
    {
      pool alike(o);
      traffic blocks(alike);
      build(alike, blocks);
      peak = std::max(alike.stats().peak_committed, o.chunk);
    }
    o.limit = std::min(peak + (log_uniform(random, 1, 16) - 1) * o.chunk, most);
    const auto log = std::make_shared<source_log>();
    pool tested(make_failing_source(log), o);
    const detail::geometry shape = detail::virtual_geometry(tested.granule(), o.chunk, o.capacity, o.limit);
    traffic blocks(tested);
    build(tested, blocks);
    check_figures(tested.report());
    tested.defragment();
    const memory_report r = tested.report();
    check_figures(r);
    CHECK(r.cached == 0);
    CHECK(r.committed == log->committed());
    CHECK(r.live_blocks == blocks.blocks.size());
    std::size_t live = 0;
    std::size_t scattered = 0;
    tested.for_each_block([&](const block_info& block) {
      if (block.state == block_state::live) live += block.bytes;
      if (block.state == block_state::free && block.bytes < r.chunk) scattered += block.bytes;
    });
    CHECK(r.live == live);
    CHECK(r.scattered == scattered);
    check_largest(tested, *log, shape);
    CHECK(tested.report().largest_grown == r.largest_grown);
    CHECK((r.largest_grown == 0 || (is_served(tested, r.largest_now) && is_served(tested, r.largest_grown))));
    CHECK_FALSE(is_served(tested, r.largest_grown + 1));
    ORDERLY_CHECK_CONTRACT(*log);

    const std::size_t bytes = r.largest_grown + log_uniform(random, 1, mib);
    const memory_report refused = report_of_refusal(tested, bytes);
    check_figures(refused);
    REQUIRE(refused.find(remedy::raise_limit) != nullptr);
    const std::size_t enough = refused.find(remedy::raise_limit)->bytes;
    CHECK(enough <= most);
    for (const std::size_t fewer : {std::size_t{0}, o.chunk}) {
      CAPTURE(fewer);
      o.limit = enough - fewer;
      pool other(o);
      traffic same(other);
      build(other, same);
      other.defragment();
      CHECK(other.stats().committed == r.committed);
      void* const block = other.try_allocate(bytes);
      CHECK((block != nullptr) == (fewer == 0));
      other.deallocate(block, bytes);
    }
  }
}

TEST_CASE("random chunks are committed: the largest request that fits lies where a split or a slot gives it") {
  for (std::uint64_t round = 0; round < scaled(400); ++round) {
    CAPTURE(round);
    random_engine random = make_random(2000 + round);
    std::array<void*, 64> blocks{};  // those of one root
    std::array<bool, 64> stays{};
    const std::size_t eighths = uniform(random, 1, 7);
    for (bool& each : stays) each = uniform(random, 1, 8) <= eighths;
    const auto staying = static_cast<std::size_t>(std::ranges::count(stays, true));
    const std::size_t in_slot = uniform(random, 65, 200);
    options o = bounded(16 * mib);
    o.chunk = 4 * kib;
    o.limit = o.release_threshold = (staying + in_slot) * o.chunk;
    const auto log = std::make_shared<source_log>();
    pool tested(make_failing_source(log), o);
    const detail::geometry shape = detail::virtual_geometry(tested.granule(), o.chunk, o.capacity, o.limit);
    for (void*& block : blocks) block = tested.allocate(o.chunk);
    std::ranges::sort(blocks);
    for (std::size_t i = 0; i < blocks.size(); ++i)
      if (!stays[i]) tested.deallocate(std::exchange(blocks[i], nullptr), o.chunk);
    tested.trim();
    for (void* const block : blocks) tested.deallocate(block, o.chunk);
    tested.defragment();
    std::vector<void*> others;
    if (uniform(random, 0, 1) == 0) {  // and a slot, which gives back what others need
      tested.deallocate(tested.allocate(in_slot * o.chunk), in_slot * o.chunk);
      for (std::size_t left = uniform(random, 1, 3); left != 0; --left)
        others.push_back(tested.try_allocate(uniform(random, 1, 64) * o.chunk));
      tested.defragment();
    }
    check_figures(tested.report());
    check_largest(tested, *log, shape);
    for (void* const block : others) tested.deallocate(block);
    ORDERLY_CHECK_CONTRACT(*log);
  }
}

TEST_CASE("reports while threads allocate, free, are refused, and streams come and go: nothing is out of its bounds") {
  constexpr std::size_t threads = 4;
  options o = bounded(64 * mib, 8 * mib);
  o.account_tags = true;
  pool tested(o);
  findings found;
  const auto check = [&found](const memory_report& r) {
    found.expect(r.committed <= r.limit, r.committed, " are committed");
    found.expect(r.lane_count <= 8 && r.tag_count <= 10 && r.help_count <= memory_report::most_advice, "too many");
    found.expect(r.scattered + r.idle <= r.capacity, r.scattered, " and ", r.idle, " are free");
    found.expect(!r.message().empty(), "no text");
  };
  run_threads(threads, [&](std::size_t self) {
    random_engine random = make_random(100 + self);
    const tag_scope scope("thread " + std::to_string(self));
    traffic blocks(tested);
    for (std::size_t i = 0; i < scaled(200); ++i) {
      blocks.go(random, 100, mib);
      try {
        const std::size_t bytes = uniform(random, 1, 8 * mib);
        tested.deallocate(tested.allocate(bytes), bytes);
      } catch (const out_of_memory& refused) {
        check(refused.report());
      }
      if (i % 16 == self) check(tested.report());
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(tested);

  bench b(0, 16 * mib);
  run_threads(threads, [&](std::size_t self) {
    for (std::size_t i = 0; i < scaled(400); ++i) {
      if (self == 0) {
        check(b.tested->report(mib));
        continue;
      }
      software_stream stream(b.device);
      void* const block = b.tested->try_allocate(50'000 * self, stream.handle());
      if (block != nullptr) b.tested->deallocate(block, 50'000 * self, stream.handle());
      b.tested->release_stream(stream.handle());
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(*b.tested);
}

}
