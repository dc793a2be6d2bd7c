/// \file
/// Which front a thread uses in which pool. A pool is named by a serial number that is never used twice, so a pool that is
/// gone is recognised, and its front is not touched.
#pragma once

#include <array>
#include <cstdint>

namespace orderly::detail {

class front;

/// A few pools' fronts at hand, the last one used first; the rest are found in the slow path. Trivial, so reading it costs
/// no guard, and it can be read at any time of a thread's life.
struct thread_fronts {
  struct entry {
    std::uint64_t serial = 0;
    front* of = nullptr;
  };
  static constexpr std::size_t size = 8;
  entry latest;
  std::array<entry, size> entries{};
  bool exiting = false;  ///< the thread's fronts were given back already

  /// The front in that pool, or null if it is not at hand.
  [[nodiscard]] front* find(std::uint64_t serial) noexcept {
    if (latest.serial == serial) [[likely]] {
      if (latest.of == nullptr) __builtin_unreachable();  // no pool has the serial 0; spares the caller's check
      return latest.of;
    }
    const entry& other = entries[serial % size];
    if (other.serial != serial) return nullptr;
    latest = other;
    return latest.of;
  }
  void keep(const entry& e) noexcept { latest = entries[e.serial % size] = e; }
};

[[gnu::tls_model("initial-exec")]] extern thread_local constinit thread_fronts this_thread_fronts;

/// Notes that this thread holds `of` in the pool `serial`, so that its exit gives it back. False: the thread is exiting, or
/// the system refused memory; the front is the caller's to give back.
[[nodiscard]] bool remember_front(std::uint64_t serial, front* of) noexcept;

/// This thread's front in that pool, or null.
[[nodiscard]] front* recall_front(std::uint64_t serial) noexcept;

}  // namespace orderly::detail
