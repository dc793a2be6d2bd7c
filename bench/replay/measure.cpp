#include "measure.hpp"

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>

namespace orderly::bench {

namespace {

constexpr std::uint64_t default_limit_unit = std::uint64_t{64} << 10;

std::unique_ptr<any_peer> make_peer(const peer_entry& entry, const arena_config& arena) {
  std::unique_ptr<any_peer> peer = entry.make(arena);
  if (peer == nullptr) throw std::runtime_error(std::string(entry.name) + " is not available here");
  return peer;
}

double sum_of_nanoseconds(const std::vector<std::uint64_t>& ticks, const clock_scale& scale) {
  const auto add = [&scale](std::uint64_t sum, std::uint64_t each) {
    return sum + each - std::min(each, scale.overhead);
  };
  return static_cast<double>(std::accumulate(ticks.begin(), ticks.end(), std::uint64_t{0}, add)) *
         scale.nanoseconds_per_tick;
}

/// Replaces a member of `into` by the median of that member over all repetitions.
template <class Target, class Member>
void take_median(Target& into, const std::vector<Target>& repetitions, Member member) {
  std::vector<double> values;
  for (const Target& each : repetitions) values.push_back(each.*member);
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  into.*member = *middle;
}

void take_medians(latency& into, const std::vector<measurement>& repetitions, latency measurement::*kind) {
  std::vector<latency> values;
  for (const measurement& each : repetitions) values.push_back(each.*kind);
  for (const auto member : {&latency::p50, &latency::p99, &latency::p999, &latency::max})
    take_median(into, values, member);
}

measurement measure_once(const peer_entry& entry, const arena_config& arena, const replay_plan& plan,
                         const replay_settings& settings, const clock_scale& scale) {
  const std::unique_ptr<any_peer> peer = make_peer(entry, arena);
  replay_outcome outcome = replay(*peer, plan, settings);
  measurement result;
  result.operations = outcome.allocate_ticks.size() + outcome.free_ticks.size();
  result.failures = outcome.failures;
  result.refused_frees = outcome.refused_frees;
  const double total =
      sum_of_nanoseconds(outcome.allocate_ticks, scale) + sum_of_nanoseconds(outcome.free_ticks, scale);
  if (result.operations != 0) result.nanoseconds_per_operation = total / static_cast<double>(result.operations);
  result.allocate = summarise(outcome.allocate_ticks, scale);
  result.free = summarise(outcome.free_ticks, scale);
  result.peak_live_bytes = outcome.peak_live_bytes;
  result.made = outcome.made;
  result.moved = outcome.moved;
  if (outcome.peak_committed_bytes != 0) result.peak_committed_bytes = outcome.peak_committed_bytes;
  return result;
}

bool serves(const peer_entry& entry, arena_config arena, const replay_plan& plan, std::uint64_t limit) {
  arena.limit = limit;
  const std::unique_ptr<any_peer> peer = make_peer(entry, arena);
  const replay_settings settings{.order = replay_order::recorded, .stop_at_refusal = true};
  return replay(*peer, plan, settings).failures == 0;
}

}  // namespace

measurement measure(const peer_entry& entry, const arena_config& arena, const replay_plan& plan,
                    const replay_settings& settings, std::size_t repetitions, const clock_scale& scale) {
  std::vector<measurement> all;
  for (std::size_t i = 0; i < repetitions; ++i) all.push_back(measure_once(entry, arena, plan, settings, scale));
  measurement result = *std::max_element(all.begin(), all.end(), [](const measurement& a, const measurement& b) {
    return a.peak_committed_bytes < b.peak_committed_bytes;
  });
  take_median(result, all, &measurement::nanoseconds_per_operation);
  take_medians(result.allocate, all, &measurement::allocate);
  take_medians(result.free, all, &measurement::free);
  for (const measurement& each : all) {
    result.failures = std::max(result.failures, each.failures);
    result.refused_frees = std::max(result.refused_frees, each.refused_frees);
  }
  return result;
}

std::optional<std::uint64_t> find_smallest_limit(const peer_entry& entry, const arena_config& arena,
                                                 const replay_plan& plan, std::uint64_t peak_live_bytes) {
  const std::uint64_t unit = arena.chunk != 0 ? arena.chunk : default_limit_unit;
  const std::uint64_t most = arena.capacity / unit;
  // In units: too_small never serves (less than the peak of live bytes cannot), enough does.
  std::uint64_t too_small = (std::max<std::uint64_t>(peak_live_bytes, 1) - 1) / unit;
  std::uint64_t enough = too_small + 1;
  for (std::uint64_t step = 1; !serves(entry, arena, plan, std::min(enough, most) * unit); step *= 2) {
    if (enough >= most) return std::nullopt;
    too_small = enough;
    enough += step;
  }
  enough = std::min(enough, most);
  while (enough - too_small > 1) {
    const std::uint64_t middle = too_small + (enough - too_small) / 2;
    (serves(entry, arena, plan, middle * unit) ? enough : too_small) = middle;
  }
  return enough * unit;
}

}  // namespace orderly::bench
