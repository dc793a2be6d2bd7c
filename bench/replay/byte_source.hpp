/// \file
/// Where the text of a trace comes from.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

namespace orderly::bench {

class byte_source {
 public:
  byte_source() = default;
  byte_source(const byte_source&) = delete;
  byte_source& operator=(const byte_source&) = delete;
  virtual ~byte_source() = default;

  /// Appends the next bytes. False: the end, nothing appended. Throws bad_input.
  [[nodiscard]] virtual bool append_to(std::string& buffer) = 0;
};

/// The decompressed contents of a file, or what snapshot_to_csv.py makes of a PyTorch snapshot. Throws bad_input.
[[nodiscard]] std::unique_ptr<byte_source> open_bytes(const std::filesystem::path& file);

}  // namespace orderly::bench
