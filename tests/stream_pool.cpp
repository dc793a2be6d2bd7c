// A pool whose memory changes hands in stream order, on software streams: what it promises about who gets which block
// when, what it asks of the driver, and what becomes of streams that end.
#include "orderly/stream_pool.hpp"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "atomic.hpp"
#include "orderly/software_stream.hpp"
#include "support/parks.hpp"
#include "support/process.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

/// Refuses records while it is told to, and parks a thread so many instructions behind its next query, and another so many
/// behind its next question which stream a handle names.
class stopping_driver final : public stream_driver {
 public:
  explicit stopping_driver(std::shared_ptr<stream_driver> inner) : inner_(std::move(inner)) {}
  static std::shared_ptr<stream_driver> wrap(std::shared_ptr<stream_driver> inner) {
    return std::make_shared<stopping_driver>(std::move(inner));
  }

  std::uint64_t identity(stream_handle stream) noexcept override {
    if (const unsigned steps = identity_stops_after.exchange(0); steps != 0) in_identity->park(steps);
    return inner_->identity(stream);
  }
  bool is_per_thread(stream_handle stream) noexcept override { return inner_->is_per_thread(stream); }
  std::uint64_t capture(stream_handle stream) noexcept override { return inner_->capture(stream); }
  event_handle record(stream_handle stream) noexcept override {
    if (!refuses.load()) return inner_->record(stream);
    refused = true;
    return nullptr;
  }
  bool wait(stream_handle stream, event_handle event) noexcept override { return inner_->wait(stream, event); }
  event_status query(event_handle event) noexcept override {
    const event_status found = inner_->query(event);
    if (const unsigned steps = query_stops_after.exchange(0); steps != 0) in_query->park(steps);
    return found;
  }
  bool synchronize(event_handle event) noexcept override { return inner_->synchronize(event); }
  void release(event_handle event) noexcept override { inner_->release(event); }

  std::atomic<bool> refuses = false;
  std::atomic<bool> refused = false;
  std::atomic<unsigned> query_stops_after = 0;
  std::atomic<unsigned> identity_stops_after = 0;
  parkable* in_query = nullptr;
  parkable* in_identity = nullptr;

 private:
  std::shared_ptr<stream_driver> inner_;
};

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("what was freed in a stream is the same stream's at once, without an operation, whatever its size") {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{512}, 64 * kib, mib, 3 * mib, 17 * mib}) {
    CAPTURE(bytes);
    bench b(1, 64 * mib);
    void* first = b.tested->allocate(bytes, b[0]);
    b.tested->deallocate(first, bytes, b[0]);
    for (int i = 0; i < 100; ++i) {
      void* const again = b.tested->allocate(bytes, b[0]);
      CHECK(again == first);
      b.tested->deallocate(again, bytes, b[0]);
    }
    const software_calls calls = b.device.calls();
    CHECK(calls.records + calls.waits + calls.queries + calls.synchronizations == 0);
    CHECK(b.tested->stats().events_recorded == 0);
    check_idle(*b.tested);
  }
}

TEST_CASE("at hand is what this thread freed in the stream, and no other stream's") {
  bench b(2, 64 * mib);
  CHECK(b.tested->allocate_at_hand(mib, b[0]) == nullptr);
  void* const block = b.tested->allocate(mib, b[0]);
  CHECK_FALSE(b.tested->deallocate_at_hand(block, mib, b[1]));
  const bool keeps = detail::asymmetric_barrier::available();  // else threads have nothing at hand
  REQUIRE(b.tested->deallocate_at_hand(block, mib, b[0]) == keeps);
  CHECK_FALSE(b.tested->deallocate_at_hand(block, mib, keeps ? b[0] : b[1]));
  CHECK(b.tested->allocate_at_hand(mib, b[1]) == nullptr);
  CHECK(b.tested->allocate_at_hand(mib, b[0]) == (keeps ? block : nullptr));
  CHECK(b.tested->stats().memory.bad_frees == 0);
  b.tested->deallocate(block, mib, b[0]);
  stream_pool moved(std::move(*b.tested));
  CHECK(b.tested->allocate_at_hand(mib, b[0]) == nullptr);
  CHECK_FALSE(b.tested->deallocate_at_hand(block, mib, b[0]));
  *b.tested = std::move(moved);
  check_idle(*b.tested);
}

TEST_CASE("another stream gets new memory as long as there is some, and no operation is made") {
  bench b(2, 64 * mib);
  void* const first = b.tested->allocate(mib, b[0]);
  b.tested->deallocate(first, mib, b[0]);
  void* const other = b.tested->allocate(mib, b[1]);
  CHECK(other != first);
  CHECK(b.device.calls().records == 0);
  b.tested->deallocate(other, mib, b[1]);
  check_idle(*b.tested);
}

