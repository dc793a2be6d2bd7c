// Tables of untouched memory.
#include "reserved_array.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

using namespace orderly::detail;

namespace {

std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

/// Pages of a range that have physical memory.
std::size_t resident_pages(void* address, std::size_t bytes) {
  std::vector<unsigned char> pages(bytes / page_bytes());
  REQUIRE(mincore(address, bytes, pages.data()) == 0);
  std::size_t count = 0;
  for (const unsigned char flags : pages) count += flags & 1;
  return count;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a table is zero, stays where it is, and costs what is touched of it") {
  constexpr std::size_t size = std::size_t{1} << 27;
  const std::size_t per_page = page_bytes() / sizeof(std::uint64_t);
  reserved_array<std::uint64_t> table;
  CHECK(table.size() == 0);
  REQUIRE(table.reserve(size));
  CHECK(table.size() == size);
  CHECK(reinterpret_cast<std::uintptr_t>(table.data()) % page_bytes() == 0);
  const std::size_t window = 1000 * page_bytes();
  CHECK(resident_pages(table.data(), window) == 0);
  for (const std::size_t index : {std::size_t{0}, 7 * per_page, 900 * per_page + 5}) {
    CHECK(table[index] == 0);
    table[index] = index + 1;
  }
  CHECK(resident_pages(table.data(), window) == 3);
  CHECK(table[7 * per_page] == 7 * per_page + 1);
  CHECK(table[size - 1] == 0);
  CHECK(&table[3] == table.data() + 3);
}

TEST_CASE("touching ahead changes no value, whatever the range's ends") {
  const std::size_t per_page = page_bytes() / sizeof(std::uint64_t);
  reserved_array<std::uint64_t> table;
  REQUIRE(table.reserve(10 * per_page));
  table[2 * per_page] = 5;
  touch_ahead(&table[per_page + 3], 3 * page_bytes());
  CHECK(resident_pages(table.data(), page_bytes()) == 0);
  CHECK(table[2 * per_page] == 5);
  CHECK(table[3 * per_page] == 0);
  touch_ahead(table.data(), 0);
  touch_ahead(table.data(), 10 * page_bytes());
  CHECK(table[2 * per_page] == 5);
}

TEST_CASE("an empty table is granted, one that no system has is refused") {
  reserved_array<std::uint64_t> none;
  CHECK(none.reserve(0));
  CHECK(none.size() == 0);
  reserved_array<std::uint64_t> all;
  CHECK_FALSE(all.reserve(std::numeric_limits<std::size_t>::max() / 32));
  CHECK(all.size() == 0);
  CHECK(all.data() == nullptr);
}

TEST_CASE("a table's addresses are free again when it is gone") {
  void* address = nullptr;
  {
    reserved_array<std::uint64_t> table;
    REQUIRE(table.reserve(1000));
    address = table.data();
  }
  CHECK(msync(address, page_bytes(), MS_ASYNC) == -1);
}

}  // TEST_SUITE
