// Blocks that move in stream order: contents go along, whichever streams use them before and after, no thread waits for a
// stream, and what a driver refuses moves nothing and loses nothing.
#include "orderly/relocatable_streams.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/double_driver.hpp"
#include "support/failing_driver.hpp"
#include "support/fault_plan.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t chunk = 64 * kib;

[[nodiscard]] stream_options limited(std::size_t limit) {
  stream_options settings;
  settings.memory.limit = limit;
  return settings;
}

/// A block, what it holds by the time that its streams have passed, and the stream that used it last.
struct kept {
  relocatable block = relocatable::none;
  std::uint64_t seed = 0;
  std::size_t in = 0;
  bool stays = false;  ///< nobody knows where it was unpinned
};

/// Work that finds what the block's last user left there, and leaves `next`: plain reads and writes of all of it.
void enqueue_use(software_stream& in, void* address, std::size_t bytes, std::uint64_t before, std::uint64_t next,
                 findings& found) {
  in.enqueue([=, &found] {
    auto* const words = static_cast<std::uint64_t*>(address);
    const std::size_t count = bytes / sizeof(std::uint64_t);
    bool right = true;
    for (std::size_t i = 0; before != 0 && i < count; ++i) right = right && words[i] == before + i;
    found.expect(right, "the contents are not what the last user left");
    for (std::size_t i = 0; i < count; ++i) words[i] = next + i;
  });
}

/// The program's own order between two streams.
void order(stream_driver& driver, stream_handle first, stream_handle then) {
  event_handle const event = driver.record(first);
  REQUIRE(event != nullptr);
  REQUIRE(driver.wait(then, event));
  driver.release(event);
}

[[nodiscard]] bool moved_by(std::span<const relocation> moves, const kept& each) {
  return std::ranges::any_of(moves, [&](const relocation& m) { return m.block == each.block; });
}

/// Streams, a pool, and a set of it.
struct set_bench : bench {
  explicit set_bench(std::size_t streams, std::size_t capacity, std::size_t limit = 0,
                     software_schedule schedule = software_schedule::lazy, stream_options settings = {},
                     std::uint64_t seed = 0, stream_relocation_copier copier = nullptr)
      : bench(streams, capacity, schedule, with_limit(settings, limit), seed, false, wrap) {
    blocks.emplace(*tested, std::move(copier));
  }
  [[nodiscard]] double_driver& doors() const { return static_cast<double_driver&>(*driver); }

  /// False: the block could not be pinned.
  bool use(kept& each, std::size_t in) {
    if (each.in != in) order(*device.driver(), (*this)[each.in], (*this)[in]);
    return use_as_ordered(each, in);
  }
  bool use_as_ordered(kept& each, std::size_t in) {
    if (!use(each, stream[in], (*this)[in], (*this)[in])) return false;
    each.in = in;
    return true;
  }
  /// In a stream of the test's own, by the handles that the set is told.
  bool use(kept& each, software_stream& in, stream_handle pinned_for, stream_handle unpinned_in) {
    void* const address = blocks->pin(each.block, pinned_for);
    if (address == nullptr) return false;
    const std::uint64_t next = 1 + (++uses << 24);
    enqueue_use(in, address, blocks->size(each.block), each.seed, next, found);
    blocks->unpin(each.block, unpinned_in);
    each.seed = next;
    return true;
  }
  /// Those of `all` that moved, in that stream, with no order but what the moves give. That stream then runs no more than it
  /// waits for, and finds all contents right.
  void use_moved(std::vector<kept>& all, std::span<const relocation> moves, std::size_t in) {
    for (kept& each : all)
      if (moved_by(moves, each)) CHECK(use_as_ordered(each, in));
    CHECK(stream[in].synchronize());
    ORDERLY_CHECK_FINDINGS(found);
  }
  /// Blocks of that size in turn in each stream, until the pool is full; then every second is freed. All work is done when
  /// it returns: what was freed is for nobody before.
  std::vector<kept> fill_half(std::size_t bytes) {
    std::vector<kept> all;
    for (std::size_t i = 0;; ++i) {
      kept made{blocks->try_allocate(bytes, (*this)[i % stream.size()]), 0, i % stream.size()};
      if (made.block == relocatable::none) break;
      CHECK(use(made, made.in));
      all.push_back(made);
    }
    std::vector<kept> half;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i % 2 == 0)
        CHECK(blocks->deallocate(all[i].block, (*this)[all[i].in]) == error::none);
      else
        half.push_back(all[i]);
    }
    CHECK(tested->synchronize());
    return half;
  }
  /// All work is done, and each block holds what it should.
  void check_contents(std::vector<kept>& all) {
    for (kept& each : all) CHECK(use(each, each.in));
    CHECK(device.driver()->synchronize_all());
    ORDERLY_CHECK_FINDINGS(found);
  }
  void check_end(std::vector<kept>& all) {
    check_contents(all);
    for (const kept& each : all) CHECK(blocks->deallocate(each.block, (*this)[each.in]) == error::none);
    blocks.reset();
    check_idle(*tested);
  }

  std::optional<relocatable_stream_blocks> blocks;
  std::uint64_t uses = 0;
  findings found;

 private:
  [[nodiscard]] static stream_options with_limit(stream_options settings, std::size_t limit) {
    settings.memory.limit = limit;
    return settings;
  }
  [[nodiscard]] static std::shared_ptr<stream_driver> wrap(std::shared_ptr<stream_driver> inner) {
    return std::make_shared<double_driver>(std::move(inner));
  }
};

