// The C interface, from C++: orderly/orderly.h. c_api.c uses it from C.
#include "orderly/orderly.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "c_api.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/source.hpp"
#include "orderly/stream_pool.hpp"
#include "support/oracles.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

/// A handle that is destroyed at the end of its scope.
class handle {
 public:
  explicit handle(const orderly_options& settings) {
    REQUIRE(orderly_pool_create_host(&settings, &pool_) == ORDERLY_OK);
  }
  handle(const handle&) = delete;
  handle& operator=(const handle&) = delete;
  ~handle() { orderly_pool_destroy(pool_); }
  [[nodiscard]] orderly_pool* get() const noexcept { return pool_; }
  [[nodiscard]] orderly_stats stats() const {
    orderly_stats stats;
    REQUIRE(orderly_pool_stats(pool_, &stats) == ORDERLY_OK);
    return stats;
  }

 private:
  orderly_pool* pool_ = nullptr;
};

bool last_error_names(const void* pointer) {
  std::ostringstream text;
  text << pointer;
  return std::strstr(orderly_last_error(), text.str().c_str()) != nullptr;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("null options are the defaults") {
  orderly_pool* pool = nullptr;
  REQUIRE(orderly_pool_create_host(nullptr, &pool) == ORDERLY_OK);
  REQUIRE(pool != nullptr);
  void* block = orderly_allocate(pool, 1000);
  REQUIRE(block != nullptr);
  CHECK(orderly_block_size(pool, block) == 1024);
  CHECK(orderly_deallocate(pool, block, 1000) == ORDERLY_OK);
  orderly_pool_destroy(pool);
}

TEST_CASE("the options reach the pool") {
  const handle pool({2 * mib, 1024, 128 * kib, mib});
  CHECK(pool.stats().capacity == 2 * mib);
  void* block = orderly_allocate(pool.get(), 1);
  CHECK(orderly_block_size(pool.get(), block) == 1024);
  CHECK(pool.stats().committed == 128 * kib);
  CHECK(orderly_allocate(pool.get(), mib + 1) == nullptr);
  CHECK(orderly_deallocate(pool.get(), block, 0) == ORDERLY_OK);
  block = orderly_allocate(pool.get(), mib);
  CHECK(block != nullptr);
  CHECK(orderly_deallocate(pool.get(), block, mib) == ORDERLY_OK);
}

TEST_CASE("an allocation that fails is null, counted, and has a message") {
  const handle pool({mib, 0, 0, 0});
  for (const std::size_t bytes : {mib + 1, SIZE_MAX / 2, SIZE_MAX - 255, SIZE_MAX}) {
    CAPTURE(bytes);
    CHECK(orderly_allocate(pool.get(), bytes) == nullptr);
    CHECK(std::strstr(orderly_last_error(), std::to_string(bytes).c_str()) != nullptr);
  }
  CHECK(pool.stats().failed == 4);
  for (const std::size_t alignment : {std::size_t{0}, std::size_t{3}, 128 * kib, SIZE_MAX}) {
    CAPTURE(alignment);
    CHECK(orderly_allocate_aligned(pool.get(), 100, alignment) == nullptr);
    CHECK(std::strlen(orderly_last_error()) > 0);
  }
  CHECK(pool.stats().allocations == 0);
}

TEST_CASE("alignment is honoured") {
  const handle pool({4 * mib, 0, 0, 0});
  for (std::size_t alignment = 1; alignment <= 64 * kib; alignment *= 2) {
    void* block = orderly_allocate_aligned(pool.get(), 300, alignment);
    REQUIRE(block != nullptr);
    CHECK(reinterpret_cast<std::uintptr_t>(block) % alignment == 0);
    CHECK(orderly_deallocate(pool.get(), block, 300) == ORDERLY_OK);
  }
}

TEST_CASE("owns and block_size") {
  const handle pool({4 * mib, 0, 0, 0});
  auto* block = static_cast<char*>(orderly_allocate(pool.get(), 1000));
  CHECK(orderly_owns(pool.get(), block) == 1);
  CHECK(orderly_owns(pool.get(), block + 1023) == 1);
  CHECK(orderly_owns(pool.get(), &pool) == 0);
  CHECK(orderly_owns(pool.get(), nullptr) == 0);
  CHECK(orderly_block_size(pool.get(), block) == 1024);
  CHECK(orderly_block_size(pool.get(), block + 256) == 0);
  CHECK(orderly_block_size(pool.get(), nullptr) == 0);
  CHECK(orderly_deallocate(pool.get(), block, 1000) == ORDERLY_OK);
  CHECK(orderly_owns(pool.get(), block) == 0);
}

TEST_CASE("trim and defragment give everything back") {
  const handle pool({4 * mib, 0, 0, 0});
  std::vector<void*> blocks;
  for (int count = 0; count < 100; ++count) blocks.push_back(orderly_allocate(pool.get(), 10 * kib));
  for (void* block : blocks) CHECK(orderly_deallocate(pool.get(), block, 0) == ORDERLY_OK);
  CHECK(orderly_defragment(pool.get()) == ORDERLY_OK);
  CHECK(pool.stats().cached == 0);
  CHECK(orderly_trim(pool.get(), 128 * kib) == ORDERLY_OK);
  CHECK(pool.stats().committed <= 128 * kib);
  CHECK(orderly_trim(pool.get(), 0) == ORDERLY_OK);
  CHECK(pool.stats().committed == 0);
  CHECK(pool.stats().passes >= 2);
  CHECK(pool.stats().peak_requested == 1000 * kib);
}

TEST_CASE("a destroyed handle is recognised by every function") {
  orderly_pool* pool = nullptr;
  const orderly_options settings{mib, 0, 0, 0};
  REQUIRE(orderly_pool_create_host(&settings, &pool) == ORDERLY_OK);
  void* block = orderly_allocate(pool, 1000);
  orderly_pool_destroy(pool);
  orderly_stats stats;
  CHECK(orderly_allocate(pool, 1000) == nullptr);
  CHECK(orderly_allocate_aligned(pool, 1000, 256) == nullptr);
  CHECK(orderly_deallocate(pool, block, 1000) == ORDERLY_ERROR_POOL_GONE);
  CHECK(orderly_deallocate(pool, block, 0) == ORDERLY_ERROR_POOL_GONE);
  CHECK(last_error_names(block));
  CHECK(orderly_defragment(pool) == ORDERLY_ERROR_POOL_GONE);
  CHECK(orderly_trim(pool, 0) == ORDERLY_ERROR_POOL_GONE);
  CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_ERROR_POOL_GONE);
  CHECK(orderly_block_size(pool, block) == 0);
  CHECK(orderly_owns(pool, block) == 0);
  orderly_pool_destroy(pool);
}

