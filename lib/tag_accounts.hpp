/// \file
/// tag_accounts: which tag a block bears, and what each tag holds of one pool.
///
/// Tags of blocks lie in a table, by the granule where a block starts. Who has a block in hand writes it, before the block's
/// word becomes live; who frees it reads it, after the check that the free is a good one and before the block goes into
/// any list. So no two of them overlap; of a pool that is told nothing, the table is not even reserved.
///
/// Sums are kept as those of the whole pool are (front.hpp). Each front has an account for each tag, which its owner alone
/// writes, without a locked instruction; the bytes requested are published to the pool's account now and then, for the
/// peak. Work without a front goes to the pool's account at once. A front's accounts stay when it goes to another thread.
///
/// Progress: wait-free but for a peak that several threads raise at once, and for a front's first block, which asks the
/// system for its table; where that is refused, the front's thread counts as if it had none.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "atomic.hpp"
#include "reserved_array.hpp"

namespace orderly::detail {

class tag_accounts {
 public:
  tag_accounts() = default;
  tag_accounts(const tag_accounts&) = delete;
  tag_accounts& operator=(const tag_accounts&) = delete;
  ~tag_accounts();

  /// From now on the pool is told. Before any block. False: the system refused the tables.
  [[nodiscard]] bool open(std::uint64_t granules) noexcept;
  [[nodiscard]] bool on() const noexcept { return by_granule_.data() != nullptr; }

  /// The tag of the live block that starts there.
  [[nodiscard]] std::uint16_t at(std::uint64_t granule) const noexcept {
    return by_granule_[granule].load(relaxed);  // the block's own hand-over; or a look
  }

  // A block comes and goes. `front`: number of the calling thread's front; 0: it works without. All but at(): Pre: on.
  void handed_out(std::uint32_t front, std::uint16_t tag, std::uint64_t granule, std::uint64_t requested,
                  std::uint64_t length) noexcept {
    by_granule_[granule].store(tag, relaxed);  // as in at()
    if (account* const of = account_of(front, tag))
      add(*of, totals_[tag], requested, length);
    else
      add_to_total(tag, static_cast<std::int64_t>(requested), static_cast<std::int64_t>(length), 1, 0);
  }
  void taken_back(std::uint32_t front, std::uint64_t granule, std::uint64_t requested, std::uint64_t length) noexcept {
    const std::uint16_t tag = at(granule);
    if (account* const of = account_of(front, tag))
      subtract(*of, totals_[tag], requested, length);
    else
      add_to_total(tag, -static_cast<std::int64_t>(requested), -static_cast<std::int64_t>(length), 0, 1);
  }
  /// A free turned out to be none.
  void free_was_none(std::uint64_t granule, std::uint64_t requested, std::uint64_t length) noexcept {
    add_to_total(at(granule), static_cast<std::int64_t>(requested), static_cast<std::int64_t>(length), 0, ~std::uint64_t{0});
  }
  /// A live block becomes others that bear its tag: `more` of them than it was, and so many bytes. inherit() for each.
  void divided(std::uint16_t tag, std::int64_t requested, std::int64_t length, std::uint64_t more) noexcept {
    add_to_total(tag, requested, length, more, 0);
  }
  void inherit(std::uint16_t tag, std::uint64_t granule) noexcept { by_granule_[granule].store(tag, relaxed); }  // at()

  /// What a tag holds, as statistics tell it of the pool.
  struct sum {
    std::size_t requested = 0;
    std::size_t allocated = 0;
    std::size_t peak_requested = 0;
    std::uint64_t allocations = 0;
    std::uint64_t frees = 0;
  };
  /// `fronts`: so many exist.
  [[nodiscard]] sum look(std::uint16_t tag, std::size_t fronts) const noexcept;

 private:
  /// One front's part in one tag. Bytes requested since the last publication are highest - room; `highest` is their peak.
  struct alignas(64) account {
    atomic<std::int64_t> room{0};
    atomic<std::int64_t> highest{0};
    atomic<std::int64_t> allocated{0};
    atomic<std::uint64_t> allocations{0};
    atomic<std::uint64_t> frees{0};
    std::int64_t patience = 0;  ///< above least_publish, at which the owner publishes
    std::uint64_t published_at_call = 0;
  };
  /// All others' parts, and what was published.
  struct alignas(64) total {
    atomic<std::int64_t> requested{0};
    atomic<std::int64_t> peak{0};
    atomic<std::int64_t> allocated{0};
    atomic<std::uint64_t> allocations{0};
    atomic<std::uint64_t> frees{0};
  };
  static_assert(sizeof(account) == 64 && sizeof(total) == 64);

  // As of fronts; see pool_state.cpp.
  static constexpr std::int64_t least_publish = 64 * 1024;
  static constexpr std::int64_t most_publish = 16 * 1024 * 1024;
  static constexpr std::uint64_t calls_per_publish = 4096;

  [[nodiscard]] account* account_of(std::uint32_t front, std::uint16_t tag) noexcept {
    if (front == 0) return nullptr;
    account* const table = tables_[front - 1].load(relaxed);  // own, or handed over with the front
    if (table == nullptr) [[unlikely]] {
      account* const made = new_table(front);
      return made == nullptr ? nullptr : made + tag;
    }
    return table + tag;
  }
  static void bump(atomic<std::uint64_t>& counter) noexcept {
    counter.store(counter.load(relaxed) + 1, relaxed);  // owner only; a figure, like the next
  }
  static void bump(atomic<std::int64_t>& sum, std::int64_t by) noexcept { sum.store(sum.load(relaxed) + by, relaxed); }

  static void add(account& of, total& in, std::uint64_t requested, std::uint64_t length) noexcept {
    bump(of.allocations);
    bump(of.allocated, static_cast<std::int64_t>(length));
    const std::int64_t room = of.room.load(relaxed) - static_cast<std::int64_t>(requested);  // own figures
    of.room.store(std::max<std::int64_t>(room, 0), relaxed);
    if (room >= 0) return;
    const std::int64_t highest = of.highest.load(relaxed) - room;
    of.highest.store(highest, relaxed);
    if (highest > least_publish + of.patience) publish(of, in);
  }
  static void subtract(account& of, total& in, std::uint64_t requested, std::uint64_t length) noexcept {
    bump(of.frees);
    bump(of.allocated, -static_cast<std::int64_t>(length));
    const std::int64_t room = of.room.load(relaxed) + static_cast<std::int64_t>(requested);  // own figures
    of.room.store(room, relaxed);
    if (room > least_publish + of.patience) publish(of, in);
  }
  static void publish(account& of, total& in) noexcept;
  static void raise_peak(total& in, std::int64_t reached) noexcept;
  void add_to_total(std::uint16_t tag, std::int64_t requested, std::int64_t length, std::uint64_t allocations,
                    std::uint64_t frees) noexcept;
  [[nodiscard]] account* new_table(std::uint32_t front) noexcept;

  reserved_array<atomic<std::uint16_t>> by_granule_;
  reserved_array<total> totals_;
  reserved_array<atomic<account*>> tables_;  ///< by front
};

}  // namespace orderly::detail
