/// \file
/// One allocator on one trace, measured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "clock.hpp"
#include "latency.hpp"
#include "peer/peer.hpp"
#include "replay.hpp"
#include "trace.hpp"

namespace orderly::bench {

/// Trivially copyable: it is handed over from the process that measured it.
struct measurement {
  std::uint64_t operations = 0;  ///< calls timed in one repetition
  std::uint64_t failures = 0;
  std::uint64_t refused_frees = 0;
  double nanoseconds_per_operation = 0;
  latency allocate;
  latency free;
  std::uint64_t peak_live_bytes = 0;
  std::optional<std::uint64_t> peak_committed_bytes;  ///< none: the allocator cannot tell
  std::optional<stream_work> made;                    ///< none: the allocator knows no streams
  std::optional<memory_moves> moved;                  ///< none: not asked for, or the allocator is not orderly
  std::optional<std::uint64_t> smallest_limit_bytes;  ///< none: not asked for, or no limit serves the trace
};

/// Replays `repetitions` times, each with a new peer. Times are medians over the repetitions; failures, refused frees
/// and committed memory are those of the worst. Throws std::runtime_error when the peer cannot be made.
[[nodiscard]] measurement measure(const peer_entry& entry, const arena_config& arena, const replay_plan& plan,
                                  const replay_settings& settings, std::size_t repetitions, const clock_scale& scale);

/// The smallest limit, to the chunk (64 KiB if none is set), with which the peer serves one copy of the trace in
/// recorded order without a refusal. The search doubles its step up from the peak of live bytes, then bisects, so it
/// takes for granted that what a limit serves, a higher one serves too. None: even the whole capacity does not serve.
[[nodiscard]] std::optional<std::uint64_t> find_smallest_limit(const peer_entry& entry, const arena_config& arena,
                                                               const replay_plan& plan, std::uint64_t peak_live_bytes);

}  // namespace orderly::bench
