// Leases and rings from making to return, without a device: the stand-in of software_cuda.cpp runs copies and kernels in
// software streams, and a kernel is the device code's algorithm, run by threads of the host. Copies and kernels are
// plain accesses, so that ThreadSanitizer reports an order that is missing.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "faults.hpp"
#include "orderly/cuda.hpp"
#include "orderly/cuda_kernel.hpp"
#include "orderly/software_stream.hpp"
#include "software_cuda.hpp"
#include "support/lanes.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

/// Streams and a pool; at the end nothing is left over.
struct bench {
  explicit bench(std::size_t bytes = 4 * mib, software_schedule schedule = software_schedule::lazy,
                 std::size_t granule = 256) {
    restart_software_cuda(schedule);
    for (cudaStream_t& each : stream) REQUIRE(cudaStreamCreateWithFlags(&each, cudaStreamNonBlocking) == cudaSuccess);
    stream_options settings;
    settings.memory.granule = granule;
    settings.memory.on_bad_free = on_bad_free::count;
    pool.emplace(make_cuda_device_source(0, bytes), make_cuda_stream_driver(0), settings);
    by.emplace(*pool, 0, mib);
  }
  bench(const bench&) = delete;
  bench& operator=(const bench&) = delete;
  ~bench() {
    by.reset();
    pool.reset();
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(things_left(cuda_thing::block) == 0);
    CHECK(things_left(cuda_thing::event) == 0);
    for (cudaStream_t const each : stream) CHECK(cudaStreamDestroy(each) == cudaSuccess);
  }

  [[nodiscard]] cudaStream_t operator[](std::size_t i) const { return stream[i]; }

  /// Puts a kernel of a few threads into a stream: work(thread, lanes).
  template <class Work>
  void launch(std::size_t in, std::size_t threads, Work work) {
    stream_of(stream[in]).enqueue([=] { run_threads(threads, [&](std::size_t self) { work(self, lone_lane{}); }); });
  }

  /// Everything is the pool's again, and merged.
  void check_idle() {
    CHECK(by->collect() == 0);
    CHECK(pool->synchronize());
    pool->defragment();
    CHECK(pool->synchronize());
    const stream_statistics stats = pool->stats();
    CHECK(stats.memory.requested == 0);
    CHECK(stats.memory.allocated == 0);
    CHECK(stats.memory.cached == 0);
    CHECK(stats.memory.allocations == stats.memory.frees);
    CHECK(stats.memory.bad_frees == 0);
    CHECK(stats.held == 0);
    void* const whole = pool->try_allocate(pool->largest_divisible(), (*this)[0]);
    CHECK(whole != nullptr);
    pool->deallocate(whole, pool->largest_divisible(), (*this)[0]);
  }

  std::array<cudaStream_t, 3> stream{};
  std::optional<stream_pool> pool;
  std::optional<kernel_handoff> by;
};

using items = std::vector<void*>;

/// A kernel that fills `got`, and writes into each item where it is in there.
template <class Kind>
void allocate_items(bench& b, std::size_t in, const Kind& from, items& got) {
  constexpr std::size_t threads = 3;
  b.launch(in, threads, [from, &got](std::size_t self, lone_lane lanes) {
    for (std::size_t i = self; i < got.size(); i += threads) {
      got[i] = cuda::detail::take(from, lanes);
      if (got[i] != nullptr) *static_cast<std::uint64_t*>(got[i]) = i;
    }
  });
}

/// A kernel that frees every `step`th of them, if it still holds what was written there, and counts.
template <class Kind>
void free_items(bench& b, std::size_t in, const Kind& to, const items& got, std::size_t step, std::size_t& freed) {
  b.launch(in, 1, [to, &got, step, &freed](std::size_t, lone_lane lanes) {
    for (std::size_t i = 0; i < got.size(); i += step)
      if (got[i] != nullptr && *static_cast<std::uint64_t*>(got[i]) == i)
        freed += cuda::detail::give(to, got[i], lanes);
  });
}

}  // namespace

