// Where a tensor cache keeps records: each is one thread's at a time, and comes with what the last one wrote.
#include "tensor_shelves.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

TEST_SUITE("stress") {

TEST_CASE("threads put and take at one head, while one takes all off and puts it back") {
  constexpr std::uint32_t records = 6;
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
    for (std::uint64_t i = 0; i < scaled(400'000); ++i) {
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

}
