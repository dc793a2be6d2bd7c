/// \file
/// A recorded allocation trace, ready to be replayed: sizes are in bytes, blocks and threads are dense numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace orderly::bench {

enum class action : std::uint8_t { allocate, free };

/// One call of the recorded program. Pointers are gone: every allocation of the trace has a block number of its own,
/// and its free carries the same number and size, so that a replay looks nothing up.
struct event {
  std::uint64_t bytes = 0;   ///< at least 1
  std::uint32_t block = 0;   ///< below trace::blocks
  std::uint16_t thread = 0;  ///< below trace::threads
  action what = action::allocate;
};

/// Invariants: a block is allocated once, and freed at most once, later in `events`.
struct trace {
  std::string name;
  std::vector<event> events;            ///< in recorded order
  std::size_t blocks = 0;
  std::size_t threads = 0;
  std::uint64_t peak_live_bytes = 0;    ///< highest sum of live sizes, in recorded order
  std::optional<double> recorded_seconds;  ///< from the first line to the last; none: the format does not tell
  std::size_t unknown_frees = 0;        ///< frees of a pointer that was not live; not among `events`
  std::size_t recorded_failures = 0;    ///< allocations that failed when recorded; not among `events`
  std::vector<std::string> tags;        ///< what blocks were for; empty: the trace does not say
  std::vector<std::uint16_t> tag_of;    ///< by block, an index into `tags`; empty with these
};

/// The input cannot be used. The message names the file, the line, what was expected and what was found.
class bad_input : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Reads a trace of any known format, compressed or not, and multiplies every size by `unit`. Throws bad_input.
[[nodiscard]] trace read_trace(const std::filesystem::path& file, std::uint64_t unit = 1);

}  // namespace orderly::bench
