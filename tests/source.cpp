// Memory sources: one conformance suite for all of them, and pools over a source that fails at every point in turn.
#include "orderly/source.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <ostream>
#include <string_view>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "conformance/source.hpp"
#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/failing_source.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

constexpr std::size_t buffer_bytes = 4 * mib;

std::unique_ptr<memory_source> make_over_static_buffer() {
  alignas(64 * kib) static char memory[buffer_bytes];
  return make_fixed_buffer_source(memory, buffer_bytes);
}

/// Pages of a range that have physical memory.
std::size_t resident_pages(void* address, std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages(bytes / page);
  REQUIRE(mincore(address, bytes, pages.data()) == 0);
  std::size_t count = 0;
  for (const unsigned char flags : pages) count += flags & 1;
  return count;
}

/// A day in the life of a pool, with every kind of call to the source. What is refused is left out.
void use(pool& used) {
  std::vector<void*> blocks;
  for (const std::size_t bytes : {std::size_t{100}, 5 * kib, 64 * kib, 200 * kib, mib, 3 * mib}) {
    for (int copy = 0; copy < 3; ++copy) {
      void* block = used.try_allocate(bytes);
      if (block == nullptr) continue;
      std::memset(block, copy, bytes);
      blocks.push_back(block);
    }
  }
  check_sound(used);
  for (std::size_t index = 0; index < blocks.size(); index += 2) {
    REQUIRE(used.try_deallocate(blocks[index]) == error::none);
  }
  used.trim(mib);
  check_sound(used);
  void* again = used.try_allocate(2 * mib);
  used.deallocate(again);
  for (std::size_t index = 1; index < blocks.size(); index += 2) {
    REQUIRE(used.try_deallocate(blocks[index]) == error::none);
  }
  used.trim();
  check_sound(used);
}

/// After the failure the pool is as good as new: everything is served, and everything is given back.
void check_recovered(pool& tested, const source_log& log) {
  CHECK(tested.stats().bad_frees == 0);
  CHECK(tested.stats().committed == log.committed());
  std::vector<void*> blocks;
  while (void* block = tested.try_allocate(64 * kib)) blocks.push_back(block);
  CHECK(blocks.size() == tested.limit() / (64 * kib));
  for (void* block : blocks) CHECK(tested.try_deallocate(block, 64 * kib) == error::none);
  check_idle(tested);
  tested.trim();
  CHECK(tested.stats().committed == 0);
  CHECK(log.committed() == 0);
}

/// Refuses call number k of a kind, for every k until a run makes fewer calls. `width`: how many calls in a row.
void fail_each(source_log::call kind, std::size_t width) {
  std::size_t number = 1;
  for (bool reached = true; reached; ++number) {
    CAPTURE(number);
    const auto log = std::make_shared<source_log>();
    {
      pool tested(make_failing_source(log), options{.capacity = 16 * mib, .limit = 6 * mib});
      const std::size_t before = log->seen(kind);
      log->refuse(kind, number, number + width - 1);
      use(tested);
      reached = log->seen(kind) >= before + number;
      log->refuse_none();
      check_recovered(tested, *log);
    }
    CHECK(log->reserved_ranges() == 0);
    ORDERLY_CHECK_CONTRACT(*log);
  }
  CHECK(number > 3);
}

}  // namespace

/// A new source is one line here.
std::span<const source_kind> orderly::test::source_kinds() {
  static constexpr source_kind all[] = {
      {"host", make_host_source, 64 * mib},
      {"guarded host", make_guarded_host_source, 64 * mib, true},
      {"fixed buffer", make_over_static_buffer, buffer_bytes},
  };
  return all;
}
void orderly::test::fill(void* address, unsigned char value, std::size_t bytes) { std::memset(address, value, bytes); }
bool orderly::test::holds(const void* address, unsigned char value, std::size_t bytes) {
  const auto* const first = static_cast<const unsigned char*>(address);
  return *first == value && std::memcmp(first, first + 1, bytes - 1) == 0;
}

