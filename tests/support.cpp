// The oracles of the other tests: each must see what it is there to see.
#include <doctest/doctest.h>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include <unistd.h>

#include "support/classes.hpp"
#include "support/failing_source.hpp"
#include "support/oracles.hpp"
#include "support/process.hpp"
#include "support/random.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

TEST_SUITE("unit") {

TEST_CASE("a stamp sees a write at either end, and another owner") {
  unsigned char block[64] = {};
  const stamp mark(block, sizeof block);
  mark.put(7);
  CHECK(mark.holds(7));
  CHECK_FALSE(mark.holds(8));
  block[0] ^= 1;
  CHECK_FALSE(mark.holds(7));
  mark.put(7);
  block[63] ^= 1;
  CHECK_FALSE(mark.holds(7));
  mark.put(7);
  CHECK(mark.remove(7));
  CHECK_FALSE(mark.remove(7));
  stamp(block, 16).put(9);
  CHECK(stamp(block, 16).holds(9));
}

TEST_CASE("a shadow sees overlaps, strangers and leavings") {
  char room[256 + 4096];
  char* const memory = room + 256;
  shadow owners(memory, 4096, 256);
  CHECK(owners.claim(memory, 1024, 1));
  CHECK_FALSE(owners.claim(memory + 768, 512, 2));
  CHECK_FALSE(owners.release(memory, 1024, 1));

  shadow others(memory, 4096, 256);
  CHECK(others.claim(memory + 1024, 256, 1));
  CHECK_FALSE(others.release(memory + 1024, 256, 2));
  CHECK_FALSE(others.claim(memory + 3840, 512, 1));
  CHECK_FALSE(others.claim(memory - 256, 256, 1));
  CHECK(others.claim(memory + 3840, 256, 1));
  CHECK(others.release(memory + 3840, 256, 1));
  CHECK(others.claim(memory + 3840, 256, 3));
}

TEST_CASE("a failing source sees each breach of the contract") {
  const std::size_t page = make_host_source()->granularity();
  const auto breaches = [page](void (*misuse)(memory_source&, char*, std::size_t)) {
    const auto log = std::make_shared<source_log>();
    const std::unique_ptr<memory_source> source = make_failing_source(log);
    auto* range = static_cast<char*>(source->reserve(16 * page, page));
    REQUIRE(range != nullptr);
    misuse(*source, range, page);
    source->release(range, 16 * page);
    return log->violations();
  };
  CHECK(breaches([](memory_source& source, char* range, std::size_t unit) {
    (void)source.commit(range, unit);
    (void)source.decommit(range, unit);
  }) == 0);
  CHECK(breaches([](memory_source& source, char* range, std::size_t unit) {
    (void)source.commit(range, unit);
    (void)source.commit(range, unit);
  }) == 1);
  CHECK(breaches([](memory_source& source, char* range, std::size_t unit) {
    (void)source.decommit(range, unit);
  }) == 1);
  CHECK(breaches([](memory_source& source, char* range, std::size_t unit) {
    (void)source.commit(range, unit + 1);
  }) == 1);
  CHECK(breaches([](memory_source& source, char* range, std::size_t unit) {
    (void)source.commit(range + 15 * unit, 2 * unit);
  }) == 1);
  CHECK(breaches([](memory_source& source, char* range, std::size_t unit) { source.release(range, unit); }) == 1);
}

TEST_CASE("a failing source refuses what it is told to refuse, and keeps the account") {
  const std::size_t page = make_host_source()->granularity();
  const auto log = std::make_shared<source_log>();
  const std::unique_ptr<memory_source> source = make_failing_source(log);
  auto* range = static_cast<char*>(source->reserve(16 * page, page));
  log->refuse(source_log::call::commit, 2);
  CHECK(source->commit(range, page));
  CHECK_FALSE(source->commit(range + page, page));
  CHECK(source->commit(range + page, page));
  CHECK(log->seen(source_log::call::commit) == 3);
  CHECK(log->committed() == 2 * page);
  log->refuse_all(source_log::call::decommit);
  CHECK_FALSE(source->decommit(range, page));
  log->refuse_none();
  CHECK(source->decommit(range, page));
  CHECK(log->committed() == page);
  CHECK(log->peak_committed() == 2 * page);
  CHECK(log->reserved_ranges() == 1);
  source->release(range, 16 * page);
  CHECK(log->committed() == 0);
  CHECK(log->reserved_ranges() == 0);
}

TEST_CASE("findings count, and keep the first") {
  findings found;
  found.expect(true, "never");
  CHECK(found.count() == 0);
  found.expect(false, "first ", 1);
  found.expect(false, "second");
  CHECK(found.count() == 2);
  CHECK(found.first() == "first 1");
}

TEST_CASE("a child's end is told: exit, signal, output") {
  const child_end well = run_child([] { std::fputs("well", stderr); });
  CHECK(well.signal == 0);
  CHECK(well.status == 0);
  CHECK(well.output == "well");
  CHECK(run_child([] { _exit(3); }).status == 3);
  CHECK(run_child([] { std::abort(); }).signal == SIGABRT);
}

TEST_CASE("the classes are as documented") {
  CHECK(class_length(0, 256) == 256);
  CHECK(class_length(256, 256) == 256);
  CHECK(class_length(257, 256) == 512);
  CHECK(class_length(16 * 256, 256) == 16 * 256);
  CHECK(class_length(16 * 256 + 1, 256) == 18 * 256);
  CHECK(class_length(18 * 256 + 1, 256) == 20 * 256);
  CHECK(class_length(32 * 256, 256) == 32 * 256);
  CHECK(class_length(32 * 256 + 1, 256) == 36 * 256);
  CHECK(class_length(1 << 20, 256) == 1 << 20);
}

TEST_CASE("a seed repeats its numbers, a stream has its own") {
  random_engine first = make_random(1), again = make_random(1), other = make_random(2);
  const std::uint64_t number = first();
  CHECK(again() == number);
  CHECK(other() != number);
  for (int count = 0; count < 1000; ++count) {
    const std::size_t value = log_uniform(first, 3, 1000);
    CHECK(value >= 3);
    CHECK(value <= 1000);
  }
}

}  // TEST_SUITE
