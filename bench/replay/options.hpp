/// \file
/// The command line of orderly-replay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "orderly/software_stream.hpp"
#include "replay.hpp"

namespace orderly::bench {

struct replay_options {
  std::vector<std::filesystem::path> traces;
  std::vector<std::string> allocators;  ///< empty: all that are available
  std::size_t threads = 0;              ///< 0: as many as the trace has, at most one for each processor
  std::size_t copies = 1;
  std::size_t repetitions = 5;
  replay_order order = replay_order::recorded;
  std::uint64_t chunk = 0;     ///< 0: the peer's default
  std::uint64_t limit = 0;     ///< 0: none
  double limit_over_live = 0;  ///< 0: `limit` counts
  std::uint64_t capacity = 0;  ///< 0: enough for the trace
  software_schedule schedule = software_schedule::workers;
  std::size_t run_ahead = 1024;
  bool pieces = false;
  double slack = -1;           ///< negative: orderly's default
  std::uint64_t unit = 1;
  bool touch = false;
  bool find_limit = false;
  bool list = false;
  std::filesystem::path json;      ///< empty: none
  std::filesystem::path plot;      ///< empty: none
  std::filesystem::path html;      ///< empty: none; these three look into orderly's pools
  std::filesystem::path state;     ///< empty: none
  std::filesystem::path snapshot;  ///< empty: none

  /// The limit for a trace; 0: none.
  [[nodiscard]] std::uint64_t limit_for(std::uint64_t peak_live_bytes) const {
    if (limit_over_live == 0) return limit;
    return static_cast<std::uint64_t>(limit_over_live * static_cast<double>(peak_live_bytes * copies));
  }
  [[nodiscard]] bool look_inside() const { return !html.empty() || !state.empty() || !snapshot.empty(); }
};

/// The options, or the status to exit with when there is nothing to run: help was printed, or the arguments are wrong.
struct parsed_options {
  replay_options options;
  std::optional<int> exit_status;
};

[[nodiscard]] parsed_options parse_options(int count, const char* const* arguments);

}  // namespace orderly::bench