std::size_t move_all(relocatable_stream_blocks& blocks, stream_handle in, const relocation_limits& limits = {}) {
  blocks.begin(limits);
  std::size_t moved = 0;
  for (auto moves = blocks.step(in); !moves.empty(); moves = blocks.step(in)) moved += moves.size();
  return moved;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a handle names its block until it is freed; what is refused says why, and changes nothing") {
  set_bench b(2, 4 * mib);
  const relocatable block = b.blocks->allocate(1000, b[0]);
  CHECK(b.blocks->size(block) == 1000);
  error why = error::double_free;
  void* const address = b.blocks->pin(block, b[0], &why);
  CHECK(address != nullptr);
  CHECK(why == error::none);
  CHECK(b.blocks->pin(block, b[1]) == address);
  CHECK(b.blocks->deallocate(block, b[0]) == error::pinned);
  b.blocks->unpin(block, b[1]);
  CHECK(b.blocks->deallocate(block, b[0]) == error::pinned);
  b.blocks->unpin(block, b[0]);
  b.blocks->unpin(block, b[0]);  // one too many
  CHECK(b.blocks->deallocate(block, nullptr) == error::invalid_argument);
  CHECK(b.blocks->pin(block, nullptr, &why) == nullptr);
  CHECK(why == error::invalid_argument);
  CHECK(b.blocks->deallocate(block, b[0]) == error::none);
  const relocatable again = b.blocks->allocate(500, b[1]);  // has the first one's record
  for (const relocatable bad : {block, relocatable::none, static_cast<relocatable>(77), static_cast<relocatable>(~0ULL)}) {
    CHECK(b.blocks->pin(bad, b[0], &why) == nullptr);
    CHECK(why == error::stale_handle);
    b.blocks->unpin(bad, b[0]);
    CHECK(b.blocks->size(bad) == 0);
    CHECK(b.blocks->deallocate(bad, b[0]) == error::stale_handle);
  }
  CHECK(b.blocks->size(again) == 500);
  CHECK_THROWS_AS((void)b.blocks->allocate(1, nullptr), std::invalid_argument);
  CHECK(b.blocks->try_allocate(1, nullptr) == relocatable::none);
  CHECK_THROWS_AS((void)b.blocks->allocate(8 * mib, b[0]), out_of_memory);
  b.blocks->begin();
  CHECK_THROWS_AS((void)b.blocks->step(nullptr), std::invalid_argument);
  CHECK(b.blocks->deallocate(again, b[1]) == error::none);
  CHECK(b.tested->stats().memory.bad_frees == 0);
  const relocatable left = b.blocks->allocate(3000, b[0]);  // goes with the set
  CHECK(b.blocks->pin(left, b[0]) != nullptr);
  b.blocks.reset();
  check_idle(*b.tested);
  stream_pool gone(std::move(*b.tested));
  CHECK_THROWS_AS(relocatable_stream_blocks{*b.tested}, std::invalid_argument);
}

TEST_CASE("blocks move while all their work is still queued; nobody waits; one event a stream and step, one wait each") {
  for (const std::size_t bytes : {1000UL, 4096UL, 20000UL}) {
    CAPTURE(bytes);
    set_bench b(3, 32 * mib, 8 * mib);
    software_stream copies(b.device);
    std::vector<kept> half = b.fill_half(bytes);  // the only wait of the test
    CHECK(b.tested->try_allocate(3 * mib, b[0]) == nullptr);
    for (kept& each : half) CHECK(b.use(each, each.in));
    const software_calls before = b.device.calls();
    b.blocks->begin();
    const stream_statistics stats = b.tested->stats();
    const std::vector<relocation> moves = b.blocks->step(copies.handle());
    CHECK(moves.size() > half.size() / 3);
    CHECK(b.tested->stats().events_recorded - stats.events_recorded <= 3 + 1 + moves.size() * bytes / (64 * mib));
    CHECK(b.tested->stats().waits - stats.waits == 3);
    for (kept& each : half) CHECK(b.use(each, each.in));  // at its new place
    CHECK(b.tested->stats().waits - stats.waits == 3 + 3);
    for (const relocation& each : moves) {
      CHECK(b.blocks->pin(each.block, b[0]) == each.to);
      b.blocks->unpin(each.block, b[0]);
    }
    CHECK(b.blocks->step(copies.handle()).empty());
    CHECK(b.device.calls().synchronizations == before.synchronizations);
    CHECK(b.tested->synchronize());
    const relocation_statistics done = b.blocks->end();
    CHECK(done.moves == moves.size());
    CHECK(done.bytes == moves.size() * bytes);
    CHECK(done.skipped == 0);
    CHECK(done.chunks >= 8 * mib / chunk / 2 - 2);
    void* const large = b.tested->try_allocate(3 * mib, b[0]);
    CHECK(large != nullptr);
    b.tested->deallocate(large, 3 * mib, b[0]);
    CHECK(b.tested->release_stream(copies.handle()));
    b.check_end(half);
  }
}

TEST_CASE("each step may have a stream of its own, also one that uses the blocks; the last copies cover all before") {
  set_bench b(3, 16 * mib, 4 * mib);
  std::vector<kept> half = b.fill_half(4096);
  b.blocks->begin({.moves = 7});
  for (std::size_t i = 0;; ++i) {
    if (b.blocks->step(b[i % 3]).empty()) break;
    for (std::size_t k = i % 5; k < half.size(); k += 5) CHECK(b.use(half[k], (i + k) % 3));
  }
  CHECK_FALSE(b.blocks->last_step_failed());
  CHECK(b.blocks->end().moves > half.size() / 3);
  b.check_end(half);
}

TEST_CASE("whoever uses a block of an earlier step waits for that one's copies as well") {
  set_bench b(1, 16 * mib, 4 * mib);
  software_stream first_copies(b.device);
  software_stream second_copies(b.device);
  std::vector<kept> half = b.fill_half(4096);
  b.blocks->begin({.moves = 50});
  auto moves = b.blocks->step(first_copies.handle());
  const auto second = b.blocks->step(second_copies.handle());
  REQUIRE(moves.size() == 50);
  REQUIRE(second.size() == 50);
  moves.insert(moves.end(), second.begin(), second.end());
  b.use_moved(half, moves, 0);
  CHECK(b.tested->release_stream(first_copies.handle()));
  CHECK(b.tested->release_stream(second_copies.handle()));
  b.check_end(half);
}

TEST_CASE("old places are not used again before the copies, whoever takes them") {
  set_bench b(3, 16 * mib, 4 * mib);
  software_stream copies(b.device);
  std::vector<kept> half = b.fill_half(4096);
  for (kept& each : half) CHECK(b.use(each, each.in));
  b.blocks->begin();
  REQUIRE(b.blocks->step(copies.handle()).size() > 100);
  for (const std::size_t in : {1U, 2U}) {
    std::vector<void*> taken;
    while (void* const block = b.tested->try_allocate(4096, b[in])) {
      taken.push_back(block);
      enqueue_use(b.stream[in], block, 4096, 0, 5, b.found);
    }
    CHECK(taken.size() > 100);
    CHECK(b.stream[in].synchronize());
    for (void* const block : taken) b.tested->deallocate(block, 4096, b[in]);
  }
  CHECK(b.tested->release_stream(copies.handle()));
  b.check_end(half);
}

