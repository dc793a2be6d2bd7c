/// \file
/// What every memory source must do. A test file that includes this gives source_kinds(), and how its memory is written and
/// read.
#pragma once

#include <doctest/doctest.h>

#include <bit>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <span>
#include <string_view>
#include <vector>

#include "orderly/pool.hpp"
#include "orderly/source.hpp"
#include "support/audit.hpp"
#include "support/process.hpp"
#include "support/threads.hpp"

namespace orderly::test {

/// A kind of source under test.
struct source_kind {
  std::string_view name;
  std::unique_ptr<memory_source> (*make)();
  std::size_t most_bytes;  ///< that it has: what the suite reserves at once, and commits
  /// An access to what is not committed ends the process: the host's own memory, that is.
  bool guarded = false;
};

[[nodiscard]] std::span<const source_kind> source_kinds();
/// Writes every byte of a range.
void fill(void* address, unsigned char value, std::size_t bytes);
/// Whether each byte has that value.
[[nodiscard]] bool holds(const void* address, unsigned char value, std::size_t bytes);

namespace conformance {

[[nodiscard]] inline bool aligned(const void* pointer, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0;
}

[[nodiscard]] inline bool usable(void* address, std::size_t bytes) {
  fill(address, 0xa5, bytes);
  return holds(address, 0xa5, bytes);
}

[[nodiscard]] inline bool commit_if_virtual(memory_source& source, void* address, std::size_t bytes) {
  return !source.is_virtual() || source.commit(address, bytes);
}

/// True if touching the byte ends the process, as it must where nothing is committed.
[[nodiscard]] inline bool is_closed(const unsigned char* byte) {
  return run_child([byte] {
    std::signal(SIGSEGV, SIG_DFL);
    std::signal(SIGBUS, SIG_DFL);
    const volatile unsigned char* const seen = byte;
    static_cast<void>(*seen);
  }).signal != 0;
}

/// A range of a virtual source, given back at the end.
class range {
 public:
  range(memory_source& source, std::size_t bytes, std::size_t alignment)
      : source_(source), bytes_(bytes), start_(static_cast<unsigned char*>(source.reserve(bytes, alignment))) {
    REQUIRE(start_ != nullptr);
  }
  range(const range&) = delete;
  range& operator=(const range&) = delete;
  ~range() { source_.release(start_, bytes_); }
  [[nodiscard]] unsigned char* at(std::size_t offset) const { return start_ + offset; }

 private:
  memory_source& source_;
  std::size_t bytes_;
  unsigned char* start_;
};

TEST_SUITE("unit") {

TEST_CASE("conformance: granularity and preferred chunk are powers of two, the chunk a multiple") {
  for (const source_kind& kind : source_kinds()) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make();
    CHECK(std::has_single_bit(source->granularity()));
    CHECK(std::has_single_bit(source->preferred_chunk()));
    CHECK(source->preferred_chunk() >= source->granularity());
  }
}

TEST_CASE("conformance: a range is aligned and usable, can be given back, and can be had again") {
  for (const source_kind& kind : source_kinds()) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make();
    const std::size_t unit = source->granularity();
    for (int round = 0; round < 3; ++round) {
      for (const std::size_t times : {1U, 4U, 16U}) {
        if (!source->is_virtual() && unit * times > 64 * 1024) continue;  // as far as the buffer's own alignment goes
        CAPTURE(times);
        const std::size_t bytes = kind.most_bytes / 4;
        void* const start = source->reserve(bytes, unit * times);
        REQUIRE(start != nullptr);
        CHECK(aligned(start, unit * times));
        REQUIRE(commit_if_virtual(*source, start, bytes));
        CHECK(usable(start, bytes));
        source->release(start, bytes);
      }
    }
  }
}

TEST_CASE("conformance: what cannot be had is refused") {
  for (const source_kind& kind : source_kinds()) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make();
    const std::size_t unit = source->granularity();
    CHECK(source->reserve(SIZE_MAX - unit + 1, unit) == nullptr);
    CHECK(source->reserve(SIZE_MAX / 2 + 1, unit) == nullptr);
    CHECK(source->reserve(SIZE_MAX / 2 + 1, SIZE_MAX / 2 + 1) == nullptr);
    void* const start = source->reserve(kind.most_bytes, unit);
    CHECK(start != nullptr);
    if (!source->is_virtual()) CHECK(source->reserve(unit, unit) == nullptr);
    source->release(start, kind.most_bytes);
  }
}

TEST_CASE("conformance: chunks are committed, decommitted and committed again, neighbours untouched") {
  for (const source_kind& kind : source_kinds()) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make();
    if (!source->is_virtual()) continue;
    const std::size_t chunk = source->preferred_chunk();
    const range whole(*source, 8 * chunk, chunk);
    REQUIRE(source->commit(whole.at(0), 8 * chunk));
    for (int round = 0; round < 3; ++round) {
      REQUIRE(usable(whole.at(0), 8 * chunk));
      REQUIRE(source->decommit(whole.at(2 * chunk), 3 * chunk));
      CHECK(holds(whole.at(0), 0xa5, 2 * chunk));
      CHECK(holds(whole.at(5 * chunk), 0xa5, 3 * chunk));
      REQUIRE(source->commit(whole.at(2 * chunk), chunk));
      REQUIRE(source->commit(whole.at(3 * chunk), 2 * chunk));
      CHECK(usable(whole.at(2 * chunk), 3 * chunk));
    }
  }
}

