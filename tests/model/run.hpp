/// \file
/// What the explorer's program asks of the explorer.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "explorer.hpp"

namespace orderly::model {

struct scenario_info {
  const char* group;
  const char* name;
  traits of;
  registration::maker make;
};

struct outcome {
  std::uint64_t executions = 0;
  std::uint64_t pruned = 0;  ///< given up, since another execution leads to the same
  std::uint64_t restarts = 0;
  std::uint32_t shared = 0;  ///< objects whose operations are steps
  bool failed = false;
};

/// Of a search.
struct limits {
  unsigned preemptions = 0;
  unsigned stale = 0;  ///< loads of an old value
  // The reductions of explorer.hpp that leave out executions. Without them the explorer is compared with itself.
  bool sleeping = true;
  bool merging = true;
};

[[nodiscard]] const std::vector<scenario_info>& all_scenarios();

/// Once, before any other. `warm_up` makes what the library makes once in a process.
void prepare(void (*warm_up)());

/// Every execution within the limits, or up to the first find, which is printed. `results`: what they came to, each once,
/// as hashes of what every thread has read and of the last values.
[[nodiscard]] outcome explore(const scenario_info& of, const limits& within, std::vector<std::uint64_t>* results = nullptr);

/// That many random executions, or up to the first find.
[[nodiscard]] outcome sample(const scenario_info& of, std::uint64_t seed, std::uint64_t executions);
void start_random(std::uint64_t seed);

/// One execution, step by step. False: it fails.
[[nodiscard]] bool replay(const scenario_info& of, const char* script);

}  // namespace orderly::model
