// Magazines and parcels: whole batches in, the same whole batches out.
#include "depot.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

constexpr std::uint32_t any_height = ~std::uint32_t{0};
constexpr std::uint32_t per_batch = max_magazine_blocks;

/// A batch that can be told from every other: its number in each entry.
struct batch {
  std::array<std::uint32_t, max_magazine_blocks> blocks;
  std::size_t count;

  batch(std::uint32_t number, std::size_t length) : blocks(), count(length) {
    for (std::uint32_t i = 0; i < count; ++i) blocks[i] = number * per_batch + i;
  }
  [[nodiscard]] std::span<const std::uint32_t> span() const { return std::span(blocks).first(count); }
};

/// Number of the batch that these entries are, whole and in order; none: any_height.
std::uint32_t number_of(std::span<const std::uint32_t> blocks) {
  const std::uint32_t number = blocks[0] / per_batch;
  const batch same(number, blocks.size());
  return std::ranges::equal(same.span(), blocks) ? number : any_height;
}

struct racked_depot : depot {
  shelves rack;
};

std::unique_ptr<racked_depot> make_depot(std::uint32_t magazines) {
  auto made = std::make_unique<racked_depot>();
  REQUIRE(made->open(magazines));
  return made;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("the last batch of a class comes back first, and whole") {
  const auto tested = make_depot(100);
  std::array<std::uint32_t, max_magazine_blocks> out;
  for (const std::size_t of_class : {std::size_t{0}, max_classes - 1}) {
    CHECK(tested->pop(tested->rack, of_class, out) == 0);
    for (std::uint32_t number = 1; number <= per_batch; ++number) {
      CHECK(tested->push(tested->rack, of_class, batch(number, number).span(), any_height));
    }
    CHECK(tested->rack.height(of_class) == max_magazine_blocks);
  }
  for (const std::size_t of_class : {std::size_t{0}, max_classes - 1}) {
    for (std::uint32_t number = per_batch; number > 0; --number) {
      CHECK(tested->pop(tested->rack, of_class, out) == number);
      CHECK(number_of(std::span(out).first(number)) == number);
      CHECK(tested->rack.height(of_class) == number - 1);
    }
    CHECK(tested->pop(tested->rack, of_class, out) == 0);
  }
}

TEST_CASE("a class holds as many batches as it may, and takes more when one has left") {
  const auto tested = make_depot(100);
  std::array<std::uint32_t, max_magazine_blocks> out;
  CHECK_FALSE(tested->push(tested->rack, 3, batch(1, 4).span(), 0));
  for (std::uint32_t number = 0; number < 5; ++number) CHECK(tested->push(tested->rack, 3, batch(number, 4).span(), 5));
  CHECK_FALSE(tested->push(tested->rack, 3, batch(5, 4).span(), 5));
  CHECK(tested->push(tested->rack, 4, batch(5, 4).span(), 1));
  CHECK(tested->pop(tested->rack, 3, out) == 4);
  CHECK(tested->push(tested->rack, 3, batch(6, 4).span(), 5));
  CHECK_FALSE(tested->push(tested->rack, 3, batch(7, 4).span(), 5));
}

TEST_CASE("parcels taken out all at once are all there, can be joined, and can be put back") {
  const auto tested = make_depot(100);
  free_list inbox;
  CHECK(depot::empty(tested->receive_all(inbox)));
  int notes[2] = {};
  const auto send = [&](std::uint32_t number) {
    const batch next(number, 3);
    REQUIRE(tested->send(inbox, number, next.span(), next.span().data(), &notes[number % 2]));
  };
  for (const std::uint32_t number : {1U, 2U, 3U}) send(number);
  depot::chain some = tested->receive_all(inbox);
  CHECK_FALSE(depot::empty(some));
  CHECK_FALSE(inbox.peek());
  for (const std::uint32_t number : {4U, 5U}) send(number);
  depot::chain more = tested->receive_all(inbox);
  tested->join(some, more);
  CHECK(depot::empty(more));
  CHECK(tested->give_back(some, inbox) == 5);
  CHECK(depot::empty(some));
  depot::chain all = tested->receive_all(inbox);
  std::uint32_t seen = 0;
  for (depot::parcel p = tested->receive(all); p.count != 0; p = tested->receive(all)) {
    CHECK(number_of(std::span(p.blocks).first(p.count)) == p.of_class);
    CHECK(p.note == &notes[p.of_class % 2]);
    seen |= 1U << p.of_class;
  }
  CHECK(seen == 0b111110);
  // Every magazine is empty again.
  for (std::uint32_t number = 0; number < 100; ++number) {
    REQUIRE(tested->push(tested->rack, 0, batch(number % 7, 2).span(), any_height));
  }
}

TEST_CASE("a spare magazine serves its thread alone until it is given back") {
  const auto tested = make_depot(1);
  std::array<std::uint32_t, max_magazine_blocks> out;
  depot::spare mine;
  CHECK(tested->push(tested->rack, 3, batch(1, 4).span(), any_height, &mine));
  CHECK(tested->pop(tested->rack, 3, out, &mine) == 4);
  CHECK_FALSE(tested->push(tested->rack, 3, batch(2, 4).span(), any_height));  // the only magazine is the other's spare
  CHECK(tested->rack.height(3) == 0);
  CHECK(tested->push(tested->rack, 5, batch(3, 4).span(), any_height, &mine));
  CHECK_FALSE(tested->push(tested->rack, 5, batch(4, 4).span(), any_height, &mine));
  CHECK(tested->pop(tested->rack, 5, out, &mine) == 4);
  CHECK(number_of(std::span(out).first(4)) == 3);
  tested->keep(mine);
  tested->keep(mine);  // nothing more to give
  CHECK(tested->push(tested->rack, 3, batch(5, 4).span(), any_height));
  CHECK_FALSE(tested->push(tested->rack, 3, batch(6, 4).span(), any_height, &mine));
  CHECK(tested->pop(tested->rack, 3, out) == 4);
  CHECK(tested->pop(tested->rack, 3, out, &mine) == 0);
}

TEST_CASE("when every magazine is full, nothing more is taken; emptied ones serve any class") {
  const auto tested = make_depot(4);
  std::array<std::uint32_t, max_magazine_blocks> out;
  free_list inbox;
  for (std::uint32_t number = 0; number < 3; ++number) {
    CHECK(tested->push(tested->rack, number, batch(number, 2).span(), any_height));
  }
  CHECK(tested->send(inbox, 9, batch(3, 2).span(), batch(3, 2).span().data()));
  CHECK_FALSE(tested->push(tested->rack, 0, batch(4, 2).span(), any_height));
  CHECK_FALSE(tested->send(inbox, 0, batch(4, 2).span(), batch(4, 2).span().data()));
  for (std::size_t round = 0; round < 10; ++round) {
    CHECK(tested->pop(tested->rack, round % 3, out) == 2);
    CHECK(tested->push(tested->rack, (round + 1) % 3, batch(7, 2).span(), any_height));
    CHECK(tested->pop(tested->rack, (round + 1) % 3, out) == 2);
    CHECK(number_of(std::span(out).first(2)) == 7);
    CHECK(tested->push(tested->rack, round % 3, batch(8, 2).span(), any_height));
    CHECK_FALSE(tested->push(tested->rack, 0, batch(4, 2).span(), any_height));
  }
  CHECK(tested->receive(inbox).count == 2);
  CHECK(tested->push(tested->rack, 0, batch(4, 2).span(), any_height));
}

TEST_CASE("a parcel keeps its class, and inboxes are apart") {
  const auto tested = make_depot(10);
  free_list inboxes[2];
  CHECK(tested->receive(inboxes[0]).count == 0);
  CHECK(tested->send(inboxes[0], 5, batch(50, 3).span(), batch(50, 3).span().data()));
  CHECK(tested->send(inboxes[1], 6, batch(60, 4).span(), batch(60, 4).span().data()));
  CHECK(tested->send(inboxes[0], 7, batch(70, max_magazine_blocks).span(), batch(70, max_magazine_blocks).span().data()));
  for (const auto& [inbox, of_class, count] : {std::array{0U, 7U, per_batch}, {0U, 5U, 3U}, {1U, 6U, 4U}}) {
    const depot::parcel p = tested->receive(inboxes[inbox]);
    CHECK(p.of_class == of_class);
    CHECK(p.count == count);
    CHECK(number_of(std::span(p.blocks).first(p.count)) == of_class * 10);
    CHECK(number_of(std::span(p.unused).first(p.count)) == of_class * 10);
  }
  for (free_list& inbox : inboxes) CHECK(tested->receive(inbox).count == 0);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads exchange batches through few magazines: each arrives whole, once") {
  constexpr std::uint32_t magazines = 24;
  for (const std::size_t threads : {2U, 4U, 8U}) {
    CAPTURE(threads);
    const auto tested = make_depot(magazines);
    const auto per_thread = static_cast<std::uint32_t>(scaled(80000) / threads);
    std::vector<std::atomic<std::uint8_t>> arrived(per_thread * threads);
    free_list inboxes[2];
    findings found;
    std::atomic<std::size_t> sent = 0;
    const auto receive = [&](std::span<const std::uint32_t> blocks) {
      const std::uint32_t number = number_of(blocks);
      found.expect(number < arrived.size(), "a batch is torn");
      if (number >= arrived.size()) return;
      found.expect(arrived[number].exchange(1, std::memory_order_relaxed) == 0, "batch ", number, " arrived twice");
    };
    run_threads(threads, [&](std::size_t self) {
      random_engine random = make_random(self);
      std::array<std::uint32_t, max_magazine_blocks> out;
      std::size_t mine = 0;
      for (std::uint32_t step = 0; step < per_thread; ++step) {
        const auto number = static_cast<std::uint32_t>(self) * per_thread + step;
        const std::size_t place = uniform(random, 0, 3);
        const batch next(number, uniform(random, 1, max_magazine_blocks));
        mine += place < 2 ? tested->push(tested->rack, place, next.span(), 8)
                          : tested->send(inboxes[place - 2], place, next.span(), next.span().data());
        if (const std::size_t count = tested->pop(tested->rack, uniform(random, 0, 1), out)) receive(std::span(out).first(count));
        const std::size_t box = uniform(random, 0, 1);
        const depot::parcel p = tested->receive(inboxes[box]);
        found.expect(p.count == 0 || p.of_class == box + 2, "a parcel changed its class");
        if (p.count != 0) receive(std::span(p.blocks).first(p.count));
      }
      sent.fetch_add(mine, std::memory_order_relaxed);
    });
    std::array<std::uint32_t, max_magazine_blocks> out;
    for (const std::size_t of_class : {0U, 1U}) {
      while (const std::size_t count = tested->pop(tested->rack, of_class, out)) receive(std::span(out).first(count));
    }
    for (free_list& inbox : inboxes) {
      for (;;) {
        const depot::parcel p = tested->receive(inbox);
        if (p.count == 0) break;
        receive(std::span(p.blocks).first(p.count));
      }
    }
    ORDERLY_CHECK_FINDINGS(found);
    const auto received = std::ranges::count(arrived, 1, [](const auto& a) { return a.load(std::memory_order_relaxed); });
    CHECK(static_cast<std::size_t>(received) == sent);
    std::uint32_t again = 0;
    while (tested->push(tested->rack, 2, batch(1, 1).span(), any_height)) ++again;
    CHECK(again == magazines);  // none was lost
  }
}

TEST_CASE("a class is as high as it has batches, whoever pushed them at once") {
  std::size_t wrong = 0;
  for (std::size_t round = 0; round < scaled(400); ++round) {
    const auto tested = make_depot(4096);
    std::atomic<std::uint32_t> pushed = 0;
    run_threads(4, [&](std::size_t self) {
      random_engine random = make_random(round * 4 + self);
      std::array<std::uint32_t, max_magazine_blocks> out;
      for (int step = 0; step < 50; ++step) {
        if (uniform(random, 0, 3) != 0) {
          pushed.fetch_add(tested->push(tested->rack, 0, batch(1, 1).span(), 1000), std::memory_order_relaxed);
        } else {
          pushed.fetch_sub(tested->pop(tested->rack, 0, out) != 0, std::memory_order_relaxed);
        }
      }
    });
    wrong += tested->rack.height(0) != pushed.load();
  }
  CHECK(wrong == 0);
}

}  // TEST_SUITE
