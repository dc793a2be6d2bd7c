// The pool against a sequential model of it: random operations, and after each the books must be the model's.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>

#include "orderly/pool.hpp"
#include "support/choices.hpp"
#include "support/lockstep_threads.hpp"
#include "support/pool_model.hpp"
#include "support/scale.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

void run_model(const options& settings, std::uint64_t stream, std::size_t steps, std::size_t threads = 1) {
  random_choices choices(stream);
  lockstep_threads others(threads);
  pool_model tested(choices, others, settings);
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

TEST_CASE("random operations, three threads that take turns") {
  run_model(options{.capacity = 64 * mib}, 40, scaled(4000), 3);
  run_model(options{.capacity = 64 * mib, .limit = 3 * mib}, 41, scaled(4000), 3);
  run_model(options{.capacity = mib, .granule = 16, .chunk = 4 * kib}, 42, scaled(4000), 3);
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
