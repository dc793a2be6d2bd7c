// std::pmr over a pool: orderly/pmr.hpp.
#include "orderly/pmr.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory_resource>
#include <new>
#include <numeric>
#include <string>
#include <unordered_map>
#include <vector>

#include "support/audit.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("containers live in the pool, and leave it empty") {
  pool upstream(options{.capacity = 16 * mib});
  orderly::memory_resource resource(upstream);
  {
    std::pmr::vector<int> numbers(&resource);
    for (int number = 0; number < 10000; ++number) numbers.push_back(number);
    CHECK(std::accumulate(numbers.begin(), numbers.end(), 0) == 49995000);
    CHECK(upstream.owns(numbers.data()));

    std::pmr::map<std::pmr::string, std::pmr::list<int>> lists(&resource);
    for (int number = 0; number < 1000; ++number) {
      lists[std::pmr::string("a key too long for the string itself, number ") + std::to_string(number % 37).c_str()]
          .push_back(number);
    }
    CHECK(lists.size() == 37);
    CHECK(upstream.owns(&*lists.begin()));

    std::pmr::unordered_map<int, double> table(&resource);
    for (int number = 0; number < 1000; ++number) table[number] = number;
    CHECK(table.at(777) == 777);
    CHECK(upstream.stats().requested > 10000 * sizeof(int));
  }
  CHECK(upstream.stats().bad_frees == 0);
  check_idle(upstream);
}

TEST_CASE("standard resources may stand on it") {
  pool upstream(options{.capacity = 16 * mib});
  orderly::memory_resource resource(upstream);
  {
    std::pmr::monotonic_buffer_resource monotonic(1000, &resource);
    std::pmr::unsynchronized_pool_resource pooled(&resource);
    std::pmr::vector<std::pmr::string> first(&monotonic), second(&pooled);
    for (int count = 0; count < 1000; ++count) {
      first.emplace_back(static_cast<std::size_t>(count), 'x');
      second.emplace_back(static_cast<std::size_t>(count), 'y');
    }
    CHECK(second.back().back() == 'y');
  }
  CHECK(upstream.stats().bad_frees == 0);
  check_idle(upstream);
}

TEST_CASE("resources are equal when they share a pool") {
  pool one(options{.capacity = mib}), two(options{.capacity = mib});
  const orderly::memory_resource first(one), same(one), other(two);
  CHECK(first == same);
  CHECK(first != other);
  CHECK_FALSE(first.is_equal(*std::pmr::new_delete_resource()));
  CHECK_FALSE(std::pmr::new_delete_resource()->is_equal(first));
  CHECK(&first.upstream() == &one);

  void* block = orderly::memory_resource(first).allocate(1000, 8);
  orderly::memory_resource(same).deallocate(block, 1000, 8);
  CHECK(one.stats().bad_frees == 0);
  CHECK(one.stats().frees == 1);
}

TEST_CASE("alignment is honoured, up to the chunk") {
  pool upstream(options{.capacity = 16 * mib});
  orderly::memory_resource resource(upstream);
  for (std::size_t alignment = 1; alignment <= upstream.chunk(); alignment *= 2) {
    CAPTURE(alignment);
    for (const std::size_t bytes : {std::size_t{1}, std::size_t{100}, std::size_t{5000}, 200 * kib}) {
      void* block = resource.allocate(bytes, alignment);
      CHECK(reinterpret_cast<std::uintptr_t>(block) % alignment == 0);
      resource.deallocate(block, bytes, alignment);
    }
  }
  struct alignas(4096) page {
    char bytes[4096];
  };
  std::pmr::vector<page> pages(3, &resource);
  CHECK(reinterpret_cast<std::uintptr_t>(pages.data()) % 4096 == 0);
  CHECK(upstream.stats().bad_frees == 0);
}

TEST_CASE("what cannot be served is an exception") {
  pool upstream(options{.capacity = mib});
  orderly::memory_resource resource(upstream);
  CHECK_THROWS_AS((void)resource.allocate(2 * mib, 8), std::bad_alloc);
  CHECK_THROWS_AS((void)resource.allocate(SIZE_MAX, 8), std::bad_alloc);
  CHECK_THROWS_AS((void)resource.allocate(100, 128 * kib), std::exception);
  std::pmr::vector<int> numbers(&resource);
  CHECK_THROWS_AS(numbers.resize(mib), std::bad_alloc);
  CHECK(numbers.empty());
  check_idle(upstream);
}

TEST_CASE("many threads may share one resource") {
  pool upstream(options{.capacity = 64 * mib});
  orderly::memory_resource resource(upstream);
  findings found;
  run_threads(4, [&](std::size_t index) {
    for (int round = 0; round < 20; ++round) {
      std::pmr::vector<std::size_t> numbers(&resource);
      for (std::size_t count = 0; count < 2000; ++count) numbers.push_back(index);
      for (const std::size_t number : numbers) found.expect(number == index, "another thread's number");
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(upstream.stats().bad_frees == 0);
  check_idle(upstream);
}

}  // TEST_SUITE
