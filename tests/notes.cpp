// What a pool remembers of single blocks: memory of captures stays with their graphs.
#include "notes.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "front.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "thread_fronts.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

/// All that the pool has and that is not in use, in blocks of one size, for a stream.
std::vector<void*> take_all(stream_pool& from, std::size_t bytes, stream_handle stream) {
  std::vector<void*> blocks;
  while (void* const block = from.try_allocate(bytes, stream)) blocks.push_back(block);
  return blocks;
}

void free_all(stream_pool& into, const std::vector<void*>& blocks, std::size_t bytes, stream_handle stream) {
  for (void* const block : blocks) CHECK(into.try_deallocate(block, bytes, stream) == error::none);
}

bool contains(const std::vector<void*>& blocks, const void* block) {
  return std::ranges::find(blocks, block) != blocks.end();
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a graph's block is not divided, for the graph uses it whole") {
  bench b(1, 4 * mib);
  REQUIRE(b.tested->begin_capture(b[0]) == error::none);
  REQUIRE(b.stream[0].begin_capture());
  void* const block = b.tested->allocate(mib, b[0]);
  CHECK(b.tested->end_capture(b[0]) == error::none);
  std::optional<software_graph> graph = b.stream[0].end_capture();
  std::vector<std::uint32_t> live(mib / 4096 / 32, 0);
  live[0] = 1;
  std::string why;
  CHECK(b.tested->divide(block, 4096, live, b[0], &why) == error::invalid_argument);
  CHECK(why.find("graph") != std::string::npos);
  CHECK(b.tested->try_deallocate(block, mib, b[0]) == error::none);
  graph.reset();
  check_idle(*b.tested);
}

TEST_CASE("what a capture uses stays out of other use until its graph is gone") {
  for (const bool flat : {false, true}) {
    for (const std::size_t bytes : {std::size_t{4096}, mib}) {
      CAPTURE(flat);
      CAPTURE(bytes);
      bench b(2, 4 * mib, software_schedule::lazy, {}, 0, flat);
      findings found;
      REQUIRE(b.tested->begin_capture(b[0]) == error::none);
      REQUIRE(b.stream[0].begin_capture());
      void* const freed_inside = b.tested->allocate(bytes, b[0]);
      use(b.stream[0], freed_inside, bytes, 1, found);
      CHECK(b.tested->try_deallocate(freed_inside, bytes, b[0]) == error::none);
      CHECK(b.tested->try_deallocate(freed_inside, bytes, b[0]) == error::double_free);
      CHECK(b.tested->allocate(bytes, b[0]) == freed_inside);  // the capture itself has it again
      use(b.stream[0], freed_inside, bytes, 2, found);
      void* const freed_later = b.tested->allocate(bytes, b[0]);
      CHECK(freed_later != freed_inside);
      use(b.stream[0], freed_later, bytes, 3, found);
      b.tested->deallocate(freed_inside, bytes, b[0]);
      CHECK(b.tested->end_capture(b[0]) == error::none);
      std::optional<software_graph> graph = b.stream[0].end_capture();
      std::optional<software_graph> copy = graph;
      CHECK(b.tested->stats().held == bytes);
      CHECK(b.tested->try_deallocate(freed_later, bytes, b[1]) == error::none);  // the program has ordered the two
      CHECK(b.tested->stats().held == 2 * bytes);

      CHECK(b.tested->synchronize());  // settles all that is not a graph's
      for (int i = 0; i < 2; ++i) {
        for (const std::size_t stream : {std::size_t{0}, std::size_t{1}}) {
          const std::vector<void*> others = take_all(*b.tested, bytes, b[stream]);
          CHECK(others.size() == 4 * mib / bytes - 2);
          CHECK_FALSE(contains(others, freed_inside));
          CHECK_FALSE(contains(others, freed_later));
          if (graph) b.stream[0].launch(*graph);
          free_all(*b.tested, others, bytes, b[stream]);
        }
        graph.reset();  // the copy keeps it
      }
      copy.reset();  // so do launches that have not run
      CHECK(take_all(*b.tested, bytes, b[1]).size() == 4 * mib / bytes - 2);
      CHECK(b.stream[0].synchronize());
      const std::vector<void*> rest = take_all(*b.tested, bytes, b[1]);
      CHECK(rest.size() == 2);
      ORDERLY_CHECK_FINDINGS(found);
      b.tested.reset();
    }
  }
}

