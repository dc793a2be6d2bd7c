// Software streams: order within a stream and by events, what each schedule runs and when, and what is refused.
#include "orderly/software_stream.hpp"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::array every_schedule = {software_schedule::workers, software_schedule::eager, software_schedule::lazy,
                                       software_schedule::random};

[[nodiscard]] const char* name_of(software_schedule schedule) {
  switch (schedule) {
    case software_schedule::workers: return "workers";
    case software_schedule::eager: return "eager";
    case software_schedule::lazy: return "lazy";
    case software_schedule::random: return "random";
  }
  return "?";
}

/// Runs the body once under each schedule.
template <class Body>
void under_every_schedule(const Body& body) {
  for (const software_schedule schedule : every_schedule) {
    CAPTURE(name_of(schedule));
    software_device device(schedule, test_seed());
    body(device);
  }
}

/// Holds the work of a stream back until it is opened. The flag is relaxed: it orders nothing.
class gate {
 public:
  void open() noexcept { open_.store(true, std::memory_order_relaxed); }
  void pass() const noexcept {
    while (!open_.load(std::memory_order_relaxed)) std::this_thread::yield();
  }

 private:
  std::atomic<bool> open_ = false;
};

/// An event, released at the end.
class recorded {
 public:
  recorded(const software_device& device, const software_stream& stream)
      : driver_(device.driver()), event_(driver_->record(stream.handle())) {
    REQUIRE(event_ != nullptr);
  }
  recorded(const recorded&) = delete;
  recorded& operator=(const recorded&) = delete;
  ~recorded() { driver_->release(event_); }

  [[nodiscard]] event_handle handle() const noexcept { return event_; }
  [[nodiscard]] event_status query() const noexcept { return driver_->query(event_); }
  [[nodiscard]] bool synchronize() const noexcept { return driver_->synchronize(event_); }
  [[nodiscard]] bool delay(const software_stream& stream) const noexcept {
    return driver_->wait(stream.handle(), event_);
  }

 private:
  std::shared_ptr<stream_driver> driver_;
  event_handle event_;
};