TEST_SUITE("unit") {

TEST_CASE("host memory: its unit is the page, its chunk 64 KiB; a buffer has neither") {
  for (const auto& source : {make_host_source(), make_guarded_host_source()}) {
    CHECK(source->granularity() == static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
    CHECK(source->preferred_chunk() == 64 * kib);
    CHECK(source->is_virtual());
  }
  CHECK_FALSE(make_over_static_buffer()->is_virtual());
}

TEST_CASE("every source of the host is the host's to touch; a buffer knows its size, and keeps its memory") {
  for (const source_kind& kind : source_kinds()) CHECK(kind.make()->is_host_memory());
  const std::unique_ptr<memory_source> buffer = make_over_static_buffer();
  CHECK(buffer->capacity() == buffer_bytes);
  void* const range = buffer->reserve(buffer_bytes, 4096);
  CHECK(buffer->commit(range, 4096));
  CHECK_FALSE(buffer->decommit(range, 4096));
}

TEST_CASE("host memory: addresses cost nothing, decommitted memory is really given back") {
  const std::unique_ptr<memory_source> source = make_host_source();
  const std::size_t many = std::size_t{1} << 36;
  void* range = source->reserve(many, 64 * kib);
  REQUIRE(range != nullptr);
  CHECK(resident_pages(range, mib) == 0);
  REQUIRE(source->commit(range, mib));
  fill(range, 0xa5, mib);
  CHECK(resident_pages(range, mib) == mib / source->granularity());
  REQUIRE(source->decommit(range, mib / 2));
  CHECK(resident_pages(range, mib) == mib / 2 / source->granularity());
  source->release(range, many);
  CHECK(msync(range, source->granularity(), MS_ASYNC) == -1);
}

TEST_CASE("a pool keeps its side of the contract") {
  const auto log = std::make_shared<source_log>();
  {
    pool tested(make_failing_source(log), options{.capacity = 16 * mib, .limit = 6 * mib});
    use(tested);
    check_recovered(tested, *log);
    CHECK(log->peak_committed() == tested.stats().peak_committed);
  }
  CHECK(log->seen(source_log::call::commit) > 3);
  CHECK(log->seen(source_log::call::decommit) > 3);
  CHECK(log->reserved_ranges() == 0);
  ORDERLY_CHECK_CONTRACT(*log);
}

TEST_CASE("a pool whose source refuses to reserve is not made, and leaks nothing") {
  for (std::size_t number = 1;; ++number) {
    const auto log = std::make_shared<source_log>();
    log->refuse(source_log::call::reserve, number);
    bool made = false;
    try {
      pool tested(make_failing_source(log), options{.capacity = 16 * mib});
      made = true;
      use(tested);
    } catch (const out_of_memory&) {
    }
    CHECK(log->reserved_ranges() == 0);
    ORDERLY_CHECK_CONTRACT(*log);
    if (number == 1) CHECK_FALSE(made);
    if (log->seen(source_log::call::reserve) < number) break;
  }
}

TEST_CASE("whichever commit the source refuses, the pool stays whole") {
  fail_each(source_log::call::commit, 1);
  fail_each(source_log::call::commit, 4);
}

TEST_CASE("whichever decommit the source refuses, the pool stays whole") {
  fail_each(source_log::call::decommit, 1);
  fail_each(source_log::call::decommit, 4);
}

TEST_CASE("what a failed commit cannot undo stays committed, accounted for and of use") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = mib});
  void* first = tested.allocate(64 * kib);
  void* second = tested.allocate(64 * kib);
  tested.deallocate(first, 64 * kib);
  tested.trim();
  tested.deallocate(second, 64 * kib);
  tested.defragment();
  CHECK(tested.stats().committed == 64 * kib);  // the second chunk alone: there is one to commit before it, more behind
  log->refuse(source_log::call::commit, 2, SIZE_MAX / 2);
  log->refuse_all(source_log::call::decommit);
  CHECK(tested.try_allocate(mib) == nullptr);
  CHECK(log->committed() > 64 * kib);
  CHECK(tested.stats().committed == log->committed());
  log->refuse_none();
  check_recovered(tested, *log);
  ORDERLY_CHECK_CONTRACT(*log);
}

TEST_CASE("a source that commits nothing: every allocation is refused, and counted") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 16 * mib});
  log->refuse_all(source_log::call::commit);
  for (const std::size_t bytes : {std::size_t{1}, 64 * kib, mib, 3 * mib}) {
    CAPTURE(bytes);
    CHECK(tested.try_allocate(bytes) == nullptr);
    CHECK_THROWS_AS((void)tested.allocate(bytes), out_of_memory);
  }
  CHECK(tested.stats().failed == 8);
  CHECK(tested.stats().committed == 0);
  CHECK(tested.stats().peak_committed == 0);
  log->refuse_none();
  use(tested);
  check_recovered(tested, *log);
}

TEST_CASE("a source that decommits nothing: trim says so, and the memory is still of use") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 4 * mib});
  void* block = tested.allocate(mib);
  tested.deallocate(block, mib);
  const std::size_t committed = tested.stats().committed;
  log->refuse_all(source_log::call::decommit);
  CHECK(tested.trim() == 0);
  CHECK(tested.stats().committed == committed);
  CHECK(log->committed() == committed);
  block = tested.try_allocate(mib);
  CHECK(block != nullptr);
  CHECK(tested.stats().committed == committed);
  tested.deallocate(block, mib);
  log->refuse_none();
  CHECK(tested.trim() == committed);
  check_recovered(tested, *log);
}

TEST_CASE("threads go on while the source refuses now and then") {
  const auto log = std::make_shared<source_log>();
  pool tested(make_failing_source(log), options{.capacity = 16 * mib, .limit = 4 * mib});
  log->refuse(source_log::call::commit, 20, 60);
  log->refuse(source_log::call::decommit, 5, 40);
  findings found;
  run_threads(4, [&](std::size_t index) {
    for (std::size_t round = 0; round < 300; ++round) {
      const std::size_t bytes = (index + 1) * (round % 9 + 1) * 10 * kib;
      void* block = tested.try_allocate(bytes);
      found.expect(tested.try_deallocate(block, bytes) == error::none, "a good free was refused");
      if (round % 16 == 0) tested.trim();
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  log->refuse_none();
  check_recovered(tested, *log);
  CHECK(log->peak_committed() <= tested.limit());
  ORDERLY_CHECK_CONTRACT(*log);
}

}  // TEST_SUITE
