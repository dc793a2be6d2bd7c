/// The CSV of google/minimalloc: one line for each buffer, with the times at which it starts and ceases to be live.

#include <algorithm>
#include <array>
#include <tuple>

#include "format.hpp"

namespace orderly::bench {

namespace {

constexpr std::array<std::string_view, 4> needed{"id", "lower", "upper", "size"};

struct moment {
  std::uint64_t time;
  bool starts;  // false sorts first: the upper time is excluded, so the memory serves buffers that start then
  std::uint64_t buffer;
  std::uint64_t bytes;
};

trace read(line_reader& lines, const header& columns, std::uint64_t unit) {
  const std::size_t lower = *columns.find("lower");
  const std::size_t upper = *columns.find("upper");
  const std::size_t size = *columns.find("size");
  std::vector<moment> moments;
  for (std::uint64_t buffer = 1; lines.next(); ++buffer) {
    const auto& fields = record(lines, columns);
    const std::uint64_t first = number(lines, fields[lower], "the time from which the buffer is live");
    const std::uint64_t last = number(lines, fields[upper], "the time from which the buffer is no longer live");
    const std::uint64_t bytes = number(lines, fields[size], "a size");
    if (first >= last) lines.fail("an upper time after the lower time " + std::to_string(first), fields[upper]);
    moments.push_back({first, true, buffer, bytes});
    moments.push_back({last, false, buffer, bytes});
  }
  std::stable_sort(moments.begin(), moments.end(), [](const moment& a, const moment& b) {
    return std::tie(a.time, a.starts) < std::tie(b.time, b.starts);
  });
  trace_builder builder(lines, unit);
  for (const moment& each : moments) {
    if (each.starts) {
      builder.allocate("0", each.buffer, each.bytes);
    } else {
      builder.free("0", each.buffer);
    }
  }
  return builder.finish();
}

}  // namespace

const format minimalloc{"MiniMalloc", needed, read};

}  // namespace orderly::bench