TEST_CASE("blocks go to where other streams are still at work, behind that work") {
  set_bench b(1, 16 * mib, 4 * mib);
  software_stream copies(b.device);
  software_stream late(b.device);
  std::vector<kept> all = b.fill_half(4096);
  std::vector<kept> half;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i % 2 == 0) {
      half.push_back(all[i]);
      continue;
    }
    void* const address = b.blocks->pin(all[i].block, late.handle());
    enqueue_use(late, address, 4096, 0, 77, b.found);
    b.blocks->unpin(all[i].block, late.handle());
    CHECK(b.blocks->deallocate(all[i].block, late.handle()) == error::none);
  }
  // What was freed is everybody's from now on, behind an event. The stream that wants it waits, and no other.
  software_stream greedy(b.device);
  CHECK(b.tested->try_allocate(3 * mib, greedy.handle()) == nullptr);
  b.blocks->begin();
  const auto moves = b.blocks->step(copies.handle());
  REQUIRE(moves.size() > 100);
  b.use_moved(half, moves, 0);
  CHECK(late.synchronize());  // which must have been done by then
  CHECK(b.tested->release_stream(greedy.handle()));
  CHECK(b.tested->release_stream(copies.handle()));
  CHECK(b.tested->release_stream(late.handle()));
  b.check_end(half);
}

TEST_CASE("a block may be unpinned in another stream than it was pinned for, if that comes behind") {
  set_bench b(1, 16 * mib, 4 * mib);
  software_stream copies(b.device);
  software_stream other(b.device);
  std::vector<kept> half = b.fill_half(4096);
  order(*b.device.driver(), b[0], other.handle());
  for (kept& each : half) CHECK(b.use(each, other, b[0], other.handle()));
  b.blocks->begin();
  const auto moves = b.blocks->step(copies.handle());
  REQUIRE(moves.size() > 100);
  b.use_moved(half, moves, 0);
  CHECK(other.synchronize());
  CHECK(b.tested->release_stream(copies.handle()));
  CHECK(b.tested->release_stream(other.handle()));
  b.check_end(half);
}

TEST_CASE("a new stream waits for what another one has waited for whose place it has") {
  set_bench b(1, 16 * mib, 4 * mib);
  std::vector<kept> half = b.fill_half(4096);
  b.blocks->begin();
  const auto moves = b.blocks->step(b[0]);
  REQUIRE(moves.size() > 100);
  for (int round = 0; round < 3; ++round) {
    software_stream brief(b.device);
    for (kept& each : half) {
      if (each.block == moves[static_cast<std::size_t>(round)].block)
        CHECK(b.use(each, brief, brief.handle(), brief.handle()));
    }
    if (round == 2) CHECK(brief.synchronize());  // runs no more than it waits for
    CHECK(b.tested->release_stream(brief.handle()));
  }
  ORDERLY_CHECK_FINDINGS(b.found);
  CHECK(b.device.driver()->synchronize_all());
  b.check_end(half);
}

TEST_CASE("limits bound each step, and pinned blocks stay") {
  set_bench b(2, 16 * mib, 4 * mib);
  std::vector<kept> half = b.fill_half(4096);
  b.blocks->begin({.bytes = 10000});
  std::size_t moved = 0;
  for (auto moves = b.blocks->step(b[0]); !moves.empty(); moves = b.blocks->step(b[0])) {
    CHECK(moves.size() <= 2);
    moved += moves.size();
    if (moved > 50) break;
  }
  std::vector<void*> places;
  for (const kept& each : half) places.push_back(b.blocks->pin(each.block, b[1]));
  CHECK(b.blocks->step(b[0]).empty());
  CHECK_FALSE(b.blocks->last_step_failed());
  const relocation_statistics done = b.blocks->end();
  CHECK(done.moves == moved);
  CHECK(done.skipped > 100);
  for (std::size_t i = 0; i < half.size(); ++i) {
    CHECK(b.blocks->pin(half[i].block, b[0]) == places[i]);
    b.blocks->unpin(half[i].block, b[0]);
    b.blocks->unpin(half[i].block, b[1]);
  }
  CHECK(b.blocks->step(b[0]).empty());  // no run
  b.check_end(half);
}

TEST_CASE("a user's copier makes the copies; where it fails or throws, nothing moves, and its copies hurt nobody") {
  int calls = 0;
  software_stream* in = nullptr;
  set_bench b(2, 16 * mib, 4 * mib, software_schedule::lazy, {}, 0,
              [&](std::span<const relocation> moves, stream_handle stream) {
                CHECK(stream == in->handle());
                ++calls;
                for (const relocation& each : moves) {
                  in->enqueue([each] { std::memcpy(each.to, each.from, each.bytes); });
                  if (calls <= 2 && &each == &moves[1]) break;  // some are in the stream
                }
                if (calls == 2) throw std::runtime_error("the copier's");
                return calls != 1;
              });
  software_stream copies(b.device);
  in = &copies;
  std::vector<kept> half = b.fill_half(4096);
  std::vector<void*> places;
  for (const kept& each : half) {
    places.push_back(b.blocks->pin(each.block, b[0]));
    b.blocks->unpin(each.block, b[0]);
  }
  const std::size_t requested = b.tested->stats().memory.requested;
  b.blocks->begin({.moves = 5});
  CHECK(b.blocks->step(copies.handle()).empty());
  CHECK(b.blocks->last_step_failed());
  CHECK_THROWS_WITH_AS(b.blocks->step(copies.handle()), "the copier's", std::runtime_error);
  CHECK(b.tested->stats().memory.requested == requested);
  for (std::size_t i = 0; i < half.size(); ++i) {
    CHECK(b.use(half[i], half[i].in));  // behind the copies that read it
    CHECK(b.blocks->pin(half[i].block, b[0]) == places[i]);
    b.blocks->unpin(half[i].block, b[0]);
  }
  CHECK(b.blocks->step(copies.handle()).size() == 5);
  CHECK_FALSE(b.blocks->last_step_failed());
  CHECK(b.blocks->end().moves == 5);
  b.check_contents(half);
  // Freed in stream order right behind a copy that nobody has waited for.
  for (int round = 0; round < 3; ++round) {
    b.blocks->begin({.moves = 20});
    static_cast<void>(b.blocks->step(copies.handle()));
    for (kept& each : half) {
      CHECK(b.blocks->deallocate(each.block, b[each.in]) == error::none);
      each = {b.blocks->allocate(4096, b[each.in]), 0, each.in};
      CHECK(b.use(each, each.in));
    }
    b.check_contents(half);
  }
  CHECK(b.tested->release_stream(copies.handle()));
  b.check_end(half);
}

