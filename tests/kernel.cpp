// The algorithms of device code, run by threads of the host: as lanes of their own, and as warps that work together.
#include "orderly/cuda/kernel.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/lanes.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::test;
using orderly::cuda::lease;
using orderly::cuda::ring;
using orderly::cuda::ring_run;
using orderly::cuda::ring_state;
using orderly::cuda::detail::give;
using orderly::cuda::detail::take;

namespace {

constexpr std::uintptr_t somewhere = std::uintptr_t{1} << 40;  // items are never touched here

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }
std::uintptr_t address(const void* item) { return reinterpret_cast<std::uintptr_t>(item); }

/// A lease with its records.
struct host_lease {
  explicit host_lease(std::uint32_t count, std::uint32_t shift = 6, std::uintptr_t base = somewhere)
      : freed((count + 31) / 32) {
    view.base = base;
    view.tickets = &tickets;
    view.freed = freed.data();
    view.count = count;
    view.shift = shift;
  }
  host_lease(const host_lease&) = delete;
  host_lease& operator=(const host_lease&) = delete;

  std::uint64_t tickets = 0;
  std::vector<std::uint32_t> freed;
  lease view;
};

/// A ring with its records, over runs of random lengths.
struct host_ring {
  host_ring(std::uint32_t count, std::size_t room, random_engine& random) : freed((count + 31) / 32), returns(room) {
    places.resize(std::bit_ceil(std::size_t{2} * count));
    std::uintptr_t next = somewhere;
    for (std::uint32_t made = 0; made < count;) {
      const auto length = static_cast<std::uint32_t>(log_uniform(random, 1, count - made));
      runs.push_back({next, made, length});
      made += length;
      next += 64 * (length + uniform(random, 1, 100));
    }
    state.put = state.end = count;
    view.state = &state;
    view.runs = runs.data();
    view.freed = freed.data();
    view.places = places.data();
    view.returns = returns.data();
    view.place_mask = static_cast<std::uint32_t>(places.size() - 1);
    view.room = static_cast<std::uint32_t>(room);
    view.run_count = static_cast<std::uint32_t>(runs.size());
    view.count = count;
    view.shift = 6;
  }
  host_ring(const host_ring&) = delete;
  host_ring& operator=(const host_ring&) = delete;

  void turn() { state.end = state.put; }

  ring_state state;
  std::vector<ring_run> runs;
  std::vector<std::uint32_t> freed;
  std::vector<std::uint32_t> places;
  std::vector<void*> returns;
  ring view;
};

/// Is everything in it different, nulls apart?
bool distinct(std::vector<void*> items) {
  std::erase(items, nullptr);
  std::ranges::sort(items);
  return std::ranges::adjacent_find(items) == items.end();
}

}  // namespace

TEST_CASE("a lease hands out each item once, then nothing, whatever the number of attempts") {
  constexpr std::size_t threads = 4;
  for (const std::uint32_t count : {1U, 31U, 1000U, 100'000U}) {
    CAPTURE(count);
    host_lease from(count);
    std::vector<std::vector<void*>> got(threads);
    run_threads(threads, [&](std::size_t self) {
      for (std::uint32_t i = 0; i < count; ++i) got[self].push_back(take(from.view, lone_lane{}));
    });
    std::vector<void*> all;
    for (const auto& each : got) all.insert(all.end(), each.begin(), each.end());
    CHECK(static_cast<std::uint32_t>(std::ranges::count(all, nullptr)) == (threads - 1) * count);
    CHECK(distinct(all));
    CHECK(from.tickets == threads * count);
    std::erase(all, nullptr);
    CHECK(address(*std::ranges::min_element(all)) == somewhere);
    CHECK(address(*std::ranges::max_element(all)) == somewhere + 64 * (count - 1));
  }
  host_lease from(8);
  from.tickets = std::uint64_t{1} << 32;  // a counter of 32 bits would start again here
  CHECK(take(from.view, lone_lane{}) == nullptr);
  CHECK(take(lease{}, lone_lane{}) == nullptr);
}

TEST_CASE("of all frees of an item one succeeds; what is no item that was handed out is refused") {
  constexpr std::size_t threads = 4;
  constexpr std::uint32_t count = 10'000;
  host_lease from(2 * count);
  for (std::uint32_t i = 0; i < count; ++i) REQUIRE(take(from.view, lone_lane{}) != nullptr);
  std::atomic<std::size_t> freed = 0, wrong = 0;
  run_threads(threads, [&](std::size_t self) {
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uintptr_t item = somewhere + 64 * ((i + self * 7) % count);
      freed += give(from.view, pointer(item), lone_lane{});
      wrong += give(from.view, pointer(item + 16), lone_lane{});
      wrong += give(from.view, pointer(item + 64 * count), lone_lane{});      // not handed out
      wrong += give(from.view, pointer(item + 2 * 64 * count), lone_lane{});  // past the end
      wrong += give(from.view, pointer(item - 64 * count), lone_lane{});      // before the start
    }
  });
  CHECK(freed == count);
  CHECK(wrong == 0);
  CHECK_FALSE(give(from.view, nullptr, lone_lane{}));
  CHECK_FALSE(give(lease{}, pointer(somewhere), lone_lane{}));
  std::size_t bits = 0;
  for (const std::uint32_t word : from.freed) bits += static_cast<std::size_t>(std::popcount(word));
  CHECK(bits == count);
}