/// Two streams, each with a row of work, as the schedule of a seed mixes them.
[[nodiscard]] std::vector<int> mixed(std::uint64_t seed) {
  std::vector<int> ran;
  software_device device(software_schedule::random, seed);
  software_stream even(device);
  software_stream odd(device);
  for (int number = 0; number < 64; ++number)
    (number % 2 == 0 ? even : odd).enqueue([&ran, number] { ran.push_back(number); });
  even.synchronize();
  odd.synchronize();
  return ran;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("work of one stream runs in its order") {
  under_every_schedule([](const software_device& device) {
    std::vector<int> ran;
    std::vector<int> expected;
    software_stream stream(device);
    for (int number = 0; number < 1000; ++number) {
      stream.enqueue([&ran, number] { ran.push_back(number); });
      expected.push_back(number);
    }
    CHECK(stream.synchronize());
    CHECK(ran == expected);
  });
}

TEST_CASE("a stream that waits for an event begins after it") {
  under_every_schedule([](const software_device& device) {
    software_stream writer(device);
    software_stream reader(device);
    int block = 0;
    int seen = 0;
    for (int round = 1; round <= 50; ++round) {
      writer.enqueue([&block, round] {
        if (round % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        block = round;
      });
      CHECK(recorded(device, writer).delay(reader));
      reader.enqueue([&block, &seen, round] { seen += block == round ? 1 : 0; });
      CHECK(recorded(device, reader).delay(writer));
    }
    CHECK(reader.synchronize());
    CHECK(seen == 50);
  });
}

TEST_CASE("an event orders through a chain of streams") {
  under_every_schedule([](const software_device& device) {
    std::vector<software_stream> streams;
    for (int count = 0; count < 5; ++count) streams.emplace_back(device);
    std::vector<std::size_t> ran;
    for (std::size_t step = 0; step < 100; ++step) {
      streams[step % 5].enqueue([&ran, step] { ran.push_back(step); });
      CHECK(recorded(device, streams[step % 5]).delay(streams[(step + 1) % 5]));
    }
    CHECK(streams[4].synchronize());
    REQUIRE(ran.size() == 100);
    for (std::size_t step = 0; step < 100; ++step) CHECK(ran[step] == step);
  });
}

TEST_CASE("workers: an event is pending until the work before it has run") {
  const software_device device;
  software_stream stream(device);
  gate closed;
  bool ran = false;
  const recorded before(device, stream);
  CHECK(before.synchronize());
  stream.enqueue([&] {
    closed.pass();
    ran = true;
  });
  const recorded behind(device, stream);
  CHECK(before.query() == event_status::complete);
  CHECK(behind.query() == event_status::pending);
  closed.open();
  while (behind.query() == event_status::pending) std::this_thread::yield();
  CHECK(behind.query() == event_status::complete);
  CHECK(ran);
}

TEST_CASE("eager: an event is complete when it is recorded") {
  const software_device device(software_schedule::eager);
  software_stream stream(device);
  bool ran = false;
  stream.enqueue([&] { ran = true; });
  CHECK(ran);
  CHECK(recorded(device, stream).query() == event_status::complete);
}

TEST_CASE("lazy: nothing runs until it is waited for, and then no more than that needs") {
  const software_device device(software_schedule::lazy);
  software_stream first(device);
  software_stream second(device);
  software_stream third(device);
  std::vector<int> ran;
  first.enqueue([&] { ran.push_back(1); });
  const recorded one(device, first);
  first.enqueue([&] { ran.push_back(2); });
  CHECK(one.delay(second));
  second.enqueue([&] { ran.push_back(3); });
  const recorded two(device, second);
  second.enqueue([&] { ran.push_back(4); });
  third.enqueue([&] { ran.push_back(5); });
  for (int times = 0; times < 100; ++times) CHECK(two.query() == event_status::pending);
  CHECK(ran.empty());
  CHECK(two.synchronize());
  CHECK(two.query() == event_status::complete);
  CHECK(ran == std::vector{1, 3});
  CHECK(third.synchronize());
  CHECK(first.synchronize());
  CHECK(ran == std::vector{1, 3, 5, 2});
  CHECK(second.synchronize());
  CHECK(ran == std::vector{1, 3, 5, 2, 4});
}

TEST_CASE("random: asking makes progress") {
  const software_device device(software_schedule::random, test_seed());
  software_stream stream(device);
  int ran = 0;
  for (int count = 0; count < 100; ++count) stream.enqueue([&] { ++ran; });
  const recorded behind(device, stream);
  int questions = 0;
  while (behind.query() == event_status::pending && questions < 1000000) ++questions;
  CHECK(behind.query() == event_status::complete);
  CHECK(ran == 100);
}

TEST_CASE("random: a seed gives one schedule") {
  CHECK(mixed(1) == mixed(1));
  CHECK(mixed(2) == mixed(2));
  CHECK(mixed(1) != mixed(2));
}

TEST_CASE("a handle that is used again names another stream") {
  under_every_schedule([](const software_device& device) {
    const std::shared_ptr<stream_driver> driver = device.driver();
    std::optional<software_stream> stream(std::in_place, device);
    const stream_handle handle = stream->handle();
    const std::uint64_t identity = driver->identity(handle);
    CHECK(identity != 0);
    CHECK(driver->identity(handle) == identity);
    CHECK_FALSE(driver->is_per_thread(handle));
    const recorded before(device, *stream);

    stream.reset();
    CHECK(driver->identity(handle) == 0);
    CHECK(driver->record(handle) == nullptr);
    CHECK_FALSE(driver->wait(handle, before.handle()));

    stream.emplace(device);
    CHECK(stream->handle() == handle);
    CHECK(driver->identity(handle) != identity);
    CHECK(driver->identity(handle) != 0);
    CHECK(before.synchronize());
    CHECK(stream->synchronize());
  });
}

TEST_CASE("a moved stream is the same stream") {
  const software_device device;
  software_stream first(device);
  const stream_handle handle = first.handle();
  software_stream second(std::move(first));
  CHECK(second.handle() == handle);
  software_stream third(device);
  third = std::move(second);
  CHECK(third.handle() == handle);
  CHECK(third.synchronize());
}

TEST_CASE("a moved device has its streams") {
  software_device first;
  software_stream stream(first);
  software_device second(std::move(first));
  software_device third(software_schedule::eager);
  third = std::move(second);
  bool ran = false;
  stream.enqueue([&] { ran = true; });
  CHECK(stream.synchronize());
  CHECK(ran);
  CHECK(third.driver()->identity(stream.handle()) != 0);
}

TEST_CASE("what captures takes no events, and runs nothing before it is launched") {
  under_every_schedule([](const software_device& device) {
    const std::shared_ptr<stream_driver> driver = device.driver();
    software_stream stream(device);
    software_stream other(device);
    const recorded own(device, stream);
    const recorded foreign(device, other);
    CHECK(own.synchronize());
    CHECK(driver->capture(stream.handle()) == 0);

    int ran = 0;
    CHECK(stream.begin_capture());
    CHECK_FALSE(stream.begin_capture());
    const std::uint64_t first = driver->capture(stream.handle());
    CHECK(first != 0);
    CHECK(driver->capture(other.handle()) == 0);
    stream.enqueue([&] { ++ran; });
    stream.enqueue([&] { ran *= 10; });
    CHECK(driver->record(stream.handle()) == nullptr);
    CHECK_FALSE(foreign.delay(stream));
    CHECK(own.query() == event_status::failed);
    CHECK_FALSE(own.synchronize());
    CHECK_FALSE(stream.synchronize());
    CHECK(foreign.synchronize());
    CHECK(own.delay(other));
    const software_graph graph = stream.end_capture();
    CHECK(graph.size() == 2);
    CHECK(driver->capture(stream.handle()) == 0);
    CHECK(own.query() == event_status::complete);
    CHECK(stream.synchronize());
    CHECK(ran == 0);

    stream.launch(graph);
    stream.launch(graph);
    CHECK(stream.synchronize());
    CHECK(ran == 110);

    CHECK(stream.begin_capture());
    CHECK(driver->capture(stream.handle()) != first);
    stream.launch(graph);
    CHECK(stream.end_capture().size() == 1);
    CHECK(stream.end_capture().size() == 0);
  });
}

TEST_CASE("an event of a stream that captured and was destroyed can be waited for") {
  const software_device device;
  std::optional<software_stream> stream(std::in_place, device);
  const recorded before(device, *stream);
  CHECK(stream->begin_capture());
  stream->enqueue([] {});
  CHECK(before.query() == event_status::failed);
  stream.reset();
  CHECK(before.synchronize());
  stream.emplace(device);
  CHECK(stream->begin_capture());
  CHECK(before.query() == event_status::complete);
}

TEST_CASE("workers: destruction does not wait for queued work, which runs all the same") {
  gate closed;
  int ran = 0;
  {
    const software_device device;
    std::optional<software_stream> stream(std::in_place, device);
    software_stream other(device);
    stream->enqueue([&] { closed.pass(); });
    for (int count = 0; count < 100; ++count) stream->enqueue([&] { ++ran; });
    const recorded behind(device, *stream);
    stream->enqueue([&] { ran += 1000; });
    CHECK(behind.delay(other));
    stream.reset();
    CHECK(behind.query() == event_status::pending);
    std::vector<software_stream> more;
    for (int count = 0; count < 4; ++count) more.emplace_back(device);
    for (software_stream& each : more) CHECK(each.synchronize());
    closed.open();
    CHECK(behind.synchronize());
    CHECK(other.synchronize());
  }
  CHECK(ran == 1100);
}

TEST_CASE("without workers, work of a destroyed stream runs at the latest with the device") {
  for (const software_schedule schedule : {software_schedule::lazy, software_schedule::random}) {
    int ran = 0;
    {
      const software_device device(schedule, test_seed());
      std::optional<software_stream> stream(std::in_place, device);
      for (int count = 0; count < 50; ++count) stream->enqueue([&] { ++ran; });
      const recorded half(device, *stream);
      for (int count = 0; count < 50; ++count) stream->enqueue([&] { ++ran; });
      stream.reset();
      CHECK(half.synchronize());
      CHECK(ran >= 50);
      if (schedule == software_schedule::lazy) CHECK(ran == 50);
    }
    CHECK(ran == 100);
  }
}

TEST_CASE("streams and the driver may outlive the device") {
  for (const software_schedule schedule : every_schedule) {
    std::optional<software_device> device(std::in_place, schedule);
    const std::shared_ptr<stream_driver> driver = device->driver();
    software_stream stream(*device);
    device.reset();
    int ran = 0;
    stream.enqueue([&] { ++ran; });
    const event_handle event = driver->record(stream.handle());
    CHECK(driver->synchronize(event));
    driver->release(event);
    CHECK(ran == 1);
  }
}

TEST_CASE("a wait stays when its event is released before it completes") {
  const software_device device;
  software_stream first(device);
  software_stream second(device);
  gate closed;
  int block = 0;
  int seen = 0;
  first.enqueue([&] {
    closed.pass();
    block = 1;
  });
  CHECK(recorded(device, first).delay(second));
  second.enqueue([&] { seen = block; });
  // Records that would complete the released event too early, if they were given it.
  software_stream third(device);
  for (int count = 0; count < 20; ++count) CHECK(recorded(device, third).synchronize());
  CHECK(third.synchronize());
  closed.open();
  CHECK(second.synchronize());
  CHECK(seen == 1);
}

TEST_CASE("released events are used again") {
  under_every_schedule([](const software_device& device) {
    software_stream stream(device);
    software_stream other(device);
    for (int count = 0; count < 1000; ++count) {
      const recorded behind(device, stream);
      CHECK(behind.delay(other));
      CHECK(behind.synchronize());
      if (count % 8 == 0) CHECK(other.synchronize());
    }
    CHECK(device.calls().events < 100);
  });
}

TEST_CASE("calls are counted") {
  const software_device device(software_schedule::eager);
  const std::shared_ptr<stream_driver> driver = device.driver();
  software_stream stream(device);
  {
    const recorded behind(device, stream);
    CHECK(behind.query() == event_status::complete);
    CHECK(behind.query() == event_status::complete);
    CHECK(behind.delay(stream));
    CHECK(behind.synchronize());
  }
  CHECK(stream.synchronize());
  const software_calls calls = device.calls();
  CHECK(calls.records == 1);
  CHECK(calls.queries == 2);
  CHECK(calls.waits == 1);
  CHECK(calls.synchronizations == 1);
  CHECK(calls.releases == 1);
  CHECK(calls.events >= 1);
}

TEST_CASE("no stream, no event, and another device's stream are refused") {
  const software_device device;
  const software_device stranger;
  const std::shared_ptr<stream_driver> driver = device.driver();
  const software_stream stream(device);
  const software_stream foreign(stranger);
  CHECK(driver->identity(nullptr) == 0);
  CHECK(driver->identity(foreign.handle()) == 0);
  CHECK(stranger.driver()->identity(foreign.handle()) != driver->identity(stream.handle()));
  CHECK(driver->capture(nullptr) == 0);
  CHECK_FALSE(driver->is_per_thread(nullptr));
  CHECK(driver->record(nullptr) == nullptr);
  CHECK(driver->record(foreign.handle()) == nullptr);
  CHECK_FALSE(driver->wait(stream.handle(), nullptr));
  CHECK_FALSE(driver->wait(nullptr, recorded(device, stream).handle()));
  CHECK(driver->query(nullptr) == event_status::failed);
  CHECK_FALSE(driver->synchronize(nullptr));
  driver->release(nullptr);
}

TEST_CASE("many host threads put work into one stream, each in its order") {
  under_every_schedule([](const software_device& device) {
    constexpr std::size_t threads = 6;
    const std::size_t pieces = scaled(2000);
    software_stream stream(device);
    std::array<std::size_t, threads> next{};  // plain: only the stream's work uses it
    findings found;
    run_threads(threads, [&](std::size_t index) {
      for (std::size_t piece = 0; piece < pieces; ++piece) {
        stream.enqueue([&next, &found, index, piece] { found.expect(next[index]++ == piece, "out of order"); });
        if (piece % 256 == 0) {
          const recorded behind(device, stream);
          found.expect(behind.synchronize(), "an event does not come");
          found.expect(behind.query() == event_status::complete, "an event is not complete after the wait for it");
        }
      }
    });
    CHECK(stream.synchronize());
    ORDERLY_CHECK_FINDINGS(found);
    for (const std::size_t count : next) CHECK(count == pieces);
  });
}

}

TEST_SUITE("stress") {

// Host threads hand blocks of their own from stream to stream. The streams are shared, the blocks are plain: where an
// order is missing, the count of a block is wrong, and ThreadSanitizer reports a race.
TEST_CASE("blocks handed from stream to stream by events") {
  constexpr std::size_t threads = 3;
  constexpr std::size_t streams_in_all = 5;
  constexpr std::size_t blocks_of_thread = 8;

  struct block {
    std::array<std::uint64_t, 16> words{};
  };
  /// What the host knows of a block: how often it was changed, where last, and by when.
  struct ledger {
    std::uint64_t changes = 0;
    std::size_t stream = 0;
    event_handle done = nullptr;
  };

  under_every_schedule([&](const software_device& device) {
    const std::shared_ptr<stream_driver> driver = device.driver();
    std::vector<software_stream> streams;
    for (std::size_t count = 0; count < streams_in_all; ++count) streams.emplace_back(device);
    findings found;
    run_threads(threads, [&](std::size_t index) {
      random_engine random = make_random(index);
      const auto blocks = std::make_unique<std::array<block, blocks_of_thread>>();
      std::array<ledger, blocks_of_thread> known;
      const auto change = [&found](block& changed, std::uint64_t expected) {
        for (std::uint64_t& word : changed.words) {
          found.expect(word == expected, "a block has ", word, " changes, not ", expected);
          word = expected + 1;
        }
      };
      for (std::size_t step = 0; step < scaled(20000); ++step) {
        const std::size_t at = uniform(random, 0, blocks_of_thread - 1);
        block& used = (*blocks)[at];
        ledger& entry = known[at];
        const std::size_t choice = uniform(random, 0, 99);
        if (choice < 2) {  // on the host
          if (entry.done != nullptr) found.expect(driver->synchronize(entry.done), "an event does not come");
          change(used, entry.changes++);
          continue;
        }
        if (choice < 6) {  // on the host if it is free
          const bool free = entry.done != nullptr && driver->query(entry.done) == event_status::complete;
          if (free) change(used, entry.changes++);
          continue;
        }
        if (choice < 7) {  // in a stream that is destroyed at once
          software_stream passing(device);
          if (entry.done != nullptr) found.expect(driver->wait(passing.handle(), entry.done), "a wait is refused");
          passing.enqueue([&change, &used, expected = entry.changes++] { change(used, expected); });
          const event_handle done = driver->record(passing.handle());
          if (entry.done != nullptr) driver->release(entry.done);
          entry = {entry.changes, streams_in_all, done};
          continue;
        }
        const std::size_t stream = uniform(random, 0, streams_in_all - 1);
        if (entry.done != nullptr && stream != entry.stream)
          found.expect(driver->wait(streams[stream].handle(), entry.done), "a wait is refused");
        streams[stream].enqueue([&change, &used, expected = entry.changes++] { change(used, expected); });
        const event_handle done = driver->record(streams[stream].handle());
        found.expect(done != nullptr, "a record is refused");
        if (entry.done != nullptr) driver->release(entry.done);
        entry = {entry.changes, stream, done};
      }
      for (std::size_t at = 0; at < blocks_of_thread; ++at) {
        if (known[at].done == nullptr) continue;
        found.expect(driver->synchronize(known[at].done), "an event does not come");
        driver->release(known[at].done);
        change((*blocks)[at], known[at].changes);
      }
    });
    ORDERLY_CHECK_FINDINGS(found);
  });
}

TEST_CASE("streams come and go in several host threads") {
  for (const software_schedule schedule : every_schedule) {
    CAPTURE(name_of(schedule));
    constexpr std::size_t threads = 3;
    const std::size_t rounds = scaled(300);
    std::atomic<std::uint64_t> ran = 0;
    findings found;
    {
      const software_device device(schedule, test_seed());
      const std::shared_ptr<stream_driver> driver = device.driver();
      run_threads(threads, [&](std::size_t) {
        std::uint64_t last_identity = 0;
        for (std::size_t round = 0; round < rounds; ++round) {
          event_handle behind = nullptr;
          {
            software_stream stream(device);
            const std::uint64_t identity = driver->identity(stream.handle());
            found.expect(identity > last_identity, "a stream is not told from an earlier one");
            last_identity = identity;
            const auto work = [&ran] { ran.fetch_add(1, std::memory_order_relaxed); };
            for (int count = 0; count < 4; ++count) stream.enqueue(work);
            behind = driver->record(stream.handle());
          }
          if (round % 3 == 0) found.expect(driver->synchronize(behind), "an event does not come");
          driver->release(behind);
        }
      });
    }
    ORDERLY_CHECK_FINDINGS(found);
    CHECK(ran.load() == threads * rounds * 4);
  }
}

}