TEST_CASE("a destroyed handle stays gone while other pools come and go") {
  const orderly_options settings{mib, 0, 0, 0};
  std::vector<orderly_pool*> gone;
  for (int count = 0; count < 200; ++count) {
    orderly_pool* pool = nullptr;
    REQUIRE(orderly_pool_create_host(&settings, &pool) == ORDERLY_OK);
    for (const orderly_pool* old : gone) REQUIRE(pool != old);
    void* block = orderly_allocate(pool, 1000);
    REQUIRE(block != nullptr);
    if (!gone.empty()) {
      REQUIRE(orderly_deallocate(gone.front(), block, 1000) == ORDERLY_ERROR_POOL_GONE);
      REQUIRE(orderly_deallocate(gone.back(), block, 1000) == ORDERLY_ERROR_POOL_GONE);
      orderly_pool_destroy(gone.back());
    }
    REQUIRE(orderly_deallocate(pool, block, 1000) == ORDERLY_OK);
    orderly_pool_destroy(pool);
    gone.push_back(pool);
  }
}

TEST_CASE("a null handle, and null where something is to be written, crash nothing") {
  orderly_stats stats;
  char memory[256];
  CHECK(orderly_allocate(nullptr, 1) == nullptr);
  CHECK(orderly_allocate_aligned(nullptr, 1, 1) == nullptr);
  CHECK(orderly_deallocate(nullptr, memory, 1) != ORDERLY_OK);
  CHECK(orderly_defragment(nullptr) != ORDERLY_OK);
  CHECK(orderly_trim(nullptr, 0) != ORDERLY_OK);
  CHECK(orderly_pool_stats(nullptr, &stats) != ORDERLY_OK);
  CHECK(orderly_block_size(nullptr, memory) == 0);
  CHECK(orderly_owns(nullptr, memory) == 0);
  orderly_pool_destroy(nullptr);
  const handle pool({mib, 0, 0, 0});
  CHECK(orderly_pool_stats(pool.get(), nullptr) == ORDERLY_ERROR_INVALID_ARGUMENT);
}

