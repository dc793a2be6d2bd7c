#include "observed_blocks.hpp"

#include <algorithm>
#include <iterator>
#include <new>

namespace orderly {

block_observer::~block_observer() = default;

namespace detail {

void observed_blocks::hand_out(void* block, std::size_t bytes, bool kept) noexcept try {
  auto* start = static_cast<std::byte*>(block);
  std::byte* end = start + bytes;
  // Of the kept ranges, those that share bytes with the block: they and the block are one from now on.
  auto at = kept_.upper_bound(start);
  if (at != kept_.begin() && std::prev(at)->first + std::prev(at)->second > start) --at;
  auto past = at;
  for (; past != kept_.end() && past->first < end; ++past) {
    start = std::min(start, past->first);
    end = std::max(end, past->first + past->second);
  }
  const auto length = static_cast<std::size_t>(end - start);
  if (at == past) {
    (kept ? kept_ : live_)[start] = length;
  } else {
    if (std::next(at) == past && at->first == start && at->second == length) return;  // it is all allowed
    for (auto each = at; each != past; ++each) by_.forbidden(each->first);
    kept_.erase(at, past);
    kept_[start] = length;
  }
  by_.allowed(start, length);
} catch (const std::bad_alloc&) {
  by_.allowed(block, bytes);  // rather for good than an access reported that is right
}

void observed_blocks::take_back(void* block, bool settled) noexcept {
  const auto known = live_.find(static_cast<std::byte*>(block));
  if (known == live_.end()) return;  // kept
  if (settled) {
    live_.erase(known);
    by_.forbidden(block);
  } else {
    kept_.insert(live_.extract(known));
  }
}

}  // namespace detail
}  // namespace orderly
