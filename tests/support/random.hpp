/// \file
/// Seeded random numbers. A run prints its seed once; ORDERLY_TEST_SEED=SEED repeats it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace orderly::test {

using random_engine = std::mt19937_64;

[[nodiscard]] inline std::uint64_t test_seed() {
  static const std::uint64_t seed = [] {
    const char* text = std::getenv("ORDERLY_TEST_SEED");
    const std::uint64_t chosen = text != nullptr ? std::strtoull(text, nullptr, 0) : std::random_device{}();
    std::fprintf(stderr, "random numbers: ORDERLY_TEST_SEED=%llu\n", static_cast<unsigned long long>(chosen));
    return chosen;
  }();
  return seed;
}

/// The engine of one thread or one case: the same seed and stream give the same numbers.
[[nodiscard]] inline random_engine make_random(std::uint64_t stream) {
  std::seed_seq sequence{test_seed(), test_seed() >> 32, stream};
  return random_engine(sequence);
}

/// Uniform in [low, high].
[[nodiscard]] inline std::size_t uniform(random_engine& random, std::size_t low, std::size_t high) {
  return std::uniform_int_distribution<std::size_t>(low, high)(random);
}

/// Uniform over the logarithm in [low, high]: as many small numbers as large ones.
[[nodiscard]] inline std::size_t log_uniform(random_engine& random, std::size_t low, std::size_t high) {
  std::uniform_real_distribution<double> exponent(std::log2(static_cast<double>(low)),
                                                  std::log2(static_cast<double>(high) + 1.0));
  return std::clamp(static_cast<std::size_t>(std::exp2(exponent(random))), low, high);
}

}  // namespace orderly::test
