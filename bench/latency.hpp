/// \file
/// Percentiles of calls that were timed one by one.
#pragma once

#include <cstdint>
#include <vector>

#include "clock.hpp"

namespace orderly::bench {

/// Nanoseconds of one kind of call; the percentiles are exact samples (nearest rank).
struct latency {
  double p50 = 0;
  double p99 = 0;
  double p999 = 0;
  double max = 0;
};

/// Nanoseconds at p50, p99, p99.9 and the maximum of `ticks`, which this sorts, less the clock's own time.
[[nodiscard]] latency summarise(std::vector<std::uint64_t>& ticks, const clock_scale& scale);

}  // namespace orderly::bench
