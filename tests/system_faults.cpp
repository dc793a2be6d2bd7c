// Each system call that the library makes for memory and barriers fails in turn. These definitions stand before the C
// library's: whatever is linked into this program calls them.
#include <doctest/doctest.h>

#include "support/scale.hpp"

#if defined(__linux__) && !defined(ORDERLY_TEST_SANITIZED)  // a sanitizer has definitions of its own

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include <dlfcn.h>
#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomic.hpp"
#include "front.hpp"
#include "orderly/orderly.h"
#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/failing_driver.hpp"
#include "support/failing_source.hpp"
#include "support/fault_plan.hpp"
#include "support/wait.hpp"
#include "support/workout.hpp"
#include "thread_fronts.hpp"

namespace {

using orderly::test::fault_plan;
using orderly::test::in_library;

constinit fault_plan system_plan;
constinit std::atomic<int> failure{ENOMEM};
constinit std::atomic<bool> barriers_fail{false};
constinit std::atomic<bool> unmaps_fail{true};
constinit std::atomic<bool> maps_need_no_access{false};
std::function<void()> before_barrier;  // set while nobody asks for one

/// True, and errno set: this call is the one that fails.
[[nodiscard]] bool fails() noexcept {
  if (!in_library || !system_plan.refuses()) return false;
  errno = failure.load();
  return true;
}

template <class Function>
[[nodiscard]] Function* next(const char* name) noexcept {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

void* mmap(void* address, std::size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
  static auto* const real = next<void*(void*, std::size_t, int, int, int, off_t)>("mmap");
  if (in_library && maps_need_no_access && protection != PROT_NONE && bytes > std::size_t{1} << 20) {
    errno = ENOMEM;  // as where memory is not overcommitted
    return MAP_FAILED;
  }
  return fails() ? MAP_FAILED : real(address, bytes, protection, flags, file, offset);
}

int munmap(void* address, std::size_t bytes) noexcept {
  static auto* const real = next<int(void*, std::size_t)>("munmap");
  return unmaps_fail && fails() ? -1 : real(address, bytes);
}

int madvise(void* address, std::size_t bytes, int advice) noexcept {
  static auto* const real = next<int(void*, std::size_t, int)>("madvise");
  return fails() ? -1 : real(address, bytes, advice);
}

int mprotect(void* address, std::size_t bytes, int protection) noexcept {
  static auto* const real = next<int(void*, std::size_t, int)>("mprotect");
  return fails() ? -1 : real(address, bytes, protection);
}

long syscall(long number, ...) noexcept {
  static auto* const real = next<long(long, ...)>("syscall");
  va_list rest;
  va_start(rest, number);
  long arguments[6];
  for (long& each : arguments) each = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_membarrier) {
    if (barriers_fail) {
      errno = EPERM;
      return -1;
    }
    if (fails()) return -1;
    if (before_barrier) before_barrier();
  }
  return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

}  // extern "C"

using namespace orderly;
using namespace orderly::test;

namespace {

/// Decided once per process: before anything fails. Tests without the barrier are others' matter.
struct prepared {
  prepared() { detail::asymmetric_barrier::prepare(); }
} const before_main;

constexpr int every_failure[] = {ENOMEM, EAGAIN, EINVAL};

[[nodiscard]] stream_options small() {
  stream_options settings;
  settings.memory.capacity = 2 * mib;
  settings.memory.on_bad_free = on_bad_free::count;
  settings.seal_bytes = 256 * kib;
  return settings;
}

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("whichever system call fails, a pool is refused or whole") {
  std::size_t points = 0;
  for (const bool no_access : {false, true}) {
    maps_need_no_access = no_access;
    for (const int code : every_failure) {
      failure = code;
      for (const std::size_t more : {std::size_t{0}, all_more}) {
        points += for_each_fault(system_plan, more, [&](std::size_t k) {
          CAPTURE(k);
          CAPTURE(more);
          CAPTURE(code);
          CAPTURE(no_access);
          const auto log = std::make_shared<source_log>();
          try {
            std::optional<pool> tested;
            if (no_access) {  // where the tables cannot be had there is nothing to test
              maps_need_no_access = false;
              system_plan.disarm();
            }
            lib([&] { tested.emplace(options{.capacity = 2 * mib, .on_bad_free = on_bad_free::count}); });
            if (no_access) system_plan.arm(k, more);
            workout work(*tested);
            work.run();
            system_plan.disarm();
            work.end();
            lib([&] { tested.reset(); });
          } catch (const out_of_memory&) {
          }
          maps_need_no_access = no_access;
        });
      }
    }
  }
  maps_need_no_access = false;
  MESSAGE("system calls that failed, of a pool: ", points);
  CHECK(points > 100);
}

TEST_CASE("memory that is reserved without access: whichever call fails, commit and decommit say so") {
  std::size_t points = 0;
  for (const int code : every_failure) {
    failure = code;
    points += for_each_fault(system_plan, 0, [&](std::size_t k) {
      CAPTURE(k);
      const auto source = make_host_source();
      system_plan.disarm();
      maps_need_no_access = true;
      auto* const range = static_cast<char*>(lib([&] { return source->reserve(4 * mib, 64 * kib); }));
      maps_need_no_access = false;
      REQUIRE(range != nullptr);
      system_plan.arm(k);
      for (int round = 0; round < 3; ++round) {
        if (!lib([&] { return source->commit(range + mib, mib); })) continue;
        range[mib] = range[2 * mib - 1] = 1;
        if (!lib([&] { return source->decommit(range + mib, mib); })) range[mib] = 1;  // it stays of use
      }
      system_plan.disarm();
      CHECK(lib([&] { return source->commit(range, 4 * mib); }));
      CHECK(range[mib] <= 1);
      range[0] = range[4 * mib - 1] = 1;
      source->release(range, 4 * mib);
    });
  }
  MESSAGE("system calls that failed, of memory reserved without access: ", points);
  CHECK(points > 10);
}

TEST_CASE("whichever system call fails, a pool in stream order is refused or whole") {
  std::size_t points = 0;
  for (const std::size_t more : {std::size_t{0}, all_more}) {
    failure = ENOMEM;
    points += for_each_fault(system_plan, more, [&](std::size_t k) {
      CAPTURE(k);
      CAPTURE(more);
      const software_device device(software_schedule::lazy);
      try {
        std::optional<stream_pool> tested;
        lib([&] { tested.emplace(make_host_source(), device.driver(), small()); });
        stream_workout work(*tested, device, false);
        work.run();
        system_plan.disarm();
        work.end();
      } catch (const std::bad_alloc&) {
      }
    });
  }
  MESSAGE("system calls that failed, of a pool in stream order: ", points);
  CHECK(points > 50);
}

TEST_CASE("the C interface, whichever system call fails: a code, a message, and no more") {
  std::size_t points = 0;
  for (const std::size_t more : {std::size_t{0}, all_more}) {
    failure = ENOMEM;
    points += for_each_fault(system_plan, more, [&](std::size_t k) {
      CAPTURE(k);
      const orderly_options settings{mib, 0, 0, 0};
      orderly_pool* made = nullptr;
      const int code = lib([&] { return orderly_pool_create_host(&settings, &made); });
      CHECK((code == ORDERLY_OK) == (made != nullptr));
      if (made == nullptr) {
        CHECK(code == ORDERLY_ERROR_SOURCE_FAILED);
        CHECK(std::string(orderly_last_error()).find("out of memory") != std::string::npos);
        return;
      }
      void* const block = lib([&] { return orderly_allocate(made, 1000); });
      CHECK(block != nullptr);
      CHECK(lib([&] { return orderly_deallocate(made, block, 1000); }) == ORDERLY_OK);
      lib([&] { return orderly_trim(made, 0); });
      lib([&] { orderly_pool_destroy(made); });
    });
  }
  MESSAGE("system calls that failed, of the C interface: ", points);
  CHECK(points > 10);
}

TEST_CASE("where the barrier is refused from some time on, allocation, free and division go on, and end") {
  if (!detail::asymmetric_barrier::available()) return;
  const software_device device(software_schedule::eager);
  stream_pool streams(make_host_source(), device.driver(), small());
  const software_stream in(device);
  pool tested(options{.capacity = 2 * mib, .on_bad_free = on_bad_free::count});
  void* divided = nullptr;
  void* foreign = nullptr;
  std::thread([&] {
    divided = streams.try_allocate(4 * kib, in.handle());  // its home is a cache
    foreign = tested.try_allocate(1000);
    for (int i = 0; i < 100; ++i) tested.deallocate(tested.try_allocate(5000), 5000);
  }).join();
  barriers_fail = true;
  std::vector<void*> live;
  while (void* const block = tested.try_allocate(64 * kib)) live.push_back(block);  // refused in the end
  CHECK(live.size() >= 28);  // all but what is in caches
  CHECK(tested.try_deallocate(foreign, 1000) == error::none);
  CHECK(tested.try_deallocate(foreign, 1000) != error::none);
  CHECK(tested.trim() == 0);
  std::string why;
  const std::uint32_t parts = 1;
  CHECK(streams.divide_settled(divided, kib, &parts, 1, &why) == error::out_of_memory);
  CHECK(why.find("again") != std::string::npos);
  CHECK(streams.divide(divided, kib, &parts, 1, in.handle(), &why) == error::out_of_memory);
  CHECK(streams.block_size(divided) == 4 * kib);
  barriers_fail = false;
  CHECK(streams.divide_settled(divided, kib, &parts, 1, &why) == error::none);
  CHECK(streams.try_deallocate(divided, kib, in.handle()) == error::none);
  for (void* const block : live) tested.deallocate(block, 64 * kib);
  check_idle(tested);
  check_idle(streams);
}

TEST_CASE("where the barrier is refused, no sender empties another thread's inbox") {
  if (!detail::asymmetric_barrier::available()) return;
  constexpr std::size_t bytes = 4 * kib;
  pool tested(options{.capacity = 64 * mib});
  for (const bool refused : {true, false}) {
    CAPTURE(refused);
    std::vector<void*> blocks;
    for (int i = 0; i < 64; ++i) blocks.push_back(tested.allocate(bytes));  // twice what may wait in an inbox
    const std::uint64_t passes = tested.stats().passes;
    std::size_t again = 0;
    barriers_fail = refused;
    std::thread([&] {
      for (void* const block : blocks) tested.deallocate(block, bytes);
      void* const next = tested.allocate(bytes);
      again = static_cast<std::size_t>(std::ranges::count(blocks, next));
      tested.deallocate(next, bytes);
    }).join();
    barriers_fail = false;
    CHECK(tested.stats().passes > passes);
    CHECK(again == (refused ? 0U : 1U));
    tested.defragment();
  }
  check_idle(tested);
}

TEST_CASE("a front that another stream's thread takes over in the middle of a release stays open") {
  if (!detail::asymmetric_barrier::available()) return;
  const software_device device(software_schedule::eager);
  stream_options settings = small();
  settings.memory.capacity = 64 * mib;
  stream_pool tested(make_host_source(), device.driver(), settings);
  const software_stream passing(device);
  const software_stream in(device);
  void* const kept = tested.try_allocate(1000, in.handle());
  std::thread([&] { tested.deallocate(tested.try_allocate(1000, passing.handle()), 1000, passing.handle()); }).join();
  std::atomic<bool> ready = false;
  std::atomic<bool> start = false;
  std::atomic<bool> has_front = false;
  std::atomic<bool> released = false;
  bool closed = true;
  detail::front* taken_over = nullptr;
  std::thread next([&] {
    CHECK(tested.record_stream(kept, in.handle()) == error::none);  // it knows the stream, and has no front there yet
    ready = true;
    static_cast<void>(comes(start));
    void* const block = tested.try_allocate(1000, in.handle());
    has_front = true;
    static_cast<void>(comes(released));
    taken_over = detail::this_thread_fronts.latest.of;
    closed = taken_over->retired();
    tested.deallocate(block, 1000, in.handle());
  });
  CHECK(comes(ready));
  before_barrier = [&] {  // the release has chosen its stream's fronts
    start = true;
    CHECK(comes(has_front));
  };
  CHECK(tested.release_stream(passing.handle()));
  before_barrier = nullptr;
  released = true;
  next.join();
  CHECK(has_front);
  CHECK(taken_over->number == 2);  // the one that the stream's thread has left
  CHECK_FALSE(closed);
  tested.deallocate(kept, 1000, in.handle());
  check_idle(tested);
}

}  // TEST_SUITE

#endif