TEST_CASE("under pressure another stream gets what was freed, behind one event, for any number of blocks") {
  for (const std::size_t bytes : {16 * kib, 64 * kib, mib, 4 * mib}) {
    CAPTURE(bytes);
    bench b(2, 16 * mib);
    const std::size_t count = 16 * mib / bytes;
    std::vector<void*> blocks(count);
    findings found;
    for (void*& block : blocks) {
      block = b.tested->allocate(bytes, b[0]);
      use(b.stream[0], block, bytes, 1, found);
    }
    CHECK(b.tested->try_allocate(bytes, b[1]) == nullptr);
    for (void* const block : blocks) b.tested->deallocate(block, bytes, b[0]);
    const std::uint64_t records = b.tested->stats().events_recorded;
    for (void*& block : blocks) {
      block = b.tested->allocate(bytes, b[1]);
      use(b.stream[1], block, bytes, 2, found);
    }
    CHECK(b.tested->stats().events_recorded - records <= 2 + count / 64);
    CHECK(b.tested->stats().waits <= 2 + count / 64);
    CHECK(b.tested->stats().waits >= 1);
    CHECK(b.stream[1].synchronize());  // runs what it waits for too
    for (void* const block : blocks) CHECK(*static_cast<std::uint64_t*>(block) == 2);
    ORDERLY_CHECK_FINDINGS(found);
    for (void* const block : blocks) b.tested->deallocate(block, bytes, b[1]);
    check_idle(*b.tested);
  }
}

TEST_CASE("what has passed is everybody's without a wait, and merges across streams") {
  bench b(2, 16 * mib);
  std::vector<void*> blocks;
  for (int i = 0; i < 16; ++i) blocks.push_back(b.tested->allocate(mib, b[static_cast<std::size_t>(i) % 2]));
  for (std::size_t i = 0; i < 16; ++i) b.tested->deallocate(blocks[i], mib, b[i % 2]);
  CHECK(b.stream[0].synchronize());
  CHECK(b.stream[1].synchronize());
  CHECK(b.tested->synchronize());
  void* const whole = b.tested->allocate(16 * mib, b[0]);
  CHECK(b.tested->stats().waits == 0);
  b.tested->deallocate(whole, 16 * mib, b[0]);
  check_idle(*b.tested);
}

TEST_CASE("blocks of many streams make one large block behind their events, where memory need not move") {
  bench b(4, 16 * mib, software_schedule::lazy, {}, 0, true);
  findings found;
  std::vector<void*> blocks;
  for (std::size_t i = 0; i < 16; ++i) {
    blocks.push_back(b.tested->allocate(mib, b[i % 3]));
    use(b.stream[i % 3], blocks.back(), mib, 7, found);
  }
  for (std::size_t i = 0; i < 16; ++i) b.tested->deallocate(blocks[i], mib, b[i % 3]);
  void* const whole = b.tested->allocate(16 * mib, b[3]);
  CHECK(b.tested->stats().waits == 3);
  use(b.stream[3], whole, 16 * mib, 9, found);
  CHECK(b.stream[3].synchronize());
  CHECK(static_cast<std::uint64_t*>(whole)[0] == 9);
  ORDERLY_CHECK_FINDINGS(found);
  b.tested->deallocate(whole, 16 * mib, b[3]);
  CHECK(b.tested->synchronize());
  CHECK(b.tested->stats().memory.allocated == 0);
}

TEST_CASE("where memory has to move, a request waits for the streams only if it may") {
  for (const bool may_wait : {false, true}) {
    CAPTURE(may_wait);
    stream_options settings;
    settings.wait_before_refusing = may_wait;
    bench b(2, 16 * mib, software_schedule::lazy, settings);
    findings found;
    std::vector<void*> blocks;
    for (int i = 0; i < 16; ++i) {
      blocks.push_back(b.tested->allocate(mib, b[0]));
      use(b.stream[0], blocks.back(), mib, 7, found);
    }
    for (void* const block : blocks) b.tested->deallocate(block, mib, b[0]);
    const std::uint64_t before = b.device.calls().synchronizations;
    void* const whole = b.tested->try_allocate(16 * mib, b[1]);
    CHECK((whole != nullptr) == may_wait);
    CHECK((b.device.calls().synchronizations != before) == may_wait);
    b.tested->deallocate(whole, 16 * mib, b[1]);
    ORDERLY_CHECK_FINDINGS(found);
    check_idle(*b.tested);
  }
}

TEST_CASE("without a limit little more lies idle than was live, where few large blocks come and go in a stream") {
  constexpr std::size_t live = std::size_t{192} << 20;
  const software_device device;
  stream_options settings;
  settings.memory.capacity = std::size_t{16} << 30;
  stream_pool tested(make_host_source(), device.driver(), settings);
  software_stream stream(device);
  std::vector<void*> blocks;
  for (std::size_t phase = 0; phase < 600; ++phase) {
    const std::size_t bytes = (std::size_t{3} << 20) << phase % 6;  // each in slots of its own
    for (int round = 0; round < 10; ++round) {
      for (std::size_t sum = 0; sum < live; sum += bytes) blocks.push_back(tested.allocate(bytes, stream.handle()));
      for (void* const block : blocks) tested.deallocate(block, bytes, stream.handle());
      blocks.clear();
    }
    CHECK(tested.synchronize());
  }
  CHECK(tested.stats().memory.peak_committed <= 3 * live);
  tested.release_stream(stream.handle());
}

