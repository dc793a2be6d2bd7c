/// \file
/// Which front a thread uses in which pool, or in which lane of a pool. Both are named by serial numbers that are never used
/// twice, so one that is gone is recognised, and its front is not touched.
#pragma once

#include <array>
#include <cstdint>

#include "fixed_offset.hpp"

namespace orderly::detail {

class front;

/// A few pools' fronts at hand, the last one used first; the rest are found in the slow path. Trivial, so reading it costs
/// no guard, and it can be read at any time of a thread's life.
struct thread_fronts {
  struct entry {
    std::uint64_t serial = no_serial;
    front* of = nullptr;
  };
  static constexpr std::uint64_t no_serial = ~std::uint64_t{0};  ///< not even that of a lane which was given up
  static constexpr std::size_t size = 8;
  entry latest;
  std::array<entry, size> entries{};
  bool exiting = false;  ///< the thread's fronts were given back already

  /// The front in that pool, or null if it is not at hand.
  [[nodiscard]] front* find(std::uint64_t serial) noexcept {
    if (latest.serial == serial) [[likely]] {
      if (latest.of == nullptr) __builtin_unreachable();  // nothing has no_serial; spares the caller's check
      return latest.of;
    }
    const entry& other = entries[serial % size];
    if (other.serial != serial) return nullptr;
    latest = other;
    return latest.of;
  }
  void keep(const entry& e) noexcept { latest = entries[e.serial % size] = e; }
};

ORDERLY_FIXED_OFFSET extern thread_local constinit thread_fronts this_thread_fronts;

/// A number that no other thread of the process ever has. From 1 on.
[[nodiscard]] std::uint64_t this_thread_number() noexcept;

/// Notes that this thread holds `of` under `serial`, the number of `pool` or of one of its lanes, so that its exit gives it
/// back. False: the thread is exiting, or the system refused memory; the front is the caller's to give back.
[[nodiscard]] bool remember_front(std::uint64_t serial, front* of, std::uint64_t pool) noexcept;
[[nodiscard]] inline bool remember_front(std::uint64_t serial, front* of) noexcept {
  return remember_front(serial, of, serial);
}

/// This thread's front under that number, or null.
[[nodiscard]] front* recall_front(std::uint64_t serial) noexcept;

/// True if the front is one of this thread's.
[[nodiscard]] bool holds_front(const front* of) noexcept;

/// A front of this thread in `pool` for which `is_idle(front, serial)` holds, to be remembered under `serial` from now on.
/// Null: there is none.
[[nodiscard]] front* rename_front(std::uint64_t pool, std::uint64_t serial,
                                  bool (*is_idle)(const front&, std::uint64_t serial)) noexcept;

struct lane;

/// Which lane a stream handle names in which pool, and this thread's front there, as far as a thread has them at hand. A
/// lane that was given up since has another serial number, or none.
struct thread_lanes {
  struct entry {
    std::uint64_t pool = 0;
    const void* stream = nullptr;
    std::uint64_t serial = 0;
    lane* of = nullptr;
    front* mine = nullptr;  ///< the thread's front under that serial number; null: none that is known
  };
  static constexpr std::size_t sets = 8;  ///< of two entries each: four streams hardly ever push each other out
  std::array<entry, 2 * sets> entries{};

  /// The first entry of the set of a stream; the next one is the other.
  [[nodiscard]] entry* set_of(std::uint64_t pool, const void* stream) noexcept {
    constexpr std::uint64_t spread = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio: handles are addresses, in regular steps
    const std::uint64_t mixed = (reinterpret_cast<std::uintptr_t>(stream) + pool) * spread;
    return &entries[2 * (mixed >> (64 - 3))];
  }
  static_assert(sets == 1 << 3);
  void keep(const entry& e) noexcept {
    entry* const set = set_of(e.pool, e.stream);
    if (set[0].pool != e.pool || set[0].stream != e.stream) set[1] = set[0];
    set[0] = e;
  }
  void keep_front(std::uint64_t pool, const void* stream, std::uint64_t serial, front* mine) noexcept {
    entry* const set = set_of(pool, stream);
    for (entry* const known : {set, set + 1})
      if (known->pool == pool && known->stream == stream && known->serial == serial) known->mine = mine;
  }
};

ORDERLY_FIXED_OFFSET extern thread_local constinit thread_lanes this_thread_lanes;

/// Notes a lane for the thread, beyond what it has at hand. Without memory it does not, which costs time alone.
void remember_lane(const thread_lanes::entry& e) noexcept;

/// What was noted of a stream in a pool, up to date or not; null: nothing.
[[nodiscard]] const thread_lanes::entry* recall_lane(std::uint64_t pool, const void* stream) noexcept;

}  // namespace orderly::detail
