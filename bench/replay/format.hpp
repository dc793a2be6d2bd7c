/// \file
/// The formats of traces. A new format is one file with a `read` function and one line in formats().
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "line_reader.hpp"
#include "trace.hpp"

namespace orderly::bench {

/// Turns recorded calls into a trace.
class trace_builder {
 public:
  /// Errors are reported at the position of `lines`, which must outlive the builder.
  trace_builder(const line_reader& lines, std::uint64_t unit) : lines_(lines), unit_(unit) {}

  void allocate(std::string_view thread, std::uint64_t pointer, std::uint64_t bytes);
  void free(std::string_view thread, std::uint64_t pointer);
  /// What the last allocated block is for. Empty: nothing special. Of each block, or of none.
  void tag_last(std::string_view tag);
  void failed_allocation() { ++result_.recorded_failures; }

  /// How long after some instant the line was recorded.
  void recorded_at(double seconds) {
    if (!first_time_) first_time_ = seconds;
    result_.recorded_seconds = seconds - *first_time_;
  }

  [[nodiscard]] trace finish();

 private:
  struct live_block {
    std::uint64_t bytes;
    std::uint32_t block;
    std::size_t line;
  };

  [[nodiscard]] std::uint64_t scaled(std::uint64_t bytes) const;
  [[nodiscard]] std::uint16_t thread_number(std::string_view thread);

  const line_reader& lines_;
  std::uint64_t unit_;
  trace result_;
  std::unordered_map<std::uint64_t, live_block> live_;
  std::map<std::string, std::uint16_t, std::less<>> threads_;
  std::map<std::string, std::uint16_t, std::less<>> tags_;
  std::uint64_t live_bytes_ = 0;
  std::optional<double> first_time_;
};

/// Where the columns of a CSV file stand, by the names of its first line.
class header {
 public:
  explicit header(const std::vector<std::string_view>& names) : names_(names.begin(), names.end()) {}

  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const;
  [[nodiscard]] bool has_all(std::span<const std::string_view> names) const;
  [[nodiscard]] std::size_t columns() const noexcept { return names_.size(); }

 private:
  std::vector<std::string> names_;
};

/// The fields of the current line. Fails unless there are as many as the header has columns.
[[nodiscard]] const std::vector<std::string_view>& record(line_reader& lines, const header& columns);

/// The whole of `text` as a number that is not negative; fails with `expected` otherwise.
[[nodiscard]] std::uint64_t number(const line_reader& lines, std::string_view text, std::string_view expected,
                                   int base = 10);

struct format {
  std::string_view name;
  std::span<const std::string_view> columns;  ///< a file whose header has all of these is of this format
  trace (*read)(line_reader& lines, const header& columns, std::uint64_t unit);  ///< the lines after the header
};

extern const format rmm_log;
extern const format minimalloc;

}  // namespace orderly::bench