TEST_CASE("a block may be freed in another stream than it was allocated for, by any thread") {
  bench b(2, 16 * mib);
  for (const std::size_t bytes : {std::size_t{512}, 4 * mib}) {
    std::vector<void*> blocks;
    for (int i = 0; i < 3; ++i) blocks.push_back(b.tested->allocate(bytes, b[0]));
    std::thread([&] {
      for (void* const block : blocks) CHECK(b.tested->try_deallocate(block, bytes, b[1]) == error::none);
    }).join();
    for (void* const block : blocks) CHECK(b.tested->try_deallocate(block, bytes, b[0]) == error::double_free);
    CHECK(b.tested->stats().memory.requested == 0);
  }
  check_idle(*b.tested);
}

TEST_CASE("a pool moves into another's place, and what is left refuses") {
  bench b(1, 4 * mib);
  bench replaced(0, 2 * mib);
  void* const block = b.tested->allocate(1000, b[0]);
  CHECK(b.tested->granule() == 256);
  CHECK(b.tested->capacity() == 4 * mib);
  stream_pool& self = *b.tested;
  *b.tested = std::move(self);
  CHECK(b.tested->capacity() == 4 * mib);
  *replaced.tested = std::move(*b.tested);
  CHECK(b.tested->granule() == 0);
  CHECK(b.tested->capacity() == 0);
  {
    const captured_stderr capture;
    b.tested->deallocate(nullptr, 1000, b[0]);
    CHECK(capture.text().empty());
    b.tested->deallocate(block, 1000, b[0]);
    CHECK(capture.text().find("pool") != std::string::npos);
  }
  CHECK(replaced.tested->capacity() == 4 * mib);
  CHECK(replaced.tested->try_deallocate(block, 1000, b[0]) == error::none);
  check_idle(*replaced.tested);
}

TEST_CASE("a driver that says nothing of graphs and of all streams at once has neither") {
  class least_driver final : public stream_driver {
   public:
    std::uint64_t identity(stream_handle) noexcept override { return 1; }
    bool is_per_thread(stream_handle) noexcept override { return false; }
    std::uint64_t capture(stream_handle) noexcept override { return 0; }
    event_handle record(stream_handle) noexcept override { return nullptr; }
    bool wait(stream_handle, event_handle) noexcept override { return false; }
    event_status query(event_handle) noexcept override { return event_status::failed; }
    bool synchronize(event_handle) noexcept override { return false; }
    void release(event_handle) noexcept override {}
  } driver;
  CHECK_FALSE(driver.when_graph_is_gone(nullptr, [](void*) {}, nullptr));
  CHECK_FALSE(driver.synchronize_all());
}

TEST_CASE("after a fork the pool goes on in both processes") {
  bench b(1, 4 * mib);
  void* const kept = b.tested->allocate(1000, b[0]);
  const child_end child = run_child([&] {
    void* const made = b.tested->try_allocate(mib, b[0]);
    const bool good = made != nullptr && b.tested->try_deallocate(made, mib, b[0]) == error::none &&
                      b.tested->try_deallocate(kept, 1000, b[0]) == error::none && b.tested->synchronize();
    _exit(good ? 0 : 1);
  });
  CHECK(child.signal == 0);
  CHECK(child.status == 0);
  CHECK(b.tested->try_deallocate(kept, 1000, b[0]) == error::none);
  check_idle(*b.tested);
}

TEST_CASE("alignments above the granule, and those that cannot be had") {
  bench b(1, 16 * mib);
  for (const std::size_t alignment : {1 * kib, 64 * kib}) {
    CAPTURE(alignment);
    void* const first = b.tested->allocate(300, alignment, b[0]);
    void* const second = b.tested->try_allocate(300, alignment, b[0]);
    CHECK(reinterpret_cast<std::uintptr_t>(first) % alignment == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(second) % alignment == 0);
    CHECK(first != second);
    CHECK(b.tested->try_deallocate(first, 300, b[0]) == error::none);
    CHECK(b.tested->try_deallocate(second, 300, b[0]) == error::none);
  }
  for (const std::size_t alignment : {std::size_t{0}, std::size_t{3}, 32 * mib}) {
    CAPTURE(alignment);
    CHECK(b.tested->try_allocate(300, alignment, b[0]) == nullptr);
    CHECK_THROWS_AS(static_cast<void>(b.tested->allocate(300, alignment, b[0])), std::invalid_argument);
  }
  check_idle(*b.tested);
}

