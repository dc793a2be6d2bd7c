// Where a tensor cache keeps records: each is one thread's at a time, and comes with what the last one wrote.
#include "tensor_shelves.hpp"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <thread>
#include <utility>

#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

TEST_SUITE("stress") {

TEST_CASE("threads put and take at one head, while one takes all off and puts it back") {
  constexpr std::uint32_t records = 3;
  constexpr tensor_shelves::label of{.fingerprint = 7, .lane = 3, .bytes = 4096};
  std::array<atomic<link_code>, records> links{};
  struct content {
    std::uint64_t first = 0;
    std::uint64_t second = 0;
  };
  std::array<content, records> contents;  // plain: the shelves order its uses
  tensor_shelves shelves;
  REQUIRE(shelves.open(1, 1, links.data()));
  const std::uint32_t shelf = shelves.row(of.lane, of.bytes);
  shelves.label_as(shelf, of);
  for (std::uint32_t record = 0; record < records; ++record) REQUIRE(shelves.put(shelf, of, record, 0, 1));

  findings found;
  const auto use = [&](std::uint32_t record, std::uint64_t value) {
    content& at = contents[record];
    found.expect(at.first == at.second, "record ", record, " is in two hands");
    at.first = value;
    at.second = value;
  };
  run_threads(3, [&](std::size_t self) {
    for (std::uint64_t i = 0; i < scaled(1'000'000); ++i) {
      const std::uint64_t value = i * 3 + self;
      if (self == 0) {  // as whoever has the mutex
        tensor_shelves::contents all = shelves.empty(shelf);
        if (const std::uint32_t record = tensor_shelves::front(all, 0); record != tensor_shelves::none) use(record, value);
        shelves.restore(shelf, all);
        continue;
      }
      const std::optional<std::uint32_t> record = shelves.take(shelf, of, 0, 1);
      if (!record.has_value()) continue;
      use(*record, value);
      found.expect(shelves.put(shelf, of, *record, 0, 1), "the label has gone");
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  std::uint32_t left = 0;
  while (shelves.take(shelf, of, 0, 1).has_value()) ++left;
  CHECK(left == records);
}

TEST_CASE("what is put back comes with what was written while it was off the shelf: nothing else orders the two threads") {
  constexpr tensor_shelves::label of{.fingerprint = 7, .lane = 3, .bytes = 4096};
  std::array<atomic<link_code>, 1> links{};
  std::uint64_t content = 0;  // plain
  tensor_shelves shelves;
  REQUIRE(shelves.open(1, 1, links.data()));
  const std::uint32_t shelf = shelves.row(of.lane, of.bytes);
  shelves.label_as(shelf, of);
  REQUIRE(shelves.put(shelf, of, 0, 0, 1));

  findings found;
  std::atomic<std::uint64_t> turn = 0;
  const std::uint64_t turns = scaled(8'000);
  run_threads(2, [&](std::size_t self) {
    for (std::uint64_t i = self; i < turns; i += 2) {
      while (turn.load(std::memory_order_relaxed) != i) std::this_thread::yield();
      if (self == 0) {
        tensor_shelves::contents all = shelves.empty(shelf);
        found.expect(tensor_shelves::front(all, 0) == 0, "the record has gone");
        found.expect(std::exchange(content, i + 1) == i, "not what was written last");
        shelves.restore(shelf, all);
      } else {
        found.expect(shelves.take(shelf, of, 0, 1) == 0U, "the record has gone");
        found.expect(std::exchange(content, i + 1) == i, "not what was written last");
        found.expect(shelves.put(shelf, of, 0, 0, 1), "the label has gone");
      }
      turn.store(i + 1, std::memory_order_relaxed);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(content == turns);
}

}
