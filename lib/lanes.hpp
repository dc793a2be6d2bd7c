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

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "atomic.hpp"
#include "lane.hpp"
#include "orderly/stream.hpp"
#include "reserved_array.hpp"
#include "thread_fronts.hpp"

namespace orderly::detail {

/// Looks after work in streams of a pool that is none of the pool's. Pre, of each function: the mutex of events.
class stream_watcher {
 public:
  /// The stream's handle is forgotten. `behind_all`: an event behind all work in it; null: none could be had, or is kept, in
  /// safe mode.
  virtual void stream_ends(const lane& of, const shared_event& behind_all) noexcept = 0;
  /// Is there a gap: work of which no event tells?
  [[nodiscard]] virtual bool has_gap() const noexcept = 0;
  /// The work is done of all gaps with a number up to this.
  virtual void streams_are_idle(std::uint64_t up_to) noexcept = 0;

 protected:
  stream_watcher() = default;
  stream_watcher(const stream_watcher&) = default;
  stream_watcher& operator=(const stream_watcher&) = default;
  ~stream_watcher() = default;
};

class lanes {
 public:
  static constexpr std::uint32_t most_lanes = 1024;
  /// So many streams' records are in memory from the start: the first block of a stream should not wait for page faults.
  static constexpr std::uint32_t ready_lanes = 8;

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

  /// A stream's lane and this thread's front in it, if the thread has them at hand; or null.
  [[nodiscard]] static const thread_lanes::entry* at_hand(std::uint64_t pool, stream_handle stream) noexcept {
    const thread_lanes::entry* const set = this_thread_lanes.set_of(pool, stream);
    if (fits(set[0], pool, stream)) [[likely]] return set;
    return fits(set[1], pool, stream) ? set + 1 : nullptr;
  }

  /// The lane of a stream, among all that this thread has met.
  [[nodiscard]] lane* recall(std::uint64_t pool, stream_handle stream) const noexcept {
    const thread_lanes::entry* const known = recall_lane(pool, stream);
    if (known == nullptr || !fits(*known, pool, stream)) return nullptr;
    if (!how_.watched) keep_with_front(*known);
    return known->of;
  }

  /// The lane that a stream's handle is bound to, or null. Pre: pass mutex, as for the next.
  [[nodiscard]] lane* bound(stream_handle stream) noexcept;
  /// The same, a new one if need be. Null: no place is free, or the handle names no stream.
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

  /// Waits until everything is over that the lane's stream has been made to wait for. False: the driver cannot tell.
  /// Pre: there is no work in the stream.
  [[nodiscard]] bool finish_waits(lane& of) noexcept;

  /// Adds an event of a lane to the barrier. False: no memory; nothing has happened. Pre: pass mutex.
  [[nodiscard]] bool add_barrier(const lane& donor, const shared_event& event) noexcept;

  [[nodiscard]] const manner& how() const noexcept { return how_; }

  /// Records an event in the stream, which covers the free that follows, and all frees before. Any thread. Where none can be
  /// had, since the stream captures, say, the lane is unmarked until the next mark.
  void mark(lane& of) noexcept;
  [[nodiscard]] shared_event take_mark(lane& of) noexcept;
  [[nodiscard]] bool is_unmarked(const lane& of) noexcept;
  /// Is all work done that the lane's mark covers, and does it cover everything?
  [[nodiscard]] bool mark_passed(const lane& of) noexcept;

  /// Copies the events of the barrier. Throws std::bad_alloc.
  void copy_barriers(std::vector<shared_event>& to);

  /// The mutex of events: of barriers and marks, and of what watchers know of streams. The innermost one of a pool.
  [[nodiscard]] mutex& event_mutex() noexcept { return barrier_mutex_; }

  /// Throws std::bad_alloc.
  void watch(stream_watcher& by);
  void unwatch(stream_watcher& by) noexcept;
  void tell_end(const lane& of, const shared_event& behind_all) noexcept;
  /// A watcher has a new gap: its number. Pre: the mutex of events.
  [[nodiscard]] std::uint64_t number_gap() noexcept { return ++gaps_; }
  /// The number of the last gap; 0: no watcher has one now.
  [[nodiscard]] std::uint64_t last_gap() noexcept;
  void tell_idle(std::uint64_t up_to) noexcept;

  /// Around a fork.
  void lock() noexcept { barrier_mutex_.lock(); }
  void unlock() noexcept { barrier_mutex_.unlock(); }

  /// True if nothing that is in the store now waits for an event any more.
  bool barriers_passed() noexcept;

  /// Of a lane of these. The lane itself is not looked at.
  [[nodiscard]] std::size_t index_of(const lane& of) const noexcept {
    return static_cast<std::size_t>(reinterpret_cast<const place*>(&of) - table_.data());
  }

  template <class Visit>
  void each(Visit visit) const {
    const std::uint32_t count = count_.load(acquire);  // bind()
    for (std::uint32_t i = 0; i < count; ++i) {
      reads_plain(&at(i));
      visit(at(i));
    }
  }

  /// Null: refused.
  [[nodiscard]] shared_event record(stream_handle stream) noexcept;
  [[nodiscard]] event_status query(const shared_event& event) noexcept;
  // What was asked of the driver: figures.
  atomic<std::uint64_t> records{0};
  atomic<std::uint64_t> waits{0};
  atomic<std::uint64_t> queries{0};

 private:
  struct barrier {
    std::uint64_t number = 0;
    std::uint64_t donor = 0;  ///< serial of the lane: its own stream need not wait
    shared_event event;
  };
  struct alignas(lane) place {
    std::array<std::byte, sizeof(lane)> bytes;
  };

  [[nodiscard]] static bool fits(const thread_lanes::entry& e, std::uint64_t pool, stream_handle stream) noexcept {
    // acquire: what bind() wrote before it published the serial
    return e.pool == pool && e.stream == stream && e.of->serial.load(acquire) == e.serial;
  }
  [[nodiscard]] lane& at(std::uint32_t index) const noexcept {
    return *std::launder(reinterpret_cast<lane*>(&table_[index]));
  }
  [[nodiscard]] std::uint64_t owner_of(stream_handle stream) const noexcept;
  /// Not where a handle may name another stream without notice; and not at hand where each call asks about its stream.
  void keep_at_hand(const thread_lanes::entry& e) const noexcept {
    if (how_.marked) return;
    remember_lane(e);
    if (!how_.watched) keep_with_front(e);
  }
  static void keep_with_front(thread_lanes::entry e) noexcept {
    e.mine = recall_front(e.serial);
    this_thread_lanes.keep(e);
  }
  [[nodiscard]] bool wait_for_barriers(lane& of) noexcept;
  void drop_passed() noexcept;  ///< Pre: barrier_mutex_

  std::shared_ptr<stream_driver> driver_;
  manner how_;
  reserved_array<place> table_;
  atomic<std::uint32_t> count_{0};
  mutex barrier_mutex_;
  std::vector<barrier> barriers_;    ///< guarded by barrier_mutex_, like the next
  std::vector<stream_watcher*> watchers_;
  std::uint64_t gaps_ = 0;           ///< so far
  std::size_t look_at_ = 16;         ///< that many barriers are worth a look which of them have passed
  alignas(64) atomic<std::uint64_t> published_{0};
};

}  // namespace orderly::detail