TEST_CASE("a settled block is free of every stream's work; there is a wait only if there was such work") {
  for (const std::size_t bytes : {4 * kib, mib}) {
    CAPTURE(bytes);
    bench b(2, 16 * mib);
    stream_handle const idle = b[1];
    findings found;
    void* const fresh = b.tested->allocate_settled(bytes, 4096, idle);
    CHECK(reinterpret_cast<std::uintptr_t>(fresh) % 4096 == 0);
    std::vector<void*> blocks;
    while (void* const block = b.tested->try_allocate(bytes, b[0])) blocks.push_back(block);
    for (void* const block : blocks) use(b.stream[0], block, bytes, 5, found);
    for (void* const block : blocks) b.tested->deallocate(block, bytes, b[0]);
    CHECK(b.device.calls().synchronizations == 0);

    // The pool makes the idle stream wait here. What is left over for the next allocation needs that wait no less.
    void* const first = b.tested->allocate(bytes, idle);
    const std::uint64_t waits = b.tested->stats().waits;
    CHECK(waits != 0);
    CHECK(*static_cast<std::uint64_t*>(first) == 0);
    void* const settled = b.tested->allocate_settled(bytes, 1, idle);
    CHECK(b.tested->stats().waits == waits);
    CHECK(b.device.calls().synchronizations == 1);
    for (void* const block : {first, settled}) {
      CHECK(*static_cast<std::uint64_t*>(block) == 5);
      std::memset(block, 0, bytes);
      b.tested->deallocate(block, bytes, idle);
    }

    // Nothing new to wait for, so nothing is asked.
    const software_calls before = b.device.calls();
    for (int i = 0; i < 100; ++i) b.tested->deallocate(b.tested->allocate_settled(bytes, 1, idle), bytes, idle);
    const software_calls after = b.device.calls();
    CHECK(after.records == before.records);
    CHECK(after.synchronizations == before.synchronizations);
    b.tested->deallocate(fresh, bytes, idle);
    ORDERLY_CHECK_FINDINGS(found);
    check_idle(*b.tested);
  }
}

TEST_CASE("a settled block is refused where it cannot be told whether it is free of work, and is not lost") {
  bench b(2, 16 * mib);
  findings found;
  void* const block = b.tested->allocate(16 * mib, b[0]);
  use(b.stream[0], block, 16 * mib, 5, found);
  b.tested->deallocate(block, 16 * mib, b[0]);
  void* const waited = b.tested->allocate(16 * mib, b[1]);
  b.tested->deallocate(waited, 16 * mib, b[1]);
  CHECK(b.stream[1].begin_capture());
  CHECK_THROWS_AS(static_cast<void>(b.tested->allocate_settled(16 * mib, 1, b[1])), std::runtime_error);
  CHECK(b.tested->stats().memory.requested == 0);
  static_cast<void>(b.stream[1].end_capture());
  void* const again = b.tested->allocate_settled(16 * mib, 1, b[1]);
  CHECK(*static_cast<std::uint64_t*>(again) == 5);
  b.tested->deallocate(again, 16 * mib, b[1]);
  CHECK_THROWS_AS(static_cast<void>(b.tested->allocate_settled(17 * mib, 1, b[1])), out_of_memory);
  CHECK_THROWS_AS(static_cast<void>(b.tested->allocate_settled(1, 3, b[1])), std::invalid_argument);
  CHECK_THROWS_AS(static_cast<void>(b.tested->allocate_settled(1, 1, nullptr)), std::invalid_argument);
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(*b.tested);
}

TEST_CASE("a recorded block stays out of use until every stream that uses it is done") {
  for (const std::size_t bytes : {4 * kib, 4 * mib}) {
    CAPTURE(bytes);
    bench b(4, 4 * mib);
    findings found;
    void* block = nullptr;
    std::vector<void*> rest;
    block = b.tested->allocate(bytes, b[0]);
    while (void* const other = b.tested->try_allocate(bytes, b[0])) rest.push_back(other);
    CHECK(b.tested->record_stream(block, b[1]) == error::none);
    CHECK(b.tested->record_stream(block, b[2]) == error::none);
    CHECK(b.tested->record_stream(block, b[2]) == error::none);
    for (const std::size_t i : {0U, 1U, 2U}) use(b.stream[i], static_cast<char*>(block) + i * kib, kib, 3, found);
    b.tested->deallocate(block, bytes, b[0]);
    CHECK(b.tested->try_deallocate(block, bytes, b[0]) == error::double_free);
    void* const again = b.tested->allocate(bytes, b[3]);
    CHECK(again == block);
    CHECK(b.tested->stats().waits == 3);
    use(b.stream[3], again, bytes, 4, found);
    CHECK(b.stream[3].synchronize());
    CHECK(*static_cast<std::uint64_t*>(again) == 4);
    CHECK(*reinterpret_cast<std::uint64_t*>(static_cast<char*>(again) + kib) == 3);
    ORDERLY_CHECK_FINDINGS(found);
    b.tested->deallocate(again, bytes, b[3]);
    for (void* const other : rest) b.tested->deallocate(other, bytes, b[0]);
    check_idle(*b.tested);
  }
  bench b(1, mib);
  CHECK(b.tested->record_stream(&b, b[0]) == error::foreign_pointer);
}