TEST_CASE("without a copier and a driver that copies, nothing moves") {
  set_bench b(1, 16 * mib, 4 * mib);
  b.doors().refuse_copy = [](stream_handle) { return true; };
  std::vector<kept> half = b.fill_half(4096);
  CHECK(move_all(*b.blocks, b[0]) == 0);
  CHECK(b.blocks->last_step_failed());
  CHECK(b.blocks->end().moves == 0);
  b.doors().refuse_copy = nullptr;
  CHECK(move_all(*b.blocks, b[0]) > 100);
  b.check_end(half);
}

TEST_CASE("a stream that has ended is waited for like one that is there, until its work has passed") {
  for (const bool safe : {false, true}) {
    CAPTURE(safe);
    stream_options settings;
    settings.safe_mode = safe;
    set_bench b(2, 16 * mib, 4 * mib, software_schedule::lazy, settings);
    software_stream copies(b.device);
    std::vector<kept> half = b.fill_half(4096);
    for (kept& each : half) CHECK(b.use(each, 1));
    if (!safe) CHECK(b.tested->release_stream(b[1]));
    b.stream[1] = software_stream(b.device);  // another stream with the same handle, perhaps; the queue of the old one stays
    for (kept& each : half) each.in = 0;      // used there next, without an order of the program's: the moves give one
    b.blocks->begin();
    const auto moves = b.blocks->step(copies.handle());
    CHECK(moves.size() > half.size() / 3);
    // The copying stream ends as well.
    if (!safe) CHECK(b.tested->release_stream(copies.handle()));
    copies = software_stream(b.device);
    b.use_moved(half, moves, 0);
    CHECK(b.device.driver()->synchronize_all());
    b.blocks->end();
    b.check_end(half);
  }
}

TEST_CASE("many streams come and go between two steps") {
  set_bench b(1, 16 * mib, 4 * mib);
  std::vector<kept> half = b.fill_half(4096);
  for (std::size_t i = 0; i < half.size(); ++i) {
    software_stream brief(b.device);
    order(*b.device.driver(), b[0], brief.handle());
    REQUIRE(b.use(half[i], brief, brief.handle(), brief.handle()));
    CHECK(b.tested->release_stream(brief.handle()));
    if (i % 32 == 31) b.stream[0].synchronize();
    if (i % 64 == 63) CHECK(b.device.driver()->synchronize_all());
  }
  b.blocks->begin();
  const auto moves = b.blocks->step(b[0]);
  CHECK(moves.size() > half.size() / 3);
  CHECK(b.device.driver()->synchronize_all());
  b.check_end(half);
}

TEST_CASE("a stream that ends without an event keeps its blocks where they are, until all is idle") {
  set_bench b(2, 16 * mib, 4 * mib);
  std::vector<kept> half = b.fill_half(4096);
  for (kept& each : half) CHECK(b.use(each, 1));
  b.doors().refuse_record = [&](stream_handle in) { return in == b[1]; };
  CHECK_FALSE(b.tested->release_stream(b[1]));
  b.doors().refuse_record = nullptr;
  b.stream[1] = software_stream(b.device);
  CHECK(move_all(*b.blocks, b[0]) == 0);
  CHECK(b.blocks->last_step_failed());
  CHECK(b.blocks->end().skipped > 100);
  CHECK(b.tested->synchronize());
  CHECK(move_all(*b.blocks, b[0]) > 100);
  for (kept& each : half) each.in = 0;
  b.check_end(half);
}

TEST_CASE("a stream that ends without an event while the device is waited for is no part of that") {
  set_bench b(3, 16 * mib, 4 * mib);
  std::vector<kept> half = b.fill_half(4096);
  for (kept& each : half) CHECK(b.use(each, each.in));
  b.doors().refuse_record = [&](stream_handle in) { return in == b[1]; };
  CHECK_FALSE(b.tested->release_stream(b[1]));
  b.doors().idle = [&] {
    b.doors().idle = nullptr;
    b.doors().refuse_record = [&](stream_handle in) { return in == b[2]; };
    for (kept& each : half)
      if (each.in == 2) CHECK(b.use(each, 2));
    CHECK_FALSE(b.tested->release_stream(b[2]));
    b.doors().refuse_record = nullptr;
  };
  static_cast<void>(b.tested->synchronize());
  b.stream[1] = software_stream(b.device);
  b.stream[2] = software_stream(b.device);
  b.blocks->begin();
  for (const relocation& each : b.blocks->step(b[0])) {
    const auto at = std::ranges::find(half, each.block, &kept::block);
    CHECK(at->in != 2);
  }
  CHECK(b.blocks->end().skipped > 50);
  CHECK(b.tested->synchronize());
  for (kept& each : half) each.in = 0;
  CHECK(move_all(*b.blocks, b[0]) > 50);
  b.check_end(half);
}

