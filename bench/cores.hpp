/// \file
/// The cores that this program may use, and threads on them.
#pragma once

#include <cstddef>
#include <vector>

namespace orderly::bench {

/// Their numbers, as the program found them when it first asked.
[[nodiscard]] const std::vector<std::size_t>& cores();

/// Thread counts worth measuring: 1, 2, 4, every further power of two up to the number of cores, and that number.
[[nodiscard]] std::vector<int> thread_counts();

/// Keeps the calling thread, one of `threads`, on a core of its own; where cores are fewer, lets it roam.
void pin(int thread, int threads);

}  // namespace orderly::bench