TEST_CASE("the last message is the thread's own") {
  const handle pool({mib, 0, 0, 0});
  char first[2], second[2];
  CHECK(orderly_deallocate(pool.get(), first, 1) == ORDERLY_ERROR_FOREIGN_POINTER);
  CHECK(last_error_names(first));
  bool named = false;
  std::thread([&] {
    (void)orderly_deallocate(pool.get(), second, 1);
    named = last_error_names(second);
  }).join();
  CHECK(named);
  CHECK(last_error_names(first));
  bool silent = false;
  std::thread([&] { silent = orderly_last_error() != nullptr && !last_error_names(first); }).join();
  CHECK(silent);
}

TEST_CASE("many threads use many handles at once") {
  constexpr std::size_t thread_count = 4;
  std::vector<orderly_pool*> pools(thread_count);
  const orderly_options settings{4 * mib, 0, 0, 0};
  for (orderly_pool*& pool : pools) REQUIRE(orderly_pool_create_host(&settings, &pool) == ORDERLY_OK);
  findings found;
  run_threads(thread_count, [&](std::size_t index) {
    for (std::size_t round = 0; round < 2000; ++round) {
      orderly_pool* pool = pools[(index + round) % thread_count];
      const std::size_t bytes = 16 + round % 10000;
      void* block = orderly_allocate(pool, bytes);
      found.expect(block != nullptr, "refused");
      stamp(block, bytes).put(index);
      if (round % 16 == 0) std::this_thread::yield();
      found.expect(stamp(block, bytes).remove(index), "another owner wrote to a live block");
      found.expect(orderly_deallocate(pool, block, 0) == ORDERLY_OK, "a good free was refused");
      found.expect(orderly_deallocate(pools[index], &round, 0) == ORDERLY_ERROR_FOREIGN_POINTER, "foreign");
      orderly_pool* own = nullptr;
      if (round % 100 != 0) continue;
      found.expect(orderly_pool_create_host(&settings, &own) == ORDERLY_OK, "no pool");
      block = orderly_allocate(own, 5000);
      found.expect(orderly_deallocate(pool, block, 0) == ORDERLY_ERROR_WRONG_POOL, "wrong pool");
      orderly_pool_destroy(own);
      found.expect(orderly_deallocate(own, block, 0) == ORDERLY_ERROR_POOL_GONE, "gone");
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  for (orderly_pool* pool : pools) orderly_pool_destroy(pool);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

/// The pools are made before, since making one orders threads by itself.
TEST_CASE("a handle's place goes from the thread that destroys a pool to the one that enters another") {
  orderly::software_device device;
  const auto make = [&] {
    orderly::stream_options settings;
    settings.memory.capacity = mib;
    return std::make_unique<orderly::stream_pool>(orderly::make_host_source(), device.driver(), settings);
  };
  for (std::size_t round = 0; round < scaled(50); ++round) {
    orderly_pool* const first = orderly::c_api::enter(make());
    orderly_pool* second = nullptr;
    std::unique_ptr<orderly::stream_pool> another = make();
    std::atomic<bool> destroyed = false;
    run_threads(2, [&](std::size_t self) {
      if (self == 0) {
        orderly_pool_destroy(first);
        destroyed.store(true, std::memory_order_relaxed);
        return;
      }
      while (!destroyed.load(std::memory_order_relaxed)) std::this_thread::yield();
      second = orderly::c_api::enter(std::move(another));
    });
    CHECK(second != nullptr);
    CHECK(second != first);
    orderly_pool_destroy(second);
  }
}

}  // TEST_SUITE