TEST_CASE("a lease from making to return: nobody waits, the books are right, and each item that is kept is a block") {
  for (const std::size_t step : {1U, 2U, 7U, 1000U}) {
    for (const std::size_t count : {1U, 1000U, 1024U, 2000U}) {
      CAPTURE(step);
      CAPTURE(count);
      bench b;
      items got(count);
      std::size_t freed = 0;
      kernel_lease lease(*b.by, 1000, 1000, b[0]);
      CHECK(lease.item_bytes() == 1024);
      CHECK(lease.count() == 1024);
      allocate_items(b, 0, lease.view(), got);
      free_items(b, 0, lease.view(), got, step, freed);
      CHECK_FALSE(lease.collect());
      CHECK_FALSE(lease.wait());  // not given back
      CHECK(lease.give_back(b[0]));
      CHECK_FALSE(lease.give_back(b[0]));
      CHECK(lease.view().count == 0);
      CHECK_FALSE(lease.collect());  // the stream has not run yet
      CHECK(b.pool->stats().memory.requested == mib);
      CHECK(lease.wait());
      CHECK(lease.collect());
      const std::size_t handed_out = std::min<std::size_t>(count, 1024);
      CHECK(lease.account().handed_out == handed_out);
      CHECK(lease.account().kept == handed_out - freed);
      CHECK((freed != 0 || count > 1024));
      CHECK(b.pool->stats().memory.requested == (handed_out - freed) * 1024);
      std::size_t kept = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        if (got[i] == nullptr || i % step == 0) continue;
        ++kept;
        CHECK(*static_cast<std::uint64_t*>(got[i]) == i);
        CHECK(b.pool->try_deallocate(got[i], 1024, b[1]) == error::none);
      }
      CHECK(kept == lease.account().kept);
      b.check_idle();
    }
  }
}

TEST_CASE("the same stream gets the same block for its next lease; calls are as few as promised") {
  bench b;
  std::uintptr_t first = 0;
  for (int round = 0; round < 3; ++round) {
    items got(1024);
    std::size_t freed = 0;
    std::uint64_t before = cuda_calls();
    const auto calls = [&] { return cuda_calls() - std::exchange(before, cuda_calls()); };
    kernel_lease lease(*b.by, 1024, 1024, b[0]);
    if (round != 0) CHECK(calls() == 3);
    if (round == 0) first = lease.view().base;
    CHECK(lease.view().base == first);
    allocate_items(b, 0, lease.view(), got);
    free_items(b, 0, lease.view(), got, 1, freed);
    calls();
    CHECK(lease.give_back(b[0]));
    if (round != 0) CHECK(calls() == 6);
    CHECK(stream_of(b[0]).synchronize());
    calls();
    CHECK(lease.collect());
    CHECK(calls() == 3);
    CHECK(freed == 1024);
    CHECK(lease.account().kept == 0);
  }
  b.check_idle();
}

TEST_CASE("while a lease is on the way its memory is nobody's; afterwards the rest is everybody's without an event") {
  bench b;
  items got(256);
  kernel_lease lease(*b.by, 4096, 512, b[0]);  // 2 MiB, half of the pool
  allocate_items(b, 0, lease.view(), got);
  CHECK(lease.give_back(b[0]));
  items others;
  while (void* const block = b.pool->try_allocate(mib / 2, b[1])) others.push_back(block);
  CHECK(others.size() == 4);
  const std::uint64_t records = b.pool->stats().events_recorded;
  CHECK(lease.wait());
  CHECK(lease.account().kept == 256);
  void* const rest = b.pool->try_allocate(mib, b[2]);
  CHECK(rest != nullptr);
  CHECK(b.pool->stats().events_recorded == records);
  b.pool->deallocate(rest, mib, b[2]);
  for (void* const block : others) b.pool->deallocate(block, mib / 2, b[1]);
  for (void* const item : got) b.pool->deallocate(item, 4096, b[2]);
  b.check_idle();
}

