/// \file
/// The state of pools over the course of traces as a JSON document; state.schema.json describes it. The page of
/// page.hpp and the snapshot of snapshot.hpp are made of the same document.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "history.hpp"
#include "plot.hpp"

namespace orderly::bench {

/// One trace, and what the allocators made of it.
struct traced_memory {
  std::filesystem::path file;
  std::string name;
  std::size_t events = 0;
  std::size_t threads = 0;               ///< of the trace
  std::size_t lanes = 0;                 ///< replaying threads
  std::uint64_t limit = 0;               ///< most bytes that arenas may commit; 0: none was set
  std::size_t interval = 1;              ///< events to a sample of `live` and of the curves, see picture
  std::vector<std::uint64_t> live;
  std::vector<memory_curve> curves;
  std::vector<memory_history> histories; ///< of orderly's pools among the allocators
};

[[nodiscard]] std::string state_document(std::span<const traced_memory> traces);

/// Throws std::runtime_error when the file cannot be written.
void write_text(const std::filesystem::path& file, const std::string& text);

}  // namespace orderly::bench