TEST_CASE("a stream that is released may be destroyed: what was freed in it comes back behind its last event") {
  bench b(1, 16 * mib);
  findings found;
  for (int round = 0; round < 30; ++round) {
    software_stream passing(b.device);
    std::vector<void*> blocks;
    for (int i = 0; i < 12; ++i) {
      blocks.push_back(b.tested->allocate(mib, passing.handle()));
      use(passing, blocks.back(), mib, static_cast<std::uint64_t>(round), found);
    }
    void* const small = b.tested->allocate(100, passing.handle());
    for (void* const block : blocks) b.tested->deallocate(block, mib, passing.handle());
    b.tested->deallocate(small, 100, passing.handle());
    b.tested->release_stream(passing.handle());
    CHECK(b.tested->stats().streams == 0);
  }  // the handle is used again in the next round
  CHECK(b.tested->synchronize());
  void* const whole = b.tested->allocate(16 * mib, b[0]);
  use(b.stream[0], whole, 16 * mib, 99, found);
  CHECK(b.stream[0].synchronize());
  CHECK(static_cast<std::uint64_t*>(whole)[0] == 99);
  ORDERLY_CHECK_FINDINGS(found);
  b.tested->deallocate(whole, 16 * mib, b[0]);
  check_idle(*b.tested);
}

TEST_CASE("what comes home late to a released stream waits for its last event, whoever has its place") {
  bench b(1, 64 * mib);
  findings found;
  constexpr std::size_t bytes = 512;
  std::vector<void*> blocks;
  std::atomic<int> step = 0;
  const auto wait_for = [&](int reached) {
    while (step.load() != reached) std::this_thread::yield();
  };
  std::thread home([&] {  // the blocks' home: does not look at what comes home until it is told to
    for (int i = 0; i < 192; ++i) blocks.push_back(b.tested->allocate(bytes, b[0]));  // whole parcels
    step = 1;
    wait_for(2);
    std::vector<void*> more;
    for (int i = 0; i < 400; ++i) more.push_back(b.tested->allocate(bytes, b[0]));
    for (void* const block : more) b.tested->deallocate(block, bytes, b[0]);
    step = 3;
    wait_for(4);
  });
  wait_for(1);
  {
    software_stream passing(b.device);
    for (void* const block : blocks) {
      use(passing, block, bytes, 1, found);
      b.tested->deallocate(block, bytes, passing.handle());
    }
    b.tested->release_stream(passing.handle());
  }
  step = 2;
  wait_for(3);
  std::vector<std::unique_ptr<software_stream>> others;
  std::vector<void*> taken;
  for (int i = 0; i < 3; ++i) {
    others.push_back(std::make_unique<software_stream>(b.device));
    for (int k = 0; k < 300; ++k) {
      taken.push_back(b.tested->allocate(bytes, others.back()->handle()));
      use(*others.back(), taken.back(), bytes, 2, found);
    }
    CHECK(others.back()->synchronize());  // under this schedule the first stream's work runs only if it is waited for
  }
  step = 4;
  home.join();
  CHECK(b.tested->synchronize());  // runs everything
  for (void* const block : taken) CHECK(*static_cast<std::uint64_t*>(block) == 2);
  ORDERLY_CHECK_FINDINGS(found);
  for (std::size_t i = 0; i < taken.size(); ++i) b.tested->deallocate(taken[i], bytes, others[i / 300]->handle());
  check_idle(*b.tested);
}

TEST_CASE("in safe mode a stream may be destroyed without a word, and its handle be another's") {
  stream_options settings;
  settings.safe_mode = true;
  bench b(1, 4 * mib, software_schedule::lazy, settings);
  findings found;
  for (int round = 0; round < 10; ++round) {
    software_stream passing(b.device);
    void* const block = b.tested->allocate(4 * mib, passing.handle());
    REQUIRE(block != nullptr);
    use(passing, block, 4 * mib, static_cast<std::uint64_t>(round), found);
    b.tested->deallocate(block, 4 * mib, passing.handle());
  }
  void* const block = b.tested->allocate(4 * mib, b[0]);
  use(b.stream[0], block, 4 * mib, 99, found);
  CHECK(b.stream[0].synchronize());
  CHECK(*static_cast<std::uint64_t*>(block) == 99);
  ORDERLY_CHECK_FINDINGS(found);
  b.tested->deallocate(block, 4 * mib, b[0]);
  CHECK(b.tested->synchronize());
  CHECK(b.tested->stats().memory.requested == 0);
}

