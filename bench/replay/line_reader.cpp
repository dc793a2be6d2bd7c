#include "line_reader.hpp"

#include <cctype>
#include <cstdio>

#include "trace.hpp"

namespace orderly::bench {

namespace {

constexpr std::string_view blanks = " \t\r";

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(blanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

/// Fit for a message: short, on one line, every byte visible.
std::string quoted(std::string_view text) {
  constexpr std::size_t longest = 60;
  std::string result = "'";
  for (const char c : text.substr(0, longest)) {
    if (std::isprint(static_cast<unsigned char>(c)) != 0) {
      result += c;
    } else {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
      result += escape;
    }
  }
  return result + (text.size() > longest ? "…'" : "'");
}

}  // namespace

line_reader::line_reader(const std::filesystem::path& file) : name_(file.string()), source_(open_bytes(file)) {}

bool line_reader::next() {
  while (next_raw()) {
    if (!trimmed(line_).empty()) return true;
  }
  return false;
}

bool line_reader::next_raw() {
  std::size_t end = buffer_.find('\n', begin_);
  while (end == std::string::npos && !ended_ && buffer_.size() - begin_ <= longest_line) {
    buffer_.erase(0, begin_);
    begin_ = 0;
    const std::size_t searched = buffer_.size();
    ended_ = !source_->append_to(buffer_);
    end = buffer_.find('\n', searched);
  }
  if (end == std::string::npos) end = buffer_.size();
  if (end == begin_ && ended_ && end == buffer_.size()) return false;
  line_ = std::string_view(buffer_).substr(begin_, end - begin_);
  begin_ = end == buffer_.size() ? end : end + 1;
  ++number_;
  if (line_.size() > longest_line) fail("a line of at most 65536 bytes", line_);
  return true;
}

const std::vector<std::string_view>& line_reader::fields() {
  fields_.clear();
  std::string_view rest = line_;
  for (std::size_t comma = rest.find(','); comma != std::string_view::npos; comma = rest.find(',')) {
    fields_.push_back(trimmed(rest.substr(0, comma)));
    rest.remove_prefix(comma + 1);
  }
  fields_.push_back(trimmed(rest));
  return fields_;
}

void line_reader::fail(std::string_view expected, std::string_view found) const {
  throw bad_input(name_ + ":" + std::to_string(number_) + ": expected " + std::string(expected) + ", found " +
                  quoted(found));
}

}  // namespace orderly::bench
