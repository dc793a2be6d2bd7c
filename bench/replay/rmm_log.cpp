/// The log of RMM's logging resource adaptor: one line for each call, in the order of the calls. Columns other than
/// the five below are ignored. One that RMM does not write is read: `Tag`, what an allocation was for.

#include <array>

#include "format.hpp"

namespace orderly::bench {

namespace {

constexpr std::array<std::string_view, 3> needed{"Action", "Pointer", "Size"};

std::uint64_t pointer_of(const line_reader& lines, std::string_view text) {
  if (text == "(nil)") return 0;
  const bool prefixed = text.starts_with("0x") || text.starts_with("0X");
  return number(lines, prefixed ? text.substr(2) : text, "a hexadecimal pointer", 16);
}

trace read(line_reader& lines, const header& columns, std::uint64_t unit) {
  const std::size_t action = *columns.find("Action");
  const std::size_t pointer = *columns.find("Pointer");
  const std::size_t size = *columns.find("Size");
  const std::optional<std::size_t> thread = columns.find("Thread");
  const std::optional<std::size_t> tag = columns.find("Tag");
  trace_builder builder(lines, unit);
  while (lines.next()) {
    const auto& fields = record(lines, columns);
    const std::string_view what = fields[action];
    if (what != "allocate" && what != "free" && what != "allocate failure")
      lines.fail("the action allocate, free or allocate failure", what);
    const std::uint64_t address = pointer_of(lines, fields[pointer]);
    const std::uint64_t bytes = number(lines, fields[size], "a size in bytes");
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
