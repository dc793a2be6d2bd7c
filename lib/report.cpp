#include "orderly/report.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

namespace orderly {
namespace {

using remedy = memory_report::remedy;

/// A size for people.
struct size_text {
  explicit size_text(std::size_t bytes) noexcept {
    static constexpr std::array<const char*, 7> units{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    std::size_t unit = 0;
    auto value = static_cast<double>(bytes);
    for (; value >= 1023.95 && unit + 1 < units.size(); value /= 1024) ++unit;  // no 1024.0
    std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  }
  char text[16];
};

/// Counts what it has no room for.
class writer {
 public:
  writer(char* text, std::size_t bytes) noexcept : text_(bytes == 0 ? &nowhere_ : text), bytes_(bytes) {
    if (bytes_ != 0) text_[0] = '\0';
  }
  writer(const writer&) = delete;
  writer& operator=(const writer&) = delete;
  void add(const char* text) noexcept { add("%s", text); }
  template <class... Values>
    requires(sizeof...(Values) != 0)
  void add(const char* format, Values... values) noexcept {
    const std::size_t at = std::min(length_, bytes_);
    const int length = std::snprintf(text_ + at, bytes_ - at, format, values...);
    length_ += static_cast<std::size_t>(std::max(length, 0));
  }
  [[nodiscard]] std::size_t length() const noexcept { return length_; }

 private:
  char nowhere_ = '\0';
  char* text_;
  std::size_t bytes_;
  std::size_t length_ = 0;
};

[[nodiscard]] const char* plural(std::uint64_t count) noexcept { return count == 1 ? "" : "s"; }

void add_lane(writer& to, const memory_report::lane& of) noexcept {
  to.add("%s in caches, %s freed in it and not everybody's yet\n", size_text(of.cached).text, size_text(of.held).text);
}

void add_attempts(writer& to, const memory_report::attempts& tried) noexcept {
  const char* separator = "  tried:       ";
  const auto item = [&](const char* format, auto... values) {
    to.add("%s", separator);
    to.add(format, values...);
    separator = "; ";
  };
  if (tried.passes != 0 || tried.shared_pass)
    item("%u pass%s%s, %s out of caches, %s decommitted", tried.passes, tried.passes == 1 ? "" : "es",
         tried.shared_pass ? " and another thread's" : "", size_text(tried.reclaimed).text,
         size_text(tried.released).text);
  if (tried.by_limit) item("the limit allows no more");
  if (tried.by_source)
    item("the source refused to commit%s%s", tried.source_error[0] == '\0' ? "" : ": ", tried.source_error);
  if (tried.by_order) item("a stream could not be made to wait for the last users of free memory");
  if (tried.waited) item("streams were waited for");
  if (tried.stopped_pass) item("no pass, since a thread is stopped inside of one");
  if (tried.stopped_thread) item("a thread that is stopped inside of a call kept what it has");
  if (tried.handler_calls != 0) item("the handler was called %u time%s", tried.handler_calls, plural(tried.handler_calls));
  if (separator[0] == ';') to.add("\n");
}

void add_advice(writer& to, const memory_report& of, const memory_report::advice& given) noexcept {
  const size_text bytes(given.bytes);
  to.add("  would help:  ");
  switch (given.what) {
    case remedy::raise_capacity:
      return to.add("a pool with a capacity of at least %zu bytes (%s): no request exceeds it\n", given.bytes, bytes.text);
    case remedy::raise_limit:
      return to.add("a limit of at least %zu bytes, %s more\n", given.bytes, size_text(given.bytes - of.limit).text);
    case remedy::more_memory:
      return to.add("a pool of at least %s more memory\n", bytes.text);
    case remedy::synchronize:
      return to.add("synchronize(): up to %s are freed in streams that may still use them\n", bytes.text);
    case remedy::let_wait:
      return to.add("stream_options::wait_before_refusing, so that the pool waits for streams itself\n");
    case remedy::end_graphs:
      return to.add("to destroy captured graphs that are not needed: %s are freed, and theirs\n", bytes.text);
    case remedy::reclaim:
      return to.add("trim() or defragment(): caches hold %s\n", bytes.text);
    case remedy::relocate:
      if (of.chunk == 0)
        return to.add("to move blocks (relocatable_blocks): %s are free, the largest piece %s\n", bytes.text,
                      size_text(of.largest_now).text);
      return to.add("to move blocks (relocatable_blocks): at most %zu chunk%s of %s could be emptied\n", given.count,
                    plural(given.count), size_text(of.chunk).text);
    case remedy::elsewhere:
      return to.add("to free memory elsewhere: the limit leaves %s, and the source has not got them\n", bytes.text);
    case remedy::resume_thread:
      return to.add("to let the stopped thread go on\n");
    case remedy::ask_for_less:
      return to.add("to ask for at most %zu bytes (%s) at once\n", given.bytes, bytes.text);
  }
}

}  // namespace

std::size_t memory_report::print(char* text, std::size_t bytes) const noexcept {
  writer to(text, bytes);
  if (requested != 0)
    to.add("orderly: out of memory: %zu bytes (%s) requested\n", requested, size_text(requested).text);
  else
    to.add("orderly: memory\n");
  to.add("  committed:   %s; limit %s, capacity %s\n", size_text(committed).text, size_text(limit).text,
         size_text(capacity).text);
  to.add("  live:        %s in %llu block%s; %s requested, peak %s\n", size_text(live).text,
         static_cast<unsigned long long>(live_blocks), plural(live_blocks), size_text(live_requested).text,
         size_text(peak_requested).text);
  to.add("  cached:      %s\n", size_text(cached).text);
  // One lane without a handle says no more than that.
  if (lane_count > 1 || more_lanes != 0 || (lane_count == 1 && (lanes[0].stream != nullptr || lanes[0].held != 0))) {
    for (std::size_t i = 0; i < lane_count; ++i) {
      to.add("    %sstream %p: ", lanes[i].released ? "released " : "", lanes[i].stream);
      add_lane(to, lanes[i]);
    }
    if (more_lanes != 0) {
      to.add("    %zu more: ", more_lanes);
      add_lane(to, rest);
    }
  }
  if (graphs != 0) to.add("    graphs: %s freed, and theirs until they are gone\n", size_text(graphs).text);
  to.add("  free:        %s scattered, %s %s; fragmentation %.1f %%\n", size_text(scattered).text, size_text(idle).text,
         chunk != 0 ? "in whole chunks" : "in one piece", fragmentation);
  to.add("  largest:     %s as it lies, %s with growth\n", size_text(largest_now).text, size_text(largest_grown).text);
  add_attempts(to, tried);
  for (std::size_t i = 0; i < help_count; ++i) add_advice(to, *this, helps[i]);
  if (!tags_accounted) {
    to.add("  by tag:      not accounted; see options::account_tags\n");
    return to.length();
  }
  for (std::size_t i = 0; i < tag_count; ++i) {
    const tag_figures& each = tags[i];
    to.add("  %s%s: %s requested in %llu block%s, peak %s\n", i == 0 ? "by tag:      " : "             ", each.name,
           size_text(each.requested).text, static_cast<unsigned long long>(each.blocks), plural(each.blocks),
           size_text(each.peak_requested).text);
  }
  return to.length();
}

std::string memory_report::message() const {
  std::array<char, most_text> text;
  return {text.data(), std::min(print(text.data(), text.size()), text.size() - 1)};
}

}  // namespace orderly