TEST_CASE("where no event of the copies can be had, nothing moves; it is made up for when it is needed") {
  for (const bool ends : {false, true}) {
    CAPTURE(ends);
    set_bench b(2, 16 * mib, 4 * mib);
    software_stream copies(b.device);
    std::vector<kept> half = b.fill_half(4096);
    b.blocks->begin();
    b.doors().refuse_record = [&](stream_handle in) { return in == copies.handle(); };
    CHECK(b.blocks->step(copies.handle()).empty());
    CHECK(b.blocks->last_step_failed());
    std::size_t refused = 0;
    for (const kept& each : half) {
      error why = error::none;
      if (b.blocks->pin(each.block, b[0], &why) != nullptr) {
        b.blocks->unpin(each.block, b[0]);
        continue;
      }
      ++refused;
      CHECK(why == error::stream_failed);
      CHECK(b.blocks->deallocate(each.block, b[0]) == error::stream_failed);
      CHECK(b.blocks->size(each.block) == 4096);
    }
    CHECK(refused > 100);
    if (ends) {
      CHECK_FALSE(b.tested->release_stream(copies.handle()));
      copies = software_stream(b.device);
      CHECK(b.blocks->pin(half.back().block, b[0]) == nullptr);
      b.doors().refuse_record = nullptr;
      CHECK(b.blocks->pin(half.back().block, b[0]) == nullptr);  // nobody knows when the copies are over
      CHECK(b.tested->synchronize());
    }
    b.doors().refuse_record = nullptr;
    for (kept& each : half) CHECK(b.use(each, each.in));
    CHECK(move_all(*b.blocks, b[1]) > 100);
    b.check_end(half);
  }
}

TEST_CASE("a stream that cannot be made to wait gets no address, and is not freed in; another is") {
  set_bench b(2, 16 * mib, 4 * mib);
  software_stream copies(b.device);
  std::vector<kept> half = b.fill_half(4096);
  b.doors().refuse_wait = [&](stream_handle in) { return in == copies.handle(); };
  b.blocks->begin();
  CHECK(b.blocks->step(copies.handle()).empty());  // no user is waited for
  CHECK(b.blocks->last_step_failed());
  b.doors().refuse_wait = [&](stream_handle in) { return in == b[0]; };
  b.blocks->begin();
  const auto moves = b.blocks->step(copies.handle());
  REQUIRE(moves.size() > 100);
  error why = error::none;
  CHECK(b.blocks->pin(moves[0].block, b[0], &why) == nullptr);
  CHECK(why == error::stream_failed);
  CHECK(b.blocks->deallocate(moves[0].block, b[0]) == error::stream_failed);
  CHECK(b.blocks->pin(moves[0].block, b[1]) == moves[0].to);
  b.blocks->unpin(moves[0].block, b[1]);
  b.doors().refuse_wait = nullptr;
  CHECK(b.tested->release_stream(copies.handle()));
  b.check_end(half);
}

TEST_CASE("captures: nothing is pinned, freed or moved in one, and what its graph uses stays pinned") {
  for (const bool watches : {false, true}) {
    CAPTURE(watches);
    stream_options settings;
    settings.watch_captures = watches;
    set_bench b(2, 16 * mib, 4 * mib, software_schedule::lazy, settings);
    std::vector<kept> half = b.fill_half(4096);
    for (kept& each : half) CHECK(b.use(each, 1));
    kept& of_graph = half[half.size() - 1];
    auto* const address = static_cast<std::uint64_t*>(b.blocks->pin(of_graph.block, b[1]));
    kept& until_then = half[half.size() - 2];
    CHECK(b.blocks->pin(until_then.block, b[1]) != nullptr);
    if (!watches) CHECK(b.tested->begin_capture(b[1]) == error::none);
    REQUIRE(b.stream[1].begin_capture());
    error why = error::none;
    CHECK(b.blocks->pin(half[0].block, b[1], &why) == nullptr);
    CHECK(why == error::invalid_argument);
    CHECK(b.blocks->deallocate(half[0].block, b[1]) == error::invalid_argument);
    CHECK(b.blocks->try_allocate(100, b[1]) == relocatable::none);
    CHECK_THROWS_AS((void)b.blocks->allocate(100, b[1]), std::invalid_argument);
    b.blocks->unpin(until_then.block, b[1]);
    b.blocks->begin();
    CHECK_THROWS_AS((void)b.blocks->step(b[1]), std::invalid_argument);
    CHECK(b.blocks->step(b[0]).empty());  // no event can be recorded in the other stream
    CHECK(b.blocks->last_step_failed());
    std::size_t launches = 0;
    b.stream[1].enqueue([address, &launches] { launches += ++address[0] != 0; });
    if (!watches) CHECK(b.tested->end_capture(b[1]) == error::none);
    software_graph graph = b.stream[1].end_capture();
    if (watches) CHECK(b.blocks->pin(half[0].block, b[1]) != nullptr);
    if (watches) b.blocks->unpin(half[0].block, b[1]);
    for (int round = 0; round < 3; ++round) b.stream[1].launch(graph);
    of_graph.seed = 0;
    CHECK(move_all(*b.blocks, b[0]) > 100);
    b.stream[1].launch(graph);
    CHECK(b.blocks->pin(of_graph.block, b[1]) == address);
    CHECK(b.stream[1].synchronize());
    CHECK(launches == 4);
    graph = {};
    b.blocks->unpin(of_graph.block, b[1]);
    b.blocks->unpin(of_graph.block, b[1]);
    b.check_end(half);
  }
}

TEST_CASE("in a per-thread stream each use leaves an event, by which others move the block, also when the thread is gone") {
  for (const bool refused : {false, true}) {
    CAPTURE(refused);
    set_bench b(2, 16 * mib, 4 * mib);
    double_driver& doors = b.doors();
    std::vector<kept> half = b.fill_half(4096);
    CHECK(b.device.driver()->synchronize_all());
    std::vector<relocation> moves;
    std::thread([&] {
      software_stream own(b.device);
      double_driver::own = &own;
      doors.refuse_record = [&](stream_handle in) { return refused && in == doors.per_thread(); };
      for (kept& each : half) CHECK(b.use(each, own, doors.per_thread(), doors.per_thread()));
      std::thread([&] {  // another thread cannot record an event there
        b.blocks->begin({.moves = half.size() / 8});
        moves = b.blocks->step(b[0]);
      }).join();
      CHECK(moves.empty() == refused);
      doors.refuse_record = nullptr;
      CHECK(b.tested->release_stream(doors.per_thread()));  // as at the thread's end, but for the stream, which goes first
    }).join();
    for (kept& each : half) each.in = 0;
    b.use_moved(half, moves, 0);
    CHECK(move_all(*b.blocks, b[0]) > half.size() / 6);
    CHECK(b.device.driver()->synchronize_all());
    b.check_end(half);
  }
}

TEST_CASE("what was unpinned in no stream is not moved") {
  set_bench b(2, 16 * mib, 4 * mib);
  std::vector<kept> half = b.fill_half(4096);
  for (const kept& each : half) {
    CHECK(b.blocks->pin(each.block, b[0]) != nullptr);
    b.blocks->unpin(each.block, nullptr);
  }
  CHECK(move_all(*b.blocks, b[0]) == 0);
  b.check_end(half);
}

}  // TEST_SUITE