TEST_CASE("while a stream captures, no event is asked of it, and nothing is lost") {
  bench b(2, 4 * mib);
  void* const block = b.tested->allocate(4 * mib, b[0]);
  REQUIRE(b.stream[0].begin_capture());
  b.tested->deallocate(block, 4 * mib, b[0]);
  CHECK(b.tested->try_allocate(4 * mib, b[1]) == nullptr);  // only an event could tell
  CHECK(b.tested->try_allocate(4 * mib, b[0]) == block);    // in the same stream, as ever
  b.tested->deallocate(block, 4 * mib, b[0]);
  static_cast<void>(b.stream[0].end_capture());
  void* const other = b.tested->try_allocate(4 * mib, b[1]);
  CHECK(other == block);
  // A stream that captures cannot be made to wait, so it gets nothing that it would have to wait for.
  b.tested->deallocate(other, 4 * mib, b[1]);
  REQUIRE(b.stream[0].begin_capture());
  CHECK(b.tested->try_allocate(4 * mib, b[0]) == nullptr);
  static_cast<void>(b.stream[0].end_capture());
  CHECK(b.tested->try_allocate(4 * mib, b[0]) == block);
  b.tested->deallocate(block, 4 * mib, b[0]);
  check_idle(*b.tested);
}

TEST_CASE("what a stream holds is counted, and sealed when it is much") {
  stream_options settings;
  settings.seal_bytes = 8 * mib;
  bench b(1, 256 * mib, software_schedule::lazy, settings);
  std::vector<void*> blocks;
  for (int i = 0; i < 100; ++i) blocks.push_back(b.tested->allocate(2 * mib, b[0]));
  for (void* const block : blocks) b.tested->deallocate(block, 2 * mib, b[0]);
  CHECK(b.tested->stats().held == 200 * mib);
  CHECK(b.tested->stats().events_recorded >= 10);
  CHECK(b.tested->stats().events_recorded <= 25);
  CHECK(b.tested->stream_synchronize(b[0]));
  CHECK(b.tested->stats().held == 0);
  check_idle(*b.tested);
}

TEST_CASE("threads that end leave nothing in the caches of streams") {
  bench b(3, 64 * mib);
  for (int round = 0; round < 20; ++round) {
    std::thread([&] {
      for (std::size_t i = 0; i < 30; ++i) {
        void* const block = b.tested->allocate(1000 * (i + 1), b[i % 3]);
        b.tested->deallocate(block, 1000 * (i + 1), b[i % 3]);
      }
    }).join();
  }
  check_idle(*b.tested);
}

TEST_CASE("a moved pool keeps its blocks; a moved-from one refuses everything") {
  bench b(1, 16 * mib);
  void* const block = b.tested->allocate(1000, b[0]);
  stream_pool moved(std::move(*b.tested));
  CHECK(b.tested->try_allocate(1, b[0]) == nullptr);
  CHECK_THROWS_AS(static_cast<void>(b.tested->allocate(1, b[0])), std::invalid_argument);
  CHECK(b.tested->try_deallocate(block, 1000, b[0]) == error::pool_gone);
  CHECK_FALSE(b.tested->synchronize());
  CHECK(b.tested->record_stream(block, b[0]) == error::pool_gone);
  CHECK(b.tested->stats().memory.capacity == 0);
  CHECK(moved.try_deallocate(block, 1000, b[0]) == error::none);
  check_idle(moved);
}

