#include "report.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace orderly::bench {

namespace {

using json = nlohmann::ordered_json;
using line = std::vector<std::string>;

constexpr const char* nothing = "-";

std::string decimal(double value, int digits) {
  char text[48];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string mebibytes(std::uint64_t bytes) { return decimal(static_cast<double>(bytes) / 0x1p20, 1) + " MiB"; }

std::string ratio(const std::optional<std::uint64_t>& bytes, std::uint64_t peak_live) {
  if (!bytes || peak_live == 0) return nothing;
  return decimal(static_cast<double>(*bytes) / static_cast<double>(peak_live), 3);
}

line table_header(bool with_limit) {
  line cells{"allocator", "ns/op", "p50", "p99", "p99.9", "max ns", "committed/live"};
  if (with_limit) cells.emplace_back("limit/live");
  cells.insert(cells.end(), {"failures", "bad frees"});
  return cells;
}

line table_row(const report_row& row, const report_section& section, bool with_limit) {
  const measurement& m = *row.measured;
  line cells{row.allocator,
             decimal(m.nanoseconds_per_operation, 1),
             decimal(m.allocate.p50, 0),
             decimal(m.allocate.p99, 0),
             decimal(m.allocate.p999, 0),
             decimal(m.allocate.max, 0),
             ratio(m.peak_committed_bytes, m.peak_live_bytes)};
  if (with_limit) cells.push_back(ratio(m.smallest_limit_bytes, section.peak_live_bytes));
  cells.insert(cells.end(), {std::to_string(m.failures), std::to_string(section.unknown_frees + m.refused_frees)});
  return cells;
}

void print_aligned(std::ostream& out, const std::vector<line>& lines) {
  std::vector<std::size_t> widths(lines.front().size());
  for (const line& cells : lines) {
    for (std::size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  for (const line& cells : lines) {
    out << "  " << cells[0] << std::string(widths[0] - cells[0].size(), ' ');
    for (std::size_t i = 1; i < cells.size(); ++i)
      out << "  " << std::string(widths[i] - cells[i].size(), ' ') << cells[i];
    out << '\n';
  }
}

std::string plural(std::size_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

template <class Value>
json or_null(const std::optional<Value>& value) {
  return value ? json(*value) : json();
}

double rounded(double nanoseconds) { return std::round(nanoseconds * 10) / 10; }

void add_latency(json& entry, const std::string& prefix, const latency& times) {
  entry[prefix + "p50_ns"] = rounded(times.p50);
  entry[prefix + "p99_ns"] = rounded(times.p99);
  entry[prefix + "p999_ns"] = rounded(times.p999);
  entry[prefix + "max_ns"] = rounded(times.max);
}

json moved_memory(const std::optional<memory_moves>& moved) {
  if (!moved) return {};
  json entry;
  entry["commits"] = moved->commits;
  entry["decommits"] = moved->decommits;
  entry["committed_bytes"] = moved->committed_bytes;
  entry["decommitted_bytes"] = moved->decommitted_bytes;
  entry["committed_pieces"] = moved->committed_pieces;
  entry["decommitted_pieces"] = moved->decommitted_pieces;
  entry["driver_calls"] = moved->driver_calls();
  entry["commit_seconds"] = moved->commit_seconds;
  entry["decommit_seconds"] = moved->decommit_seconds;
  return entry;
}

void add_measurement(json& entry, const measurement& m, const report_section& section) {
  entry["operations"] = m.operations;
  entry["failures"] = m.failures;
  entry["bad_frees"] = section.unknown_frees + m.refused_frees;
  entry["refused_frees"] = m.refused_frees;
  entry["ns_per_operation"] = rounded(m.nanoseconds_per_operation);
  add_latency(entry, "", m.allocate);
  add_latency(entry, "free_", m.free);
  entry["peak_live_bytes"] = m.peak_live_bytes;
  entry["peak_committed_bytes"] = or_null(m.peak_committed_bytes);
  entry["smallest_limit_bytes"] = or_null(m.smallest_limit_bytes);
  entry["records"] = m.made ? json(m.made->records) : json();
  entry["waits"] = m.made ? json(m.made->waits) : json();
  entry["moved"] = moved_memory(m.moved);
}

/// The keys of add_measurement, all null.
void add_failure(json& entry, const std::string& why) {
  json blank;
  add_measurement(blank, {}, {});
  for (const auto& item : blank.items()) entry[item.key()] = nullptr;
  entry["error"] = why;
}

json result_of(const report_section& section, const report_row& row, const replay_options& options) {
  json entry;
  entry["trace"] = section.name;
  entry["file"] = section.file.string();
  entry["allocator"] = row.allocator;
  entry["order"] = options.order == replay_order::recorded ? "trace" : "free";
  entry["threads"] = section.threads;
  entry["recorded_seconds"] = or_null(section.recorded_seconds);
  entry["copies"] = options.copies;
  entry["repetitions"] = options.repetitions;
  const auto arena_only = [&row](std::uint64_t bytes) { return row.arena && bytes != 0 ? json(bytes) : json(); };
  entry["chunk"] = arena_only(options.chunk);
  entry["limit"] = arena_only(options.limit_for(section.peak_live_bytes));
  if (row.measured) {
    add_measurement(entry, *row.measured, section);
  } else {
    add_failure(entry, row.error);
  }
  return entry;
}

}  // namespace

void print_table(std::ostream& out, const report_section& section, const replay_options& options) {
  out << section.name << ": " << plural(section.events, "operation") << " on " << plural(section.threads, "thread");
  if (options.copies > 1) out << ", " << options.copies << " copies at once";
  out << (options.order == replay_order::recorded ? ", in recorded order" : ", threads running freely")
      << ", peak live " << mebibytes(section.peak_live_bytes) << '\n';
  if (section.unknown_frees != 0)
    out << "  bad frees in the trace, of unknown pointers: " << section.unknown_frees << '\n';
  if (section.recorded_failures != 0)
    out << "  allocations that failed when recorded, left out: " << section.recorded_failures << '\n';
  std::vector<line> lines{table_header(options.find_limit)};
  for (const report_row& row : section.rows) {
    if (row.measured) lines.push_back(table_row(row, section, options.find_limit));
  }
  print_aligned(out, lines);
  for (const report_row& row : section.rows) {
    if (!row.measured) out << "  " << row.allocator << ": not measured: " << row.error << '\n';
  }
  out << std::endl;
}

void write_json(const std::filesystem::path& file, std::span<const report_section> sections,
                const replay_options& options, const clock_scale& scale) {
  json document;
  document["clock_overhead_ns"] = rounded(static_cast<double>(scale.overhead) * scale.nanoseconds_per_tick);
  document["results"] = json::array();
  for (const report_section& section : sections) {
    for (const report_row& row : section.rows) document["results"].push_back(result_of(section, row, options));
  }
  std::ofstream out(file);
  // File names need not be UTF-8, JSON must be.
  out << document.dump(2, ' ', false, json::error_handler_t::replace) << '\n';
  if (!out.flush()) throw std::runtime_error(file.string() + ": cannot be written");
}

}  // namespace orderly::bench
