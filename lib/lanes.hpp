/// \file
/// lanes: the streams of a pool, and the barriers between them.
///
/// Barrier. Under pressure a block goes to the store before the event that covers it has passed. The event then joins the
/// barrier, and whoever takes anything from the store afterwards makes its own stream wait for it first:
///   donor   adds the event, published := its number (a), gives the blocks to the store.
///   taker   claims a block; published? (b); if its lane has not seen so many, waits for what it has not seen, and only
///           then hands the block out.
///   If the block was given under a barrier, the claim reads what the giver published (W in buddy.hpp), so (b) sees (a).
///   A stream waits once for each event; an event that has passed leaves the barrier, and blocks nobody.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "atomic.hpp"
#include "lane.hpp"
#include "orderly/stream.hpp"
#include "reserved_array.hpp"
#include "thread_fronts.hpp"

namespace orderly::detail {

class lanes {
 public:
  static constexpr std::uint32_t most_lanes = 1024;

  struct manner {
    bool may_wait = false;  ///< stream_options::wait_before_refusing
    bool marked = false;    ///< stream_options::safe_mode
    bool watched = false;   ///< each call asks about its stream, so threads keep none at hand
  };

  /// Throws std::invalid_argument for a null driver, std::bad_alloc.
  lanes(std::shared_ptr<stream_driver> driver, const manner& how);
  lanes(const lanes&) = delete;
  lanes& operator=(const lanes&) = delete;
  ~lanes();

  [[nodiscard]] stream_driver& driver() const noexcept { return *driver_; }

  /// The lane of a stream that this thread has at hand, or null.
  [[nodiscard]] static lane* at_hand(std::uint64_t pool, stream_handle stream) noexcept {
    const auto fits = [&](const thread_lanes::entry& e) {
      // acquire: what bind() wrote before it published the serial
      return e.pool == pool && e.stream == stream && e.of->serial.load(acquire) == e.serial;
    };
    thread_lanes& mine = this_thread_lanes;
    if (fits(mine.latest)) [[likely]] return mine.latest.of;
    const thread_lanes::entry& other = mine.entries[thread_lanes::place(stream)];
    if (!fits(other)) return nullptr;
    mine.latest = other;
    return other.of;
  }

  /// The lane of a stream, a new one if need be. Null: too many streams, or the handle names none. Pre: pass mutex.
  [[nodiscard]] lane* bind(std::uint64_t pool, stream_handle stream) noexcept;

  /// Finds out for each lane whether a pass can seal what it takes out of its caches. Pre: pass mutex.
  void find_sealable() noexcept;

  /// May this thread put events into the lane's stream? A per-thread stream's handle names it in its own thread only.
  [[nodiscard]] static bool reaches(const lane& of) noexcept;

  /// Makes the lane's stream wait for every barrier. False: refused, and nothing of the store may be handed out in it.
  [[nodiscard]] bool catch_up(lane& of) noexcept {
    if (published_.load(acquire) <= of.seen.load(acquire)) [[likely]] return true;  // (b); seen: its waits are in the stream
    return wait_for_barriers(of);
  }

  /// Adds an event of a lane to the barrier, which then owns it. False: no memory; nothing has happened. Pre: pass mutex.
  [[nodiscard]] bool add_barrier(const lane& donor, event_handle event) noexcept;

  /// True: each free is preceded by a mark, since streams may be destroyed without notice, and lanes record nothing else.
  [[nodiscard]] bool marked() const noexcept { return how_.marked; }
  /// Records an event in the stream, which covers the free that follows. Any thread.
  void mark(lane& of) noexcept;
  [[nodiscard]] event_handle take_mark(lane& of) noexcept;
  /// True: something was freed while the stream captured, and its next mark has not come yet.
  [[nodiscard]] bool is_unmarked(const lane& of) noexcept;

  /// May a thread wait for streams before it is refused memory?
  [[nodiscard]] bool may_wait() const noexcept { return how_.may_wait; }
  /// Waits for every barrier. Pre: pass mutex.
  void wait_for_streams() noexcept;

  /// Around a fork.
  void lock() noexcept { barrier_mutex_.lock(); }
  void unlock() noexcept { barrier_mutex_.unlock(); }

  /// True if nothing that is in the store now waits for an event any more.
  bool barriers_passed() noexcept;

  template <class Visit>
  void each(Visit visit) {
    const std::uint32_t count = count_.load(acquire);  // bind()
    for (std::uint32_t i = 0; i < count; ++i) visit(table_[i]);
  }
  template <class Visit>
  void each(Visit visit) const {
    const std::uint32_t count = count_.load(acquire);  // bind()
    for (std::uint32_t i = 0; i < count; ++i) visit(static_cast<const lane&>(table_[i]));
  }

  // What was asked of the driver: figures.
  [[nodiscard]] event_handle record(stream_handle stream) noexcept;
  [[nodiscard]] event_status query(event_handle event) noexcept;
  atomic<std::uint64_t> records{0};
  atomic<std::uint64_t> waits{0};
  atomic<std::uint64_t> queries{0};

 private:
  struct barrier {
    std::uint64_t number = 0;
    std::uint64_t donor = 0;  ///< serial of the lane: its own stream need not wait
    event_handle event = nullptr;
  };

  /// Not where a handle may name another stream without notice, or begin a capture.
  void keep_at_hand(const thread_lanes::entry& e) const noexcept {
    if (!how_.watched) this_thread_lanes.keep(e);
  }
  [[nodiscard]] bool wait_for_barriers(lane& of) noexcept;

  std::shared_ptr<stream_driver> driver_;
  manner how_;
  reserved_array<lane> table_;
  atomic<std::uint32_t> count_{0};
  std::mutex barrier_mutex_;
  std::vector<barrier> barriers_;  ///< guarded by barrier_mutex_
  alignas(64) atomic<std::uint64_t> published_{0};
};

}  // namespace orderly::detail
