// A cache of tensors: what is a hit, what comes back to the pool and when, in which order, and what is refused.
#include "orderly/tensor_cache.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "annotate.hpp"
#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/choices.hpp"
#include "support/lockstep_threads.hpp"
#include "support/process.hpp"
#include "support/random.hpp"
#include "support/same_fingerprint.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/tensor_model.hpp"
#include "support/threads.hpp"

#ifdef ORDERLY_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

using namespace orderly;
using namespace orderly::test;

namespace {

using namespace orderly::tensor_types;

/// A layout of that many bytes.
[[nodiscard]] tensor_layout of_bytes(std::size_t bytes) {
  return tensor_layout({static_cast<std::int64_t>(bytes)}, uint8);
}

[[nodiscard]] options quiet(std::size_t capacity) { return {.capacity = capacity, .on_bad_free = on_bad_free::count}; }

/// hand-outs = hits + misses; held = live + kept.
void check_figures(const tensor_cache& of, std::size_t live_bytes) {
  const tensor_statistics s = of.stats();
  CHECK(s.held == s.kept + live_bytes);
  CHECK(s.kept <= s.limit);
  CHECK(s.compatible <= s.hits);
}

[[nodiscard]] bool alike(const tensor& a, const tensor& b) {
  return a.data == b.data && a.bytes == b.bytes && a.type == b.type && a.device == b.device &&
         std::equal(a.shape.begin(), a.shape.end(), b.shape.begin(), b.shape.end()) &&
         std::equal(a.strides.begin(), a.strides.end(), b.strides.begin(), b.strides.end());
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a freed tensor is its likes' again at once: the same memory, the same descriptor, another handle") {
  for (const std::size_t kibs : {1UL, 1024UL, 3000UL, 16384UL}) {
    CAPTURE(kibs);
    pool tested(quiet(256 * mib));
    {
      tensor_cache cache(tested, {.device = {2, 3}});
      const tensor_layout layout({static_cast<std::int64_t>(kibs), 256}, float32);
      const tensor first = cache.empty(layout);
      CHECK(first);
      CHECK(first.bytes == kibs * kib);
      CHECK(first.shape.size() == 2);
      CHECK(first.shape[1] == 256);
      CHECK(first.strides[0] == 256);
      CHECK(first.type == float32);
      CHECK(first.device == tensor_device{2, 3});
      CHECK(first.stream == nullptr);
      CHECK(reinterpret_cast<std::uintptr_t>(first.data) % 256 == 0);
      CHECK(tested.block_size(first.data) >= first.bytes);
      CHECK(cache.owns(first));
      std::memset(first.data, 1, first.bytes);
      cache.free(first);
      CHECK_FALSE(cache.owns(first));
      CHECK(tested.stats().allocated != 0);  // it is kept
      const tensor second = cache.empty(layout);
      CHECK(alike(first, second));
      CHECK(first.shape.data() == second.shape.data());
      CHECK_FALSE(first.handle == second.handle);
      const tensor third = cache.empty({static_cast<std::int64_t>(kibs), 256}, float32);
      CHECK(third.data != second.data);
      const tensor_statistics s = cache.stats();
      CHECK(s.hits == 1);
      CHECK(s.misses == 2);
      CHECK(s.compatible == 0);
      CHECK(s.live_tensors == 2);
      check_figures(cache, 2 * kibs * kib);
      cache.free(second);
      cache.free(third);
      CHECK(cache.stats().kept_tensors == 2);
      check_figures(cache, 0);
    }
    check_idle(tested);
    CHECK(tested.stats().bad_frees == 0);
  }
}

TEST_CASE("a tensor of another layout with the same fingerprint is no hit for that") {
  const same_fingerprint both = make_same_fingerprint();
  pool plain(quiet(64 << 20));
  tensor_cache cache(plain);
  cache.free(cache.empty(both.a));
  const tensor got = cache.empty(both.b);
  CHECK(got.type == tensor_types::int32);
  CHECK(got.strides[0] == both.b.strides()[0]);
  cache.free(got);
  CHECK(cache.stats().bad_frees == 0);
}

TEST_CASE("at hand is what is kept, and a free that keeps") {
  pool plain(quiet(64 << 20));
  tensor_cache cache(plain, {.limit = 4096});
  const tensor_layout layout = of_bytes(3000);
  CHECK_FALSE(cache.empty_at_hand(layout));
  CHECK_FALSE(cache.empty_at_hand(layout, nullptr));
  const tensor first = cache.empty(layout);
  CHECK(cache.free_at_hand(first));
  CHECK_FALSE(cache.free_at_hand(first));
  CHECK_FALSE(cache.free_at_hand({}));
  const tensor second = cache.empty_at_hand(layout);
  REQUIRE(second);
  CHECK(alike(second, first));
  CHECK_FALSE(cache.empty_at_hand(layout));
  const tensor third = cache.empty(layout);  // past the limit: none is kept
  CHECK_FALSE(cache.free_at_hand(third));
  cache.free(third);
  CHECK(cache.free_at_hand(second));
  const tensor empty = cache.empty(of_bytes(0));
  CHECK_FALSE(cache.free_at_hand(empty));
  cache.free(empty);
  CHECK(cache.stats().bad_frees == 0);
  CHECK(plain.stats().bad_frees == 0);

  bench b(2, 64 << 20);
  tensor_cache in_streams(*b.tested);
  CHECK_FALSE(in_streams.empty_at_hand(layout, b[0]));
  const tensor mine = in_streams.empty(layout, b[0]);
  CHECK(in_streams.free_at_hand(mine));
  CHECK_FALSE(in_streams.empty_at_hand(layout));
  CHECK_FALSE(in_streams.empty_at_hand(layout, b[1]));
  const tensor again = in_streams.empty_at_hand(layout, b[0]);
  CHECK(again.data == mine.data);
  b.tested->release_stream(b[0]);
  CHECK_FALSE(in_streams.free_at_hand(again));
  in_streams.free(again, b[1]);
}

TEST_CASE("compatible memory: at most an eighth larger, of the same stream, with a descriptor of its own") {
  pool tested(quiet(256 * mib));
  tensor_cache cache(tested);
  const tensor large = cache.empty({9, 1024}, int8);
  const tensor small = cache.empty({8, 1024}, int8);
  void* const memory = large.data;
  cache.free(large);
  SUBCASE("exactly as large as allowed") {
    const tensor other = cache.empty({2, 4, 512}, int16);
    CHECK(other.data == memory);
    CHECK(other.bytes == 8192);
    CHECK(other.shape.size() == 3);
    CHECK(other.strides[0] == 2048);
    CHECK(cache.stats().compatible == 1);
    // What it holds is its memory, not its layout; and it is kept under its new layout.
    CHECK(cache.stats().held == 9 * 1024 + 8 * 1024);
    cache.free(other);
    const tensor again = cache.empty({2, 4, 512}, int16);
    CHECK(again.data == memory);
    CHECK(cache.stats().compatible == 1);
    CHECK(cache.stats().hits == 2);
    cache.free(again);
    // Waste does not add up: its layout would do for what is a little smaller, its memory is too large.
    const tensor smaller = cache.empty({7700}, int8);
    CHECK(smaller.data != memory);
    cache.free(smaller);
  }
  SUBCASE("a byte too large") {
    const tensor other = cache.empty({8191}, int8);
    CHECK(other.data != memory);
    CHECK(cache.stats().compatible == 0);
    CHECK(cache.empty({9, 1024}, int8).data == memory);
  }
  SUBCASE("too small") {
    const tensor other = cache.empty({9217}, int8);
    CHECK(other.data != memory);
    CHECK(cache.stats().hits == 0);
  }
  SUBCASE("an exact one comes first") {
    cache.free(small);
    CHECK(cache.empty({8, 1024}, int8).data == small.data);
    CHECK(cache.stats().compatible == 0);
  }
}

TEST_CASE("without waste, memory of exactly as many bytes is compatible, and no other") {
  pool tested(quiet(64 * mib));
  tensor_cache cache(tested, {.waste = 0});
  const tensor some = cache.empty({4096}, int8);
  cache.free(some);
  CHECK(cache.empty({4095}, int8).data != some.data);
  CHECK(cache.empty({32, 32}, float32).data == some.data);
}

TEST_CASE("tensors without elements have no memory, and are tensors all the same") {
  pool tested(quiet(mib));
  {
    tensor_cache cache(tested);
    const tensor none = cache.empty({0, 4}, float32);
    CHECK(none);
    CHECK(none.data == nullptr);
    CHECK(none.bytes == 0);
    CHECK(none.shape[1] == 4);
    const tensor other = cache.empty({0, 4}, float32);
    CHECK_FALSE(other.handle == none.handle);
    CHECK(cache.try_free(none) == error::none);
    CHECK(cache.try_free(none) == error::double_free);
    CHECK(cache.owns(other));
    CHECK(cache.stats().kept_tensors == 0);
    CHECK(cache.stats().live_tensors == 1);
  }
  check_idle(tested);
}

TEST_CASE("bad frees change nothing, and say what they are") {
  pool tested(quiet(16 * mib));
  tensor_cache cache(tested);
  tensor_cache other(tested);
  const tensor_layout layout({1000}, float32);
  const tensor live = cache.empty(layout);
  const tensor freed = cache.empty(of_bytes(100));
  cache.free(freed);
  const tensor foreign = other.empty(layout);
  bad_free report;
  std::uint64_t refused = 0;
  const auto expect = [&](const tensor& bad, error code, const char* text) {
    CAPTURE(text);
    const books before = books_of(tested);
    const tensor_statistics figures = cache.stats();
    CHECK(cache.try_free(bad, &report) == code);
    CHECK(report.code == code);
    CHECK(report.message().find(text) != std::string::npos);
    CHECK_THROWS_AS(cache.free_or_throw(bad), bad_free_error);
    CHECK_THROWS_AS((void)cache.give_out(bad), bad_free_error);
    cache.free(bad);
    refused += 4;
    CHECK_FALSE(cache.owns(bad));
    CHECK(same_books(before, books_of(tested)));
    const tensor_statistics now = cache.stats();
    CHECK(now.bad_frees == refused);
    CHECK(now.kept == figures.kept);
    CHECK(now.live_tensors == figures.live_tensors);
    CHECK(now.exported == 0);
  };
  expect(freed, error::double_free, "double free");
  expect(foreign, error::wrong_pool, "another pool");
  tensor forged = live;
  forged.handle.generation += 2;
  expect(forged, error::foreign_pointer, "foreign");
  forged = live;
  forged.handle.generation = 0;
  expect(forged, error::foreign_pointer, "foreign");
  forged = live;
  forged.handle.generation += 1;
  expect(forged, error::foreign_pointer, "foreign");
  forged = live;
  forged.handle.record = ~0U;
  expect(forged, error::foreign_pointer, "foreign");
  forged = live;
  forged.handle.record = 100000;  // never made
  expect(forged, error::foreign_pointer, "foreign");
  forged = live;
  forged.handle.cache = ~std::uint64_t{0};
  expect(forged, error::foreign_pointer, "foreign");
  forged = live;
  forged.data = static_cast<std::byte*>(live.data) + 256;
  expect(forged, error::foreign_pointer, "foreign");
  const tensor again = cache.empty(of_bytes(100));
  CHECK(again.data == freed.data);
  expect(freed, error::stale_handle, "handed out with another handle 1 time since");

  cache.free(tensor{});  // no tensor
  CHECK(cache.try_free(tensor{}) == error::none);
  CHECK_THROWS_AS((void)cache.give_out(tensor{}), bad_free_error);
  CHECK(cache.owns(live));
  CHECK(cache.try_free(live, reinterpret_cast<stream_handle>(&report)) == error::invalid_argument);  // no streams here
  CHECK(cache.owns(live));
  CHECK(cache.record_stream(live, nullptr) == error::invalid_argument);
  CHECK(cache.record_stream(freed, nullptr) == error::stale_handle);
  CHECK(cache.try_free(live) == error::none);
  other.free(foreign);
  cache.free(again);
}

TEST_CASE("bad options and bad requests are refused") {
  pool tested(quiet(16 * mib));
  CHECK_THROWS_AS(tensor_cache(tested, {.alignment = 3}), std::invalid_argument);
  CHECK_THROWS_AS(tensor_cache(tested, {.alignment = tested.chunk() * 2}), std::invalid_argument);
  CHECK_THROWS_AS(tensor_cache(tested, {.waste = 0.2}), std::invalid_argument);
  CHECK_THROWS_AS(tensor_cache(tested, {.waste = -1}), std::invalid_argument);
  CHECK_THROWS_AS(tensor_cache(tested, {.tensors = (std::size_t{1} << 22) + 1}), std::invalid_argument);
  pool moved(std::move(tested));
  CHECK_THROWS_AS(tensor_cache{tested}, std::invalid_argument);
  tensor_cache cache(moved);
  CHECK_THROWS_AS((void)cache.empty({-1}, float32), std::invalid_argument);
  CHECK_THROWS_AS((void)cache.empty(of_bytes(32 * mib)), out_of_memory);
  CHECK_FALSE(cache.try_empty(of_bytes(32 * mib)));
  CHECK_THROWS_AS((void)cache.empty(of_bytes(1), reinterpret_cast<stream_handle>(&moved)), std::invalid_argument);
  CHECK_FALSE(cache.try_empty(of_bytes(1), reinterpret_cast<stream_handle>(&moved)));
  CHECK(cache.stats().held == 0);
  CHECK(cache.stats().misses == 0);
  CHECK(cache.stats().live_tensors == 0);
}

TEST_CASE("alignment") {
  pool tested(quiet(16 * mib));
  for (const std::size_t alignment : {64UL, 256UL, 4096UL, 65536UL}) {
    tensor_cache cache(tested, {.alignment = alignment});
    for (const std::size_t bytes : {1UL, 300UL, 5000UL, 100000UL}) {
      const tensor one = cache.empty(of_bytes(bytes));
      const tensor two = cache.empty(of_bytes(bytes));
      CHECK(reinterpret_cast<std::uintptr_t>(one.data) % alignment == 0);
      CHECK(reinterpret_cast<std::uintptr_t>(two.data) % alignment == 0);
      cache.free(one);
      cache.free(two);
    }
  }
  CHECK(tested.stats().bad_frees == 0);
  check_idle(tested);
}

TEST_CASE("what is kept stays within the limit; a miss makes room; live tensors may exceed it") {
  pool tested(quiet(64 * mib));
  tensor_cache cache(tested, {.limit = 100 * 1000});
  std::vector<tensor> all;
  for (int i = 0; i < 100; ++i) all.push_back(cache.empty(of_bytes(10000)));
  CHECK(cache.stats().held == 1000000);
  for (int i = 0; i < 100; ++i) {
    cache.free(all[static_cast<std::size_t>(i)]);
    check_figures(cache, 10000 * static_cast<std::size_t>(99 - i));
  }
  // 90 went straight to the pool, which left the last ten within the limit.
  CHECK(cache.stats().kept == 100000);
  CHECK(cache.stats().evictions == 0);
  const tensor other = cache.empty(of_bytes(45000));
  CHECK(cache.stats().kept == 50000);
  CHECK(cache.stats().evictions == 5);
  check_figures(cache, 45000);
  const tensor beyond = cache.empty(of_bytes(200000));
  CHECK(cache.stats().kept == 0);
  CHECK(cache.stats().evictions == 10);
  cache.free(other);
  CHECK(cache.stats().kept == 0);  // the live one alone exceeds the limit
  cache.free(beyond);
  CHECK(cache.stats().held == 0);
  check_idle(tested);
}

TEST_CASE("order of giving up: the layout that was used longest ago, of it what was freed first; trim() says how much") {
  pool tested(quiet(64 * mib));
  tensor_cache cache(tested);
  const tensor_layout a = of_bytes(20000), b = of_bytes(40000), c = of_bytes(80000), tick = of_bytes(0);
  const auto pass_time = [&] { cache.free(cache.empty(tick)); };
  std::vector<tensor> of_a, of_b, of_c;
  for (int i = 0; i < 3; ++i) {
    of_a.push_back(cache.empty(a));
    of_b.push_back(cache.empty(b));
    of_c.push_back(cache.empty(c));
  }
  const auto free_all = [&](const std::vector<tensor>& tensors) {
    for (const tensor& each : tensors) {
      cache.free(each);
      pass_time();
    }
  };
  free_all(of_b);
  free_all(of_a);
  free_all(of_c);
  cache.free(cache.empty(a));  // its newest: it is the latest used now
  const auto is_kept = [&](const tensor& each) { return tested.block_size(each.data) != 0; };
  const std::vector<tensor> order{of_b[0], of_b[1], of_b[2], of_c[0], of_c[1], of_c[2], of_a[0], of_a[1], of_a[2]};
  std::size_t kept = cache.stats().kept;
  for (std::size_t gone = 0; gone < order.size(); ++gone) {
    CAPTURE(gone);
    for (std::size_t i = 0; i < order.size(); ++i) CHECK(is_kept(order[i]) == (i >= gone));
    CHECK(cache.trim(kept) == 0);
    CHECK(cache.trim(kept - 1) == order[gone].bytes);
    kept -= order[gone].bytes;
    CHECK(cache.stats().kept == kept);
    CHECK(cache.stats().evictions == gone + 1);
    tested.trim(tested.stats().committed);
  }
  CHECK(cache.trim() == 0);
  CHECK(cache.stats().held == 0);
}

TEST_CASE("of what several threads have freed, the first goes first, too") {
  pool tested(quiet(64 * mib));
  tensor_cache cache(tested);
  std::vector<tensor> all;
  for (int i = 0; i < 12; ++i) all.push_back(cache.empty(of_bytes(2000)));
  for (const tensor& each : all) {
    std::thread([&] { cache.free(each); }).join();
    cache.free(cache.empty(of_bytes(0)));  // time passes
  }
  for (std::size_t gone = 0; gone < all.size(); ++gone) {
    CHECK(cache.trim((all.size() - gone) * 2000 - 1) == 2000);
    for (std::size_t i = 0; i < all.size(); ++i) CHECK((tested.block_size(all[i].data) != 0) == (i > gone));
  }
}

TEST_CASE("trim gives up as many as it takes, and what is left is served in the order as before") {
  pool tested(quiet(64 * mib));
  tensor_cache cache(tested);
  std::vector<tensor> all;
  for (int i = 0; i < 10; ++i) all.push_back(cache.empty(of_bytes(1000)));
  for (const tensor& each : all) {
    cache.free(each);
    cache.free(cache.empty(of_bytes(0)));  // time passes
  }
  CHECK(cache.trim(4500) == 6000);
  for (std::size_t i = 10; i-- > 6;) CHECK(cache.empty(of_bytes(1000)).data == all[i].data);  // newest first
  CHECK(cache.stats().kept == 0);
}

TEST_CASE("more layouts of about the same bytes than a row has shelves: the one that was used longest ago gives way") {
  pool tested(quiet(64 * mib));
  tensor_cache cache(tested, {.waste = 0});
  std::vector<tensor> all;
  for (std::int64_t i = 0; i < 9; ++i) all.push_back(cache.empty({i + 1, 5040 / (i + 1)}, int8));
  for (std::size_t i = 0; i < 8; ++i) {
    cache.free(all[i]);
    cache.free(cache.empty(of_bytes(0)));  // time passes
  }
  CHECK(cache.stats().kept_tensors == 8);
  cache.free(all[8]);
  CHECK(cache.stats().kept_tensors == 8);
  CHECK(cache.stats().evictions == 1);
  CHECK(tested.block_size(all[0].data) == 0);
  CHECK(cache.empty({9, 560}, int8).data == all[8].data);
  CHECK(cache.empty({2, 2520}, int8).data == all[1].data);
}

TEST_CASE("a pool that would refuse an allocation gets back what is kept, whoever asks; then the handler is asked") {
  int asked = 0;
  pool tested(options{.capacity = 4 * mib, .on_out_of_memory = [&](std::size_t) {
                        ++asked;
                        return false;
                      }});
  tensor_cache one(tested, {.limit = 64 * mib});
  tensor_cache two(tested, {.limit = 64 * mib});
  std::vector<std::pair<tensor_cache*, tensor>> all;
  for (int i = 0; i < 32; ++i) {
    tensor_cache& from = i % 2 == 0 ? one : two;
    all.emplace_back(&from, from.empty(of_bytes(128 * kib)));
  }
  const auto free_all = [&] {
    for (const auto& [from, each] : all) from->free(each);
    all.clear();
  };
  SUBCASE("the program itself") {
    free_all();
    CHECK(one.stats().kept + two.stats().kept == 4 * mib);
    void* const block = tested.allocate(3 * mib);
    CHECK(asked == 0);
    CHECK(one.stats().kept + two.stats().kept <= 1 * mib);
    CHECK(one.stats().kept + two.stats().kept > 0);  // no more than needed, as far as it fits
    tested.deallocate(block, 3 * mib);
  }
  SUBCASE("another cache") {
    free_all();
    const tensor large = two.empty(of_bytes(4 * mib));
    CHECK(asked == 0);
    CHECK(one.stats().held == 0);
    two.free(large);
  }
  SUBCASE("what is live stays") {
    for (std::size_t i = 1; i < all.size(); ++i) all[i].first->free(all[i].second);
    CHECK(tested.try_allocate(4 * mib) == nullptr);
    CHECK(asked == 1);
    CHECK(one.stats().kept + two.stats().kept == 0);
    CHECK(one.owns(all[0].second));
    all.resize(1);
    free_all();
  }
  SUBCASE("trim of the pool") {
    free_all();
    CHECK(tested.trim(2 * mib) >= 2 * mib);
    CHECK(tested.stats().committed <= 2 * mib);
    CHECK(one.stats().kept + two.stats().kept == 2 * mib);
    CHECK(tested.trim() == 2 * mib);
    CHECK(one.stats().kept + two.stats().kept == 0);
  }
  CHECK(tested.stats().bad_frees == 0);
}

TEST_CASE("as many tensors as there may be: what is kept gives way, else there are no more") {
  pool tested(quiet(16 * mib));
  tensor_cache cache(tested, {.tensors = 4});
  std::vector<tensor> all;
  for (int i = 0; i < 4; ++i) all.push_back(cache.empty(of_bytes(1000)));
  CHECK_THROWS_AS((void)cache.empty(of_bytes(5000)), std::bad_alloc);
  CHECK_FALSE(cache.try_empty(of_bytes(0)));
  cache.free(all.back());
  CHECK(cache.stats().kept_tensors == 1);
  CHECK(cache.empty(of_bytes(5000)));
  CHECK(cache.stats().kept_tensors == 0);
}

TEST_CASE("the cache goes before its tensors, and the pool before the cache") {
  std::optional<pool> tested(std::in_place, quiet(16 * mib));
  SUBCASE("the cache first: it frees what is live, but not what was given out") {
    exported_tensor given;
    {
      tensor_cache cache(*tested);
      const tensor live = cache.empty(of_bytes(1000));
      cache.free(cache.empty(of_bytes(3000)));
      given = cache.give_out(cache.empty(of_bytes(5000)));
      CHECK(cache.stats().exported == 1);
      CHECK(cache.stats().live_tensors == 2);
      CHECK(live);
    }
    CHECK(tested->stats().allocations - tested->stats().frees == 1);
    std::memset(given.of.data, 1, given.of.bytes);
    CHECK(given.of.shape[0] == 5000);
    release_export(given.storage);
    check_idle(*tested);
  }
  SUBCASE("the pool first") {
    tensor_cache cache(*tested);
    const tensor live = cache.empty(of_bytes(1000));
    cache.free(cache.empty(of_bytes(3000)));
    const exported_tensor given = cache.give_out(cache.empty(of_bytes(5000)));
    tested.reset();
    bad_free report;
    CHECK(cache.try_free(live, &report) == error::pool_gone);
    CHECK(report.message().find("pool is gone") != std::string::npos);
    CHECK(cache.try_free(tensor{}) == error::none);
    {
      const captured_stderr written;
      cache.free(live);
      CHECK(written.text().find("pool is gone") != std::string::npos);
    }
    CHECK_THROWS_AS((void)cache.empty(of_bytes(1000)), std::invalid_argument);
    CHECK_THROWS_AS((void)cache.give_out(live), bad_free_error);
    CHECK_FALSE(cache.try_empty(of_bytes(3000)));
    CHECK(cache.record_stream(live, nullptr) == error::pool_gone);
    CHECK(cache.trim() == 0);
    release_export(given.storage);
  }
  SUBCASE("the pool first, then the cache, and what was given out at last") {
    std::optional<tensor_cache> cache(std::in_place, *tested);
    const exported_tensor given = cache->give_out(cache->empty(of_bytes(5000)));
    tested.reset();
    cache.reset();
    release_export(given.storage);
  }
  SUBCASE("the pool moves") {
    tensor_cache cache(*tested);
    const tensor live = cache.empty(of_bytes(1000));
    pool elsewhere(std::move(*tested));
    tested.reset();
    cache.free(live);
    CHECK(cache.empty(of_bytes(1000)).data == live.data);
  }
}

TEST_CASE("a tensor that was given out is its owner's: its handle is a freed one's, and it is freed once") {
  pool tested(quiet(16 * mib));
  tensor_cache cache(tested);
  const tensor some = cache.empty({10, 20}, float32);
  const exported_tensor given = cache.give_out(some);
  CHECK(alike(given.of, some));
  CHECK_FALSE(given.of);
  CHECK(reinterpret_cast<std::uintptr_t>(given.storage) % 16 == 0);
  std::memset(given.storage, 7, exported_tensor::export_bytes);
  CHECK(cache.try_free(some) == error::double_free);
  CHECK_FALSE(cache.owns(some));
  CHECK(cache.empty({10, 20}, float32).data != some.data);
  CHECK(cache.stats().exported == 1);
  std::thread([&] { release_export(given.storage); }).join();
  CHECK(cache.stats().exported == 0);
  release_export(given.storage);  // once too often
  CHECK(cache.stats().bad_frees == 2);
  release_export(nullptr);
  CHECK(cache.stats().kept_tensors == 1);
  const tensor again = cache.empty({10, 20}, float32);
  CHECK(again.data == some.data);
  cache.free(again);
  CHECK(tested.stats().bad_frees == 0);
}

TEST_CASE("threads that end leave what they freed to others") {
  pool tested(quiet(128 * mib));
  {
    tensor_cache cache(tested);
    std::vector<tensor> all;
    for (int i = 0; i < 20; ++i) all.push_back(cache.empty(of_bytes(2 * mib)));
    for (const tensor& each : all) std::thread([&] { cache.free(each); }).join();
    CHECK(cache.stats().kept_tensors == 20);
    for (int i = 0; i < 20; ++i) std::thread([&] { static_cast<void>(cache.empty(of_bytes(2 * mib))); }).join();
    CHECK(cache.stats().hits == 20);
    CHECK(cache.stats().live_tensors == 20);
  }
  check_idle(tested);
}

TEST_CASE("memory that was freed in the pool behind the cache is told, and nothing else happens") {
  pool tested(quiet(16 * mib));
  tensor_cache cache(tested, {.limit = 1});
  const tensor some = cache.empty(of_bytes(1000));
  tested.deallocate(some.data, 1000);
  cache.free(some);
  CHECK(tested.stats().bad_frees == 1);
  CHECK(cache.stats().held == 0);
}

TEST_CASE("a process forks: parent and child go on with what was kept") {
  pool tested(quiet(16 * mib));
  tensor_cache cache(tested);
  const tensor live = cache.empty(of_bytes(1000));
  cache.free(cache.empty(of_bytes(5000)));
  const pid_t child = fork();
  if (child == 0) {
    cache.free(live);
    const bool right = cache.empty(of_bytes(1000)).data == live.data && cache.trim() == 5000;
    _exit(right ? 0 : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  cache.free(live);
  CHECK(cache.trim() == 6000);
}

#ifdef ORDERLY_ADDRESS_SANITIZER

TEST_CASE("to tools that watch memory what is kept is free, and a compatible tensor ends where its bytes do") {
  pool tested(quiet(64 * mib));
  for (const std::size_t bytes : {9216UL, 9 * mib}) {
    tensor_cache cache(tested);
    const tensor some = cache.empty(of_bytes(bytes));
    auto* const start = static_cast<char*>(some.data);
    const auto is_free = [&] { return __asan_address_is_poisoned(start) != 0 && __asan_address_is_poisoned(start + bytes - 1) != 0; };
    const auto ends_at = [&](std::size_t end) {
      return __asan_region_is_poisoned(start, end) == nullptr && __asan_address_is_poisoned(start + end) != 0;
    };
    CHECK_FALSE(is_free());
    cache.free(some);
    CHECK(is_free());
    const tensor smaller = cache.empty(of_bytes(bytes - 1000));
    REQUIRE(smaller.data == some.data);
    CHECK(ends_at(bytes - 1000));
    cache.free(smaller);
    CHECK(is_free());
    CHECK(cache.empty(of_bytes(bytes - 1000)).data == some.data);
    CHECK(ends_at(bytes - 1000));
    cache.free(cache.empty(of_bytes(100)));
    CHECK(cache.trim() != 0);
  }
  check_idle(tested);
}

#endif

// -------------------------------------------------------------------------------------------------------- streams

TEST_CASE("a stream's tensor is the same stream's at once; another's comes from the pool, in its order") {
  bench b(2, 64 * mib);
  tensor_cache cache(*b.tested);
  const tensor_layout layout = of_bytes(mib);
  const tensor first = cache.empty(layout, b[0]);
  CHECK(first.stream == b[0]);
  cache.free(first);
  const tensor other = cache.empty(layout, b[1]);
  CHECK(other.data != first.data);
  CHECK(other.stream == b[1]);
  const tensor again = cache.empty(layout, b[0]);
  CHECK(again.data == first.data);
  // Freed in another stream, it is that one's.
  cache.free(again, b[1]);
  CHECK(cache.empty(layout, b[0]).data != first.data);
  const tensor moved = cache.empty(layout, b[1]);
  CHECK(moved.data == first.data);
  CHECK(moved.stream == b[1]);
  CHECK(b.device.calls().records == 0);
  CHECK_THROWS_AS((void)cache.empty(layout), std::invalid_argument);
  CHECK_THROWS_AS((void)cache.empty(layout, nullptr), std::invalid_argument);
  CHECK_FALSE(cache.try_empty(layout, nullptr));
  bad_free report;
  CHECK(cache.try_free(moved, nullptr, &report) == error::invalid_argument);
  CHECK(cache.owns(moved));
  CHECK(cache.try_free(moved, b[0]) == error::none);
}

TEST_CASE("under pressure another stream gets what is kept, behind an event: no work meets another's") {
  findings found;
  bench b(2, 8 * mib, software_schedule::workers);
  {
    tensor_cache cache(*b.tested, {.limit = 64 * mib});
    for (std::size_t round = 0; round < 20; ++round) {
      std::array<tensor, 8> all;
      const stream_handle in = b[round % 2];
      for (tensor& each : all) {
        each = cache.empty(of_bytes(mib), in);
        use(b.stream[round % 2], each.data, mib, round + 1, found);
      }
      for (const tensor& each : all) cache.free(each);
    }
    CHECK(cache.stats().evictions != 0);
    for (software_stream& each : b.stream) each.synchronize();
  }
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(*b.tested);
}

TEST_CASE("a stream that is released takes what is kept for it along; its handle may come again") {
  bench b(1, 64 * mib);
  tensor_cache cache(*b.tested);
  const tensor live = cache.empty(of_bytes(2000), b[0]);
  cache.free(cache.empty(of_bytes(mib), b[0]));
  cache.free(cache.empty(of_bytes(3000), b[0]));
  CHECK(cache.stats().kept_tensors == 2);
  CHECK(b.tested->release_stream(b[0]));
  CHECK(cache.stats().kept_tensors == 0);
  CHECK(cache.stats().evictions == 2);
  {
    software_stream later(b.device);
    CHECK(cache.try_free(live, later.handle()) == error::none);
    b.stream.clear();
    CHECK(b.tested->release_stream(later.handle()));
  }
  CHECK(cache.stats().held == 0);
  check_idle(*b.tested);
}

TEST_CASE("where a stream is gone, a tensor of its is freed in a stream that is there") {
  bench b(1, 64 * mib);
  std::optional<software_stream> gone(b.device);
  tensor_cache cache(*b.tested);
  const tensor live = cache.empty(of_bytes(2000), gone->handle());
  CHECK(b.tested->release_stream(gone->handle()));
  gone.reset();
  bad_free report;
  CHECK(cache.try_free(live, &report) == error::invalid_argument);
  CHECK(cache.owns(live));
  CHECK(cache.try_free(live, b[0], &report) == error::none);
}

TEST_CASE("a capture gets nothing that is kept, and what it gets is never kept") {
  bench b(1, 64 * mib);
  tensor_cache cache(*b.tested);
  const tensor_layout layout = of_bytes(mib);
  const tensor before = cache.empty(layout, b[0]);
  const tensor across = cache.empty(layout, b[0]);
  cache.free(before);
  CHECK(b.tested->begin_capture(b[0]) == error::none);
  REQUIRE(b.stream[0].begin_capture());
  CHECK(cache.stats().kept == 0);  // it would be no use to the capture
  const tensor inside = cache.empty(layout, b[0]);
  CHECK(inside.data != before.data);
  cache.free(across);
  CHECK(cache.stats().kept == 0);
  const tensor other = cache.empty(layout, b[0]);
  cache.free(other);
  CHECK(cache.stats().kept == 0);
  CHECK(b.tested->end_capture(b[0]) == error::none);
  software_graph graph = b.stream[0].end_capture();
  cache.free(inside);  // now; the graph has it still
  CHECK(cache.stats().kept == 0);
  const tensor after = cache.empty(layout, b[0]);
  CHECK(after.data != inside.data);
  CHECK(after.data != other.data);
  cache.free(after);
  CHECK(cache.stats().kept_tensors == 1);
  graph = {};
}

TEST_CASE("what is recorded for another stream is not kept") {
  bench b(2, 64 * mib);
  tensor_cache cache(*b.tested);
  const tensor some = cache.empty(of_bytes(mib), b[0]);
  CHECK(cache.record_stream(some, nullptr) == error::invalid_argument);
  CHECK(cache.record_stream(some, b[1]) == error::none);
  cache.free(some);
  CHECK(cache.stats().kept == 0);
  CHECK(cache.empty(of_bytes(mib), b[0]).data != some.data);
  const tensor none = cache.empty(of_bytes(0), b[0]);
  CHECK(cache.record_stream(none, b[1]) == error::none);
  CHECK(cache.record_stream(some, b[1]) == error::stale_handle);
}

TEST_CASE("where streams are watched nothing is kept, and all works") {
  stream_options settings;
  SUBCASE("safe mode") { settings.safe_mode = true; }
  SUBCASE("captures are watched") { settings.watch_captures = true; }
  bench b(2, 64 * mib, software_schedule::lazy, settings);
  {
    tensor_cache cache(*b.tested);
    const tensor some = cache.empty(of_bytes(mib), b[0]);
    cache.free(some);
    CHECK(cache.stats().kept == 0);
    const tensor other = cache.empty(of_bytes(mib), b[0]);
    cache.free(other, b[1]);
    CHECK(cache.stats().held == 0);
    CHECK(cache.stats().hits == 0);
  }
  check_idle(*b.tested);
}

TEST_CASE("a tensor that was given out is freed in the stream that was named for it") {
  bench b(2, 64 * mib);
  tensor_cache cache(*b.tested);
  const exported_tensor given = cache.give_out(cache.empty(of_bytes(mib), b[0]), b[1]);
  CHECK_THROWS_AS((void)cache.give_out(cache.empty(of_bytes(mib), b[0]), nullptr), bad_free_error);
  release_export(given.storage);
  CHECK(cache.empty(of_bytes(mib), b[1]).data == given.of.data);
  const exported_tensor late = cache.give_out(cache.empty(of_bytes(3000), b[1]));
  CHECK(b.tested->release_stream(b[1]));
  release_export(late.storage);  // the stream is there, though it was released: it is met anew
  CHECK(cache.stats().exported == 0);
}

}

TEST_SUITE("stress") {

TEST_CASE("threads share tensors: no two have one, every byte comes back, what is kept stays within the limit") {
  const std::size_t operations = scaled(60000);
  for (const std::size_t limit : {std::size_t{0}, 6 * mib, std::size_t{1}}) {
    CAPTURE(limit);
    pool tested(options{.capacity = 64 * mib, .limit = 12 * mib});
    {
      tensor_cache cache(tested, {.limit = limit});
      findings found;
      std::mutex mutex;
      std::deque<std::pair<tensor, std::uint64_t>> handed;
      std::atomic<std::uint64_t> successes{0};
      const auto sign = [](const tensor& t, std::uint64_t name) {
        if (t.bytes < 8) return;
        auto* const words = static_cast<std::uint64_t*>(t.data);
        words[0] = name;
        words[t.bytes / 8 - 1] = name;
      };
      const auto is_signed = [](const tensor& t, std::uint64_t name) {
        if (t.bytes < 8) return true;
        const auto* const words = static_cast<const std::uint64_t*>(t.data);
        return words[0] == name && words[t.bytes / 8 - 1] == name;
      };
      run_threads(4, [&](std::size_t self) {
        random_engine random = make_random(self);
        std::vector<std::pair<tensor, std::uint64_t>> mine;
        for (std::size_t i = 0; i < operations; ++i) {
          const std::uint64_t name = self << 48 | i;
          const std::size_t what = uniform(random, 0, 99);
          if (what < 50) {
            const std::size_t bytes = std::array{0UL, 100UL, 4096UL, 4400UL, 70000UL, 300000UL}[uniform(random, 0, 5)] +
                                      uniform(random, 0, 3) * 64;
            const tensor t = cache.try_empty(of_bytes(bytes));
            if (!t) continue;
            found.expect(t.bytes == bytes && t.shape.size() == 1 && t.shape[0] == static_cast<std::int64_t>(bytes),
                         "another descriptor");
            sign(t, name);
            mine.emplace_back(t, name);
          } else if (what < 52) {
            static_cast<void>(cache.trim(uniform(random, 0, 2) * mib));
          } else if (what < 53) {
            if (void* const block = tested.try_allocate(mib)) tested.deallocate(block, mib);
          } else if (what < 54) {
            found.expect(cache.stats().limit != 0, "no limit");
          } else if (!mine.empty()) {
            const std::size_t at = uniform(random, 0, mine.size() - 1);
            std::swap(mine[at], mine.back());
            const auto [t, of] = mine.back();
            mine.pop_back();
            found.expect(is_signed(t, of), "another wrote to the tensor");
            if (what < 60) {
              const exported_tensor given = cache.give_out(t);
              found.expect(is_signed(given.of, of), "another wrote to the exported tensor");
              release_export(given.storage);
            } else if (what < 75) {  // to another thread
              const std::lock_guard lock(mutex);
              handed.emplace_back(t, of);
              if (handed.size() > 32) {
                mine.push_back(handed.front());
                handed.pop_front();
              }
            } else {
              found.expect(cache.try_free(t) == error::none, "a good free is refused");
              if (what < 80) found.expect(cache.try_free(t) != error::none, "a tensor is freed twice");
            }
          }
        }
        for (const auto& [t, of] : mine) cache.free(t);
        successes.fetch_add(1);
      });
      for (const auto& [t, of] : handed) cache.free(t);
      ORDERLY_CHECK_FINDINGS(found);
      CHECK(successes == 4);
      const tensor_statistics s = cache.stats();
      CHECK(s.live_tensors == 0);
      CHECK(s.exported == 0);
      CHECK(s.kept == s.held);
      CHECK(s.kept <= s.limit);
      CHECK(s.hits + s.misses != 0);
      CHECK(cache.trim() == s.kept);
      CHECK(cache.stats().held == 0);
    }
    check_idle(tested);
    CHECK(tested.stats().bad_frees == 0);
  }
}

TEST_CASE("of many frees of one handle at once, one succeeds") {
  const std::size_t rounds = scaled(4000);
  pool tested(quiet(rounds * 4 * kib));  // half of it may be kept: all
  tensor_cache cache(tested);
  constexpr std::size_t threads = 4;
  cache.free(cache.empty(of_bytes(1000)));  // from now on there is a shelf for it
  std::vector<tensor> all(rounds);
  for (tensor& each : all) each = cache.empty(of_bytes(1000));
  std::atomic<std::uint64_t> freed{0};
  findings found;
  run_threads(threads, [&](std::size_t) {
    for (const tensor& each : all) {
      const error code = cache.try_free(each);
      if (code == error::none) freed.fetch_add(1);
      found.expect(code == error::none || code == error::double_free, "refused as ", to_string(code));
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(freed == rounds);
  CHECK(cache.stats().bad_frees == (threads - 1) * rounds);
  CHECK(cache.stats().kept_tensors == rounds);
}

TEST_CASE("threads free each other's tensors and take new ones: each is freed once") {
  pool tested(quiet(64 * mib));
  {
    tensor_cache cache(tested);
    struct place {
      std::mutex mutex;
      tensor there;
      std::uint64_t number = 0;                // of the tensor
      std::atomic<std::uint64_t> freed_up_to{0};
    };
    std::array<place, 2> places;
    for (place& each : places) each.there = cache.empty(of_bytes(1000));
    findings found;
    run_threads(3, [&](std::size_t self) {
      random_engine random = make_random(300 + self);
      for (std::size_t i = 0; i < scaled(1'000'000) && found.count() == 0; ++i) {
        place& at = places[uniform(random, 0, places.size() - 1)];
        tensor seen;
        std::uint64_t number = 0;
        {
          const std::lock_guard lock(at.mutex);
          seen = at.there;
          number = at.number;
        }
        if (const error code = cache.try_free(seen); code != error::none) {
          found.expect(code == error::double_free || code == error::stale_handle, "refused as ", to_string(code));
          continue;
        }
        const bool first = at.freed_up_to.exchange(number + 1, std::memory_order_relaxed) == number;
        found.expect(first, "a tensor is freed twice");
        seen = cache.empty(of_bytes(1000));
        const std::lock_guard lock(at.mutex);
        at.there = seen;
        ++at.number;
      }
    });
    ORDERLY_CHECK_FINDINGS(found);
    CHECK(cache.stats().live_tensors == places.size());
    for (const place& each : places) CHECK(cache.try_free(each.there) == error::none);
  }
  check_idle(tested);
}

TEST_CASE("a cache never causes a refusal: whoever fits beside what is live gets it, while others free and take") {
  // With few layouts, and without waste, what is kept fills the pool, and often is not what is wanted; of many layouts
  // some give way before.
  for (const bool few : {false, true}) {
    CAPTURE(few);
    const std::size_t layouts = few ? 8 : 40;
    pool tested(options{.capacity = 64 * mib, .limit = 16 * mib});
    tensor_cache cache(tested, {.limit = 64 * mib, .waste = few ? 0 : 0.125});
    findings found;
    const std::size_t rounds = scaled(10000);
    // Each has at most a quarter of 12 MiB, in blocks of 1 MiB, so that nothing but the cache can be in the way.
    run_threads(4, [&](std::size_t self) {
      random_engine random = make_random(100 + self);
      std::vector<tensor> mine;
      for (std::size_t i = 0; i < rounds; ++i) {
        if (mine.size() < 3) {
          const std::size_t bytes = mib - uniform(random, 0, layouts - 1) * 40 * kib / layouts;
          const tensor t = cache.try_empty(of_bytes(bytes));
          found.expect(static_cast<bool>(t), "refused, with ", tested.stats().allocated, " bytes allocated, ",
                       cache.stats().kept, " kept");
          if (t) mine.push_back(t);
        }
        if (mine.size() == 3 || uniform(random, 0, 1) == 0) {
          for (const tensor& each : mine) cache.free(each);
          mine.clear();
        }
      }
      for (const tensor& each : mine) cache.free(each);
    });
    ORDERLY_CHECK_FINDINGS(found);
    CHECK(tested.stats().failed == 0);
    CHECK(cache.stats().evictions != 0);
  }
}

TEST_CASE("streams on threads share a pool that is short: no work meets another's") {
  findings found;
  bench b(4, 24 * mib, software_schedule::workers);
  {
    tensor_cache cache(*b.tested, {.limit = 64 * mib});
    const std::size_t rounds = scaled(600);
    run_threads(4, [&](std::size_t self) {
      random_engine random = make_random(200 + self);
      for (std::size_t i = 0; i < rounds; ++i) {
        const std::size_t bytes = std::array{64 * kib, 512 * kib, mib, 2 * mib}[uniform(random, 0, 3)];
        const tensor t = cache.try_empty(of_bytes(bytes), b[self]);
        if (!t) continue;
        use(b.stream[self], t.data, bytes, self << 32 | i, found);
        if (uniform(random, 0, 9) == 0) {
          release_export(cache.give_out(t).storage);
        } else {
          cache.free(t);
        }
      }
    });
    for (software_stream& each : b.stream) each.synchronize();
    CHECK(cache.stats().hits != 0);
  }
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(*b.tested);
}

TEST_CASE("threads release their streams, or capture in them: then nothing is kept for these, and for others as ever") {
  constexpr std::size_t threads = 4;
  findings found;
  bench b(threads, 24 * mib, software_schedule::workers);
  {
    tensor_cache cache(*b.tested, {.limit = 64 * mib});
    const auto any_bytes = [](random_engine& random) {
      return std::array{64 * kib, 512 * kib, mib, 2 * mib}[uniform(random, 0, 3)];
    };
    for (std::size_t round = 0; round < scaled(60); ++round) {
      const bool capture = round % 2 != 0;
      run_threads(threads, [&](std::size_t self) {
        random_engine random = make_random(400 + round * threads + self);
        const stream_handle in = b[self];
        std::vector<tensor> mine;
        for (std::size_t i = 0; i < 200; ++i) {
          const std::size_t what = uniform(random, 0, 63);
          if (what == 0) {
            found.expect(b.tested->release_stream(in), "the release of a stream is refused");
          } else if (what < 32 && mine.size() < 4) {
            const std::size_t bytes = any_bytes(random);
            const tensor t = cache.try_empty(of_bytes(bytes), in);
            if (!t) continue;
            use(b.stream[self], t.data, bytes, (round * threads + self) << 32 | i, found);
            mine.push_back(t);
          } else if (!mine.empty()) {
            std::swap(mine[uniform(random, 0, mine.size() - 1)], mine.back());
            found.expect(cache.try_free(mine.back()) == error::none, "a good free is refused");
            mine.pop_back();
          }
        }
        for (const tensor& each : mine) cache.free(each);
        if (capture) {
          found.expect(b.tested->begin_capture(in) == error::none, "a capture is refused");
          found.expect(b.stream[self].begin_capture(), "a stream captures already");
        } else {
          found.expect(b.tested->release_stream(in), "the release of a stream is refused");
        }
      });
      found.expect(cache.stats().held == 0, cache.stats().kept_tensors, " tensors are kept for streams that ",
                   capture ? "capture" : "were released");
      if (!capture) continue;
      for (std::size_t i = 0; i < threads; ++i) {
        const tensor t = cache.try_empty(of_bytes(64 * kib), b[i]);
        if (t) cache.free(t);
        CHECK(b.tested->end_capture(b[i]) == error::none);
        static_cast<void>(b.stream[i].end_capture());
      }
      found.expect(cache.stats().held == 0, "what was freed in a capture is kept");
    }
    for (software_stream& each : b.stream) each.synchronize();
    CHECK(cache.stats().hits != 0);
  }
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(*b.tested);
}

TEST_CASE("random operations in streams, by threads that take turns: all is as in a sequential model") {
  std::uint64_t stream = 500;
  for (const bool roomy : {true, false}) {
    for (const double waste : {0.0, 0.125}) {
      // Of 200 streams, several share each row of the cache's table.
      for (const std::size_t streams : {3UL, 3UL, 200UL}) {
        random_choices choices(++stream);
        lockstep_threads threads(4);
        tensor_model tested(choices, threads,
                            {.streams = streams,
                             .capacity = roomy ? 256 * mib : 5 * mib / 2,
                             .limit = roomy ? mib : 64 * mib,
                             .waste = waste,
                             .roomy = roomy});
        for (std::size_t step = 0; step < scaled(2000); ++step) {
          INFO("ORDERLY_TEST_SEED=", test_seed(), ", stream ", stream, ", step ", step);
          tested.step();
        }
        tested.finish();
      }
    }
  }
}

}