TEST_CASE("lanes of a warp that allocate from several leases at once, and free, some of them the same item") {
  constexpr std::size_t rounds = 40;
  host_lease small(500, 6, somewhere);
  host_lease large(700, 12, 2 * somewhere);
  host_warp warp;
  std::vector<std::vector<void*>> got(32);
  std::atomic<std::size_t> freed = 0;
  std::vector<void*> shared(32);
  run_threads(32, [&](std::size_t self) {
    const auto lane = static_cast<unsigned>(self);
    for (std::size_t round = 0; round < rounds; ++round) {
      const lease& from = (lane + round) % 3 == 0 ? large.view : small.view;
      got[self].push_back(take(from, warp_lane(warp, lane)));
    }
    for (std::size_t round = 0; round < rounds; ++round) {
      // Each item that exists, and the same one in the neighbouring lane; a lane without one frees an item that it has
      // freed, or that was never handed out.
      shared[self] = got[self][round] == nullptr ? pointer(2 * somewhere + (699 << 12)) : got[self][round];
      warp.exchange(~0U, lane, 0);
      void* const mine = round % 2 == 0 ? shared[self] : shared[self / 2 * 2];
      const lease& to = small.view.holds(mine) ? small.view : large.view;
      freed += give(to, mine, warp_lane(warp, lane));
      freed +=
          round % 2 != 0 && give(small.view.holds(shared[self]) ? small.view : large.view, shared[self], lone_lane{});
      warp.exchange(~0U, lane, 0);
    }
  });
  std::vector<void*> all;
  for (const auto& each : got) all.insert(all.end(), each.begin(), each.end());
  const std::size_t handed_out =
      std::min<std::uint64_t>(small.tickets, 500) + std::min<std::uint64_t>(large.tickets, 700);
  CHECK(small.tickets + large.tickets == 32 * rounds);
  CHECK(all.size() - static_cast<std::size_t>(std::ranges::count(all, nullptr)) == handed_out);
  CHECK(distinct(all));
  CHECK(small.tickets > 500);  // lanes of one warp came too late, others of it not
  CHECK(freed == handed_out);
}

