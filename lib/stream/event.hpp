/// \file
/// event: the position in a software stream that an event_handle names; event_store: where they live.
///
/// Representation  An event is never freed before its device. It is in use from take() until the host has released it,
///                 its record has run, and every wait for it has run; then take() may give it out again.
/// Ordering        D   complete (a), release -> is_complete() (b), acquire: all work before the record.
///                     (b) acquires only where it finds the event complete, and then exactly what (a) released: an
///                     event that is pending, or a stream that is further than the event, tells nothing.
///                 U   take() must not learn what workers did, or every record would pass for a wait. It reads `done_`
///                     and `waits_` relaxed, (c). What a worker may still touch then is atomic and stays mapped.
/// Reuse           (d) is later than (a) in the order of changes to `done_`, because (c) has read (a)'s value. A wait
///                 that ran has read it as well, in (b), before (e). To read the next record's value instead, it would
///                 have to read what follows from its own (e), by way of (c): a cycle of program order and reads-from.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>

#include "../atomic.hpp"
#include "doorbell.hpp"

namespace orderly::detail {

class work_queue;
struct stream_slot;

class event {
 public:
  /// By the record, when the stream has come to it.
  void complete() noexcept {
    done_.store(1, release);                                    // (a) D
    bell_.ring();
  }

  [[nodiscard]] bool is_complete() const noexcept {
    return done_.load(relaxed) != 0 && done_.load(acquire) != 0;  // (b) D
  }

  void wait() noexcept {
    bell_.wait([this] { return is_complete(); });
  }

  /// A stream has a wait for it in its queue, from begin_wait() on the host to end_wait() where it ran.
  void begin_wait() noexcept { waits_.fetch_add(1, relaxed); }
  void end_wait() noexcept { waits_.fetch_sub(1, release); }    // (e) behind (b); nobody acquires it

  /// Where it was recorded. For host threads: written before the handle is given out.
  stream_slot* origin = nullptr;
  std::uint64_t origin_identity = 0;
  work_queue* recorded_in = nullptr;  ///< exists until the event is complete

 private:
  friend class event_store;
  [[nodiscard]] bool in_use() const noexcept {
    return done_.load(relaxed) == 0 || waits_.load(relaxed) != 0;  // (c) U
  }

  atomic<std::uint32_t> done_{0};
  atomic<std::uint32_t> waits_{0};
  doorbell bell_;
  event* next_ = nullptr;       ///< among those released; guarded by the store's mutex
};

/// Called by host threads only.
class event_store {
 public:
  /// Throws std::bad_alloc.
  [[nodiscard]] event& take() {
    const std::lock_guard hold(mutex_);
    for (unsigned look = 0; look < most_looks && oldest_ != nullptr; ++look) {
      event& candidate = *oldest_;
      oldest_ = candidate.next_;
      if (oldest_ == nullptr) newest_ = nullptr;
      if (!candidate.in_use()) {
        candidate.done_.store(0, relaxed);                      // (d) whoever learns of the record learns of this
        return candidate;
      }
      append(candidate);
    }
    event& made = events_.emplace_back();
    made_.fetch_add(1, relaxed);
    return made;
  }

  void give_back(event& released) noexcept {
    const std::lock_guard hold(mutex_);
    append(released);
  }

  /// The same for an event whose record was never queued.
  void give_back_unused(event& taken) noexcept {
    taken.done_.store(1, relaxed);
    give_back(taken);
  }

  [[nodiscard]] std::uint64_t made() const noexcept { return made_.load(relaxed); }

 private:
  /// Released events whose record has not run are passed over; this many at most, then a new one is made.
  static constexpr unsigned most_looks = 4;

  void append(event& released) noexcept {
    released.next_ = nullptr;
    (newest_ != nullptr ? newest_->next_ : oldest_) = &released;
    newest_ = &released;
  }

  mutex mutex_;
  event* oldest_ = nullptr;
  event* newest_ = nullptr;
  std::deque<event> events_;
  atomic<std::uint64_t> made_{0};
};

}  // namespace orderly::detail
