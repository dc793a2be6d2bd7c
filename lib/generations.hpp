/// \file
/// generations: how often the block that starts at a granule was handed out with a handle, and whether that handle is good.
///
///   even  no handle of it is good        0 at first
///   odd   the handle with this number is
///
///   even, odd  handed out with a handle  next odd   the block's owner           relaxed   the block's own hand-over
///   odd        freed by its handle       next even  whoever wins the CAS        relaxed   the free that follows
///
/// A free by handle moves the number first and frees the block then, so the block cannot be handed out in between, and
/// of all frees of a handle one alone comes to the second step. Whoever gets the block next reads the number after that
/// step: the pool orders a free before the hand-out of what was freed, as the block's bytes need it too.
///
/// A free by address leaves the number odd. Until the block is handed out with a handle again, nothing tells its handle
/// from a good one but the block's state; then the number has moved to the next odd one. The CAS of such a handle may fall
/// between the load and the store of the hand-out. The store covers it: numbers never go back.
///
/// ABA: a number comes again after 2^63 hand-outs of one block: 292 years at one each nanosecond.
#pragma once

#include <cstdint>

#include "atomic.hpp"
#include "reserved_array.hpp"

namespace orderly::detail {

class generations {
 public:
  explicit generations(std::uint64_t granules) noexcept : granules_(granules) {}
  generations(const generations&) = delete;
  generations& operator=(const generations&) = delete;
  ~generations() { release_zeroed(table_.load(relaxed), bytes()); }  // nobody else is left

  /// Before the first handle. False: the system refused.
  [[nodiscard]] bool open() noexcept {
    if (table_.load(acquire) != nullptr) return true;  // from the exchange below
    auto* const made = static_cast<atomic<std::uint64_t>*>(reserve_zeroed(bytes()));
    if (made == nullptr) return false;
    atomic<std::uint64_t>* first = nullptr;
    // Release: whoever sees the table may use it. Acquire on failure, for the same reason: another thread was faster.
    if (!table_.compare_exchange_strong(first, made, acq_rel, acquire)) release_zeroed(made, bytes());
    return true;
  }

  /// The number now.
  [[nodiscard]] std::uint64_t latest(std::uint64_t granule) const noexcept {
    const auto* const table = table_.load(acquire);  // open()
    return table == nullptr ? 0 : table[granule].load(relaxed);
  }

  /// The number of a new handle. Pre: open; the block that starts there is the caller's.
  [[nodiscard]] std::uint64_t hand_out(std::uint64_t granule) noexcept {
    atomic<std::uint64_t>& number = table_.load(acquire)[granule];  // open()
    const std::uint64_t next = (number.load(relaxed) + 1) | 1;
    number.store(next, relaxed);
    return next;
  }

  /// Ends a handle. False: it is not good, or no longer.
  [[nodiscard]] bool end(std::uint64_t granule, std::uint64_t number) noexcept {
    auto* const table = table_.load(acquire);  // open()
    if (table == nullptr || !is_handle(number)) return false;
    return table[granule].compare_exchange_strong(number, number + 1, relaxed, relaxed);
  }

  /// Ends whatever handle is good. Pre: the block is the caller's.
  void end_any(std::uint64_t granule) noexcept { static_cast<void>(end(granule, latest(granule))); }

  [[nodiscard]] static constexpr bool is_handle(std::uint64_t number) noexcept { return (number & 1) != 0; }

 private:
  [[nodiscard]] std::size_t bytes() const noexcept { return granules_ * sizeof(atomic<std::uint64_t>); }

  std::uint64_t granules_;
  atomic<atomic<std::uint64_t>*> table_{nullptr};
};

}  // namespace orderly::detail
