// The pool against a sequential model of it: random operations, and after each the books must be the model's.
#include <doctest/doctest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/classes.hpp"
#include "support/failing_source.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

/// What the pool must know: the live set, and how often which call succeeded.
struct model {
  struct block {
    std::size_t requested;
    std::size_t length;
    unsigned char mark;  // in its first and last byte
  };

  std::map<char*, block> live;
  std::size_t requested = 0;
  std::size_t allocated = 0;
  std::size_t peak_requested = 0;
  std::uint64_t allocations = 0, frees = 0, failed = 0, bad_frees = 0;
};

class run {
 public:
  run(const options& settings, std::uint64_t stream)
      : random_(make_random(stream)), pool_(make_failing_source(log_), settings) {}

  void step() {
    switch (uniform(random_, 0, 19)) {
      case 0: bad_free_of_anything(); break;
      case 1: misuse(); break;
      case 2: tidy(); break;
      case 3: case 4: case 5: case 6: case 7: case 8: case 9: case 10: allocate(); break;
      default: growing_ ? allocate() : deallocate();
    }
    if (uniform(random_, 0, 199) == 0) growing_ = !growing_;
    check_stats();
  }

  void finish() {
    while (!model_.live.empty()) deallocate();
    check_stats();
    check_idle(pool_);
    pool_.trim();
    CHECK(pool_.stats().committed == 0);
    CHECK(log_->committed() == 0);
    CHECK(log_->peak_committed() == pool_.stats().peak_committed);
    ORDERLY_CHECK_CONTRACT(*log_);
  }

  /// The pool's list of live blocks is the model's.
  void check_live() {
    std::map<char*, std::size_t> seen;
    pool_.for_each_block([&](const block_info& block) {
      if (block.state == block_state::live) seen[static_cast<char*>(block.address)] = block.requested;
    });
    std::map<char*, std::size_t> expected;
    for (const auto& [start, block] : model_.live) expected[start] = block.requested;
    REQUIRE(seen == expected);
  }

 private:
  std::size_t any_size() {
    const std::size_t granule = pool_.granule();
    switch (uniform(random_, 0, 9)) {
      case 0: return uniform(random_, 0, granule + 1);
      case 1: return granule * uniform(random_, 1, 40) - uniform(random_, 0, 1);
      case 2: return pool_.chunk() * uniform(random_, 1, 20) + uniform(random_, 0, 2) - 1;
      case 3: return std::bit_floor(log_uniform(random_, granule, pool_.capacity()));
      default: return log_uniform(random_, 1, pool_.limit() / 8);
    }
  }

  void allocate() {
    const std::size_t bytes = any_size();
    const bool aligned = uniform(random_, 0, 9) == 0;
    const auto log_chunk = static_cast<std::size_t>(std::bit_width(pool_.chunk()) - 1);
    const std::size_t alignment = aligned ? std::size_t{1} << uniform(random_, 0, log_chunk) : 1;
    auto* block = static_cast<char*>(pool_.try_allocate(bytes, alignment));
    if (block == nullptr) {
      ++model_.failed;
      REQUIRE(may_refuse(bytes, alignment));
      return;
    }
    REQUIRE(bytes <= pool_.capacity());
    REQUIRE(reinterpret_cast<std::uintptr_t>(block) % std::max(alignment, pool_.granule()) == 0);
    insert(block, std::max<std::size_t>(1, bytes), alignment);
  }

  void insert(char* start, std::size_t requested, std::size_t alignment) {
    const std::size_t length = pool_.block_size(start);
    REQUIRE(length >= requested);
    if (alignment <= pool_.granule()) REQUIRE(length == pool_.rounded(requested));
    if (alignment <= pool_.granule() && requested <= 16 * pool_.chunk()) {
      REQUIRE(length == class_length(requested, pool_.granule()));
    }
    const auto next = model_.live.lower_bound(start);
    if (next != model_.live.end()) REQUIRE(start + length <= next->first);
    if (next != model_.live.begin()) REQUIRE(std::prev(next)->first + std::prev(next)->second.length <= start);
    const auto mark = static_cast<unsigned char>(uniform(random_, 1, 255));
    std::memset(start, mark, 1);
    std::memset(start + length - 1, mark, 1);
    model_.live[start] = {requested, length, mark};
    model_.requested += requested;
    model_.allocated += length;
    model_.peak_requested = std::max(model_.peak_requested, model_.requested);
    ++model_.allocations;
  }

