/// \file
/// relocation_plan: which chunks are to be emptied, and where each block in them goes.
///
/// The plan is a look at the pool at one time. Nothing of it is held: a free node that is to be filled is claimed when
/// its turn comes, by its word as every other (W in buddy.hpp), and passed over if somebody else has it by then.
///
/// Which chunks. Let chunks stand in a row, the emptiest first. Blocks go from the front of the row to free nodes at
/// its end, chunk after chunk, until the two meet. Blocks of one size end up in the fewest chunks that can hold them:
/// whatever chunk was emptied, those behind the meeting have no room for another block of that size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "block_word.hpp"

namespace orderly::detail {

struct relocation_plan {
  struct move {
    std::size_t block = 0;  ///< its place among those that were offered
    node room;              ///< free, and large enough
  };

  unsigned chunk_order = 0;
  std::vector<move> moves;              ///< chunk after chunk
  std::vector<std::uint64_t> emptied;   ///< chunks that hold no block then: their first granules
};

}  // namespace orderly::detail