TEST_CASE("a ring from making to return: turned in stream order, with blocks of others among what is freed") {
  bench b(16 * mib);
  constexpr std::size_t count = 500;
  items between;
  for (std::size_t i = 0; i < 2 * count; ++i) between.push_back(b.pool->allocate(256, b[0]));
  for (std::size_t i = 0; i < between.size(); i += 2) b.pool->deallocate(std::exchange(between[i], nullptr), 256, b[0]);
  std::erase(between, nullptr);
  CHECK(b.pool->synchronize());
  items got(count + 10);
  std::size_t freed = 0;
  kernel_ring ring(*b.by, 200, count, b[0], 30);
  CHECK(ring.item_bytes() == 256);
  CHECK(ring.view().run_count > 100);
  for (int round = 0; round < 5; ++round) {
    allocate_items(b, 0, ring.view(), got);
    free_items(b, 0, ring.view(), got, 1, freed);
    CHECK(ring.turn(b[0]));
  }
  allocate_items(b, 0, ring.view(), got);
  free_items(b, 0, ring.view(), got, 2, freed);
  std::size_t passed_on = 0;
  b.launch(0, 1, [&, view = ring.view()](std::size_t, lone_lane lanes) {
    for (std::size_t i = 0; i < 40; ++i) passed_on += cuda::detail::give(view, between[i], lanes);
  });
  const std::size_t live = b.pool->stats().memory.requested;
  CHECK(ring.give_back(b[0]));
  CHECK_FALSE(ring.turn(b[0]));
  CHECK(ring.view().count == 0);
  CHECK_FALSE(ring.collect());
  CHECK(ring.wait());
  const std::size_t kept = ring.account().kept;
  CHECK(passed_on == 30);
  CHECK(ring.account().returned == 30);
  CHECK(ring.account().handed_out == 6 * count);
  CHECK(kept == 6 * count - freed);
  CHECK(kept > 0);
  CHECK(b.pool->stats().memory.requested < live - (30 + count - kept) * 256 + 1);
  std::size_t refused = 0;
  for (void* const item : got) {
    if (item != nullptr && b.pool->owns(item)) refused += b.pool->try_deallocate(item, 256, b[0]) != error::none;
  }
  CHECK(refused == 0);
  for (std::size_t i = 30; i < between.size(); ++i) CHECK(b.pool->try_deallocate(between[i], 256, b[0]) == error::none);
  b.check_idle();
}

TEST_CASE("what a kernel frees into a ring and is no block is reported as a bad free") {
  bench b;
  std::uint64_t other = 0;
  {
    kernel_ring ring(*b.by, 256, 10, b[0], 4);
    b.launch(0, 1, [&, view = ring.view()](std::size_t, lone_lane lanes) {
      CHECK(cuda::detail::give(view, &other, lanes));  // the host will tell
    });
    CHECK(ring.give_back(b[0]));
    CHECK(ring.wait());
  }
  CHECK(b.pool->stats().memory.bad_frees == 1);
  CHECK(b.pool->synchronize());
  CHECK(b.pool->stats().memory.requested == 0);
}

TEST_CASE("an owner may go in any state") {
  bench b;
  items got(64);
  items held(64);
  std::size_t freed = 0;
  {
    kernel_lease never_used(*b.by, 256, 64, b[0]);
    kernel_lease used(*b.by, 256, 64, b[0]);
    allocate_items(b, 0, used.view(), got);
    free_items(b, 0, used.view(), got, 2, freed);
    kernel_ring ring(*b.by, 256, 64, b[1]);
    allocate_items(b, 1, ring.view(), held);
    kernel_lease moved(std::move(used));
    CHECK(used.view().count == 0);
    CHECK_FALSE(used.collect());
    kernel_lease given(*b.by, 256, 64, b[0]);
    CHECK(given.give_back(b[0]));
    kernel_lease other(*b.by, 256, 64, b[0]);
    other = std::move(given);  // the other one is given back
    kernel_lease home(*b.by, 256, 64, b[2]);
    CHECK(home.give_back(b[2]));
    CHECK(home.wait());
  }
  CHECK(b.by->collect() == 5);
  CHECK(stream_of(b[0]).synchronize());
  CHECK(b.by->collect() == 1);
  CHECK(stream_of(b[1]).synchronize());
  kernel_lease another(*b.by, 256, 64, b[0]);  // making one collects too
  CHECK(b.pool->stats().memory.requested > 64 * 256);
  CHECK(another.give_back(b[0]));
  CHECK(another.wait());
  CHECK(freed == 32);
  for (std::size_t i = 1; i < 64; i += 2) CHECK(b.pool->try_deallocate(got[i], 256, b[0]) == error::none);
  for (void* const item : held) CHECK(b.pool->try_deallocate(item, 256, b[0]) == error::none);
  b.check_idle();
}

