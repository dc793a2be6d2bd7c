/// \file
/// Handles of blocks: see orderly/checked.hpp, and generations.hpp for their numbers.
///
/// Linearization of a free by handle: its CAS, if it succeeds; of a refused one, the look at the number or at the block.
#include "pool_state.hpp"

namespace orderly {

using namespace detail;

checked_block pool::state::give_handle(void* block) noexcept {
  if (block == nullptr) return {};
  return {block, generations_.hand_out(*store_.memory().offset(block) >> granule_shift_)};
}

/// Why a handle is refused. `latest`: the number that its block has now.
bad_free pool::state::explain_handle(const checked_block& handle, std::size_t bytes, std::uint64_t latest) const noexcept {
  bad_free r = explain(handle.address, bytes);
  r.generation = handle.generation;
  r.block_generation = latest;
  const bool given = generations::is_handle(handle.generation) && handle.generation <= latest;
  if (given && handle.generation != latest)  // it has ended
    r.code = latest - handle.generation < 2 ? error::double_free : error::stale_handle;
  else if (!given && r.code == error::size_mismatch)  // a block starts there, but it has another handle or none
    r.code = error::stale_handle;
  return r;
}

error pool::state::end_handle(const checked_block& handle, std::size_t bytes, bad_free* report) noexcept {
  if (handle.address == nullptr) return error::none;
  const auto offset = store_.memory().offset(handle.address);
  const bool aligned = offset && (*offset & (shape().granule_bytes() - 1)) == 0;
  for (;;) {
    const std::uint64_t granule = aligned ? *offset >> granule_shift_ : 0;
    const std::uint64_t latest = aligned ? generations_.latest(granule) : 0;
    bool refused = !aligned || latest != handle.generation || !generations::is_handle(latest);
    if (!refused) {
      // What the free itself would refuse must not end the handle.
      const block_store::found block = store_.find_live(*offset);
      if (block.exists && accepts(block, bytes)) {
        if (generations_.end(granule, latest)) return error::none;
        continue;  // another free was faster
      }
      refused = generations_.latest(granule) == latest;  // else the same, and the block was another's already
    }
    if (!refused) continue;
    bad_frees_.fetch_add(1, relaxed);  // a figure
    const bad_free found = explain_handle(handle, bytes, latest);
    if (report != nullptr) *report = found;
    return found.code;
  }
}

}  // namespace orderly
