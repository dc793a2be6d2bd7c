#include "latency.hpp"

#include <algorithm>
#include <cmath>

namespace orderly::bench {

latency summarise(std::vector<std::uint64_t>& ticks, const clock_scale& scale) {
  if (ticks.empty()) return {};
  std::sort(ticks.begin(), ticks.end());
  const auto nanoseconds = [&](double fraction) {
    const auto rank = static_cast<std::size_t>(std::ceil(fraction * static_cast<double>(ticks.size())));
    const std::uint64_t sample = ticks[std::max<std::size_t>(rank, 1) - 1];
    return static_cast<double>(sample - std::min(sample, scale.overhead)) * scale.nanoseconds_per_tick;
  };
  return {nanoseconds(0.5), nanoseconds(0.99), nanoseconds(0.999), nanoseconds(1)};
}

}  // namespace orderly::bench
