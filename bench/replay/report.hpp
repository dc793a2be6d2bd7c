/// \file
/// Results as a table for people and as JSON for programs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "clock.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "trace.hpp"

namespace orderly::bench {

/// One allocator on one trace.
struct report_row {
  std::string allocator;
  bool arena = false;
  std::optional<measurement> measured;  ///< none: `error` says why
  std::string error;
};

/// One trace.
struct report_section {
  std::filesystem::path file;
  std::string name;
  std::size_t events = 0;
  std::size_t threads = 1;  ///< of one copy
  std::uint64_t peak_live_bytes = 0;
  std::optional<double> recorded_seconds;
  std::size_t unknown_frees = 0;
  std::size_t recorded_failures = 0;
  std::vector<report_row> rows;
};

void print_table(std::ostream& out, const report_section& section, const replay_options& options);

/// Throws std::runtime_error when the file cannot be written.
void write_json(const std::filesystem::path& file, std::span<const report_section> sections,
                const replay_options& options, const clock_scale& scale);

}  // namespace orderly::bench