namespace {

/// Everything that a set does, in three streams and one that copies, at random. Nothing that fails is more than refused.
/// For schedules without workers.
///
/// Two streams are ordered only as far as a program must: behind the last use of a block that both use. Copies see that
/// they come between the uses that were in the streams before them and those that came after.
class relocation_workout {
 public:
  struct manners {
    bool safe = false;
    bool tight = false;         ///< little memory and few sizes: what is freed is used again soon, by others, too
    bool stormy = false;        ///< the driver refuses calls at random
    bool checks_copies = true;  ///< false: they are the driver's own
    bool elsewhere = true;      ///< blocks are unpinned in other streams than they were pinned for, or in none
  };
  relocation_workout(const software_device& device, std::shared_ptr<stream_driver> driver, std::uint64_t seed, manners how)
      : device_(device), doors_(std::make_shared<double_driver>(std::move(driver))), how_(how), random_(make_random(seed)) {
    stream_options settings = limited(how.tight ? 512 * kib : mib);
    settings.memory.capacity = 8 * mib;
    settings.memory.on_bad_free = on_bad_free::count;
    settings.safe_mode = how.safe;
    settings.seal_bytes = how.tight ? 8 * kib : 128 * kib;
    tested_.emplace(make_host_source(), doors_, settings);
    for (std::size_t i = 0; i <= user_streams; ++i) streams_.emplace_back(device_);
    if (how.checks_copies)
      blocks_.emplace(*tested_, [this](std::span<const relocation> moves, stream_handle in) { return copy(moves, in); });
    else
      blocks_.emplace(*tested_);
  }

  void run(int rounds) {
    for (int round = 0; round < rounds; ++round) {
      const storm here(*this, how_.stormy && chance(8));
      const bool fills = round % 300 < 200;  // and then makes room, so that chunks can come free
      switch (uniform(random_, 0, 9)) {
        case 0:
        case 1:
        case 2:
          fills ? take(bytes(), user()) : give(any(), chance(3));
          break;
        case 3:
          fills ? give(any(), chance(3)) : take(bytes(), user());
          break;
        case 4:
          if (chance(4)) stir(user());
          move(uniform(random_, 0, user_streams), some());
          if (chance(2)) CHECK(streams_[uniform(random_, 0, user_streams)].synchronize());  // runs no more than that one waits for
          break;
        case 5:
          if (chance(3)) renew(uniform(random_, 0, user_streams));
          break;
        case 6:
          if (chance(8)) (void)lib([&] { return tested_->trim(); });
          if (how_.stormy && chance(4)) synchronize();
          break;
        default:
          use_somewhere(chance(3) ? recent() : any());
      }
    }
  }

  /// Nothing fails any more: each block is there, with its contents, and can be moved.
  void end() {
    CHECK(device_.driver()->synchronize_all());
    for (int round = 0; round < 3; ++round) (void)tested_->synchronize();
    std::size_t refused = 0;
    for (std::size_t i = 0; i < live_.size(); ++i) refused += !use(i, i % user_streams);
    CHECK(refused == 0);
    for (std::size_t i = live_.size(); i-- > 0;)
      if (live_[i].stays) give(i, false);
    copier_fails_ = false;
    move(user_streams, all);
    CHECK_FALSE(blocks_->last_step_failed());
    while (!live_.empty()) {
      const std::size_t before = live_.size();
      give(0, false);
      REQUIRE(live_.size() < before);
    }
    CHECK(device_.driver()->synchronize_all());
    for (event_handle const each : ends_) device_.driver()->release(each);
    ends_.clear();
    blocks_.reset();
    for (int round = 0; round < 8; ++round) (void)tested_->synchronize();
    const stream_statistics stats = tested_->stats();
    CHECK(stats.memory.requested == 0);
    CHECK(stats.memory.allocated == 0);
    CHECK(stats.memory.cached == 0);
    CHECK(stats.held == 0);
    CHECK(stats.memory.bad_frees == 0);
    ORDERLY_CHECK_FINDINGS(found_);
  }

  std::size_t moved = 0;

 private:
  static constexpr std::size_t user_streams = 3;  ///< one more only copies

  /// Meanwhile the driver refuses every second event, and some waits.
  class storm {
   public:
    storm(relocation_workout& over, bool comes) : over_(over), comes_(comes) {
      if (!comes_) return;
      over_.doors_->refuse_record = [&of = over_](stream_handle in) {
        const bool refuses = in_library && of.chance(2);
        if (in == of.copied_in_) of.unrecorded_ = refuses;
        of.copied_in_ = nullptr;
        return refuses;
      };
      over_.doors_->refuse_wait = [&of = over_](stream_handle) { return in_library && of.chance(8); };
    }
    storm(const storm&) = delete;
    storm& operator=(const storm&) = delete;
    ~storm() {
      if (!comes_) return;
      over_.doors_->refuse_record = nullptr;
      over_.doors_->refuse_wait = nullptr;
    }

   private:
    relocation_workout& over_;
    bool comes_;
  };

  [[nodiscard]] bool chance(std::size_t one_of) { return uniform(random_, 0, one_of - 1) == 0; }
  [[nodiscard]] std::size_t any() { return uniform(random_, 0, 999); }
  [[nodiscard]] std::size_t user() { return uniform(random_, 0, user_streams - 1); }
  [[nodiscard]] stream_handle handle(std::size_t in) const { return streams_[in].handle(); }

  [[nodiscard]] std::size_t bytes() {
    return how_.tight ? std::size_t{512} << 2 * uniform(random_, 0, 2) : log_uniform(random_, 16, 24 * kib) / 8 * 8;
  }
  void take(std::size_t bytes, std::size_t in, bool uses = true) {
    const relocatable block = lib([&] { return blocks_->try_allocate(bytes, handle(in)); });
    if (block == relocatable::none) return;
    live_.push_back({block, 0, in, false});
    if (uses) use(live_.size() - 1, in);
  }
  /// One that has just been moved, if it is there.
  [[nodiscard]] std::size_t recent() {
    if (moved_.empty()) return any();
    const auto at = std::ranges::find(live_, moved_[any() % moved_.size()], &kept::block);
    return at == live_.end() ? any() : static_cast<std::size_t>(at - live_.begin());
  }

