/// \file
/// A clock for sections of a few tens of nanoseconds.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#else
#include <chrono>
#endif

namespace orderly::bench {

#if defined(__x86_64__)

/// Everything before the section is complete, nothing of it has begun.
inline std::uint64_t section_begin() noexcept {
  _mm_lfence();
  const std::uint64_t now = __rdtsc();
  _mm_lfence();
  return now;
}

/// Everything of the section is complete, nothing after it has begun.
inline std::uint64_t section_end() noexcept {
  unsigned processor = 0;
  const std::uint64_t now = __rdtscp(&processor);
  _mm_lfence();
  return now;
}

#else

inline std::uint64_t section_begin() noexcept {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

inline std::uint64_t section_end() noexcept { return section_begin(); }

#endif

struct clock_scale {
  double nanoseconds_per_tick = 1;
  std::uint64_t overhead = 0;  ///< ticks between the two ends of an empty section, median
};

/// Measures the clock, in about 20 ms.
[[nodiscard]] clock_scale calibrate_clock();

/// Measured when it is first asked for.
const clock_scale& the_clock();

}  // namespace orderly::bench