TEST_CASE("one thread, many streams, any schedule: no block is used in two streams at once") {
  for (const software_schedule schedule :
       {software_schedule::eager, software_schedule::lazy, software_schedule::random}) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      bench b(5, 8 * mib, schedule, {}, seed);
      random_engine random = make_random(seed);
      findings found;
      struct held {
        void* address;
        std::size_t bytes;
        std::uint64_t mark;
      };
      std::vector<held> live;
      std::uint64_t mark = 0;
      for (int step = 0; step < 3000; ++step) {
        const std::size_t in = uniform(random, 0, 4);
        if (live.size() < 40 && uniform(random, 0, 1) == 0) {
          const std::size_t bytes = log_uniform(random, 16, 2 * mib) / 8 * 8;
          void* const block = b.tested->try_allocate(bytes, b[in]);
          if (block == nullptr) continue;
          live.push_back({block, bytes, ++mark});
          // Two pieces of work: whoever gets the block too early comes in between.
          b.stream[in].enqueue([block, at = mark] { *static_cast<std::uint64_t*>(block) = at; });
          b.stream[in].enqueue([block, at = mark, &found] {
            found.expect(*static_cast<std::uint64_t*>(block) == at, "the block was given away while it was in use");
          });
          b.tested->deallocate(block, bytes, b[in]);  // in stream order: at once
          live.pop_back();
        } else if (uniform(random, 0, 50) == 0) {
          CHECK(b.tested->stream_synchronize(b[in]));
        }
      }
      ORDERLY_CHECK_FINDINGS(found);
      check_idle(*b.tested);
    }
  }
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads and streams, frees in other streams and by other threads: every use comes after the last") {
  for (const std::size_t capacity : {4 * mib, 64 * mib}) {
    CAPTURE(capacity);
    constexpr std::size_t streams = 4;
    constexpr std::size_t threads = 4;
    bench b(streams, capacity, software_schedule::workers);
    findings found;
    std::vector<std::atomic<void*>> hand_over(threads);
    run_threads(threads, [&](std::size_t self) {
      random_engine random = make_random(self);
      for (std::size_t step = 0; step < scaled(4000); ++step) {
        const std::size_t in = uniform(random, 0, streams - 1);
        const std::size_t bytes = log_uniform(random, 64, mib) / 8 * 8;
        void* const block = b.tested->try_allocate(bytes, b[in]);
        if (block == nullptr) continue;
        use(b.stream[in], block, bytes, self << 32 | step, found);
        // Half of them are freed by another thread; it learns of the block after the work was enqueued.
        if (uniform(random, 0, 1) == 0) {
          b.tested->deallocate(block, bytes, b[in]);
          continue;
        }
        // Another thread's block: its stream is not known here, so all are waited for.
        for (void* const other : {hand_over[(self + 1) % threads].exchange(nullptr), hand_over[self].exchange(block)}) {
          if (other == nullptr) continue;
          for (software_stream& each : b.stream) each.synchronize();
          found.expect(b.tested->try_deallocate(other, 0, b[in]) == error::none, "a good free was refused");
        }
        if (step % 512 == 0) found.expect(b.tested->synchronize(), "a driver could not tell");
      }
    });
    for (std::atomic<void*>& left : hand_over) {
      if (void* const block = left.load()) b.tested->deallocate(block, 0, b[0]);
    }
    ORDERLY_CHECK_FINDINGS(found);
    check_idle(*b.tested);
  }
}

TEST_CASE("threads that use settled blocks at once, beside streams: no use meets another") {
  constexpr std::size_t threads = 4;
  bench b(3, 4 * mib, software_schedule::workers);
  stream_handle const idle = b[2];
  findings found;
  std::atomic<std::size_t> settled{0};
  run_threads(threads, [&](std::size_t self) {
    random_engine random = make_random(self);
    for (std::size_t step = 0; step < scaled(4000); ++step) {
      const std::size_t bytes = log_uniform(random, 64, mib) / 8 * 8;
      const std::uint64_t mark = self << 32 | step;
      if (self % 2 == 0) {
        void* const block = b.tested->try_allocate(bytes, b[self / 2]);
        if (block == nullptr) continue;
        use(b.stream[self / 2], block, bytes, mark, found);
        b.tested->deallocate(block, bytes, b[self / 2]);
        continue;
      }
      try {
        auto* const words = static_cast<std::uint64_t*>(b.tested->allocate_settled(bytes, 1, idle));
        const std::size_t last = bytes / sizeof(std::uint64_t) - 1;
        words[0] = words[last] = mark;
        found.expect(words[0] == mark && words[last] == mark, "a stream wrote a settled block");
        b.tested->deallocate(words, bytes, idle);
        settled.fetch_add(1);
      } catch (const out_of_memory&) {
      }
    }
  });
  CHECK(settled > 0);
  CHECK(b.tested->stats().waits > 0);
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(*b.tested);
}

TEST_CASE("streams come one after the other, while another thread looks at what all hold") {
  constexpr std::size_t streams = 64;
  bench b(streams, 4 * mib, software_schedule::workers);
  std::atomic<bool> over = false;
  findings found;
  run_threads(2, [&](std::size_t self) {
    if (self == 1) {
      while (!over.load(std::memory_order_relaxed))
        found.expect(b.tested->stats().held <= 4 * mib, "more is held than there is");
      return;
    }
    for (std::size_t in = 0; in < streams; ++in) b.tested->deallocate(b.tested->try_allocate(1000, b[in]), 1000, b[in]);
    over.store(true, std::memory_order_relaxed);
  });
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(*b.tested);
}

