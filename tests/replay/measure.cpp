// Statistics and the search for the smallest limit: bench/replay/measure.hpp, bench/latency.hpp, bench/clock.hpp.
#include "measure.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

#include "tiny_peers.hpp"

using namespace orderly::bench;
using orderly::test::counting_peer;

namespace {

constexpr std::uint64_t kib = 1024;

std::unique_ptr<any_peer> make_counting(const arena_config& arena) {
  return std::make_unique<counting_peer>(arena.limit != 0 ? arena.limit : arena.capacity);
}

/// An arena that needs this much more than what is live.
constexpr std::size_t waste = 300 * kib;
std::unique_ptr<any_peer> make_wasteful(const arena_config& arena) {
  const std::size_t limit = arena.limit != 0 ? arena.limit : arena.capacity;
  return std::make_unique<counting_peer>(limit > waste ? limit - waste : 0);
}

const peer_entry counting{"counting", true, make_counting};
const peer_entry wasteful{"wasteful", true, make_wasteful};
const peer_entry missing{"missing", true, [](const arena_config&) { return std::unique_ptr<any_peer>(); }};

/// Two blocks at once, then one.
trace small_trace() {
  trace made;
  made.blocks = 3;
  made.threads = 1;
  made.events = {{100 * kib, 0, 0, action::allocate},
                 {50 * kib, 1, 0, action::allocate},
                 {100 * kib, 0, 0, action::free},
                 {10 * kib, 2, 0, action::allocate},
                 {50 * kib, 1, 0, action::free}};
  made.peak_live_bytes = 150 * kib;
  return made;
}

}  // namespace

TEST_CASE("percentiles are of the nearest rank, less the clock's own time") {
  std::vector<std::uint64_t> ticks(1000);
  std::iota(ticks.rbegin(), ticks.rend(), 1U);
  const latency times = summarise(ticks, {.nanoseconds_per_tick = 2, .overhead = 10});
  CHECK(times.p50 == 2 * (500 - 10));
  CHECK(times.p99 == 2 * (990 - 10));
  CHECK(times.p999 == 2 * (999 - 10));
  CHECK(times.max == 2 * (1000 - 10));
}

TEST_CASE("percentiles of few samples, and of none") {
  std::vector<std::uint64_t> one{7};
  CHECK(summarise(one, {}).p50 == 7);
  CHECK(summarise(one, {}).p999 == 7);
  std::vector<std::uint64_t> short_ones{3, 4};
  CHECK(summarise(short_ones, {.nanoseconds_per_tick = 1, .overhead = 5}).max == 0);
  std::vector<std::uint64_t> none;
  CHECK(summarise(none, {}).max == 0);
}

TEST_CASE("the clock agrees with the system's") {
  const clock_scale scale = calibrate_clock();
  CHECK(scale.nanoseconds_per_tick > 0);
  CHECK(static_cast<double>(scale.overhead) * scale.nanoseconds_per_tick < 2000);
  const auto before = std::chrono::steady_clock::now();
  const std::uint64_t begin = section_begin();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::uint64_t end = section_end();
  const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - before;
  const double measured = static_cast<double>(end - begin) * scale.nanoseconds_per_tick;
  CHECK(measured >= 49e6);
  CHECK(measured <= elapsed.count() * 1.02);
}

TEST_CASE("a measurement") {
  const replay_plan plan = plan_replay(small_trace(), 1);
  const measurement m = measure(counting, {}, plan, {}, 3, calibrate_clock());
  CHECK(m.operations == 5);
  CHECK(m.failures == 0);
  CHECK(m.refused_frees == 0);
  CHECK(m.peak_live_bytes == 150 * kib);
  CHECK(m.peak_committed_bytes == 150 * kib);
  CHECK_FALSE(m.smallest_limit_bytes.has_value());
  CHECK(m.nanoseconds_per_operation > 0);
  CHECK(m.allocate.max >= m.allocate.p50);
}

TEST_CASE("failures within a limit are counted once for all repetitions") {
  const replay_plan plan = plan_replay(small_trace(), 1);
  const measurement m = measure(counting, {.limit = 120 * kib}, plan, {}, 4, {});
  CHECK(m.failures == 1);
  CHECK(m.operations == 4);
  CHECK(m.peak_committed_bytes == 100 * kib);
}

TEST_CASE("an allocator that is not available") {
  const replay_plan plan = plan_replay(small_trace(), 1);
  CHECK_THROWS_WITH_AS(static_cast<void>(measure(missing, {}, plan, {}, 1, {})), "missing is not available here",
                       std::runtime_error);
}

TEST_CASE("the smallest limit, to the chunk") {
  const replay_plan plan = plan_replay(small_trace(), 1);
  const std::uint64_t peak = small_trace().peak_live_bytes;
  CHECK(find_smallest_limit(counting, {}, plan, peak) == 192 * kib);
  CHECK(find_smallest_limit(counting, {.chunk = 4 * kib}, plan, peak) == 152 * kib);
  CHECK(find_smallest_limit(wasteful, {}, plan, peak) == 512 * kib);
  for (std::uint64_t chunk = 4 * kib; chunk <= 1024 * kib; chunk *= 2) {
    CAPTURE(chunk);
    const std::uint64_t needed = 450 * kib;
    CHECK(find_smallest_limit(wasteful, {.chunk = chunk}, plan, peak) == (needed + chunk - 1) / chunk * chunk);
  }
}

TEST_CASE("no limit up to the capacity is enough") {
  const replay_plan plan = plan_replay(small_trace(), 1);
  const std::uint64_t peak = small_trace().peak_live_bytes;
  CHECK_FALSE(find_smallest_limit(wasteful, {.capacity = 448 * kib}, plan, peak).has_value());
  CHECK(find_smallest_limit(wasteful, {.capacity = 512 * kib}, plan, peak) == 512 * kib);
  CHECK_FALSE(find_smallest_limit(counting, {.capacity = 128 * kib}, plan, peak).has_value());
}
