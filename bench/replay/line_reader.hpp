/// \file
/// Lines of a file, decompressed on the way.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "byte_source.hpp"

namespace orderly::bench {

/// Reads a text file line by line: plain, or compressed with gzip, bzip2, xz or zstd. A PyTorch memory snapshot
/// (.pickle, .pkl, .json) is read as the text that snapshot_to_csv.py makes of it.
class line_reader {
 public:
  static constexpr std::size_t longest_line = 65536;

  /// Throws bad_input, as does next().
  explicit line_reader(const std::filesystem::path& file);

  /// Steps to the next line that is not blank. False: there is none.
  [[nodiscard]] bool next();

  /// The current line without its end; valid until next().
  [[nodiscard]] std::string_view line() const noexcept { return line_; }

  /// The current line, split at commas, each field without the blanks around it; valid until next().
  [[nodiscard]] const std::vector<std::string_view>& fields();

  [[nodiscard]] std::size_t number() const noexcept { return number_; }

  /// Throws bad_input with the current position: "file:line: expected …, found …".
  [[noreturn]] void fail(std::string_view expected, std::string_view found) const;

 private:
  [[nodiscard]] bool next_raw();

  std::string name_;
  std::unique_ptr<byte_source> source_;
  std::string buffer_;     // bytes read ahead; line_ points into it
  std::size_t begin_ = 0;  // first byte of buffer_ that no line has taken
  bool ended_ = false;     // the source has no more bytes
  std::string_view line_;
  std::size_t number_ = 0;
  std::vector<std::string_view> fields_;
};

}  // namespace orderly::bench
