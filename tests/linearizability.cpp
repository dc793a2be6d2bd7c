// Short histories of a pool under real threads are those of a pool that does one thing at a time; and the check knows
// histories that are not.
#include "support/linearizability.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "orderly/pool.hpp"
#include "support/failing_source.hpp"
#include "support/paper_source.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr auto null = recorded_call::none;

recorded_call allocation(std::uint64_t called, std::uint64_t returned, std::uint32_t granules, std::uint32_t start) {
  return {recorded_call::kind::allocate, 0, called, returned, granules, start, true};
}
recorded_call free_of(std::uint64_t called, std::uint64_t returned, std::uint32_t start, bool accepted = true) {
  return {recorded_call::kind::free, 0, called, returned, 0, start, accepted};
}

bool holds(const std::vector<recorded_call>& calls, std::uint32_t granules = 4) {
  return is_linearizable(calls, granules);
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("histories one after the other") {
  CHECK(holds({}));
  CHECK(holds({allocation(1, 2, 1, 0), free_of(3, 4, 0), allocation(5, 6, 1, 0)}));
  CHECK(holds({allocation(1, 2, 4, 0), allocation(3, 4, 1, null), free_of(5, 6, 0), free_of(7, 8, 0, false)}));
  CHECK(holds({allocation(1, 2, 3, 0), allocation(3, 4, 1, 3)}));
  CHECK(holds({allocation(1, 2, 1, 1), allocation(3, 4, 1, 2), allocation(5, 6, 2, null), allocation(7, 8, 1, 0)}));
}

TEST_CASE("overlaps, strays and false answers are no histories of a pool") {
  CHECK_FALSE(holds({allocation(1, 2, 2, 0), allocation(3, 4, 1, 1)}));   // overlap
  CHECK_FALSE(holds({allocation(1, 2, 3, 0), allocation(3, 4, 1, 2)}));   // in the last granule of a trimmed block
  CHECK_FALSE(holds({allocation(1, 2, 2, 1)}));                           // not aligned
  CHECK_FALSE(holds({allocation(1, 2, 3, 4)}));                           // outside
  CHECK_FALSE(holds({allocation(1, 2, 1, 0), allocation(3, 4, 2, null)}));  // two granules were free
  CHECK_FALSE(holds({allocation(1, 2, 1, 0), free_of(3, 4, 0), free_of(5, 6, 0)}));  // freed twice, both accepted
  CHECK_FALSE(holds({allocation(1, 2, 1, 0), free_of(3, 4, 0, false)}));  // a live block's free refused
  CHECK_FALSE(holds({allocation(1, 2, 2, 0), free_of(3, 4, 1)}));         // the middle of a block
}

TEST_CASE("calls that overlap may come in either order, and no others") {
  CHECK(holds({allocation(1, 4, 4, 0), allocation(2, 3, 1, null)}));
  CHECK(holds({allocation(1, 2, 4, 0), free_of(3, 6, 0), allocation(4, 5, 1, 2)}));
  CHECK(holds({allocation(1, 2, 4, 0), free_of(3, 6, 0), allocation(4, 5, 1, null)}));
  CHECK(holds({allocation(1, 2, 1, 0), free_of(3, 6, 0), free_of(4, 5, 0, false)}));
  CHECK_FALSE(holds({allocation(1, 2, 4, 0), free_of(3, 4, 0), allocation(5, 6, 1, null)}));
  CHECK_FALSE(holds({allocation(1, 2, 4, 0), allocation(3, 4, 1, 0), free_of(5, 6, 0)}));
  CHECK_FALSE(holds({allocation(1, 2, 1, 0), free_of(3, 6, 0), free_of(4, 5, 0)}));
  // Null needs an instant at which all is taken: the first has gone before the second comes.
  CHECK_FALSE(holds({allocation(1, 2, 2, 0), free_of(3, 4, 0), allocation(5, 6, 2, 2), allocation(3, 6, 2, null)}));
  CHECK(holds({allocation(1, 2, 2, 0), free_of(4, 8, 0), allocation(5, 6, 2, 2), allocation(3, 7, 2, null)}));
}

TEST_CASE("a search among many orders ends") {
  std::vector<recorded_call> calls;
  for (std::uint32_t i = 0; i < 16; ++i) calls.push_back(allocation(i, 100, 1, i));
  CHECK(holds(calls, 16));
  calls.push_back(allocation(0, 100, 1, 0));
  CHECK_FALSE(holds(calls, 16));
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("what threads see of a small pool is what one thing after the other shows") {
  constexpr std::size_t granule = std::size_t{1} << 14;
  constexpr std::uint32_t granules = 8;
  constexpr std::size_t calls_per_thread = 8;
  for (const std::size_t threads : {2U, 3U, 4U}) {
    CAPTURE(threads);
    for (std::size_t round = 0; round < scaled(300); ++round) {
      options settings;
      settings.granule = granule;
      settings.on_bad_free = on_bad_free::count;
      alignas(granule) static std::byte buffer[granules * granule];
      pool tested(make_fixed_buffer_source(buffer, sizeof buffer), settings);
      std::atomic<std::uint64_t> instant = 0;
      std::vector<std::vector<recorded_call>> histories(threads);
      run_threads(threads, [&](std::size_t self) {
        random_engine random = make_random(round * 16 + self);
        std::vector<std::uint32_t> mine;
        for (std::size_t i = 0; i < calls_per_thread; ++i) {
          recorded_call call;
          call.thread = static_cast<std::uint32_t>(self);
          const bool frees = !mine.empty() && random() % 2 == 0;
          if (frees) {
            call.what = recorded_call::kind::free;
            call.start = mine.back();
            mine.pop_back();
            call.called = instant.fetch_add(1);
            call.accepted = tested.try_deallocate(buffer + std::size_t{call.start} * granule) == error::none;
            call.returned = instant.fetch_add(1);
          } else {
            call.granules = 1U << random() % 3;
            call.called = instant.fetch_add(1);
            void* const block = tested.try_allocate(call.granules * granule);
            call.returned = instant.fetch_add(1);
            if (block != nullptr) {
              call.start = static_cast<std::uint32_t>(static_cast<std::size_t>(static_cast<std::byte*>(block) - buffer) / granule);
              mine.push_back(call.start);
            }
          }
          histories[self].push_back(call);
        }
      });
      std::vector<recorded_call> all;
      for (const auto& each : histories) all.insert(all.end(), each.begin(), each.end());
      const bool as_one = is_linearizable(all, granules);
      CHECK_MESSAGE(as_one, text_of(all));
      if (!as_one) return;
    }
  }
}

}  // TEST_SUITE