  /// Some blocks are pinned for one stream, and used in another behind it.
  bool use(std::size_t at, std::size_t in) {
    if (live_.empty()) return false;
    kept& each = live_[at % live_.size()];
    order_behind(each.in, in);
    void* const address = lib([&] { return blocks_->pin(each.block, handle(in)); });
    each.in = in;
    if (address == nullptr) return false;
    stream_handle unpinned_in = handle(in);
    if (how_.elsewhere && chance(8)) {
      each.in = (in + 1) % user_streams;
      order_behind(in, each.in);
      each.stays = each.stays || chance(8);
      unpinned_in = each.stays ? nullptr : handle(each.in);
    }
    const std::uint64_t next = 1 + (++uses_ << 24);
    enqueue_use(streams_[each.in], address, blocks_->size(each.block), each.seed, next, found_);
    lib([&] { blocks_->unpin(each.block, unpinned_in); });
    each.seed = next;
    return true;
  }

  /// Mostly where it was used before, so that not all streams come behind each other.
  void use_somewhere(std::size_t at) {
    if (live_.empty()) return;
    const std::size_t in = live_[at % live_.size()].in;
    use(at, in >= user_streams || chance(4) ? user() : in);
  }

  void give(std::size_t at, bool again) {
    if (live_.empty()) return;
    kept& each = live_[at % live_.size()];
    if (each.in >= streams_.size()) {
      const std::size_t in = user();
      order_behind(each.in, in);
      each.in = in;
    }
    const std::size_t in = each.in;
    const std::size_t size = blocks_->size(each.block);
    const error code = lib([&] { return blocks_->deallocate(each.block, handle(in)); });
    if (code == error::none) {
      std::swap(each, live_.back());
      live_.pop_back();
      if (again) take(size, in, false);  // it may move before its first use
      return;
    }
    CHECK((code == error::stream_failed || code == error::invalid_argument || code == error::out_of_memory));
  }

  /// A stream gives back half of its blocks while it is at work on them. Either it gets as many again at once, so that none
  /// of its memory waits for others; or others want that memory.
  void stir(std::size_t in) {
    const bool again = chance(2);
    if (again) {
      lib([&] { blocks_->begin(); });  // what was freed before is everybody's now, behind events
      lib([&] { return blocks_->end(); });
    }
    for (std::size_t i = live_.size(); i-- > 0;) {
      if (i >= live_.size() || live_[i].in != in || chance(2)) continue;
      use(i, in);
      give(i, again);
    }
    if (again || chance(2)) return;
    const std::size_t greedy = (in + 1) % user_streams;
    const relocatable large = lib([&] { return blocks_->try_allocate(256 * kib, handle(greedy)); });
    if (large != relocatable::none) live_.push_back({large, 0, greedy, false});
  }

  static constexpr std::size_t all = 1000;
  /// The fewer moves, the fewer streams a step waits for.
  [[nodiscard]] std::size_t some() { return chance(2) ? uniform(random_, 1, 3) : all; }
  void move(std::size_t in, std::size_t most) {
    try {
      lib([&] { blocks_->begin({.bytes = 256 * kib, .moves = most}); });
      for (int step = 0; step < 3; ++step) {
        unrecorded_ = false;
        const std::vector<relocation> moves = lib([&] { return blocks_->step(handle(in)); });
        if (unrecorded_) CHECK((moves.empty() && blocks_->last_step_failed()));
        moved += moves.size();
        if (!moves.empty()) {
          moved_.clear();
          for (const relocation& each : moves) moved_.push_back(each.block);
          for (int i = 0; i < 3; ++i) take(blocks_->size(moved_.back()), in);  // where it was, perhaps
          if (chance(4)) CHECK(streams_[in].synchronize());
        }
        if (chance(2)) use_somewhere(recent());
      }
    } catch (const std::bad_alloc&) {
    } catch (const std::invalid_argument&) {  // the driver did not tell
    } catch (const copier_gives_up&) {
    }
    copied_in_ = nullptr;
    lib([&] { return blocks_->end(); });
  }

  struct copier_gives_up {};
  /// Copies that find what the last use before the step has left. Some fail, though they are in the stream.
  bool copy(std::span<const relocation> moves, stream_handle in) {
    const outside_library here;
    copied_in_ = in;
    const auto stream = std::ranges::find(streams_, in, &software_stream::handle);
    REQUIRE(stream != streams_.end());
    for (const relocation& each : moves) {
      const auto of = std::ranges::find(live_, each.block, &kept::block);
      REQUIRE(of != live_.end());
      stream->enqueue([=, seed = of->seed, this] {
        const auto* const words = static_cast<const std::uint64_t*>(each.from);
        const std::size_t count = each.bytes / sizeof(std::uint64_t);
        bool right = true;
        for (std::size_t i = 0; seed != 0 && i < count; ++i) right = right && words[i] == seed + i;
        found_.expect(right, "a copy comes before a use that was there, or behind one that was not");
        std::memcpy(each.to, each.from, each.bytes);
      });
    }
    if (!copier_fails_ || !chance(8)) return true;
    if (chance(2)) throw copier_gives_up();
    return false;
  }

  /// What the program orders, and no more. Streams have numbers; behind those of streams_ come those that have ended.
  void order_behind(std::size_t first, std::size_t then) {
    if (first == then) return;
    if (first < streams_.size())
      order(*device_.driver(), handle(first), handle(then));
    else
      REQUIRE(device_.driver()->wait(handle(then), ends_[first - streams_.size()]));
  }

  /// A stream ends, and another one comes, in most cases with its handle.
  void renew(std::size_t in) {
    event_handle const end = device_.driver()->record(handle(in));
    REQUIRE(end != nullptr);
    ends_.push_back(end);
    if (!how_.safe) (void)lib([&] { return tested_->release_stream(handle(in)); });
    streams_[in] = software_stream(device_);
    for (kept& each : live_)
      if (each.in == in) each.in = streams_.size() + ends_.size() - 1;
    if (chance(2)) use(recent(), in);
  }

