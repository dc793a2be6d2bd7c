// Every kind of bad free through every way to free: it is refused, told apart, reported, and changes nothing.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/orderly.h"
#include "orderly/pmr.hpp"
#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/process.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;
constexpr std::size_t capacity = 8 * mib;

std::string text_of(const void* pointer) {
  std::ostringstream text;
  text << pointer;
  return text.str();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// What came back from a free. `told`: which of the two the way to free reports at all.
struct outcome {
  std::optional<error> code;
  std::optional<std::string> message;
};

/// One way to free, with a pool of its own.
class entrance {
 public:
  virtual ~entrance() = default;
  [[nodiscard]] virtual void* allocate(std::size_t bytes) = 0;
  virtual outcome free(void* pointer, std::size_t bytes) = 0;
  [[nodiscard]] virtual books audit() const = 0;
  virtual void defragment() = 0;
  virtual void trim() = 0;
};

class cpp_entrance : public entrance {
 public:
  explicit cpp_entrance(bad_free_handler handler) : pool_(options{.capacity = capacity, .on_bad_free = handler}) {}
  void* allocate(std::size_t bytes) override { return pool_.try_allocate(bytes); }
  books audit() const override { return books_of(pool_); }
  void defragment() override { pool_.defragment(); }
  void trim() override { pool_.trim(); }

 protected:
  pool pool_;
};

class by_try_deallocate final : public cpp_entrance {
 public:
  by_try_deallocate() : cpp_entrance([](const bad_free&) { FAIL("try_deallocate called the handler"); }) {}
  outcome free(void* pointer, std::size_t bytes) override {
    bad_free report;
    const error code = pool_.try_deallocate(pointer, bytes, &report);
    if (code == error::none) return {code, std::nullopt};
    CHECK(report.code == code);
    CHECK(report.pointer == pointer);
    CHECK(report.bytes == bytes);
    return {code, report.message()};
  }
};

class by_handler final : public cpp_entrance {
 public:
  by_handler() : cpp_entrance([this](const bad_free& report) { report_ = report; }) {}
  outcome free(void* pointer, std::size_t bytes) override {
    report_.reset();
    pool_.deallocate(pointer, bytes);
    if (!report_) return {error::none, std::nullopt};
    return {report_->code, report_->message()};
  }

 private:
  std::optional<bad_free> report_;
};

class by_print final : public cpp_entrance {
 public:
  by_print() : cpp_entrance(on_bad_free::print) {}
  outcome free(void* pointer, std::size_t bytes) override {
    const captured_stderr capture;
    pool_.deallocate(pointer, bytes);
    const std::string text = capture.text();
    if (text.empty()) return {error::none, std::nullopt};
    CHECK(text.find('\n') == text.size() - 1);
    return {std::nullopt, text};
  }
};

class by_count final : public cpp_entrance {
 public:
  by_count() : cpp_entrance(on_bad_free::count) {}
  outcome free(void* pointer, std::size_t bytes) override {
    const captured_stderr capture;
    pool_.deallocate(pointer, bytes);
    CHECK(capture.text().empty());
    return {std::nullopt, std::nullopt};
  }
};

class by_exception final : public cpp_entrance {
 public:
  by_exception() : cpp_entrance([](const bad_free&) { FAIL("deallocate_or_throw called the handler"); }) {}
  outcome free(void* pointer, std::size_t bytes) override {
    try {
      pool_.deallocate_or_throw(pointer, bytes);
    } catch (const bad_free_error& refused) {
      return {refused.report().code, refused.what()};
    }
    return {error::none, std::nullopt};
  }
};

class by_pmr final : public cpp_entrance {
 public:
  by_pmr() : cpp_entrance([this](const bad_free& report) { report_ = report; }), resource_(pool_) {}
  outcome free(void* pointer, std::size_t bytes) override {
    if (pointer == nullptr) return {error::none, std::nullopt};  // std::pmr takes blocks only
    report_.reset();
    std::pmr::memory_resource& resource = resource_;
    resource.deallocate(pointer, bytes, 1);
    if (!report_) return {error::none, std::nullopt};
    return {report_->code, report_->message()};
  }

 private:
  memory_resource resource_;
  std::optional<bad_free> report_;
};

class by_c final : public entrance {
 public:
  by_c() {
    const orderly_options settings{capacity, 0, 0, 0};
    if (orderly_pool_create_host(&settings, &pool_) != ORDERLY_OK) throw std::bad_alloc();
  }
  ~by_c() override { orderly_pool_destroy(pool_); }
  void* allocate(std::size_t bytes) override { return orderly_allocate(pool_, bytes); }
  outcome free(void* pointer, std::size_t bytes) override {
    const int code = orderly_deallocate(pool_, pointer, bytes);
    if (code == ORDERLY_OK) return {error::none, std::nullopt};
    return {static_cast<error>(code), orderly_last_error()};
  }
  books audit() const override {
    orderly_stats stats;
    CHECK(orderly_pool_stats(pool_, &stats) == ORDERLY_OK);
    books all;
    all.stats = {stats.requested,   stats.allocated,      stats.cached,   stats.committed, stats.peak_requested,
                 stats.peak_committed, stats.capacity, 0,            stats.allocations, stats.frees,
                 stats.failed,      stats.bad_frees,      stats.passes};
    return all;
  }
  void defragment() override { CHECK(orderly_defragment(pool_) == ORDERLY_OK); }
  void trim() override { CHECK(orderly_trim(pool_, 0) == ORDERLY_OK); }

 private:
  orderly_pool* pool_ = nullptr;
};

struct way {
  std::string_view name;
  std::unique_ptr<entrance> (*make)();
};

template <class Entrance>
std::unique_ptr<entrance> make_entrance() {
  return std::make_unique<Entrance>();
}

constexpr way every_way[] = {
    {"try_deallocate", make_entrance<by_try_deallocate>},
    {"deallocate with a handler", make_entrance<by_handler>},
    {"deallocate with print", make_entrance<by_print>},
    {"deallocate with count", make_entrance<by_count>},
    {"deallocate_or_throw", make_entrance<by_exception>},
    {"std::pmr", make_entrance<by_pmr>},
    {"C", make_entrance<by_c>},
};

/// Blocks of every kind, live, in the pool under test and in another one.
struct scene {
  struct block {
    char* start;
    std::size_t bytes;   // requested
    std::size_t length;  // rounded
  };

  explicit scene(entrance& tested) : under_test(tested) {
    for (block* each : {&tiny, &small, &trimmed, &chunk, &large}) {
      each->start = static_cast<char*>(tested.allocate(each->bytes));
      if (each->start == nullptr) throw std::bad_alloc();
    }
  }

  void free(block& freed) {
    under_test.free(freed.start, freed.bytes);
    freed.bytes = 0;
  }

  void free_everything() {
    for (block* each : {&tiny, &small, &trimmed, &chunk, &large}) {
      if (each->bytes != 0) free(*each);
    }
  }

  entrance& under_test;
  block tiny{nullptr, 1, 256};
  block small{nullptr, 1000, 1024};
  block trimmed{nullptr, 9 * kib - 1, 9 * kib};  // 9/16 of its order
  block chunk{nullptr, 64 * kib, 64 * kib};
  block large{nullptr, 2 * mib - 5, 2 * mib};
  pool other{options{.capacity = capacity}};
};

/// A bad free of a scene: the pointer, the size, and the live block that the message must name, if any.
struct attempt {
  void* pointer;
  std::size_t bytes;
  const void* block = nullptr;
};

struct bad_case {
  std::string_view name;
  error expected;
  attempt (*prepare)(scene& with);
};

alignas(256) char static_memory[512];

void* at(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

constexpr bad_case every_case[] = {
    {"double, the smallest block", error::double_free,
     [](scene& with) -> attempt { with.free(with.tiny); return {with.tiny.start, 1}; }},
    {"double, a small block", error::double_free,
     [](scene& with) -> attempt { with.free(with.small); return {with.small.start, 1000}; }},
    {"double, a trimmed block", error::double_free,
     [](scene& with) -> attempt { with.free(with.trimmed); return {with.trimmed.start, 9 * kib}; }},
    {"double, a chunk", error::double_free,
     [](scene& with) -> attempt { with.free(with.chunk); return {with.chunk.start, 64 * kib}; }},
    {"double, a large block", error::double_free,
     [](scene& with) -> attempt { with.free(with.large); return {with.large.start, 2 * mib - 5}; }},
    {"double, with another size", error::double_free,
     [](scene& with) -> attempt { with.free(with.small); return {with.small.start, 50000}; }},
    {"double, after everything around it was freed and merged", error::double_free,
     [](scene& with) -> attempt {
       with.free_everything();
       with.under_test.defragment();
       return {with.small.start, 1000};
     }},
    {"double, after the memory was decommitted", error::double_free,
     [](scene& with) -> attempt {
       with.free_everything();
       with.under_test.trim();
       return {with.large.start, 2 * mib - 5};
     }},
    {"double, the first free by another thread", error::double_free,
     [](scene& with) -> attempt {
       std::thread([&with] { with.free(with.small); }).join();
       return {with.small.start, 1000};
     }},
    {"double, inside a freed block", error::double_free,
     [](scene& with) -> attempt {
       with.free(with.large);
       return {with.large.start + 512 * kib, 256};
     }},
    {"interior, the second granule", error::interior_pointer,
     [](scene& with) -> attempt { return {with.small.start + 256, 1000, with.small.start}; }},
    {"interior, the last granule", error::interior_pointer,
     [](scene& with) -> attempt { return {with.small.start + 768, 256, with.small.start}; }},
    {"interior, the middle of a trimmed block", error::interior_pointer,
     [](scene& with) -> attempt { return {with.trimmed.start + 4 * kib, 4 * kib, with.trimmed.start}; }},
    {"interior, the tail of a trimmed block", error::interior_pointer,
     [](scene& with) -> attempt { return {with.trimmed.start + 8 * kib, kib, with.trimmed.start}; }},
    {"interior, the middle of a chunk", error::interior_pointer,
     [](scene& with) -> attempt { return {with.chunk.start + 32 * kib, 32 * kib, with.chunk.start}; }},
    {"interior, a chunk of a large block", error::interior_pointer,
     [](scene& with) -> attempt { return {with.large.start + 64 * kib, 64 * kib, with.large.start}; }},
    {"interior, the second half of a large block", error::interior_pointer,
     [](scene& with) -> attempt { return {with.large.start + mib, mib, with.large.start}; }},
    {"interior, the last granule of a large block", error::interior_pointer,
     [](scene& with) -> attempt { return {with.large.start + 2 * mib - 256, 256, with.large.start}; }},
    {"misaligned, one byte in", error::misaligned_pointer,
     [](scene& with) -> attempt { return {with.small.start + 1, 1000, with.small.start}; }},
    {"misaligned, 16 bytes in", error::misaligned_pointer,
     [](scene& with) -> attempt { return {with.tiny.start + 16, 1, with.tiny.start}; }},
    {"misaligned, the last byte", error::misaligned_pointer,
     [](scene& with) -> attempt { return {with.large.start + 2 * mib - 1, 1, with.large.start}; }},
    {"misaligned, in a freed block", error::misaligned_pointer,
     [](scene& with) -> attempt { with.free(with.small); return {with.small.start + 8, 1000}; }},
    {"size, one granule more", error::size_mismatch,
     [](scene& with) -> attempt { return {with.small.start, 1025, with.small.start}; }},
    {"size, one granule less", error::size_mismatch,
     [](scene& with) -> attempt { return {with.small.start, 768, with.small.start}; }},
    {"size, the order of a trimmed block", error::size_mismatch,
     [](scene& with) -> attempt { return {with.trimmed.start, 16 * kib, with.trimmed.start}; }},
    {"size, a chunk as a granule", error::size_mismatch,
     [](scene& with) -> attempt { return {with.chunk.start, 1, with.chunk.start}; }},
    {"size, a large block as a small one", error::size_mismatch,
     [](scene& with) -> attempt { return {with.large.start, 1000, with.large.start}; }},
    {"size, a large block as one a chunk smaller", error::size_mismatch,
     [](scene& with) -> attempt { return {with.large.start, mib + 512 * kib, with.large.start}; }},
    {"size, above the capacity", error::size_mismatch,
     [](scene& with) -> attempt { return {with.small.start, capacity + 1, with.small.start}; }},
    {"size, SIZE_MAX", error::size_mismatch,
     [](scene& with) -> attempt { return {with.small.start, SIZE_MAX, with.small.start}; }},
    {"size, SIZE_MAX less a granule", error::size_mismatch,
     [](scene& with) -> attempt { return {with.tiny.start, SIZE_MAX - 256, with.tiny.start}; }},
    {"foreign, static memory", error::foreign_pointer,
     [](scene&) -> attempt { return {static_memory, 256}; }},
    {"foreign, misaligned static memory", error::foreign_pointer,
     [](scene&) -> attempt { return {static_memory + 3, 256}; }},
    {"foreign, the stack", error::foreign_pointer,
     [](scene& with) -> attempt { return {&with, 256}; }},
    {"foreign, the heap", error::foreign_pointer,
     [](scene& with) -> attempt { return {&with.under_test, 256}; }},
    {"foreign, code", error::foreign_pointer,
     [](scene&) -> attempt { return {reinterpret_cast<void*>(&std::abort), 256}; }},
    {"foreign, the first byte of the address space", error::foreign_pointer,
     [](scene&) -> attempt { return {at(1), 256}; }},
    {"foreign, the second granule of the address space", error::foreign_pointer,
     [](scene&) -> attempt { return {at(256), 256}; }},
    {"foreign, the last granule of the address space", error::foreign_pointer,
     [](scene&) -> attempt { return {at(UINTPTR_MAX - 255), 256}; }},
    {"foreign, the last byte of the address space", error::foreign_pointer,
     [](scene&) -> attempt { return {at(UINTPTR_MAX), 256}; }},
    {"foreign, the middle of the address space", error::foreign_pointer,
     [](scene&) -> attempt { return {at(UINTPTR_MAX / 2 + 1), SIZE_MAX}; }},
    {"foreign, a block of a pool that was destroyed", error::foreign_pointer,
     [](scene&) -> attempt {
       pool destroyed(options{.capacity = capacity});
       return {destroyed.allocate(1000), 1000};
     }},
    {"wrong pool, a live block", error::wrong_pool,
     [](scene& with) -> attempt { return {with.other.allocate(1000), 1000}; }},
    {"wrong pool, a live large block", error::wrong_pool,
     [](scene& with) -> attempt { return {with.other.allocate(3 * mib), 3 * mib}; }},
    {"wrong pool, inside a live block", error::wrong_pool,
     [](scene& with) -> attempt { return {static_cast<char*>(with.other.allocate(1000)) + 256, 1000}; }},
    {"wrong pool, a freed block", error::wrong_pool,
     [](scene& with) -> attempt {
       void* freed = with.other.allocate(1000);
       with.other.deallocate(freed, 1000);
       return {freed, 1000};
     }},
};

/// The message says what is wrong, names the pointer, and if the pointer falls in a live block, that block.
void check_message(const std::string& message, const bad_case& tried, const attempt& bad) {
  CAPTURE(message);
  CHECK(contains(message, to_string(tried.expected)));
  CHECK(contains(message, text_of(bad.pointer)));
  if (bad.block == nullptr) return;
  CHECK(contains(message, text_of(bad.block)));
  CHECK(contains(message, to_string(block_state::live)));
}

/// Everything that is still live can be freed, and then the whole capacity allocated and freed again.
void check_usable(scene& with) {
  with.free_everything();
  std::vector<void*> blocks;
  while (void* block = with.under_test.allocate(64 * kib)) blocks.push_back(block);
  CHECK(blocks.size() == capacity / (64 * kib));
  const std::uint64_t refused = with.under_test.audit().stats.bad_frees;
  for (void* block : blocks) with.under_test.free(block, 64 * kib);
  const statistics stats = with.under_test.audit().stats;
  CHECK(stats.bad_frees == refused);
  CHECK(stats.requested == 0);
  CHECK(stats.allocations == stats.frees);
}

/// Everything that is left can be allocated, and nothing of it twice.
void check_every_block_once(pool& tested, std::size_t bytes, std::size_t count) {
  std::set<void*> blocks;
  while (void* block = tested.try_allocate(bytes)) REQUIRE(blocks.insert(block).second);
  CHECK(blocks.size() == count);
  for (void* block : blocks) CHECK(tested.try_deallocate(block, bytes) == error::none);
}

/// In each round one thread allocates a block and `threads` of them, that one included or not, free it at once. Returns
/// how many of the frees succeeded.
std::size_t race_to_free(pool& tested, std::size_t bytes, std::size_t threads, std::size_t rounds, bool allocator_too) {
  std::atomic<void*> block = nullptr;
  std::atomic<std::size_t> accepted = 0;
  std::atomic<std::size_t> arrived = 0;
  findings found;
  // Short of a processor for each thread the race is rare: spin first, so that they leave together.
  const auto meet = [&](std::size_t count) {
    ++arrived;
    for (int spin = 0; arrived < count * threads; ++spin) {
      if (spin >= 1000) std::this_thread::yield();
    }
  };
  run_threads(threads, [&](std::size_t index) {
    for (std::size_t round = 0; round < rounds; ++round) {
      if (index == 0) block = tested.try_allocate(bytes);
      meet(2 * round + 1);
      if (index != 0 || allocator_too) {
        const error code = tested.try_deallocate(block, bytes);
        accepted += code == error::none;
        found.expect(code == error::none || code == error::double_free, to_string(code));
      }
      meet(2 * round + 2);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  return accepted;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("every bad free, every way to free: refused, told apart, reported, and nothing changes") {
  for (const way& freeing : every_way) {
    for (const bad_case& tried : every_case) {
      CAPTURE(freeing.name);
      CAPTURE(tried.name);
      const std::unique_ptr<entrance> tested = freeing.make();
      scene with(*tested);
      const attempt bad = tried.prepare(with);
      const books before = tested->audit();
      const outcome refused = tested->free(bad.pointer, bad.bytes);
      const books after = tested->audit();
      if (refused.code) CHECK(*refused.code == tried.expected);
      if (refused.message) check_message(*refused.message, tried, bad);
      CHECK(after.stats.bad_frees == before.stats.bad_frees + 1);
      CHECK(same_books(before, after));
      check_usable(with);
    }
  }
}

TEST_CASE("the abort handler prints the message and ends the process, for every bad free") {
  class by_abort final : public cpp_entrance {
   public:
    by_abort() : cpp_entrance(on_bad_free::abort) {}
    outcome free(void* pointer, std::size_t bytes) override {
      pool_.deallocate(pointer, bytes);
      return {};
    }
  };
  for (const bad_case& tried : every_case) {
    CAPTURE(tried.name);
    by_abort tested;
    scene with(tested);
    const attempt bad = tried.prepare(with);
    const child_end end = run_child([&] { tested.free(bad.pointer, bad.bytes); });
    CHECK(end.signal == SIGABRT);
    check_message(end.output, tried, bad);
  }
}

TEST_CASE("the abort handler lets a good free pass") {
  const child_end end = run_child([] {
    pool tested(options{.capacity = capacity, .on_bad_free = on_bad_free::abort});
    tested.deallocate(tested.allocate(1000), 1000);
    tested.deallocate(nullptr, 1000);
    tested.deallocate(tested.allocate(1000));
  });
  CHECK(end.signal == 0);
  CHECK(end.status == 0);
  CHECK(end.output.empty());
}

TEST_CASE("null is ignored, every way") {
  for (const way& freeing : every_way) {
    CAPTURE(freeing.name);
    const std::unique_ptr<entrance> tested = freeing.make();
    const books before = tested->audit();
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, SIZE_MAX}) {
      const outcome ignored = tested->free(nullptr, bytes);
      CHECK(ignored.code.value_or(error::none) == error::none);
      CHECK_FALSE(ignored.message.has_value());
    }
    CHECK(same_books(before, tested->audit()));
    CHECK(tested->audit().stats.bad_frees == 0);
  }
}

TEST_CASE("a free without a size is checked too") {
  bad_free seen;
  pool tested(options{.capacity = capacity, .on_bad_free = [&seen](const bad_free& report) { seen = report; }});
  auto* block = static_cast<char*>(tested.allocate(1000));
  tested.deallocate(block + 512);
  CHECK(seen.code == error::interior_pointer);
  CHECK(seen.bytes == 0);
  tested.deallocate(block + 3);
  CHECK(seen.code == error::misaligned_pointer);
  tested.deallocate(static_memory);
  CHECK(seen.code == error::foreign_pointer);
  tested.deallocate(block);
  tested.deallocate(block);
  CHECK(seen.code == error::double_free);
  CHECK(tested.stats().bad_frees == 4);
  CHECK(tested.stats().frees == 1);
}

TEST_CASE("the report tells of the block that the pointer falls in") {
  pool tested(options{.capacity = capacity});
  auto* block = static_cast<char*>(tested.allocate(1000));
  bad_free report;
  CHECK(tested.try_deallocate(block + 300, 5, &report) == error::misaligned_pointer);
  CHECK(tested.try_deallocate(block + 256, 5, &report) == error::interior_pointer);
  CHECK(report.block == block);
  CHECK(report.block_bytes == 1024);
  CHECK(report.block_requested == 1000);
  CHECK(report.state == block_state::live);
  CHECK(tested.try_deallocate(block, 5, &report) == error::size_mismatch);
  CHECK(report.block == block);
  CHECK(report.block_bytes == 1024);
  CHECK(report.bytes == 5);
  CHECK(tested.try_deallocate(block, 1000, &report) == error::none);
  CHECK(tested.try_deallocate(block, 1000, &report) == error::double_free);
  CHECK(report.block == block);
  CHECK(report.block_requested == 0);
  const bool at_rest = report.state == block_state::cached || report.state == block_state::free;
  CHECK(at_rest);
  CHECK(tested.try_deallocate(static_memory, 1, &report) == error::foreign_pointer);
  CHECK(report.block == nullptr);
  CHECK(report.state == block_state::none);
}

TEST_CASE("a block aligned above the granule is checked like any other") {
  pool tested(options{.capacity = capacity});
  auto* block = static_cast<char*>(tested.allocate(300, 4096));
  CHECK(tested.try_deallocate(block, 64 * kib) == error::size_mismatch);
  CHECK(tested.try_deallocate(block + 256, 300) != error::none);
  CHECK(tested.try_deallocate(block, 300) == error::none);
  CHECK(tested.try_deallocate(block, 300) == error::double_free);
  check_idle(tested);
}

TEST_CASE("a block freed twice and allocated in between belongs to its new owner") {
  pool tested(options{.capacity = 64 * kib});
  void* first = tested.allocate(64 * kib);
  CHECK(tested.try_deallocate(first) == error::none);
  void* second = tested.allocate(64 * kib);
  REQUIRE(first == second);
  CHECK(tested.try_deallocate(second) == error::none);
  CHECK(tested.try_deallocate(second) == error::double_free);
}

TEST_CASE("deallocate on a moved-from pool harms nobody") {
  pool source(options{.capacity = capacity});
  void* block = source.allocate(1000);
  pool target(std::move(source));
  const captured_stderr capture;
  source.deallocate(block, 1000);
  source.deallocate(block);
  source.deallocate(nullptr);
  CHECK(target.owns(block));
  CHECK(target.stats().bad_frees == 0);
  CHECK(target.try_deallocate(block, 1000) == error::none);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("of many frees of one block at once, by threads that did not allocate it, exactly one succeeds") {
  for (const std::size_t bytes : {std::size_t{256}, std::size_t{1000}, 64 * kib, 2 * mib}) {
    CAPTURE(bytes);
    pool tested(options{.capacity = capacity});
    const std::size_t rounds = scaled(2000);
    CHECK(race_to_free(tested, bytes, 4, rounds, false) == rounds);
    CHECK(tested.stats().bad_frees == rounds * 2);
    check_idle(tested);
  }
}

TEST_CASE("when the thread that allocated it races too, the block is free once, and the books say so") {
  for (const std::size_t bytes : {std::size_t{256}, std::size_t{1000}, 64 * kib, 2 * mib}) {
    CAPTURE(bytes);
    pool tested(options{.capacity = capacity});
    void* kept = tested.allocate(mib);
    const std::size_t rounds = scaled(5000);
    // At its home a block is freed by a look and a store; a free elsewhere that falls between the two is told later.
    CHECK(race_to_free(tested, bytes, 2, rounds, true) >= rounds);
    check_every_block_once(tested, bytes, (capacity - mib) / tested.rounded(bytes));
    tested.defragment();
    CHECK(tested.stats().requested == mib);
    CHECK(tested.stats().bad_frees == rounds);
    tested.deallocate(kept, mib);
    check_idle(tested);
  }
}

TEST_CASE("a double free that races with the first leaves the books exact, whatever the block is used for next") {
  pool tested(options{.capacity = capacity, .on_bad_free = on_bad_free::count});
  std::atomic<void*> racing = nullptr;
  std::atomic<void*> lawful = nullptr;
  std::atomic<std::size_t> turn = 0;  // odd: the other's
  const std::size_t rounds = scaled(200000);
  const auto wait_for_turn = [&](std::size_t number) {
    for (int spins = 0; turn.load(std::memory_order_acquire) != number; ++spins) {
      if (spins > 10000) std::this_thread::yield();
    }
  };
  std::thread other([&] {
    tested.deallocate(tested.allocate(1), 1);  // its front is there
    for (std::size_t round = 0; round < rounds; ++round) {
      wait_for_turn(2 * round + 1);
      if (void* const block = racing.exchange(nullptr)) tested.deallocate(block, 1);
      if (void* const block = lawful.exchange(nullptr)) tested.deallocate(block, 256);
      turn.store(2 * round + 2, std::memory_order_release);
    }
  });
  for (std::size_t round = 0; round < rounds; ++round) {
    void* const block = tested.allocate(round % 2 == 0 ? 1 : 256);
    (round % 2 == 0 ? racing : lawful).store(block, std::memory_order_relaxed);
    turn.store(2 * round + 1, std::memory_order_release);
    if (round % 2 == 0) {  // as the other does, at about the same time
      std::atomic<std::size_t> delay = round / 2 % 40;
      while (delay.load(std::memory_order_relaxed) != 0) delay.fetch_sub(1, std::memory_order_relaxed);
      tested.deallocate(block, 1);
    }
    wait_for_turn(2 * round + 2);
  }
  other.join();
  tested.defragment();
  const statistics stats = tested.stats();
  CHECK(stats.requested == 0);
  CHECK(stats.allocated == 0);
  CHECK(stats.allocations == stats.frees);
  CHECK(stats.bad_frees == rounds / 2);
  check_idle(tested);
}

TEST_CASE("bad frees of every kind while other threads work cost the others nothing") {
  pool tested(options{.capacity = capacity, .on_bad_free = on_bad_free::count});
  auto* kept = static_cast<char*>(tested.allocate(1000));
  auto* freed = static_cast<char*>(tested.allocate(3 * mib));
  tested.deallocate(freed, 3 * mib);
  const std::size_t rounds = scaled(50000);
  findings found;
  run_threads(4, [&](std::size_t index) {
    for (std::size_t round = 0; round < rounds; ++round) {
      if (index % 2 == 0) {
        void* block = tested.try_allocate(1 + round % 5000);
        found.expect(tested.try_deallocate(block) == error::none, "a good free was refused");
        continue;
      }
      found.expect(tested.try_deallocate(kept + 256) == error::interior_pointer, "interior");
      found.expect(tested.try_deallocate(kept, 5000) == error::size_mismatch, "size");
      found.expect(tested.try_deallocate(kept + 1) == error::misaligned_pointer, "misaligned");
      found.expect(tested.try_deallocate(static_memory) == error::foreign_pointer, "foreign");
      found.expect(tested.try_deallocate(freed) == error::double_free, "double");
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(tested.stats().bad_frees == 2 * 5 * rounds);
  CHECK(tested.try_deallocate(kept, 1000) == error::none);
  check_idle(tested);
}

}  // TEST_SUITE
