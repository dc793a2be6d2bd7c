// The stack of hints: in order on one thread, without loss or copy under many.
#include "free_list.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "support/last_one.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

using links = std::vector<atomic<link_code>>;

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("link codes tell indices from the two that are none") {
  for (const std::uint64_t index : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{77}, max_linked_nodes - 1}) {
    const link_code code = link_to(static_cast<std::uint32_t>(index));
    CHECK(code != unlinked);
    CHECK(code != last);
    CHECK(linked_index(code) == index);
  }
}

TEST_CASE("a head's tag counts its changes, and wraps beside its top") {
  tagged_head head;
  CHECK(head.empty());
  CHECK(head.tag() == 0);
  for (std::uint32_t change = 1; change <= 10; ++change) {
    head = head.with_top(link_to(change));
    CHECK(head.tag() == change);
    CHECK(head.top() == link_to(change));
    CHECK_FALSE(head.empty());
  }
  CHECK(head.with_top(last).empty());
  const tagged_head highest(~std::uint64_t{0});
  CHECK(highest.tag() == ~std::uint32_t{0});
  CHECK(highest.with_top(link_to(5)).tag() == 0);
  CHECK(highest.with_top(link_to(5)).top() == link_to(5));
  CHECK(tagged_head(highest.bits()).bits() == highest.bits());
}

TEST_CASE("the newest comes first, and links stay until they are released") {
  links table(5);
  free_list list;
  CHECK_FALSE(list.peek());
  CHECK_FALSE(list.try_pop(table.data()).has_value());
  for (std::uint32_t index = 0; index < 5; ++index) {
    list.push(table.data(), index);
    CHECK(list.peek());
    CHECK(table[index].load(relaxed) == (index == 0 ? last : link_to(index - 1)));
  }
  for (std::uint32_t index = 5; index-- > 0;) {
    CHECK(list.try_pop(table.data()) == index);
    CHECK(table[index].load(relaxed) != unlinked);
  }
  CHECK_FALSE(list.try_pop(table.data()).has_value());
  CHECK_FALSE(list.peek());
  list.push(table.data(), 3);
  CHECK(table[3].load(relaxed) == last);
  CHECK(list.try_pop(table.data()) == 3U);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads push and pop a few nodes of two lists: each has one owner, and none is lost") {
  for (const std::size_t threads : {2U, 3U, 4U, 8U}) {
    for (const std::uint32_t nodes : {2U, 3U, 16U}) {
      CAPTURE(threads);
      CAPTURE(nodes);
      links table(nodes);
      free_list lists[2];
      std::vector<std::uint64_t> turns(nodes);  // plain: the list orders its owners
      std::vector<std::atomic<std::uint32_t>> owners(nodes);
      for (std::uint32_t index = 0; index < nodes; ++index) lists[index % 2].push(table.data(), index);
      findings found;
      std::atomic<std::uint64_t> pops = 0;
      run_threads(threads, [&](std::size_t self) {
        random_engine random = make_random(self);
        std::uint64_t popped = 0;
        for (std::size_t step = 0; step < scaled(100000) / threads; ++step) {
          const std::uint64_t draw = random();
          const auto index = lists[draw % 2].try_pop(table.data());
          if (!index) continue;
          ++popped;
          ++turns[*index];
          found.expect(owners[*index].exchange(1, std::memory_order_relaxed) == 0, "node ", *index, " has two owners");
          found.expect(table[*index].load(relaxed) != unlinked, "the link of node ", *index, " was released");
          if (draw / 2 % 4 == 0) std::this_thread::yield();
          owners[*index].store(0, std::memory_order_relaxed);
          lists[draw / 8 % 2].push(table.data(), *index);
        }
        pops.fetch_add(popped, std::memory_order_relaxed);
      });
      ORDERLY_CHECK_FINDINGS(found);
      std::vector<int> seen(nodes);
      for (free_list& list : lists) {
        for (std::uint32_t count = 0; count <= nodes; ++count) {
          if (const auto index = list.try_pop(table.data())) ++seen[*index];
        }
      }
      CHECK(seen == std::vector<int>(nodes, 1));
      std::uint64_t sum = 0;
      for (const std::uint64_t turn : turns) sum += turn;
      CHECK(sum == pops);
    }
  }
}

TEST_CASE("who finds the last node gone knows who took it, by a pop or with all") {
  for (const unsigned takers_of_all : {0U, 1U, 2U}) {
    CAPTURE(takers_of_all);
    links table(1);
    free_list list;
    const auto empty = [&] { static_cast<void>(list.take_all()); };
    want_the_last(
        scaled(20000),
        [&] {
          empty();
          list.push(table.data(), 0);
        },
        [&](std::size_t self) {
          return self < takers_of_all ? list.take_all() != last : list.try_pop(table.data()).has_value();
        });
  }
}

}  // TEST_SUITE