TEST_CASE("a ring hands out what was freed before it was turned, each item to one, and stays exact when it runs dry") {
  constexpr std::size_t threads = 4;
  random_engine random = make_random(0);
  for (std::size_t round = 0; round < scaled(24); ++round) {
    // Powers of two, too: then there are no more places than there must be.
    const auto length = static_cast<std::uint32_t>(log_uniform(random, 1, 3000));
    const std::uint32_t count = round % 2 == 0 ? length : std::bit_floor(length);
    CAPTURE(count);
    host_ring tested(count, 0, random);
    std::vector<std::vector<void*>> out(threads);  // what each thread has
    std::size_t in_ring = count;
    for (int kernel = 0; kernel < 12; ++kernel) {
      std::vector<std::size_t> attempts(threads), frees(threads);
      for (std::size_t t = 0; t < threads; ++t) {
        attempts[t] = uniform(random, 0, count);
        frees[t] = uniform(random, 0, count);
      }
      std::atomic<std::size_t> taken = 0, dry = 0, freed = 0;
      findings found;
      run_threads(threads, [&](std::size_t self) {
        for (std::size_t left = std::max(attempts[self], frees[self]); left-- != 0;) {
          if (left < attempts[self]) {
            void* const item = take(tested.view, lone_lane{});
            if (item != nullptr) out[self].push_back(item);
            ++(item != nullptr ? taken : dry);
          }
          if (left < frees[self] && !out[self].empty()) {
            void* const item = out[self].front();
            out[self].erase(out[self].begin());
            found.expect(!give(tested.view, pointer(address(item) + 8), lone_lane{}), "inside an item");
            found.expect(give(tested.view, item, lone_lane{}), "a good free was refused");
            found.expect(!give(tested.view, item, lone_lane{}), "a second free was not refused");
            ++freed;
          }
        }
      });
      ORDERLY_CHECK_FINDINGS(found);
      CHECK(taken <= in_ring);
      CHECK((dry == 0 || taken == in_ring));
      CHECK(tested.state.end - tested.state.taken == in_ring - taken);
      std::vector<void*> all;
      for (const auto& each : out) all.insert(all.end(), each.begin(), each.end());
      CHECK(distinct(all));
      in_ring = in_ring - taken;
      if (uniform(random, 0, 3) != 0) {
        tested.turn();
        in_ring = count - all.size();
      }
    }
  }
}

TEST_CASE(
    "items that a ring has not handed out yet are refused; pointers between its runs go to the host, while there is "
    "room") {
  random_engine random = make_random(1);
  host_ring tested(1000, 10, random);
  const auto item = [&](std::uint32_t i) { return pointer(orderly::cuda::detail::address_of(tested.view, i)); };
  for (int i = 0; i < 100; ++i) REQUIRE(take(tested.view, lone_lane{}) == item(static_cast<std::uint32_t>(i)));
  CHECK(give(tested.view, item(99), lone_lane{}));
  for (std::uint32_t i = 99; i < 1000; ++i) CHECK_FALSE(give(tested.view, item(i), lone_lane{}));
  for (std::uint32_t i = 0; i < 1000; ++i) CHECK(tested.view.holds(item(i)));
  std::vector<void*> others;
  for (const ring_run& run : tested.runs) others.push_back(pointer(run.base + std::uintptr_t{run.count} * 64));
  others.push_back(pointer(somewhere - 64));
  while (others.size() < 20) others.push_back(pointer(address(others.back()) - 64));
  std::atomic<std::size_t> passed_on = 0;
  run_threads(4, [&](std::size_t self) {
    for (std::size_t i = self; i < others.size(); i += 4) passed_on += give(tested.view, others[i], lone_lane{});
  });
  CHECK(passed_on == 10);
  CHECK(tested.state.returned == others.size());
  CHECK(distinct(tested.returns));
  for (void* const each : tested.returns) CHECK(std::ranges::count(others, each) == 1);
  CHECK_FALSE(give(tested.view, nullptr, lone_lane{}));
  CHECK_FALSE(give(ring{}, pointer(somewhere), lone_lane{}));
  CHECK(take(ring{}, lone_lane{}) == nullptr);
}

TEST_CASE("a set serves from the smallest size that will do and is not dry") {
  host_lease small(2, 4, somewhere);
  host_lease middle(1, 6, 2 * somewhere);
  host_lease large(1, 8, 3 * somewhere);
  orderly::cuda::set<lease, 3> all;
  CHECK(take(all, 1, lone_lane{}) == nullptr);
  CHECK(all.add(large.view));
  CHECK(all.add(small.view));
  CHECK(all.add(middle.view));
  CHECK_FALSE(all.add(small.view));
  CHECK(take(all, 16, lone_lane{}) == pointer(somewhere));
  CHECK(take(all, 17, lone_lane{}) == pointer(2 * somewhere));
  CHECK(take(all, 0, lone_lane{}) == pointer(somewhere + 16));
  CHECK(take(all, 257, lone_lane{}) == nullptr);
  CHECK(take(all, 1, lone_lane{}) == pointer(3 * somewhere));
  CHECK(take(all, 1, lone_lane{}) == nullptr);
  CHECK(give(all, pointer(3 * somewhere), lone_lane{}));
  CHECK_FALSE(give(all, pointer(3 * somewhere), lone_lane{}));
  CHECK_FALSE(give(all, pointer(4 * somewhere), lone_lane{}));
}
