/// \file
/// The front: one thread's magazines. The hot path works on it and on one block word, and on nothing else.
///
/// Only the owner uses a front and moves the words of the blocks whose home it is (block_word.hpp), except that a pass may
/// revoke it to take back what it holds. Both must agree who is inside
/// without a locked instruction on the owner's side:
///
///   owner   enter: sequence := odd (a); light barrier; revoked? (b) then leave. Work. leave: sequence := even (c).
///   pass    revoked := true (d); heavy barrier; wait until the sequence is even (e). Work. revoked := false (f).
///
///   Either (b) sees (d), and the owner leaves without having touched anything, or (a) came before the owner's point of
///   the heavy barrier, and (e) sees the odd sequence and waits for (c). So owner and pass are never inside at once.
///   (c) release -> (e) acquire: the pass sees what the owner did. (f) release -> (b) acquire: the owner sees what the
///   pass did.
///
/// A pass waits for an owner inside only so long: an owner that the system has stopped there keeps what it holds, and the
/// pass goes on without it. While a front is revoked its owner goes past it, to depot and buddy.
///
/// Counters are written by the owner alone (load, then store, relaxed); others read them for statistics.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "atomic.hpp"
#include "block_word.hpp"
#include "depot.hpp"

namespace orderly::detail {

/// Blocks of one class that a thread holds. The count is atomic for statistics only.
struct front_magazine {
  atomic<std::uint32_t> count{0};
  std::uint16_t capacity = 0;
  std::uint8_t order = 0;
  std::uint8_t sixteenths = 0;
  std::uint32_t* blocks = nullptr;         ///< granules, the newest last
  atomic<std::uint64_t>* words = nullptr;  ///< of the class's order
  block_word unrequested;                  ///< a live block of which no byte was requested

  [[nodiscard]] block_word live(std::size_t requested) const noexcept { return unrequested.with_requested(requested); }
};

/// Blocks of one class that this thread freed and that belong to another front, until they are worth a parcel.
struct front_returns {
  atomic<std::uint32_t> count{0};  ///< atomic for statistics only
  std::uint32_t home = 0;          ///< of all of them
  std::uint32_t* blocks = nullptr;
  std::uint32_t* unused = nullptr;  ///< bytes of each that were not requested
};

class alignas(64) front {
 public:
  static constexpr std::size_t most_blocks = 2 * max_magazine_blocks;  ///< of one class

  /// Owner's stay inside its front. False if the front is revoked: then nothing was entered.
  class stay {
   public:
    explicit stay(front& of) noexcept : front_(of), sequence_(of.sequence_.load(relaxed)) {  // own
      if (asymmetric_barrier::available()) [[likely]] {
        of.sequence_.store(sequence_ + 1, relaxed);     // (a); ordered before (b) by the pass's heavy barrier
        asymmetric_barrier::light();
      } else {
        of.sequence_.exchange(sequence_ + 1, seq_cst);  // (a); ordered before (b) by itself
      }
      inside_ = !of.revoked_.load(seq_cst);             // (b)
    }
    stay(const stay&) = delete;
    stay& operator=(const stay&) = delete;
    ~stay() { front_.sequence_.store(sequence_ + 2, release); }  // (c)

    explicit operator bool() const noexcept { return inside_; }

   private:
    front& front_;
    std::uint64_t sequence_;
    bool inside_;
  };

  /// Pass, before and after the heavy barrier.
  void revoke() noexcept { revoked_.store(true, seq_cst); }                         // (d)
  [[nodiscard]] bool outside() const noexcept { return sequence_.load(seq_cst) % 2 == 0; }  // (e)
  void restore() noexcept { revoked_.store(false, release); }                       // (f)

  /// Marks the owner's work past the front: between the two calls it may hold blocks that no list shows.
  void begin_slow() noexcept { slow_.store(slow_.load(relaxed) + 1, seq_cst); }  // before any claim, in the view of (g)
  void end_slow() noexcept { slow_.store(slow_.load(relaxed) + 1, release); }    // -> (g): what was given is visible

  /// How far the owner is; odd members mean inside.
  struct activity {
    std::uint64_t sequence = 0;
    std::uint64_t slow = 0;
    [[nodiscard]] bool operator==(const activity&) const = default;
    [[nodiscard]] bool idle() const noexcept { return sequence % 2 == 0 && slow % 2 == 0; }
  };
  [[nodiscard]] activity watch() const noexcept { return {sequence_.load(seq_cst), slow_.load(seq_cst)}; }  // (g)

  [[nodiscard]] bool try_attach() noexcept {
    bool expected = false;
    return attached_.compare_exchange_strong(expected, true, seq_cst, seq_cst);  // detach(): the last owner's writes
  }
  void attach() noexcept { attached_.store(true, relaxed); }  // a new front, not yet shown to anybody
  [[nodiscard]] bool attached() const noexcept { return attached_.load(seq_cst); }  // after a push; see pool::state::adopt
  void detach() noexcept { attached_.store(false, seq_cst); }  // -> try_attach(); before a look at the inbox

  static void add(atomic<std::uint64_t>& counter, std::uint64_t amount) noexcept {
    counter.store(counter.load(relaxed) + amount, relaxed);  // owner only; a figure
  }

  atomic<std::uint64_t> sequence_{0};
  atomic<std::uint64_t> slow_{0};
  atomic<bool> revoked_{false};
  atomic<bool> attached_{false};
  // Bytes allocated minus bytes freed since the last publication are highest - room; `highest` is their peak since then.
  atomic<std::int64_t> room{0};
  atomic<std::int64_t> highest{0};
  std::int64_t publish_at = 0;  ///< room or peak at which the owner publishes
  atomic<std::uint64_t> allocations{0};
  atomic<std::uint64_t> frees{0};
  atomic<std::uint64_t> taken{0};            ///< bytes taken from the buddy minus bytes given to it, modulo 2^64

  std::uint32_t number = 0;  ///< as home of blocks; from 1 on

  std::array<front_magazine, max_classes> magazines{};
  std::array<front_returns, max_classes> returns{};

  /// Parcels of this front's blocks that other threads freed. Whoever is inside takes them.
  free_list inbox;
  atomic<std::uint64_t> inbox_bytes{0};  ///< a figure, counted by senders and receivers
};

}  // namespace orderly::detail