  /// A refusal is right only if the chunks that live blocks lie in leave too few for the request.
  bool may_refuse(std::size_t bytes, std::size_t alignment) {
    const std::size_t chunk = pool_.chunk();
    if (bytes > pool_.capacity()) return true;
    std::set<std::uintptr_t> covered;
    for (const auto& [start, block] : model_.live) {
      const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(start) / chunk;
      const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(start) + block.length - 1) / chunk;
      for (std::uintptr_t index = first; index <= last; ++index) covered.insert(index);
    }
    const bool aligned_by_itself = alignment <= pool_.granule();
    const std::size_t length = aligned_by_itself ? pool_.rounded(bytes) : std::bit_ceil(std::max(bytes, alignment));
    return covered.size() + (length + chunk - 1) / chunk > pool_.limit() / chunk;
  }

  auto any_live() {
    const std::size_t index = uniform(random_, 0, model_.live.size() - 1);
    return std::next(model_.live.begin(), static_cast<std::ptrdiff_t>(index));
  }

  void deallocate() {
    if (model_.live.empty()) return;
    const auto [start, block] = *any_live();
    REQUIRE(static_cast<unsigned char>(*start) == block.mark);
    REQUIRE(static_cast<unsigned char>(start[block.length - 1]) == block.mark);
    const std::size_t bytes = uniform(random_, 0, 1) == 0 ? block.requested : 0;
    REQUIRE(pool_.try_deallocate(start, bytes) == error::none);
    REQUIRE(pool_.block_size(start) == 0);
    model_.live.erase(start);
    model_.requested -= block.requested;
    model_.allocated -= block.length;
    ++model_.frees;
    if (uniform(random_, 0, 9) == 0) {
      REQUIRE(pool_.try_deallocate(start) == error::double_free);
      ++model_.bad_frees;
    }
  }

  void bad_free_of_anything() {
    if (model_.live.empty()) return;
    const auto [start, block] = *any_live();
    const std::size_t granule = pool_.granule();
    if (uniform(random_, 0, 1) == 0) {
      REQUIRE(pool_.try_deallocate(start + uniform(random_, 1, granule - 1)) == error::misaligned_pointer);
    } else if (block.length > granule) {
      char* inside = start + granule * uniform(random_, 1, block.length / granule - 1);
      REQUIRE(pool_.try_deallocate(inside, uniform(random_, 0, block.length)) == error::interior_pointer);
      REQUIRE(pool_.owns(inside));
    } else {
      REQUIRE(pool_.try_deallocate(start, granule + 1 + any_size()) == error::size_mismatch);
    }
    ++model_.bad_frees;
  }

  void misuse() {
    REQUIRE(pool_.try_allocate(pool_.capacity() + 1 + any_size()) == nullptr);
    REQUIRE(pool_.try_allocate(SIZE_MAX - any_size(), pool_.chunk()) == nullptr);
    REQUIRE(pool_.try_deallocate(nullptr, any_size()) == error::none);
    REQUIRE(pool_.try_deallocate(this) == error::foreign_pointer);
    model_.failed += 2;
    ++model_.bad_frees;
  }

  void tidy() {
    const std::size_t before = pool_.stats().committed;
    switch (uniform(random_, 0, 9)) {
      case 0: REQUIRE(pool_.trim(uniform(random_, 0, pool_.limit())) <= before); break;
      case 1: pool_.defragment(); break;
      case 2: check_live(); break;
      default: break;
    }
  }

  void check_stats() {
    const statistics stats = pool_.stats();
    REQUIRE(stats.requested == model_.requested);
    REQUIRE(stats.allocated == model_.allocated);
    REQUIRE(stats.peak_requested == model_.peak_requested);
    REQUIRE(stats.allocations == model_.allocations);
    REQUIRE(stats.frees == model_.frees);
    REQUIRE(stats.failed == model_.failed);
    REQUIRE(stats.bad_frees == model_.bad_frees);
    REQUIRE(stats.allocated + stats.cached <= stats.committed);
    REQUIRE(stats.committed == log_->committed());
    REQUIRE(stats.committed <= stats.limit);
  }

  std::shared_ptr<source_log> log_ = std::make_shared<source_log>();
  random_engine random_;
  pool pool_;
  model model_;
  bool growing_ = true;
};

void run_model(const options& settings, std::uint64_t stream, std::size_t steps) {
  run tested(settings, stream);
  for (std::size_t step = 0; step < steps; ++step) {
    INFO("ORDERLY_TEST_SEED=", test_seed(), ", stream ", stream, ", step ", step);
    tested.step();
  }
  tested.check_live();
  tested.finish();
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("random operations, room enough") {
  for (std::uint64_t stream = 0; stream < 4; ++stream) run_model(options{.capacity = 64 * mib}, stream, scaled(4000));
}

TEST_CASE("random operations, always at the limit") {
  for (std::uint64_t stream = 10; stream < 14; ++stream) run_model(options{.capacity = 4 * mib}, stream, scaled(4000));
}

TEST_CASE("random operations, a limit below the capacity") {
  for (std::uint64_t stream = 20; stream < 24; ++stream) {
    run_model(options{.capacity = 64 * mib, .limit = 3 * mib}, stream, scaled(4000));
  }
}

TEST_CASE("random operations, other granules and chunks") {
  run_model(options{.capacity = mib, .granule = 16, .chunk = 4 * kib}, 30, scaled(4000));
  run_model(options{.capacity = 64 * mib, .granule = 4 * kib, .chunk = 4 * kib}, 31, scaled(4000));
  run_model(options{.capacity = 64 * mib, .granule = 64 * kib, .chunk = 2 * mib}, 32, scaled(4000));
  run_model(options{.capacity = 128 * kib}, 33, scaled(4000));
  run_model(options{.capacity = 8 * mib, .slack = 0}, 34, scaled(4000));
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("random operations, long") {
  for (std::uint64_t stream = 100; stream < 120; ++stream) {
    run_model(options{.capacity = 16 * mib, .limit = 5 * mib}, stream, scaled(10000));
  }
}

}  // TEST_SUITE
