/// \file
/// The books of a pool that no other thread works on: are they sound, and did they change?
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "orderly/pool.hpp"
#include "orderly/stream_pool.hpp"

namespace orderly::test {

/// Every block and the counters.
struct books {
  std::vector<block_info> blocks;
  statistics stats;
};

[[nodiscard]] inline statistics memory_of(const pool& audited) { return audited.stats(); }
[[nodiscard]] inline statistics memory_of(const stream_pool& audited) { return audited.stats().memory; }

/// Of a pool, with streams or without.
template <class Pool>
[[nodiscard]] books books_of(const Pool& audited) {
  books all;
  audited.for_each_block([&all](const block_info& block) { all.blocks.push_back(block); });
  all.stats = memory_of(audited);
  return all;
}

[[nodiscard]] inline bool same_block(const block_info& a, const block_info& b) {
  return a.address == b.address && a.bytes == b.bytes && a.requested == b.requested && a.state == b.state;
}

/// Equal in everything but the count of refused frees.
[[nodiscard]] inline bool same_books(const books& a, const books& b) {
  const auto sizes = [](const statistics& s) {
    return std::vector<std::size_t>{s.requested,      s.allocated,      s.cached,   s.committed,
                                    s.peak_requested, s.peak_committed, s.capacity, s.limit};
  };
  const auto counts = [](const statistics& s) {
    return std::vector<std::uint64_t>{s.allocations, s.frees, s.failed, s.passes};
  };
  return sizes(a.stats) == sizes(b.stats) && counts(a.stats) == counts(b.stats) &&
         std::equal(a.blocks.begin(), a.blocks.end(), b.blocks.begin(), b.blocks.end(), same_block);
}

/// Every equation that stats.hpp and pool.hpp promise at quiescence. What streams hold counts as cached.
template <class Pool>
void check_sound(const Pool& audited) {
  const books now = books_of(audited);
  const statistics& stats = now.stats;
  std::size_t live = 0, requested = 0, cached = 0, out_of_place = 0;
  std::uintptr_t end = 0;
  for (const block_info& block : now.blocks) {
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(block.address);
    const bool is_live = block.state == block_state::live;
    out_of_place += address < end || block.bytes == 0 || block.bytes % audited.granule() != 0;
    out_of_place += block.requested > block.bytes || (block.requested != 0) != is_live;
    out_of_place += block.state == block_state::none || block.state == block_state::owned;
    out_of_place += block.state == block_state::split;
    end = address + block.bytes;
    if (is_live) live += block.bytes, requested += block.requested;
    if (block.state == block_state::cached) cached += block.bytes;
  }
  CHECK(out_of_place == 0);
  CHECK(stats.allocated == live);
  CHECK(stats.requested == requested);
  CHECK(stats.cached == cached);
  CHECK(stats.requested <= stats.allocated);
  CHECK(stats.allocated + stats.cached <= stats.committed);
  CHECK(stats.committed <= stats.limit);
  CHECK(stats.limit <= stats.capacity);
  CHECK(stats.committed <= stats.peak_committed);
  CHECK(stats.peak_committed <= stats.limit);
}

[[nodiscard]] inline std::size_t count_blocks(const pool& audited, block_state state) {
  std::size_t count = 0;
  audited.for_each_block([&](const block_info& block) { count += block.state == state; });
  return count;
}

/// Everything was freed: after a coalescing pass nothing is live or cached, and
/// every allocation has its free.
inline void check_idle(pool& audited) {
  audited.defragment();
  check_sound(audited);
  const statistics stats = audited.stats();
  CHECK(stats.requested == 0);
  CHECK(stats.allocated == 0);
  CHECK(stats.cached == 0);
  CHECK(stats.allocations == stats.frees);
  CHECK(count_blocks(audited, block_state::live) == 0);
  CHECK(count_blocks(audited, block_state::cached) == 0);
}

}  // namespace orderly::test
