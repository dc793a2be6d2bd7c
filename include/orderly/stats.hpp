/// \file
/// Counters of a pool, and what it tells of a block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "orderly/error.hpp"
#include "orderly/tag.hpp"

namespace orderly {

/// A snapshot. At quiescence every equation below holds exactly; while other threads work, each member is the value
/// of some recent instant. All sizes in bytes.
///
///   requested <= allocated,  allocated + cached <= committed <= capacity
struct statistics {
  std::size_t requested = 0;       ///< sum of the sizes asked for, over live blocks
  std::size_t allocated = 0;       ///< sum of the lengths of live blocks (requested, rounded to classes)
  std::size_t cached = 0;          ///< blocks in magazines: freed, not yet given back to the buddy system
  std::size_t committed = 0;       ///< physical memory held
  std::size_t peak_requested = 0;  ///< highest requested. Exact while one thread works; between threads it may be off
                                   ///< by what they have not published yet: 64 KiB or 1/128 of the peak each, and up to
                                   ///< 16 MiB of one whose memory goes up and down by as much all the time
  std::size_t peak_committed = 0;  ///< highest committed: never less than what the source had granted at a time, and
                                   ///< more only by what it refused to another thread at that moment
  std::size_t capacity = 0;        ///< options::capacity as rounded
  std::size_t limit = 0;           ///< options::limit as rounded
  std::uint64_t allocations = 0;   ///< successful allocations
  std::uint64_t frees = 0;         ///< successful frees
  std::uint64_t failed = 0;        ///< allocations refused
  std::uint64_t bad_frees = 0;     ///< frees refused
  std::uint64_t passes = 0;        ///< passes under the mutex: reclaim, trim, defragment
};

/// What blocks of one tag hold of a pool that accounts tags. At quiescence exact, and the sums over all tags are the
/// pool's; else as statistics. All sizes in bytes. After a double free that raced with a free (see pool::deallocate) one
/// tag may lack for good what another has too much.
struct tag_statistics {
  orderly::tag tag;
  std::size_t requested = 0;       ///< sum of the sizes asked for, over live blocks
  std::size_t allocated = 0;       ///< sum of the lengths of live blocks
  std::size_t peak_requested = 0;  ///< highest requested; as exact as the pool's
  std::uint64_t allocations = 0;   ///< successful ones
  std::uint64_t frees = 0;         ///< of blocks that bore the tag; live blocks are the difference
};

/// One block as pool::for_each_block shows it.
struct block_info {
  void* address = nullptr;
  std::size_t bytes = 0;      ///< length
  std::size_t requested = 0;  ///< bytes asked for; 0 unless live
  block_state state = block_state::none;
  orderly::tag tag;  ///< untagged unless live, in a pool that accounts tags
};

}  // namespace orderly
