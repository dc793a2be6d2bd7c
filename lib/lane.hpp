/// \file
/// lane: one stream's memory. A block that was freed in a stream may still be in use by work in it, and belongs to the
/// stream's lane until that work is known to be done.
///
///   front, depot   Blocks of a class. Any thread takes them for the same stream, without a stream operation: whatever uses
///                  them then enters the stream behind what still uses them now.
///   large          Blocks without a class, by order, in the same way.
///   open           What caches did not hold. No event covers it.
///   sealed         What was open when an event was recorded in the stream; the event covers it.
///   settled        The event has passed: the block goes to the store, for every lane, and merges.
///
/// Under pressure a sealed batch need not wait for its event: it goes to the store together with a barrier (lanes.hpp).
///
/// A pool without streams has no lanes: what is freed in it is settled.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "atomic.hpp"
#include "depot.hpp"
#include "geometry.hpp"
#include "orderly/stream.hpp"

namespace orderly::detail {

/// An event of the driver; released when its last holder lets it go. Null: none.
using shared_event = std::shared_ptr<void>;

struct graph_memory;

struct alignas(interference) lane {
  static constexpr std::size_t most_sealed = 32;
  static constexpr std::uint32_t most_large = 8;  ///< blocks of an order kept for the same stream

  /// Nothing belongs to the lane, and nothing is on its way to it. Pre: pass mutex; the lane was released.
  [[nodiscard]] bool empty() const noexcept {
    if (occupied) return false;
    // coming: release by whoever has put a parcel's blocks here -> acquire: the counts below include them. So first.
    if (coming.load(acquire) != 0) return false;
    for (const depot::shelf& each : shelves.by_class)
      if (each.filled.load(relaxed) != 0) return false;
    return held.load(relaxed) == 0 && sealed_count == 0;
  }

  /// What one event covers.
  struct batch {
    shared_event event;
    depot::chain blocks;
  };

  /// Names the lane for ever; 0: none of now. Threads find their fronts by it.
  atomic<std::uint64_t> serial{0};
  std::uint32_t number = 0;
  // Written while the lane is bound, before its serial is published; read by whoever has seen the serial.
  stream_handle stream = nullptr;
  std::uint64_t identity = 0;
  std::uint64_t owner = 0;  ///< the thread of a per-thread stream; 0: any

  depot::shelves shelves;
  struct alignas(64) large_list : free_list {
    atomic<std::uint32_t> count{0};
  };
  std::array<large_list, max_orders> large{};

  alignas(interference) free_list open;
  atomic<std::uint64_t> open_bytes{0};
  atomic<std::uint64_t> held{0};      ///< bytes in large, open and sealed
  atomic<std::uint32_t> coming{0};    ///< parcels on the way to a front, whose blocks come here then
  atomic<std::uint64_t> seen{0};      ///< barriers that the stream has been made to wait for
  atomic<std::uint64_t> over{0};      ///< of those, known to have passed; kept for idle streams only
  atomic<bool> wanted{false};         ///< a pass could not seal what is open: its own thread has to

  // Guarded by lanes::barrier_mutex_.
  shared_event mark;      ///< covers the last free and all before
  bool unmarked = false;  ///< the last free and maybe more: no mark could be had, so a later one must cover them

  /// Of the capture that the stream takes part in, as far as the pool knows; null: none. Written under the pass mutex.
  /// While it is set, the lane has no fronts, and its stream gets blocks of the graph's.
  atomic<graph_memory*> graph{nullptr};

  // Guarded by the pool's pass mutex.
  std::array<batch, most_sealed> sealed{};
  std::size_t first_sealed = 0;
  std::size_t sealed_count = 0;
  bool released = false;
  shared_event final_event;  ///< of a released lane: behind everything
  bool withheld = false;     ///< of a released lane: there is no such event, so only an idle device can tell
  bool occupied = false;     ///< a thread that was stopped inside its front when the lane was released holds blocks of it
  bool sealable = true;  ///< an event can be put behind it now, so that a pass may take from its caches
};

}  // namespace orderly::detail
