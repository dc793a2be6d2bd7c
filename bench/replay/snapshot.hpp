/// \file
/// PyTorch's memory snapshot of what a pool did.
#pragma once

#include <filesystem>
#include <string>

namespace orderly::bench {

/// True if `file` ends in .pickle or .pkl.
[[nodiscard]] bool is_snapshot_name(const std::filesystem::path& file);

/// Writes the first history of a document of state.hpp as a snapshot, with python3 and state_to_snapshot.py. Throws
/// std::runtime_error when that fails.
void write_snapshot(const std::filesystem::path& file, const std::string& document);

}  // namespace orderly::bench
