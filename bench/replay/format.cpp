#include "format.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

namespace orderly::bench {

namespace {

/// Above every address space; keeps sums of sizes far from overflow.
constexpr std::uint64_t largest_block = std::uint64_t{1} << 48;
constexpr std::uint64_t largest_sum = std::uint64_t{1} << 62;

constexpr std::array formats{&rmm_log, &minimalloc};

/// "train_gpt" of "traces/train_gpt.csv.xz".
std::string trace_name(const std::filesystem::path& file) {
  constexpr std::array<std::string_view, 10> endings{".xz",  ".gz",  ".zst", ".bz2",    ".csv",
                                                     ".txt", ".log", ".pkl", ".pickle", ".json"};
  std::filesystem::path name = file.filename();
  while (std::find(endings.begin(), endings.end(), name.extension().string()) != endings.end()) name = name.stem();
  return name.string();
}

std::string known_headers() {
  std::string text = "a header line with the columns";
  for (const format* known : formats) {
    text += known == formats.front() ? " " : ", or ";
    for (const std::string_view column : known->columns)
      text.append(column == known->columns.front() ? "" : ",").append(column);
    text.append(" (").append(known->name).append(")");
  }
  return text;
}

}  // namespace

std::uint64_t trace_builder::scaled(std::uint64_t bytes) const {
  if (bytes > largest_block / unit_)
    lines_.fail("a size of at most 2^48 bytes", std::to_string(bytes) + " times " + std::to_string(unit_));
  return std::max<std::uint64_t>(bytes * unit_, 1);
}

std::uint16_t trace_builder::thread_number(std::string_view thread) {
  const auto known = threads_.find(thread);
  if (known != threads_.end()) return known->second;
  if (threads_.size() > std::numeric_limits<std::uint16_t>::max()) lines_.fail("at most 65536 threads", thread);
  const auto number = static_cast<std::uint16_t>(threads_.size());
  threads_.emplace(thread, number);
  return number;
}

void trace_builder::allocate(std::string_view thread, std::uint64_t pointer, std::uint64_t bytes) {
  if (result_.blocks > std::numeric_limits<std::uint32_t>::max()) lines_.fail("at most 2^32 allocations", "more");
  const live_block block{scaled(bytes), static_cast<std::uint32_t>(result_.blocks), lines_.number()};
  const auto [earlier, added] = live_.try_emplace(pointer, block);
  if (!added)
    lines_.fail("a pointer that is not live", "the pointer allocated in line " + std::to_string(earlier->second.line));
  live_bytes_ += block.bytes;
  if (live_bytes_ > largest_sum) lines_.fail("live sizes that sum to at most 2^62 bytes", std::to_string(live_bytes_));
  result_.peak_live_bytes = std::max(result_.peak_live_bytes, live_bytes_);
  result_.events.push_back({block.bytes, block.block, thread_number(thread), action::allocate});
  ++result_.blocks;
}

void trace_builder::free(std::string_view thread, std::uint64_t pointer) {
  const auto found = live_.find(pointer);
  if (found == live_.end()) {
    ++result_.unknown_frees;
    return;
  }
  live_bytes_ -= found->second.bytes;
  result_.events.push_back({found->second.bytes, found->second.block, thread_number(thread), action::free});
  live_.erase(found);
}

void trace_builder::tag_last(std::string_view tag) {
  if (tag.empty()) tag = "untagged";
  auto known = tags_.find(tag);
  if (known == tags_.end()) {
    if (tags_.size() > std::numeric_limits<std::uint16_t>::max()) lines_.fail("at most 65536 tags", tag);
    known = tags_.emplace(tag, static_cast<std::uint16_t>(tags_.size())).first;
    result_.tags.emplace_back(tag);
  }
  result_.tag_of.push_back(known->second);
}

trace trace_builder::finish() {
  result_.threads = threads_.size();
  if (result_.recorded_seconds < 0.0) result_.recorded_seconds.reset();  // past midnight
  return std::move(result_);
}

std::optional<std::size_t> header::find(std::string_view name) const {
  const auto found = std::find(names_.begin(), names_.end(), name);
  if (found == names_.end()) return std::nullopt;
  return static_cast<std::size_t>(found - names_.begin());
}

bool header::has_all(std::span<const std::string_view> names) const {
  return std::all_of(names.begin(), names.end(), [this](std::string_view name) { return find(name).has_value(); });
}

const std::vector<std::string_view>& record(line_reader& lines, const header& columns) {
  const std::vector<std::string_view>& fields = lines.fields();
  if (fields.size() != columns.columns())
    lines.fail(std::to_string(columns.columns()) + " fields, as in the header", lines.line());
  return fields;
}

std::uint64_t number(const line_reader& lines, std::string_view text, std::string_view expected, int base) {
  std::uint64_t value = 0;
  const auto [end, outcome] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (outcome != std::errc{} || end != text.data() + text.size()) lines.fail(expected, text);
  return value;
}

trace read_trace(const std::filesystem::path& file, std::uint64_t unit) {
  line_reader lines(file);
  if (!lines.next()) throw bad_input(file.string() + ":1: expected " + known_headers() + ", found the end of the file");
  const header columns(lines.fields());
  const auto fits = [&columns](const format* known) { return columns.has_all(known->columns); };
  const auto* const found = std::find_if(formats.begin(), formats.end(), fits);
  if (found == formats.end()) lines.fail(known_headers(), lines.line());
  trace result = (*found)->read(lines, columns, unit);
  result.name = trace_name(file);
  return result;
}

}  // namespace orderly::bench
