// Each allocation of the library's own, by operator new, fails in turn. Nothing ends the process, nothing is lost, and what
// could not be done is refused as documented.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "orderly/orderly.h"
#include "orderly/pmr.hpp"
#include "orderly/pool.hpp"
#include "orderly/relocatable.hpp"
#include "orderly/relocatable_streams.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/failing_driver.hpp"
#include "support/failing_source.hpp"
#include "support/fault_plan.hpp"
#include "support/process.hpp"
#include "support/scale.hpp"
#include "support/wait.hpp"
#include "support/workout.hpp"

#if !ORDERLY_TEST_UNDER_TSAN  // its runtime has the operators

namespace {

constinit orderly::test::fault_plan memory_plan;

[[nodiscard]] void* allocate_or_null(std::size_t bytes, std::size_t alignment) noexcept {
  if (orderly::test::in_library && memory_plan.refuses()) return nullptr;
  if (alignment <= alignof(std::max_align_t)) return std::malloc(bytes == 0 ? 1 : bytes);
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

[[nodiscard]] void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  if (void* const made = allocate_or_null(bytes, alignment)) return made;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate_or_throw(bytes, 1); }
void* operator new[](std::size_t bytes) { return allocate_or_throw(bytes, 1); }
void* operator new(std::size_t bytes, std::align_val_t at) { return allocate_or_throw(bytes, std::size_t(at)); }
void* operator new[](std::size_t bytes, std::align_val_t at) { return allocate_or_throw(bytes, std::size_t(at)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate_or_null(bytes, 1); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return allocate_or_null(bytes, 1); }
void operator delete(void* made) noexcept { std::free(made); }
void operator delete[](void* made) noexcept { std::free(made); }
void operator delete(void* made, std::size_t) noexcept { std::free(made); }
void operator delete[](void* made, std::size_t) noexcept { std::free(made); }
void operator delete(void* made, std::align_val_t) noexcept { std::free(made); }
void operator delete[](void* made, std::align_val_t) noexcept { std::free(made); }
void operator delete(void* made, std::size_t, std::align_val_t) noexcept { std::free(made); }
void operator delete[](void* made, std::size_t, std::align_val_t) noexcept { std::free(made); }
void operator delete(void* made, const std::nothrow_t&) noexcept { std::free(made); }
void operator delete[](void* made, const std::nothrow_t&) noexcept { std::free(made); }

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t both_ways[] = {0, all_more};

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("a pool is not made, or whole, whichever allocation fails, and so is its use") {
  std::size_t points = 0;
  for (const std::size_t more : both_ways) {
    points += for_each_fault(memory_plan, more, [&](std::size_t k) {
      CAPTURE(k);
      CAPTURE(more);
      const auto log = std::make_shared<source_log>();
      auto source = make_failing_source(log);
      const options settings{.capacity = 2 * mib,
                             .on_out_of_memory = [extra = std::string(100, 'x')](std::size_t) { return extra.empty(); },
                             .on_bad_free = on_bad_free::count};
      try {
        std::optional<pool> tested;
        lib([&] { tested.emplace(std::move(source), settings); });
        workout work(*tested);
        work.run();
        memory_plan.disarm();
        work.end();
      } catch (const std::bad_alloc&) {
        CHECK(log->seen(source_log::call::commit) == 0);  // it was not made
      }
      source.reset();
      CHECK(log->reserved_ranges() == 0);
      ORDERLY_CHECK_CONTRACT(*log);
    }, 1);
  }
  MESSAGE("allocations that failed, of a pool: ", points);
  CHECK(points > 4);
}

TEST_CASE("many pools on one thread, whichever allocation fails: caches come back to each") {
  std::size_t points = 0;
  for (const std::size_t more : both_ways) {
    points += for_each_fault(memory_plan, more, [&](std::size_t k) {
      CAPTURE(k);
      std::vector<std::unique_ptr<pool>> pools;
      memory_plan.disarm();
      for (int i = 0; i < 40; ++i) pools.push_back(std::make_unique<pool>(options{.capacity = mib}));
      memory_plan.arm(k, more);
      std::thread([&] {
        for (int round = 0; round < 2; ++round) {
          for (const auto& each : pools) {
            void* const block = lib([&] { return each->try_allocate(1000); });
            CHECK(block != nullptr);  // a thread without a cache allocates too
            CHECK(lib([&] { return each->try_deallocate(block, 1000); }) == error::none);
          }
        }
      }).join();
      memory_plan.disarm();
      for (const auto& each : pools) {
        CHECK(each->stats().cached == 0);  // the thread has left nothing behind
        check_idle(*each);
      }
    }, 1);
  }
  MESSAGE("allocations that failed, of threads' books of pools: ", points);
  CHECK(points > 4);
}

TEST_CASE("a pool in stream order, its streams and its captures, whichever allocation fails") {
  std::size_t points = 0;
  for (const int manner : {0, 1, 2, 3}) {
    for (const std::size_t more : both_ways) {
      points += for_each_fault(memory_plan, more, [&](std::size_t k) {
        CAPTURE(k);
        CAPTURE(more);
        CAPTURE(manner);
        stream_options settings;
        settings.memory.capacity = 2 * mib;
        settings.memory.on_bad_free = on_bad_free::count;
        settings.seal_bytes = 256 * kib;
        settings.safe_mode = manner == 1;
        settings.watch_captures = manner == 2;
        settings.wait_before_refusing = manner == 3;
        fault_plan unused;
        const software_device device(software_schedule::lazy);
        const auto driver = std::make_shared<failing_driver>(device.driver(), unused);
        const auto log = std::make_shared<source_log>();
        auto source = make_failing_source(log);
        {
          std::optional<stream_pool> tested;
          try {
            lib([&] { tested.emplace(std::move(source), driver, settings); });
            stream_workout work(*tested, device, settings.safe_mode || settings.watch_captures);
            work.run();
            memory_plan.disarm();
            work.end();
          } catch (const std::bad_alloc&) {
            CHECK(log->seen(source_log::call::commit) == 0);  // it was not made
          }
        }
        source.reset();
        CHECK(log->reserved_ranges() == 0);
        CHECK(driver->events() == 0);
        ORDERLY_CHECK_CONTRACT(*log);
      }, sanitized ? 4 : 1);
    }
  }
  MESSAGE("allocations that failed, of a pool in stream order: ", points);
  CHECK(points > 50);
}

/// `step` is called until it returns no move; where it throws, it is called again. What could not be done is done later.
template <class Begin, class Step>
std::size_t move_all(const Begin& begin, const Step& step) {
  std::size_t moved = 0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    try {
      lib(begin);
      for (std::size_t moves = lib(step); moves != 0; moves = lib(step)) moved += moves;
      break;
    } catch (const std::bad_alloc&) {
    }
  }
  return moved;
}

TEST_CASE("blocks that move, whichever allocation fails: each can be pinned, has its contents, and moves later") {
  std::size_t points = 0;
  std::size_t moved = 0;
  for (const std::size_t more : both_ways) {
    points += for_each_fault(memory_plan, more, [&](std::size_t k) {
      CAPTURE(k);
      CAPTURE(more);
      pool tested(options{.capacity = 4 * mib, .limit = mib});
      std::optional<relocatable_blocks> blocks;
      try {
        lib([&] { blocks.emplace(tested); });
      } catch (const std::bad_alloc&) {
        return;
      }
      std::vector<relocatable> all;
      all.reserve(1024);
      for (int i = 0; i < 256; ++i) {
        const relocatable made = lib([&] { return blocks->try_allocate(4000); });
        if (made != relocatable::none) all.push_back(made);
      }
      for (std::size_t i = 0; i < all.size(); ++i) {
        *static_cast<std::size_t*>(blocks->pin(all[i])) = i;
        blocks->unpin(all[i]);
        if (i % 3 != 0) CHECK(lib([&] { return blocks->deallocate(all[i]); }) == error::none);
      }
      const auto begin = [&] { blocks->begin({.moves = 50}); };
      const auto step = [&] { return blocks->step().size(); };
      moved += move_all(begin, step);
      memory_plan.disarm();
      moved += move_all(begin, step);
      for (std::size_t i = 0; i < all.size(); i += 3) {
        const auto* const at = static_cast<const std::size_t*>(blocks->pin(all[i]));
        CHECK(at != nullptr);
        CHECK(*at == i);
        blocks->unpin(all[i]);
        CHECK(blocks->deallocate(all[i]) == error::none);
      }
      blocks.reset();
      check_idle(tested);
    }, sanitized ? 4 : 1);
  }
  MESSAGE("allocations that failed, of blocks that move: ", points, "; blocks moved: ", moved);
  CHECK(points > 4);
  CHECK(moved > 100);
}

TEST_CASE("blocks that move in stream order, whichever allocation fails") {
  std::size_t points = 0;
  std::size_t moved = 0;
  for (const bool safe : {false, true}) {
    for (const std::size_t more : both_ways) {
      points += for_each_fault(memory_plan, more, [&](std::size_t k) {
        CAPTURE(k);
        CAPTURE(more);
        CAPTURE(safe);
        stream_options settings;
        settings.memory.capacity = 4 * mib;
        settings.memory.limit = mib;
        settings.memory.on_bad_free = on_bad_free::count;
        settings.safe_mode = safe;
        std::optional<software_device> device(std::in_place, software_schedule::lazy);
        fault_plan unused;
        const auto driver = std::make_shared<failing_driver>(device->driver(), unused);
        {
          stream_pool tested(make_host_source(), driver, settings);
          std::vector<software_stream> streams;
          memory_plan.disarm();
          for (int i = 0; i < 3; ++i) streams.emplace_back(*device);
          memory_plan.arm(k, more);
          std::optional<relocatable_stream_blocks> blocks;
          try {
            lib([&] { blocks.emplace(tested); });
          } catch (const std::bad_alloc&) {
            return;
          }
          std::vector<relocatable> all;
          all.reserve(1024);
          for (std::size_t i = 0; i < 256; ++i) {
            const relocatable made = lib([&] { return blocks->try_allocate(4000, streams[0].handle()); });
            if (made != relocatable::none) all.push_back(made);
          }
          std::vector<bool> live(all.size(), true);
          const auto use = [&](std::size_t i, const std::function<void(std::size_t&)>& work) {
            void* const at = lib([&] { return blocks->pin(all[i], streams[0].handle()); });
            if (at == nullptr) return;
            streams[0].enqueue([at, work] { work(*static_cast<std::size_t*>(at)); });
            lib([&] { blocks->unpin(all[i], streams[0].handle()); });
          };
          std::size_t right = 0;
          for (std::size_t i = 0; i < all.size(); ++i) {
            use(i, [i](std::size_t& word) { word = i; });
            if (i % 3 != 0) live[i] = lib([&] { return blocks->deallocate(all[i], streams[0].handle()); }) != error::none;
          }
          static_cast<void>(lib([&] { return tested.synchronize(); }));
          const auto begin = [&] { blocks->begin({.moves = 50}); };
          const auto step = [&] { return blocks->step(streams[1].handle()).size(); };
          moved += move_all(begin, step);
          memory_plan.disarm();
          CHECK(device->driver()->synchronize_all());
          CHECK(tested.synchronize());
          moved += move_all(begin, step);
          std::size_t there = 0;
          for (std::size_t i = 0; i < all.size(); ++i) {
            if (!live[i]) continue;
            ++there;
            // Where a use was refused for lack of memory there is no name in the block.
            use(i, [&right, i](std::size_t& word) { right += word == i || word == 0; });
            CHECK(blocks->deallocate(all[i], streams[0].handle()) == error::none);
          }
          CHECK(device->driver()->synchronize_all());
          CHECK(right == there);
          blocks.reset();
          for (int round = 0; round < 3; ++round) CHECK(tested.synchronize());
          CHECK(tested.stats().memory.allocated == 0);
          CHECK(tested.stats().memory.bad_frees == 0);
        }
        CHECK(driver->events() == 0);
      }, sanitized ? 8 : 1);
    }
  }
  MESSAGE("allocations that failed, of blocks that move in stream order: ", points, "; blocks moved: ", moved);
  CHECK(points > 10);
  CHECK(moved > 100);
}

TEST_CASE("software devices and streams, whichever allocation fails") {
  std::size_t points = 0;
  for (const software_schedule schedule : {software_schedule::workers, software_schedule::lazy}) {
    for (const std::size_t more : both_ways) {
      points += for_each_fault(memory_plan, more, [&](std::size_t k) {
        CAPTURE(k);
        std::atomic<int> ran = 0;
        int entered = 0;
        try {
          const software_device device = lib([&] { return software_device(schedule); });
          std::vector<software_stream> streams;
          for (int i = 0; i < 3; ++i) streams.push_back(lib([&] { return software_stream(device); }));
          for (int i = 0; i < 30; ++i) {
            std::function<void()> work = [&ran] { ++ran; };
            lib([&] { streams[static_cast<std::size_t>(i) % 3].enqueue(std::move(work)); });
            ++entered;
          }
          const bool known = lib([&] { return streams[0].synchronize(); });
          CHECK(known);
          CHECK(streams[1].begin_capture());
          lib([&] { streams[1].enqueue([&ran] { ++ran; }); });
          const software_graph graph = streams[1].end_capture();
          lib([&] { streams[2].launch(graph); });
          entered += static_cast<int>(graph.size());
          static_cast<void>(lib([&] { return device.driver()->synchronize_all(); }));
        } catch (const std::bad_alloc&) {
        } catch (const std::system_error&) {  // no thread could be started
        }
        memory_plan.disarm();
        CHECK(ran == entered);
      }, sanitized ? 4 : 1);
    }
  }
  MESSAGE("allocations that failed, of software streams: ", points);
  CHECK(points > 10);
}

TEST_CASE("the C interface, whichever allocation fails: a code, a message, and no more") {
  std::size_t points = 0;
  for (const std::size_t more : both_ways) {
    points += for_each_fault(memory_plan, more, [&](std::size_t k) {
      CAPTURE(k);
      const orderly_options settings{4 * mib, 0, 0, 0};
      orderly_pool* pool = nullptr;
      const int code = lib([&] { return orderly_pool_create_host(&settings, &pool); });
      CHECK((code == ORDERLY_OK) == (pool != nullptr));
      if (pool == nullptr) {
        CHECK(std::string(orderly_last_error()) != "");
        return;
      }
      void* const block = lib([&] { return orderly_allocate(pool, 1000); });
      CHECK(block != nullptr);
      CHECK(lib([&] { return orderly_deallocate(pool, block, 1000); }) == ORDERLY_OK);
      CHECK(lib([&] { return orderly_deallocate(pool, block, 1000); }) == ORDERLY_ERROR_DOUBLE_FREE);
      CHECK(std::string(orderly_last_error()).find("double free") != std::string::npos);
      CHECK(lib([&] { return orderly_deallocate(pool, &pool, 1000); }) == ORDERLY_ERROR_FOREIGN_POINTER);
      lib([&] { return orderly_trim(pool, 0); });
      orderly_stats stats;
      CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
      CHECK(stats.committed == 0);
      lib([&] { orderly_pool_destroy(pool); });
    }, 1);
  }
  MESSAGE("allocations that failed, of the C interface: ", points);
  CHECK(points > 4);
}

TEST_CASE("a refused free is reported in full where there is no memory for it") {
  pool tested(options{.capacity = mib});
  void* const block = tested.allocate(1000);
  tested.deallocate(block, 1000);
  const auto printed = [&](std::size_t fault, const auto& free) {
    const captured_stderr capture;
    memory_plan.arm(fault, fault == 0 ? 0 : all_more);
    lib([&] { free(); });
    memory_plan.disarm();
    return capture.text();
  };
  const auto twice = [&] { tested.deallocate(block, 1000); };
  const std::string whole = printed(0, twice);
  CHECK(whole.find("double free") != std::string::npos);
  CHECK(printed(1, twice) == whole);
  pool gone(options{.capacity = mib});
  const pool taken(std::move(gone));
  const auto late = [&] { gone.deallocate(block, 1000); };
  CHECK(printed(1, late) == printed(0, late));
  CHECK(printed(1, late).find("gone") != std::string::npos);
  check_idle(tested);
}

}  // TEST_SUITE

#endif
