/// The log of RMM's logging resource adaptor: one line for each call, in the order of the calls. Columns other than
/// those below are ignored. One that RMM does not write is read: `Tag`, what an allocation was for. Of the time only the
/// length of the whole matters; one that cannot be read is ignored too.

#include <array>
#include <charconv>
#include <optional>

#include "format.hpp"

namespace orderly::bench {

namespace {

constexpr std::array<std::string_view, 3> needed{"Action", "Pointer", "Size"};

std::uint64_t pointer_of(const line_reader& lines, std::string_view text) {
  if (text == "(nil)") return 0;
  const bool prefixed = text.starts_with("0x") || text.starts_with("0X");
  return number(lines, prefixed ? text.substr(2) : text, "a hexadecimal pointer", 16);
}

/// Seconds, or hours, minutes and seconds as RMM has them: HH:MM:SS.ffffff.
std::optional<double> time_of(std::string_view text) {
  double seconds = 0;
  for (;;) {
    const std::size_t colon = text.find(':');
    const std::string_view part = text.substr(0, colon);
    double value = 0;
    const auto [end, outcome] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (outcome != std::errc{} || end != part.data() + part.size() || !(value >= 0)) return std::nullopt;
    seconds = seconds * 60 + value;
    if (colon == std::string_view::npos) return seconds;
    text.remove_prefix(colon + 1);
  }
}

trace read(line_reader& lines, const header& columns, std::uint64_t unit) {
  const std::size_t action = *columns.find("Action");
  const std::size_t pointer = *columns.find("Pointer");
  const std::size_t size = *columns.find("Size");
  const std::optional<std::size_t> thread = columns.find("Thread");
  const std::optional<std::size_t> tag = columns.find("Tag");
  const std::optional<std::size_t> time = columns.find("Time");
  trace_builder builder(lines, unit);
  while (lines.next()) {
    const auto& fields = record(lines, columns);
    const std::string_view what = fields[action];
    if (what != "allocate" && what != "free" && what != "allocate failure")
      lines.fail("the action allocate, free or allocate failure", what);
    const std::uint64_t address = pointer_of(lines, fields[pointer]);
    const std::uint64_t bytes = number(lines, fields[size], "a size in bytes");
    if (const auto seconds = time ? time_of(fields[*time]) : std::nullopt) builder.recorded_at(*seconds);
    const std::string_view caller = thread ? fields[*thread] : "0";
    if (what == "allocate failure") {
      builder.failed_allocation();
    } else if (address == 0) {
      // An allocation of no bytes, or its free: there is no block.
    } else if (what == "allocate") {
      builder.allocate(caller, address, bytes);
      if (tag) builder.tag_last(fields[*tag]);
    } else {
      builder.free(caller, address);
    }
  }
  return builder.finish();
}

}  // namespace

const format rmm_log{"RMM log", needed, read};

}  // namespace orderly::bench
