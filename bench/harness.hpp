/// \file
/// What the benchmark programs share: whether their figures mean anything, and how threads share out their steps.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <string>

#include "latency.hpp"

namespace orderly::bench {

/// Why the figures of the program that includes this mean nothing; null if they do.
constexpr const char* distortion() {
#if defined(ORDERLY_SANITIZED)
  return "a sanitizer is on";
#elif !defined(__OPTIMIZE__)
  return "the build is not optimised";
#elif !defined(NDEBUG)
  return "assertions are on";
#else
  return nullptr;
#endif
}

/// Says it in the results, and on the terminal.
inline void report_distortion() {
  benchmark::AddCustomContext("distorted_by", distortion() != nullptr ? distortion() : "nothing");
  if (distortion() != nullptr) std::fprintf(stderr, "*** The figures mean nothing: %s. ***\n", distortion());
}

/// Runs the calling thread's share of `all` steps of all threads; returns how many it took. The threads draw `some` at a
/// time from what is left, so that all are busy to the end: with a fixed share each, one that a mutex favours would finish
/// first, and the others would be measured without contention. Inlined: a loop of a few nanoseconds is measured, and a
/// call's registers would be part of it.
template <class Work>
[[gnu::always_inline]] inline std::size_t share_out(Work& work, std::atomic<std::size_t>& drawn, std::size_t some, std::size_t all) {
  std::size_t taken = 0;
  for (;;) {
    const std::size_t first = drawn.fetch_add(some, std::memory_order_relaxed);  // only a count
    if (first >= all) return taken;
    const std::size_t last = std::min(first + some, all);
    for (std::size_t i = first; i < last; ++i) work.step();
    taken += last - first;
  }
}

/// Nanoseconds of calls, as counters whose names begin with `kind`.
[[gnu::cold]] inline void add_counters(benchmark::State& state, const std::string& kind, const latency& seen) {
  state.counters[kind + "p50"] = seen.p50;
  state.counters[kind + "p99"] = seen.p99;
  state.counters[kind + "p999"] = seen.p999;
  state.counters[kind + "max"] = seen.max;
}

}  // namespace orderly::bench
