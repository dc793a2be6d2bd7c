/// \file
/// Pictures of memory: how much each allocator holds over the course of a trace, and where its blocks lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace orderly::bench {

/// What one allocator had committed, sampled along the trace.
struct memory_curve {
  std::string name;
  std::vector<std::uint64_t> committed;
};

/// A block where and when it was live.
struct drawn_block {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  std::size_t begin = 0;  ///< position in the trace of its allocation
  std::size_t end = 0;    ///< and of its free
};

/// One trace. Sample i of every series is the highest value after the events from i * interval to the next sample.
struct picture {
  std::string title;
  std::string subtitle;
  std::size_t events = 0;
  std::size_t interval = 1;
  std::vector<std::uint64_t> live;
  std::vector<memory_curve> curves;
  std::string map_name;            ///< the allocator whose blocks are drawn; empty: no address map
  std::vector<drawn_block> blocks;
};

/// True if `file` ends in .png or .svg.
[[nodiscard]] bool is_plot_name(const std::filesystem::path& file);

/// Draws one row for each picture: memory over time, and the address map. Throws std::runtime_error when the file
/// cannot be written.
void draw(const std::filesystem::path& file, std::span<const picture> pictures);

}  // namespace orderly::bench