  /// A stream ends without an event, perhaps after copies without one, and another one does so when the device has just
  /// been idle.
  void synchronize() {
    const auto loses = [&](std::size_t in) {
      for (int i = 0; i < 8; ++i) use(any(), in);
      doors_->refuse_record = [refused = handle(in)](stream_handle by) { return in_library && by == refused; };
      if (chance(2)) move(in, some());
      renew(in);
      doors_->refuse_record = nullptr;
    };
    loses(0);
    bool was_idle = false;
    doors_->idle = [&] {
      const outside_library here;
      if (!std::exchange(was_idle, true)) loses(1);
    };
    (void)lib([&] { return tested_->synchronize(); });
    doors_->idle = nullptr;
  }

  const software_device& device_;
  std::shared_ptr<double_driver> doors_;
  manners how_;
  bool copier_fails_ = true;
  std::optional<stream_pool> tested_;
  findings found_;  // before the streams, whose work uses it
  std::vector<software_stream> streams_;
  std::optional<relocatable_stream_blocks> blocks_;
  std::vector<kept> live_;
  std::vector<relocatable> moved_;  ///< by the last step that moved any
  std::vector<event_handle> ends_;  ///< of streams that have ended
  random_engine random_;
  std::uint64_t uses_ = 0;
  stream_handle copied_in_ = nullptr;  ///< until the next event is recorded, which is that of the copies
  bool unrecorded_ = false;            ///< that was refused
};

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("whatever streams do, and whenever their work runs, contents go along") {
  std::size_t moved = 0;
  const std::uint64_t seeds = scaled(1200);
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    CAPTURE(seed);
    const software_schedule schedule = seed % 8 == 7   ? software_schedule::eager
                                       : seed % 2 == 0 ? software_schedule::lazy
                                                       : software_schedule::random;
    const software_device device(schedule, seed);
    relocation_workout work(device, device.driver(), seed,
                            {.safe = seed % 5 == 0, .tight = seed % 3 != 0, .stormy = seed / 4 % 2 == 1,
                             .checks_copies = seed % 7 != 0});
    work.run(600);
    work.end();
    moved += work.moved;
  }
  MESSAGE("blocks moved: ", moved);
  CHECK(moved > 100);
}

TEST_CASE("whichever call of the driver fails, once or from then on: nothing is lost, and all can be moved afterwards") {
  fault_plan plan;
  std::size_t points = 0;
  std::size_t moved = 0;
  for (const bool safe : {false, true}) {
    for (const std::size_t more : {std::size_t{0}, std::size_t{3}, all_more}) {
      points += for_each_fault(
          plan, more,
          [&](std::size_t k) {
            CAPTURE(k);
            CAPTURE(more);
            CAPTURE(safe);
            const software_device device(k % 2 == 0 ? software_schedule::lazy : software_schedule::random, k);
            const auto driver = std::make_shared<failing_driver>(device.driver(), plan);
            {
              relocation_workout work(device, driver, k, {.safe = safe, .checks_copies = k % 4 < 2, .elsewhere = false});
              work.run(200);
              plan.disarm();
              work.end();
              moved += work.moved;
            }
            CHECK(driver->events() == 0);
          },
          sanitized ? 16 : 1);
    }
  }
  MESSAGE("calls of the driver that failed: ", points, "; blocks moved: ", moved);
  CHECK(points > 100);
  CHECK(moved > 100);
}

TEST_CASE("threads use, allocate and free blocks in streams of their own while others are moved, with workers") {
  findings found;
  const software_device device(software_schedule::workers);
  stream_options settings = limited(16 * mib);
  settings.memory.capacity = 64 * mib;
  std::vector<software_stream> streams;
  for (int i = 0; i < 5; ++i) streams.emplace_back(device);
  stream_pool tested(make_host_source(), device.driver(), settings);
  std::optional<relocatable_stream_blocks> blocks(std::in_place, tested);
  std::atomic<bool> done = false;
  std::atomic<std::size_t> moved = 0;
  std::thread mover([&] {
    for (std::size_t round = 0; !done.load(std::memory_order_relaxed); ++round) {
      const stream_handle in = streams[3 + round % 2].handle();
      blocks->begin({.bytes = 256 * kib});
      for (auto moves = blocks->step(in); !moves.empty(); moves = blocks->step(in)) {
        moved.fetch_add(moves.size(), std::memory_order_relaxed);
        std::this_thread::yield();
      }
      blocks->end();
    }
  });
  const std::size_t rounds = scaled(20000);
  run_threads(3, [&](std::size_t index) {
    random_engine random = make_random(index);
    software_stream& in = streams[index];
    std::vector<kept> own;
    std::uint64_t uses = index;
    const auto use = [&](kept& each) {
      void* const address = blocks->pin(each.block, in.handle());
      found.expect(address != nullptr, "a live handle could not be pinned");
      if (address == nullptr) return;
      uses += 3;
      const std::uint64_t next = 1 + (uses << 24);
      enqueue_use(in, address, blocks->size(each.block), each.seed, next, found);
      blocks->unpin(each.block, in.handle());
      each.seed = next;
    };
    for (std::size_t round = 0; round < rounds; ++round) {
      if (round % 512 == 511) in.synchronize();  // the queue has no bound
      if (own.size() < 200 && uniform(random, 0, 1) == 0) {
        const relocatable block = blocks->try_allocate(log_uniform(random, 16, 20 * kib) / 8 * 8, in.handle());
        if (block == relocatable::none) continue;
        own.push_back({block, 0, index});
        use(own.back());
        continue;
      }
      if (own.empty()) continue;
      const std::size_t at = uniform(random, 0, own.size() - 1);
      if (uniform(random, 0, 7) == 0) {
        found.expect(blocks->deallocate(own[at].block, in.handle()) == error::none, "a free was refused");
        own[at] = own.back();
        own.pop_back();
        continue;
      }
      use(own[at]);
    }
    for (const kept& each : own)
      found.expect(blocks->deallocate(each.block, in.handle()) == error::none, "a free was refused");
  });
  done.store(true, std::memory_order_relaxed);
  mover.join();
  CHECK(tested.synchronize());
  blocks.reset();
  ORDERLY_CHECK_FINDINGS(found);
  MESSAGE("blocks moved: ", moved.load());
  CHECK(moved.load() > 0);
  check_idle(tested);
}

}  // TEST_SUITE