TEST_CASE("the handoff's end waits for what is on the way") {
  bench b;
  items got(64);
  {
    kernel_lease lease(*b.by, 256, 64, b[0]);
    allocate_items(b, 0, lease.view(), got);
  }
  b.by.reset();
  CHECK(b.pool->stats().memory.requested == 64 * 256);
  for (std::size_t i = 0; i < 64; ++i) CHECK(*static_cast<std::uint64_t*>(got[i]) == i);
  for (void* const item : got) CHECK(b.pool->try_deallocate(item, 256, b[0]) == error::none);
  b.by.emplace(*b.pool, 0);
  b.check_idle();
}

TEST_CASE("what cannot be lent is refused, says why, and leaves nothing behind") {
  bench b;
  const auto refused = [&](const char* text, const auto& make) {
    const statistics before = b.pool->stats().memory;
    std::string why;
    try {
      make();
    } catch (const std::invalid_argument& caught) {
      why = caught.what();
    }
    CHECK_MESSAGE(why.find(text) != std::string::npos, why);
    CHECK(b.pool->stats().memory.requested == before.requested);
  };
  refused("64 items of 16 bytes: smaller than the pool's granule of 256; make the pool with a granule of at most 16",
          [&] { kernel_lease(*b.by, 16, 64, b[0]); });
  refused("a number from 1 to 2^31", [&] { kernel_lease(*b.by, 256, 0, b[0]); });
  refused("a number from 1 to 2^31", [&] { kernel_ring(*b.by, 256, 0, b[0]); });
  refused("the largest block that the pool divides has 4194304", [&] { kernel_lease(*b.by, 256, 1U << 20, b[0]); });
  refused("no blocks of a power of two above 4194304", [&] { kernel_lease(*b.by, SIZE_MAX, 1, b[0]); });
  refused("at most 2^30 items and room for 2^31", [&] { kernel_ring(*b.by, 256, 10, b[0], SIZE_MAX); });
  for (const char* const function : {"cudaMemsetAsync", "cudaMemcpyAsync"}) {
    stand_in.failures = {{function, cudaErrorInvalidValue}};
    const bool copies = std::string(function) == "cudaMemcpyAsync";
    if (!copies) refused("refuses a memset", [&] { kernel_lease(*b.by, 256, 64, b[0]); });
    refused("refuses a copy", [&] { kernel_ring(*b.by, 256, 64, b[0]); });
    stand_in.failures.clear();
  }
  CHECK_THROWS_AS(kernel_ring(*b.by, 256, mib / 64, b[0]), out_of_memory);
  CHECK_THROWS_AS(kernel_lease(*b.by, 256, 1U << 14, b[0]), out_of_memory);  // no room for its records beside it
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamBeginCapture(b[0], cudaStreamCaptureModeGlobal) == cudaSuccess);
  refused("captures", [&] { kernel_lease(*b.by, 256, 64, b[0]); });
  refused("captures", [&] { kernel_ring(*b.by, 256, 64, b[0]); });
  REQUIRE(cudaStreamEndCapture(b[0], &graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK_THROWS_AS(kernel_handoff(*b.pool, 7), std::invalid_argument);
  b.check_idle();
}

TEST_CASE("a return that is refused can be made later, and is made by the handoff when the owner is gone") {
  bench b;
  items got(16);
  {
    kernel_lease lease(*b.by, 256, 64, b[0]);
    allocate_items(b, 0, lease.view(), got);
    for (const char* const function : {"cudaMemcpyAsync", "cudaEventRecord"}) {
      stand_in.failures = {{function, cudaErrorInvalidValue}};
      CHECK_FALSE(lease.give_back(b[0]));
      CHECK(lease.view().count == 64);
    }
    stand_in.failures.clear();
    REQUIRE(cudaStreamBeginCapture(b[0], cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK_FALSE(lease.give_back(b[0]));
  }
  CHECK(b.by->collect() == 1);
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(b[0], &graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(b.by->collect() == 1);  // given back now
  CHECK(stream_of(b[0]).synchronize());
  CHECK(b.by->collect() == 0);
  for (void* const item : got) CHECK(b.pool->try_deallocate(item, 256, b[0]) == error::none);
  b.check_idle();
}

TEST_CASE("where the device has failed, the memory stays live") {
  bench b;
  {
    kernel_lease lease(*b.by, 256, 64, b[0]);
    CHECK(lease.give_back(b[0]));
    stand_in.failures = {{"cuEventQuery", cudaErrorIllegalAddress}, {"cuEventSynchronize", cudaErrorIllegalAddress}};
    CHECK_FALSE(lease.collect());
    CHECK_FALSE(lease.wait());
  }
  CHECK(b.by->collect() == 1);
  b.by.reset();
  stand_in.failures.clear();
  CHECK(b.pool->stats().memory.requested == 64 * 256);
}

TEST_CASE("leases and rings at random, against a ledger: no two have an item, and none is lost") {
  for (const software_schedule schedule :
       {software_schedule::eager, software_schedule::lazy, software_schedule::random, software_schedule::workers}) {
    CAPTURE(static_cast<int>(schedule));
    bench b(4 * mib, schedule, 64);
    random_engine random = make_random(static_cast<std::uint64_t>(schedule));
    struct live_item {
      void* address;
      std::size_t bytes;
    };
    std::vector<live_item> live;
    for (std::size_t round = 0; round < scaled(80); ++round) {
      const std::size_t in = uniform(random, 0, 2);
      const std::size_t bytes = std::size_t{64} << uniform(random, 0, 4);
      const std::size_t count = log_uniform(random, 1, 500);
      items got(log_uniform(random, 1, 700));
      std::size_t freed = 0;
      const std::size_t step = uniform(random, 1, 5);
      const auto use = [&](auto& lent) {
        allocate_items(b, in, lent.view(), got);
        free_items(b, in, lent.view(), got, step, freed);
        REQUIRE(lent.give_back(b[in]));
        while (!lent.collect())
          if (uniform(random, 0, 3) == 0) REQUIRE(lent.wait());
        std::size_t there = 0;
        for (std::size_t i = 0; i < got.size(); ++i) {
          if (got[i] == nullptr || i % step == 0) continue;
          REQUIRE(*static_cast<std::uint64_t*>(got[i]) == i);
          REQUIRE(b.pool->block_size(got[i]) == lent.item_bytes());
          *static_cast<std::uint64_t*>(got[i]) = reinterpret_cast<std::uintptr_t>(got[i]);
          live.push_back({got[i], lent.item_bytes()});
          ++there;
        }
        CHECK(lent.account().kept == there);
      };
      if (round % 2 == 0) {
        kernel_lease lease(*b.by, bytes, count, b[in]);
        use(lease);
      } else {
        kernel_ring ring(*b.by, bytes, count, b[in]);
        use(ring);
      }
      std::shuffle(live.begin(), live.end(), random);
      while (live.size() > 500) {
        REQUIRE(*static_cast<std::uint64_t*>(live.back().address) ==
                reinterpret_cast<std::uintptr_t>(live.back().address));
        REQUIRE(b.pool->try_deallocate(live.back().address, live.back().bytes, b[uniform(random, 0, 2)]) ==
                error::none);
        live.pop_back();
      }
    }
    for (const live_item& each : live) REQUIRE(b.pool->try_deallocate(each.address, each.bytes, b[0]) == error::none);
    b.check_idle();
  }
}
