#include "state.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace orderly::bench {

namespace {

using json = nlohmann::ordered_json;

/// One value of each row.
template <class Row, class Value>
json column(const std::vector<Row>& rows, Value value) {
  json::array_t values;
  values.reserve(rows.size());
  for (const Row& row : rows) values.emplace_back(std::invoke(value, row));
  return values;
}

/// The columns that all ranges have, with addresses from `origin`.
template <class Range>
json columns_of(const std::vector<Range>& ranges, std::uint64_t origin) {
  json table;
  table["address"] = column(ranges, [origin](const Range& range) { return range.address - origin; });
  table["bytes"] = column(ranges, &Range::bytes);
  table["from"] = column(ranges, &Range::from);
  table["to"] = column(ranges, &Range::to);
  return table;
}

json columns_of(const std::vector<statistics>& samples) {
  json table;
  table["requested_bytes"] = column(samples, &statistics::requested);
  table["allocated_bytes"] = column(samples, &statistics::allocated);
  table["cached_bytes"] = column(samples, &statistics::cached);
  table["committed_bytes"] = column(samples, &statistics::committed);
  table["peak_requested_bytes"] = column(samples, &statistics::peak_requested);
  table["peak_committed_bytes"] = column(samples, &statistics::peak_committed);
  table["allocations"] = column(samples, &statistics::allocations);
  table["frees"] = column(samples, &statistics::frees);
  table["failed"] = column(samples, &statistics::failed);
  table["bad_frees"] = column(samples, &statistics::bad_frees);
  table["passes"] = column(samples, &statistics::passes);
  return table;
}

json document_of(const memory_history& history) {
  std::uint64_t origin = history.committed.empty() ? 0 : history.committed.front().address;
  for (const memory_range& range : history.committed) origin = std::min(origin, range.address);
  json entry;
  entry["allocator"] = history.allocator;
  entry["granule_bytes"] = history.granule;
  entry["chunk_bytes"] = history.chunk;
  entry["capacity_bytes"] = history.samples.empty() ? 0 : history.samples.back().capacity;
  entry["limit_bytes"] = history.samples.empty() ? 0 : history.samples.back().limit;
  entry["origin"] = origin;
  json blocks = columns_of(history.live, origin);
  blocks["requested_bytes"] = column(history.live, &live_range::requested);
  blocks["thread"] = column(history.live, &live_range::thread);
  blocks["lane"] = column(history.live, &live_range::lane);
  blocks["freed_by"] = column(history.live, &live_range::freed_by);
  if (!history.tags.empty()) blocks["tag"] = column(history.live, &live_range::tag);
  entry["blocks"] = std::move(blocks);
  if (!history.tags.empty()) entry["tags"] = history.tags;
  entry["cached"] = columns_of(history.cached, origin);
  entry["committed"] = columns_of(history.committed, origin);
  json refused;
  refused["at"] = column(history.refused, &refused_allocation::at);
  refused["requested_bytes"] = column(history.refused, &refused_allocation::requested);
  refused["thread"] = column(history.refused, &refused_allocation::thread);
  entry["refused"] = std::move(refused);
  json samples = columns_of(history.samples);
  samples["interval"] = history.interval;
  entry["statistics"] = std::move(samples);
  return entry;
}

json document_of(const traced_memory& trace) {
  json entry;
  entry["trace"] = trace.name;
  entry["file"] = trace.file.string();
  entry["events"] = trace.events;
  entry["threads"] = trace.threads;
  entry["lanes"] = trace.lanes;
  entry["limit_bytes"] = trace.limit != 0 ? json(trace.limit) : json();
  entry["interval"] = trace.interval;
  entry["live_bytes"] = trace.live;
  entry["allocators"] = json::array();
  for (const memory_curve& curve : trace.curves)
    entry["allocators"].push_back({{"allocator", curve.name}, {"committed_bytes", curve.committed}});
  entry["histories"] = json::array();
  for (const memory_history& history : trace.histories) entry["histories"].push_back(document_of(history));
  return entry;
}

}  // namespace

std::string state_document(std::span<const traced_memory> traces) {
  json document;
  document["format"] = "orderly memory history";
  document["version"] = 1;
  document["traces"] = json::array();
  for (const traced_memory& trace : traces) document["traces"].push_back(document_of(trace));
  // File names need not be UTF-8, JSON must be.
  return document.dump(-1, ' ', false, json::error_handler_t::replace) + '\n';
}

void write_text(const std::filesystem::path& file, const std::string& text) {
  std::ofstream out(file, std::ios::binary);
  out << text;
  if (!out.flush()) throw std::runtime_error(file.string() + ": cannot be written");
}

}  // namespace orderly::bench
