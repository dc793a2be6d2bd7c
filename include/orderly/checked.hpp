/// \file
/// Blocks with a handle that knows which of the times that its block was handed out is meant.
///
/// A free by address is checked against the block that is there now: a second free is told apart as long as the block is
/// free, but not once the same address was handed out again, which a pool does at once. A handle holds the block's
/// generation as well, which each free by handle and each allocation with a handle moves on:
///
///   orderly::checked_block frame = pool.allocate_checked(1'500'000);
///   pool.deallocate(frame, 1'500'000);
///   orderly::checked_block other = pool.allocate_checked(1'500'000);  // the same address, most likely
///   pool.deallocate(frame, 1'500'000);                                // refused: error::stale_handle
///
/// Of any number of frees of one handle, at once or one after the other, exactly one succeeds. The others are refused:
/// as double_free as long as no other handle was given for the block, as stale_handle from then on.
///
/// Both ways of allocating and of freeing may be mixed; nothing else than what follows depends on it. A free by address
/// leaves the handle as it is: the handle's free is then refused while the block is free, and again once it was handed
/// out with another handle, but it frees the block of whoever has got it without one. So what must not be freed twice is
/// allocated with a handle, and freed by it. A part of a divided block has no handle, and the block's own has ended.
///
/// Thread safety: as the pool's. Progress: lock-free, as allocate and deallocate; a pool's first allocation with a handle
/// reserves addresses for all generations. One compare-and-swap more for each free by handle, a load and a store for each
/// allocation; the other calls of the pool cost what they did.
/// Memory: 8 bytes for each granule in which such a block has started, in whole pages, until the pool goes.
#pragma once

#include <cstdint>

namespace orderly {

/// A block and its generation. Plain values, which may be copied and kept after the free.
struct checked_block {
  void* address = nullptr;       ///< null: no block; a free of it is ignored
  std::uint64_t generation = 0;  ///< odd. 2^63 hand-outs of one block do not happen: no two have the same

  [[nodiscard]] explicit operator bool() const noexcept { return address != nullptr; }
};

}  // namespace orderly