TEST_CASE("conformance: what was committed together comes back together; a cut is made, or refused and changes nothing") {
  for (const source_kind& kind : source_kinds()) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make();
    if (!source->is_virtual()) continue;
    const std::size_t chunk = source->preferred_chunk();
    for (std::size_t first = 0; first < 4; ++first) {
      for (std::size_t count = 1; first + count <= 8; ++count) {
        CAPTURE(first);
        CAPTURE(count);
        const range whole(*source, 8 * chunk, chunk);
        REQUIRE(source->commit_together(whole.at(first * chunk), count * chunk));
        CHECK(usable(whole.at(first * chunk), count * chunk));
        for (std::size_t kept = 1; kept < count; ++kept) {
          if (!source->decommit(whole.at((first + kept) * chunk), (count - kept) * chunk)) {
            CHECK(holds(whole.at(first * chunk), 0xa5, count * chunk));
            continue;
          }
          CHECK(holds(whole.at(first * chunk), 0xa5, kept * chunk));
          REQUIRE(source->commit_together(whole.at((first + kept) * chunk), (count - kept) * chunk));
          CHECK(usable(whole.at(first * chunk), count * chunk));
        }
        CHECK(source->decommit(whole.at(first * chunk), count * chunk));
        CHECK(source->commit(whole.at(first * chunk), count * chunk));
      }
    }
  }
}

TEST_CASE("conformance: where memory is guarded, what is not committed cannot be touched") {
  for (const source_kind& kind : source_kinds()) {
    CAPTURE(kind.name);
    if (!kind.guarded) continue;
    const std::unique_ptr<memory_source> source = kind.make();
    const std::size_t chunk = source->preferred_chunk();
    const range whole(*source, 4 * chunk, chunk);
    CHECK(is_closed(whole.at(chunk)));
    REQUIRE(source->commit(whole.at(chunk), 2 * chunk));
    CHECK_FALSE(is_closed(whole.at(chunk)));
    CHECK_FALSE(is_closed(whole.at(3 * chunk - 1)));
    CHECK(is_closed(whole.at(chunk - 1)));
    CHECK(is_closed(whole.at(3 * chunk)));
    REQUIRE(source->decommit(whole.at(2 * chunk), chunk));
    CHECK_FALSE(is_closed(whole.at(2 * chunk - 1)));
    CHECK(is_closed(whole.at(2 * chunk)));
  }
}

TEST_CASE("conformance: threads commit and decommit different chunks at once") {
  for (const source_kind& kind : source_kinds()) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make();
    if (!source->is_virtual()) continue;
    const std::size_t chunk = source->preferred_chunk();
    const range whole(*source, 16 * chunk, 4 * chunk);
    findings found;
    run_threads(4, [&](std::size_t index) {
      for (std::size_t round = 0; round < 20; ++round) {
        unsigned char* const own = whole.at(index * 4 * chunk);
        const std::size_t bytes = (1 + round % 4) * chunk;
        found.expect(round % 2 == 0 ? source->commit(own, bytes) : source->commit_together(own, bytes),
                     "commit was refused");
        found.expect(usable(own, bytes), "committed memory is not usable");
        found.expect(source->decommit(own, bytes), "decommit was refused");
      }
    });
    ORDERLY_CHECK_FINDINGS(found);
  }
}

TEST_CASE("conformance: a pool grows from nothing, serves what is larger than a root, and gives everything back") {
  for (const source_kind& kind : source_kinds()) {
    CAPTURE(kind.name);
    pool tested(kind.make(), options{.capacity = kind.most_bytes});
    const bool grows = kind.make()->is_virtual();
    const std::size_t chunk = grows ? kind.make()->preferred_chunk() : 64 * 1024;
    CHECK(tested.stats().committed == (grows ? 0 : kind.most_bytes));
    for (int round = 0; round < 2; ++round) {
      // More than half of it in one block: beyond the tree where that ends below. Then more and less of the same kind.
      for (const std::size_t bytes : {kind.most_bytes - chunk, kind.most_bytes / 2 + 3 * chunk, kind.most_bytes - 3 * chunk}) {
        void* const large = tested.try_allocate(grows ? bytes : kind.most_bytes / 2);
        REQUIRE(large != nullptr);
        CHECK(usable(large, grows ? bytes : kind.most_bytes / 2));
        if (grows) CHECK(tested.stats().committed >= bytes);
        // Rounded up, and the small one of before.
        if (grows && kind.most_bytes > 16 * chunk) CHECK(tested.stats().committed <= bytes + 2 * chunk);
        void* const small = tested.try_allocate(chunk / 2 + 1);
        REQUIRE(small != nullptr);
        CHECK(usable(small, chunk / 2 + 1));
        CHECK(tested.try_deallocate(large) == error::none);
        CHECK(tested.try_deallocate(small) == error::none);
      }
      check_idle(tested);
      tested.trim();
      if (grows) CHECK(tested.stats().committed == 0);
    }
    std::vector<void*> blocks;
    while (void* const block = tested.try_allocate(chunk)) blocks.push_back(block);
    CHECK(blocks.size() == kind.most_bytes / chunk);
    for (void* const block : blocks) CHECK(tested.try_deallocate(block, chunk) == error::none);
  }
}

}  // TEST_SUITE

}  // namespace conformance
}  // namespace orderly::test