TEST_CASE("of two threads that take settled blocks one waits for the work, and both see what it did") {
  constexpr std::size_t half = 512 * kib;
  findings found;
  for (std::size_t round = 0; round < scaled(100); ++round) {
    bench b(2, 2 * half, software_schedule::workers, {}, 0, true);
    std::array<void*, 2> blocks;
    std::atomic<bool> known = false;
    std::atomic<bool> over = false;
    const auto settle = [&](std::size_t self) {
      auto* const block = static_cast<std::uint64_t*>(b.tested->allocate_settled(half, 1, b[1]));
      found.expect((*block)++ == round, "the work is said to be done, and its bytes are not there");
      blocks[self] = block;
    };
    run_threads(2, [&](std::size_t self) {
      if (self == 1) {
        b.tested->deallocate(b.tested->allocate(half, b[1]), half, b[1]);  // it knows the stream
        known = true;
        while (!over.load(std::memory_order_relaxed)) std::this_thread::yield();
        return settle(1);
      }
      while (!known.load()) std::this_thread::yield();
      for (void*& each : blocks) {
        each = b.tested->allocate(half, b[0]);
        b.stream[0].enqueue([block = each, round] { *static_cast<std::uint64_t*>(block) = round; });  // plain
      }
      for (void* const each : blocks) b.tested->deallocate(each, half, b[0]);
      settle(0);
      over.store(true, std::memory_order_relaxed);
    });
    for (void* const each : blocks) b.tested->deallocate(each, half, b[1]);
    CHECK(b.tested->synchronize());
  }
  ORDERLY_CHECK_FINDINGS(found);
}

#if defined(__x86_64__)  // elsewhere no thread is stopped at a chosen instruction

TEST_CASE("in safe mode a pass is stopped at any instruction while a free gets no mark: no earlier mark covers the block") {
  if (sanitized) return;
  constexpr std::size_t rounds = 80;
  constexpr unsigned stride = 5;  // instructions from one stop of the pass to the next
  constexpr std::size_t bytes = 1024;
  constexpr std::size_t alignment = 4096;  // such a block goes past caches
  findings found;
  parkable pass;
  parkable freeing;
  std::atomic<bench*> passed = nullptr;
  std::atomic<bench*> freed_in = nullptr;
  std::atomic<void*> to_free = nullptr;
  std::atomic<bool> over = false;
  std::thread passes([&] {
    for (pass.enter(); !over.load(); std::this_thread::yield()) {
      if (bench* const b = passed.load(); b != nullptr) {
        static_cast<void>(b->tested->defragment());
        passed = nullptr;
      }
    }
    pass.leave();
  });
  std::thread frees([&] {
    for (freeing.enter(); !over.load(); std::this_thread::yield()) {
      if (bench* const b = freed_in.load(); b != nullptr) {
        b->tested->deallocate(to_free.load(), bytes, (*b)[1]);
        freed_in = nullptr;
      }
    }
    freeing.leave();
  });
  const auto soon = [](const auto& met) { return comes_true(met, std::chrono::milliseconds(20)); };
  // The free has found its lane, and given the mutex back that a pass needs, but has not asked for its mark.
  unsigned steps = 300;
  std::size_t met = 0;
  std::size_t round = 1;
  for (std::size_t attempt = 0; round <= rounds && attempt < 20 * rounds; ++attempt) {
    stream_options settings;
    settings.safe_mode = true;
    bench b(2, mib, software_schedule::lazy, settings, 0, true, stopping_driver::wrap);
    auto& driver = static_cast<stopping_driver&>(*b.driver);
    driver.in_query = &pass;
    driver.in_identity = &freeing;
    void* const first = b.tested->allocate(bytes, alignment, b[0]);  // its batch is asked about before the other lane's turn
    b.stream[0].enqueue([] {});
    b.tested->deallocate(first, bytes, b[0]);
    static_cast<void>(b.tested->defragment());
    void* const marked = b.tested->allocate(bytes, alignment, b[1]);
    void* const unmarked = b.tested->allocate(bytes, alignment, b[1]);
    b.tested->deallocate(marked, bytes, b[1]);
    b.stream[1].synchronize();
    b.stream[1].enqueue([] {});  // uses the block
    driver.refuses = true;
    freeing.forget();
    driver.identity_stops_after = steps;
    to_free = unmarked;
    freed_in = &b;
    while (!freeing.parked()) std::this_thread::yield();
    bool too_late = driver.refused.load();
    pass.forget();
    driver.query_stops_after = stride * static_cast<unsigned>(round);
    passed = &b;
    const bool stuck = !soon([&] { return pass.parked(); });
    const bool too_early = stuck && driver.query_stops_after.load() != 0;  // it does not get the mutex
    too_late = too_late || (stuck && !too_early);
    freeing.release();
    // Where the pass holds a mutex the free waits for it.
    if (!too_early && !too_late) met += soon([&] { return freed_in.load() == nullptr; });
    while (!pass.parked()) std::this_thread::yield();
    pass.release();
    while (passed.load() != nullptr || freed_in.load() != nullptr) std::this_thread::yield();
    if (too_early) {
      steps += 11;
    } else if (too_late) {
      steps -= 7;
    } else {
      found.expect(b.tested->stats().held >= 2 * bytes, "stopped after ", stride * round,
                   " instructions: what work still uses is everybody's");
      ++round;
    }
    static_cast<void>(b.tested->synchronize());  // nobody can tell what has no mark
  }
  over = true;
  passes.join();
  frees.join();
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(round > rounds);
  CHECK(met > 0);
}

#endif

}  // TEST_SUITE
