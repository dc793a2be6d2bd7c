/// \file
/// The front: one thread's magazines. The hot path works on it and on one block word, and on nothing else.
///
/// Only the owner uses a front and moves the words of the blocks whose home it is (block_word.hpp), except that a pass may
/// revoke it to take back what it holds. Both must agree who is inside without a locked instruction on the owner's side:
///
///   owner   enter: inside := true (a); light barrier; closed? (b) then leave. Work. leave: inside := false (c).
///   pass    closed := revoked (d); heavy barrier; wait until inside is false (e). Work. closed := 0 (f).
///
///   Either (b) sees (d), and the owner leaves without having touched anything, or (a) came before the owner's point of
///   the heavy barrier, and (e) sees it and waits for (c). So owner and pass are never inside at once.
///   (c) release -> (e) acquire: the pass sees what the owner did. (f) release -> (b) acquire: the owner sees what the
///   pass did.
///
/// Where the system has no such barrier, `closed` always says so, and the owner enters by an exchange (a'), which is
/// ordered before (b) by itself; the hot path, which knows (a) alone, then gives way to the slow one.
///
/// A pass waits for an owner inside only so long: an owner that the system has stopped there keeps what it holds, and the
/// pass goes on without it. While a front is revoked its owner goes past it, to depot and buddy.
///
/// Counters are written by the owner alone (load, then store, relaxed); others read them for statistics. Each call that
/// allocates or frees counts itself before it leaves, so they also tell a pass that the owner has been at work.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "atomic.hpp"
#include "block_word.hpp"
#include "depot.hpp"

namespace orderly::detail {

struct lane;

/// Blocks of one class that a thread holds, and all that the hot path needs to know of the class. The count is atomic for
/// statistics only.
struct alignas(64) front_magazine {
  atomic<std::uint32_t> count{0};
  std::uint32_t capacity = 0;
  std::uint32_t shift = 0;                 ///< log2 of the bytes of memory from one position in `words` to the next
  std::uint32_t* blocks = nullptr;         ///< positions of their words, the newest last
  atomic<std::uint64_t>* words = nullptr;  ///< of the class's order
  std::uint64_t offset_mask = 0;           ///< bits of an offset that are clear where a node starts
  block_word unrequested;                  ///< a live block of which no byte was requested
  block_word cached;

  [[nodiscard]] block_word live(std::size_t requested) const noexcept { return unrequested.with_requested(requested); }
};

/// Blocks of one class that this thread freed and that belong to another front, until they are worth a parcel.
struct front_returns {
  atomic<std::uint32_t> count{0};  ///< atomic for statistics only
  std::uint32_t home = 0;          ///< of all of them
  std::uint32_t* blocks = nullptr;  ///< as in a magazine
  std::uint32_t* unused = nullptr;  ///< bytes of each that were not requested
};

class alignas(interference) front {
 public:
  std::array<front_magazine, max_classes> magazines{};  ///< first: a magazine's address is then one addition

  static constexpr std::size_t most_blocks = 2 * max_magazine_blocks;  ///< of one class

  /// Owner's stay inside its front. False if the front is revoked: then nothing was entered.
  template <bool brief>
  class basic_stay {
   public:
    explicit basic_stay(front& of) noexcept : front_(of), inside_(of.enter() || (!brief && of.enter_by_exchange())) {}
    basic_stay(const basic_stay&) = delete;
    basic_stay& operator=(const basic_stay&) = delete;
    ~basic_stay() { front_.inside_.store(false, release); }  // (c)

    explicit operator bool() const noexcept { return inside_; }

   private:
    front& front_;
    bool inside_;
  };
  using stay = basic_stay<false>;
  using brief_stay = basic_stay<true>;  ///< the hot path's: false also where entering takes an exchange

  /// Pass, before and after the heavy barrier.
  void revoke() noexcept { closed_.fetch_or(revoked, seq_cst); }                              // (d)
  [[nodiscard]] bool outside() const noexcept { return !inside_.load(seq_cst); }              // (e)
  void restore() noexcept { closed_.fetch_and(static_cast<std::uint8_t>(~revoked), seq_cst); }  // (f); before attached()
  /// Without a stay; after detach(). See pool::state::adopt.
  [[nodiscard]] bool is_revoked() const noexcept { return (closed_.load(seq_cst) & revoked) != 0; }

  /// Leaves the front to another lane: nobody gets in before its owner renews it. By a pass, while it is revoked and empty,
  /// or by its owner. An owner that takes over a front shows its lane, then renews it; a pass retires it, then looks at the
  /// lane again. (h) and (i) are read-modify-writes of one word: either (i) undoes (h), or (h) sees (i) and so the lane.
  void retire() noexcept { closed_.fetch_or(is_retired, acq_rel); }                                   // (h)
  void renew() noexcept { closed_.fetch_and(static_cast<std::uint8_t>(~is_retired), acq_rel); }       // (i)
  /// Owner: a pass has emptied the front. Acquire: (h).
  [[nodiscard]] bool retired() const noexcept { return (closed_.load(acquire) & is_retired) != 0; }

