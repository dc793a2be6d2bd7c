#include "clock.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

namespace orderly::bench {

namespace {

using std::chrono::steady_clock;

struct reading {
  steady_clock::time_point time;
  std::uint64_t ticks;
};

/// Both clocks at one instant. Of several attempts the one that was least interrupted counts.
reading read_both() {
  reading best{};
  steady_clock::duration shortest = steady_clock::duration::max();
  for (int attempt = 0; attempt < 16; ++attempt) {
    const steady_clock::time_point before = steady_clock::now();
    const std::uint64_t ticks = section_begin();
    const steady_clock::duration gap = steady_clock::now() - before;
    if (gap < shortest) {
      shortest = gap;
      best = {before + gap / 2, ticks};
    }
  }
  return best;
}

std::uint64_t empty_section() {
  std::vector<std::uint64_t> samples(10001);
  for (std::uint64_t& sample : samples) {
    const std::uint64_t begin = section_begin();
    sample = section_end() - begin;
  }
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  return *middle;
}

}  // namespace

clock_scale calibrate_clock() {
  const reading first = read_both();
  while (steady_clock::now() - first.time < std::chrono::milliseconds(20)) {
  }
  const reading last = read_both();
  const std::chrono::duration<double, std::nano> elapsed = last.time - first.time;
  return {elapsed.count() / static_cast<double>(last.ticks - first.ticks), empty_section()};
}

const clock_scale& the_clock() {
  static const clock_scale scale = calibrate_clock();
  return scale;
}

}  // namespace orderly::bench