TEST_CASE("a block freed in another stream is that stream's when the graph is gone, and not the capture's before") {
  bench b(3, 2 * mib);
  findings found;
  REQUIRE(b.tested->begin_capture(b[0]) == error::none);
  REQUIRE(b.stream[0].begin_capture());
  void* const block = b.tested->allocate(mib, b[0]);
  use(b.stream[1], block, mib, 1, found);
  b.tested->deallocate(block, mib, b[1]);
  void* const inside = b.tested->allocate(mib, b[0]);
  CHECK(inside != block);
  b.tested->deallocate(inside, mib, b[0]);
  CHECK(b.tested->end_capture(b[0]) == error::none);
  static_cast<void>(b.stream[0].end_capture());
  const std::vector<void*> all = take_all(*b.tested, mib, b[2]);
  CHECK(all.size() == 2);
  for (void* const each : all) use(b.stream[2], each, mib, 2, found);
  CHECK(b.stream[2].synchronize());
  CHECK(b.stream[1].synchronize());
  for (void* const each : all) CHECK(*static_cast<std::uint64_t*>(each) == 2);
  free_all(*b.tested, all, mib, b[2]);
  check_idle(*b.tested);
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("after a capture a thread has its caches of the stream again, in the same place") {
  bench b(1, 4 * mib);
  const auto pair = [&] { b.tested->deallocate(b.tested->allocate(512, b[0]), 512, b[0]); };
  pair();
  const detail::front* const mine = detail::this_thread_fronts.latest.of;
  for (int i = 0; i < 10; ++i) {
    REQUIRE(b.tested->begin_capture(b[0]) == error::none);
    pair();
    CHECK(b.tested->end_capture(b[0]) == error::invalid_argument);
    pair();
    CHECK(detail::this_thread_fronts.latest.of == mine);
    CHECK_FALSE(mine->retired());
  }
  check_idle(*b.tested);
}

TEST_CASE("a block of a graph that is live when the graph goes is a block like others") {
  bench b(1, 4 * mib);
  REQUIRE(b.tested->begin_capture(b[0]) == error::none);
  REQUIRE(b.stream[0].begin_capture());
  void* const block = b.tested->allocate(mib, b[0]);
  CHECK(b.tested->end_capture(b[0]) == error::none);
  static_cast<void>(b.stream[0].end_capture());
  b.tested->trim();  // a pass sees that the graph is gone
  CHECK(b.tested->block_size(block) == mib);
  CHECK(b.tested->try_deallocate(block, mib, b[0]) == error::none);
  check_idle(*b.tested);
}

TEST_CASE("what the stream had before a capture is not the capture's, and is the stream's again afterwards") {
  for (const std::size_t bytes : {std::size_t{512}, 3 * mib}) {
    CAPTURE(bytes);
    bench b(1, 32 * mib);
    std::vector<void*> cached(2);
    for (void*& block : cached) block = b.tested->allocate(bytes, b[0]);
    void* const live = b.tested->allocate(bytes, b[0]);
    findings found;
    for (void* const block : cached) {
      use(b.stream[0], block, bytes, 1, found);  // not done yet: the schedule is lazy
      b.tested->deallocate(block, bytes, b[0]);
    }
    REQUIRE(b.tested->begin_capture(b[0]) == error::none);
    REQUIRE(b.stream[0].begin_capture());
    void* const captured = b.tested->allocate(bytes, b[0]);
    CHECK_FALSE(contains(cached, captured));
    CHECK(b.tested->try_deallocate(live, bytes, b[0]) == error::none);
    void* const another = b.tested->allocate(bytes, b[0]);
    CHECK(another != live);
    CHECK_FALSE(contains(cached, another));
    CHECK(b.tested->end_capture(b[0]) == error::none);
    software_graph graph = b.stream[0].end_capture();
    std::vector<void*> again;
    for (int i = 0; i < 3; ++i) again.push_back(b.tested->allocate(bytes, b[0]));
    if (bytes == 3 * mib)  // small ones wait for an event
      for (void* const block : {cached[0], cached[1], live}) CHECK(contains(again, block));
    for (void* const block : again) b.tested->deallocate(block, bytes, b[0]);
    for (void* const block : {captured, another}) b.tested->deallocate(block, bytes, b[0]);
    graph = {};
    check_idle(*b.tested);
  }
}

TEST_CASE("a capture gets nothing that it would have to wait for, unless the pool may wait") {
  for (const bool may_wait : {false, true}) {
    CAPTURE(may_wait);
    stream_options settings;
    settings.wait_before_refusing = may_wait;
    bench b(3, 4 * mib, software_schedule::lazy, settings);
    findings found;
    for (void* const block : take_all(*b.tested, 2 * mib, b[0])) {
      use(b.stream[0], block, 2 * mib, 1, found);
      b.tested->deallocate(block, 2 * mib, b[0]);
    }
    void* const behind = b.tested->allocate(2 * mib, b[1]);  // both blocks are the store's now, behind an event
    REQUIRE(b.tested->begin_capture(b[2]) == error::none);
    if (!may_wait) CHECK(b.tested->try_allocate(2 * mib, b[2]) == nullptr);  // replays would not wait
    REQUIRE(b.stream[2].begin_capture());
    void* inside = b.tested->try_allocate(2 * mib, b[2]);
    CHECK((inside != nullptr) == may_wait);
    if (inside == nullptr) {
      CHECK_FALSE(b.tested->synchronize());  // it cannot tell of the stream that captures, and waits for the others
      inside = b.tested->try_allocate(2 * mib, b[2]);
      CHECK(inside != nullptr);
    }
    b.tested->deallocate(inside, 2 * mib, b[2]);
    b.tested->deallocate(behind, 2 * mib, b[1]);
    CHECK(b.tested->end_capture(b[2]) == error::none);
    static_cast<void>(b.stream[2].end_capture());
    check_idle(*b.tested);
    ORDERLY_CHECK_FINDINGS(found);
  }
}

TEST_CASE("captures that are begun or ended at the wrong time are refused, and lose nothing") {
  bench b(2, 4 * mib);
  CHECK(b.tested->end_capture(b[0]) == error::invalid_argument);
  CHECK(b.tested->begin_capture(nullptr) == error::invalid_argument);
  CHECK(b.tested->begin_capture(b[0]) == error::none);
  CHECK(b.tested->begin_capture(b[0]) == error::invalid_argument);
  CHECK(b.tested->end_capture(b[0]) == error::none);  // no block, no capture
  CHECK(b.tested->end_capture(b[0]) == error::invalid_argument);

  CHECK(b.tested->begin_capture(b[0]) == error::none);
  void* const early = b.tested->allocate(mib, b[0]);
  b.tested->deallocate(early, mib, b[0]);
  CHECK(b.tested->end_capture(b[0]) == error::invalid_argument);  // the stream did not capture
  check_idle(*b.tested);

  // A stream that goes in the middle of a capture.
  CHECK(b.tested->begin_capture(b[0]) == error::none);
  void* const kept = b.tested->allocate(mib, b[0]);
  b.tested->release_stream(b[0]);
  CHECK(b.tested->try_deallocate(kept, mib, b[1]) == error::none);
  check_idle(*b.tested);

  // A pool that goes before its graph.
  CHECK(b.tested->begin_capture(b[0]) == error::none);
  REQUIRE(b.stream[0].begin_capture());
  static_cast<void>(b.tested->allocate(mib, b[0]));
  CHECK(b.tested->end_capture(b[0]) == error::none);
  const software_graph graph = b.stream[0].end_capture();
  b.tested.reset();
}

TEST_CASE("a graph's block that other streams use waits for them, after its graph is gone") {
  bench b(4, 2 * mib);
  findings found;
  REQUIRE(b.tested->begin_capture(b[0]) == error::none);
  REQUIRE(b.stream[0].begin_capture());
  void* block = b.tested->allocate(mib, b[0]);
  CHECK(b.tested->record_stream(block, b[3]) == error::none);
  use(b.stream[3], block, mib, 1, found);
  b.tested->deallocate(block, mib, b[0]);
  void* const first = std::exchange(block, b.tested->allocate(mib, b[0]));
  CHECK(block != first);  // not even the capture's again
  CHECK(b.tested->end_capture(b[0]) == error::none);
  static_cast<void>(b.stream[0].end_capture());
  b.tested->trim();  // a pass sees that the graph is gone
  CHECK(b.tested->record_stream(block, b[1]) == error::none);
  use(b.stream[1], block, mib, 1, found);
  CHECK(b.tested->try_deallocate(block, mib, b[0]) == error::none);
  CHECK(b.tested->try_deallocate(block, mib, b[0]) == error::double_free);
  const std::vector<void*> all = take_all(*b.tested, mib, b[2]);
  CHECK(all.size() == 2);
  CHECK(contains(all, block));
  for (void* const each : all) use(b.stream[2], each, mib, 2, found);
  CHECK(b.stream[2].synchronize());
  for (software_stream& each : b.stream) CHECK(each.synchronize());
  for (void* const each : all) CHECK(*static_cast<std::uint64_t*>(each) == 2);
  free_all(*b.tested, all, mib, b[2]);
  check_idle(*b.tested);
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("a pool that watches captures tells one from the next that follows at once") {
  for (const bool safe_mode : {false, true}) {
    CAPTURE(safe_mode);
    stream_options settings;
    settings.watch_captures = !safe_mode;
    settings.safe_mode = safe_mode;
    bench b(2, 4 * mib, software_schedule::lazy, settings);
    REQUIRE(b.stream[0].begin_capture());
    void* const first = b.tested->allocate(mib, b[0]);
    b.tested->deallocate(first, mib, b[0]);
    software_graph one = b.stream[0].end_capture();
    REQUIRE(b.stream[0].begin_capture());
    void* const second = b.tested->allocate(mib, b[0]);
    CHECK(second != first);  // the graphs may run at the same time
    b.tested->deallocate(second, mib, b[0]);
    software_graph two = b.stream[0].end_capture();
    one = {};
    b.tested->deallocate(b.tested->allocate(mib, b[0]), mib, b[0]);  // where the pool learns that the captures are over
    std::vector<void*> others = take_all(*b.tested, mib, b[1]);
    CHECK(others.size() == 3);
    CHECK(contains(others, first));
    CHECK_FALSE(contains(others, second));  // the second graph uses it
    two = {};
    free_all(*b.tested, others, mib, b[1]);
    check_idle(*b.tested);
  }
}

TEST_CASE("a pool that watches captures needs no word of them") {
  for (const bool safe_mode : {false, true}) {
    CAPTURE(safe_mode);
    stream_options settings;
    settings.watch_captures = !safe_mode;
    settings.safe_mode = safe_mode;
    bench b(2, 4 * mib, software_schedule::lazy, settings);
    findings found;
    void* const before = b.tested->allocate(mib, b[0]);
    use(b.stream[0], before, mib, 1, found);
    REQUIRE(b.stream[0].begin_capture());
    void* const inside = b.tested->allocate(mib, b[0]);
    use(b.stream[0], inside, mib, 2, found);
    b.tested->deallocate(inside, mib, b[0]);
    CHECK(b.tested->try_deallocate(before, mib, b[0]) == error::none);
    CHECK(b.tested->allocate(mib, b[0]) == inside);
    b.tested->deallocate(inside, mib, b[0]);
    // No event can be recorded behind the use of `before` as long as the capture goes on.
    const std::vector<void*> meanwhile = take_all(*b.tested, mib, b[1]);
    CHECK(meanwhile.size() == 2);
    CHECK_FALSE(contains(meanwhile, before));
    free_all(*b.tested, meanwhile, mib, b[1]);
    software_graph graph = b.stream[0].end_capture();
    void* const after = b.tested->allocate(mib, b[0]);
    CHECK(after != inside);
    b.tested->deallocate(after, mib, b[0]);
    // Now whoever gets it comes behind its use.
    std::vector<void*> others = take_all(*b.tested, mib, b[1]);
    CHECK(others.size() == 3);
    CHECK_FALSE(contains(others, inside));
    for (void* const block : others) use(b.stream[1], block, mib, 3, found);
    CHECK(b.stream[1].synchronize());
    CHECK(b.stream[0].synchronize());
    for (void* const block : others) CHECK(*static_cast<std::uint64_t*>(block) == 3);
    free_all(*b.tested, others, mib, b[1]);
    graph = {};
    check_idle(*b.tested);
    ORDERLY_CHECK_FINDINGS(found);
  }
}

}

TEST_SUITE("stress") {

TEST_CASE("threads capture, replay and drop graphs while others work in their streams: every payload is whole") {
  for (const bool watch : {false, true}) {
    CAPTURE(watch);
    stream_options settings;
    settings.watch_captures = watch;
    constexpr std::size_t threads = 4;
    bench b(threads, 32 * mib, software_schedule::workers, settings);
    findings found;
    std::atomic<std::uint64_t> marks{0};
    run_threads(threads, [&](std::size_t self) {
      random_engine random = make_random(self);
      software_stream& stream = b.stream[self];
      std::vector<std::pair<software_graph, void*>> graphs;
      const auto work_on = [&](std::size_t bytes) {
        void* const block = b.tested->try_allocate(bytes, stream.handle());
        if (block == nullptr) return;
        use(stream, block, bytes, marks.fetch_add(1, std::memory_order_relaxed), found);
        b.tested->deallocate(block, bytes, stream.handle());
      };
      const std::size_t rounds = scaled(300);
      for (std::size_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < 10; ++i) work_on(log_uniform(random, 16, mib));
        if (round % 4 == 0) {
          const bool told = watch || b.tested->begin_capture(stream.handle()) == error::none;
          found.expect(told && stream.begin_capture(), "the capture did not begin");
          for (int i = 0; i < 6; ++i) work_on(log_uniform(random, 16, 256 * kib));
          if (!watch) static_cast<void>(b.tested->end_capture(stream.handle()));
          graphs.emplace_back(stream.end_capture(), nullptr);
        }
        for (auto& each : graphs) stream.launch(each.first);
        if (graphs.size() > 3) graphs.erase(graphs.begin());
      }
      graphs.clear();
      static_cast<void>(stream.synchronize());
    });
    ORDERLY_CHECK_FINDINGS(found);
    check_idle(*b.tested);
  }
}

TEST_CASE("two threads in one stream, one of which captures: no block is in two hands") {
  stream_options settings;
  settings.watch_captures = true;
  bench b(1, 64 * mib, software_schedule::workers, settings);
  findings found;
  std::atomic<bool> done{false};
  run_threads(3, [&](std::size_t self) {
    random_engine random = make_random(self);
    if (self == 0) {
      for (std::size_t round = 0; round < scaled(2000); ++round) {
        if (!b.stream[0].begin_capture()) continue;
        void* const block = b.tested->try_allocate(4096, b[0]);
        if (block != nullptr) b.tested->deallocate(block, 4096, b[0]);
        static_cast<void>(b.stream[0].end_capture());
      }
      done.store(true, std::memory_order_relaxed);
      return;
    }
    // Owner words in host memory: a block in two hands has another's.
    while (!done.load(std::memory_order_relaxed)) {
      std::vector<std::pair<std::uint64_t*, std::size_t>> mine;
      for (int i = 0; i < 20; ++i) {
        const std::size_t bytes = log_uniform(random, 8, 64 * kib);
        auto* const block = static_cast<std::uint64_t*>(b.tested->try_allocate(bytes, b[0]));
        if (block == nullptr) continue;
        std::atomic_ref(*block).store(self, std::memory_order_relaxed);
        mine.emplace_back(block, bytes);
      }
      for (const auto& [block, bytes] : mine) {
        found.expect(std::atomic_ref(*block).load(std::memory_order_relaxed) == self, "a block is in two hands");
        found.expect(b.tested->try_deallocate(block, bytes, b[0]) == error::none, "a free was refused");
      }
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(*b.tested);
}

TEST_CASE("who gets a graph's memory sees what was done before the graph went") {
  findings found;
  for (std::size_t round = 0; round < scaled(100); ++round) {
    bench b(2, mib, software_schedule::lazy, {}, 0, true);
    REQUIRE(b.tested->begin_capture(b[0]) == error::none);
    REQUIRE(b.stream[0].begin_capture());
    void* const block = b.tested->allocate(mib, b[0]);
    b.tested->deallocate(block, mib, b[0]);
    CHECK(b.tested->end_capture(b[0]) == error::none);
    std::optional<software_graph> graph = b.stream[0].end_capture();
    std::atomic<bool> gone = false;
    run_threads(2, [&](std::size_t self) {
      auto* const bytes = static_cast<std::uint64_t*>(block);
      if (self == 0) {
        *bytes = round;  // plain, here and below
        graph.reset();
        gone.store(true, std::memory_order_relaxed);
        return;
      }
      while (!gone.load(std::memory_order_relaxed)) std::this_thread::yield();
      void* again = nullptr;
      while (again == nullptr) again = b.tested->try_allocate(mib, b[1]);
      found.expect((*bytes)++ == round, "the memory is there, and its bytes are not");
      b.tested->deallocate(again, mib, b[1]);
    });
    CHECK(b.tested->synchronize());
  }
  ORDERLY_CHECK_FINDINGS(found);
}

}