  /// Pass, the owner outside; or the owner.
  [[nodiscard]] bool holds_returns() const noexcept {
    for (const front_returns& each : returns)
      if (each.count.load(relaxed) != 0) return true;  // ordered by outside(), or own
    return false;
  }

  /// Makes every stay enter by exchange. Before the front is shown to anybody.
  void require_exchange() noexcept { closed_.store(exchange_required, relaxed); }

  /// Marks the owner's work past the front: between the two calls it may hold blocks that no list shows.
  void begin_slow() noexcept { slow_.store(slow_.load(relaxed) + 1, seq_cst); }  // before any claim, in the view of (g)
  void end_slow() noexcept { slow_.store(slow_.load(relaxed) + 1, release); }    // -> (g): what was given is visible

  /// How far the owner is.
  struct activity {
    std::uint64_t calls = 0;  ///< counted allocations and frees
    std::uint64_t slow = 0;   ///< odd: at work past the front
    bool inside = false;
    [[nodiscard]] bool operator==(const activity&) const = default;
    [[nodiscard]] bool idle() const noexcept { return !inside && slow % 2 == 0; }
  };
  [[nodiscard]] activity watch() const noexcept {
    activity seen;
    seen.inside = inside_.load(seq_cst);                          // (c): what was counted inside is seen
    seen.slow = slow_.load(seq_cst);                              // (g)
    seen.calls = allocations.load(relaxed) + frees.load(relaxed);
    return seen;
  }

  [[nodiscard]] bool try_attach() noexcept {
    bool expected = false;
    return attached_.compare_exchange_strong(expected, true, seq_cst, seq_cst);  // detach(): the last owner's writes
  }
  void attach() noexcept { attached_.store(true, relaxed); }  // a new front, not yet shown to anybody
  [[nodiscard]] bool attached() const noexcept { return attached_.load(seq_cst); }  // after a push; see pool::state::adopt
  void detach() noexcept { attached_.store(false, seq_cst); }  // -> try_attach(); before a look at the inbox

  /// The owner is gone, wherever it was: after a fork, in the child.
  void abandon() noexcept {
    inside_.store(false, relaxed);  // no other thread, here and below
    slow_.store(slow_.load(relaxed) / 2 * 2, relaxed);
    closed_.store(closed_.load(relaxed) & exchange_required, relaxed);
    attached_.store(false, relaxed);
    spare = {};
  }

  static void add(atomic<std::uint64_t>& counter, std::uint64_t amount) noexcept {
    counter.store(counter.load(relaxed) + amount, relaxed);  // owner only; a figure
  }

 private:
  atomic<bool> inside_{false};
  atomic<std::uint8_t> closed_{0};
  atomic<bool> attached_{false};
  atomic<std::uint64_t> slow_{0};

 public:
  // Bytes allocated minus bytes freed since the last publication are highest - room; `highest` is their peak since then.
  atomic<std::int64_t> room{0};
  atomic<std::int64_t> highest{0};
  std::int64_t publish_at = 0;  ///< room or peak at which the owner publishes
  std::uint64_t published_at_call = 0;
  atomic<std::uint64_t> allocations{0};
  atomic<std::uint64_t> frees{0};
  atomic<std::uint64_t> taken{0};            ///< bytes taken from the buddy minus bytes given to it, modulo 2^64

  std::uint32_t number = 0;  ///< as home of blocks; from 1 on
  /// Whose blocks it holds; null: the pool has no lanes. Changed by an owner that holds none.
  atomic<lane*> of_lane{nullptr};

  std::array<front_returns, max_classes> returns{};

  depot::spare spare;  ///< the owner's; passes leave it alone

  /// Parcels of this front's blocks that other threads freed. Whoever is inside takes them.
  alignas(interference) free_list inbox;
  atomic<std::uint64_t> inbox_bytes{0};  ///< a figure, counted by senders and receivers

 private:
  static constexpr std::uint8_t revoked = 1;
  static constexpr std::uint8_t exchange_required = 2;
  static constexpr std::uint8_t is_retired = 4;

  [[nodiscard]] bool enter() noexcept {
    inside_.store(true, relaxed);             // (a); ordered before (b) by the pass's heavy barrier
    asymmetric_barrier::light();
    return closed_.load(seq_cst) == 0;        // (b)
  }
  [[nodiscard]] bool enter_by_exchange() noexcept {
    if ((closed_.load(relaxed) & exchange_required) == 0) return false;  // never changes
    inside_.exchange(true, seq_cst);                                     // (a')
    return (closed_.load(seq_cst) & (revoked | is_retired)) == 0;        // (b)
  }
};

}  // namespace orderly::detail
