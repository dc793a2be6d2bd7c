/// \file
/// doorbell: lets a thread sleep until another has news, and orders nothing between them.
///
/// Mutexes, condition variables and std::atomic's own wait() tell the one who rings what the sleeper did before: to
/// ThreadSanitizer the sleeper's work then happens before whatever the ringer does next. Here every access is relaxed;
/// the news itself carries the order.
///
/// Progress  A ring can miss a thread that is just falling asleep, as nothing orders the two words (1) and (2). A sleep
///           therefore ends after `longest_sleep` in any case.
#pragma once

#include <cstdint>

#include "../atomic.hpp"

namespace orderly::detail {

class doorbell {
 public:
  /// After the news is out.
  void ring() noexcept {
    rings_.fetch_add(1, relaxed);                // (1)
    if (sleepers_.load(relaxed) != 0) wake();    // (2)
  }

  /// Returns when `news()` is true.
  template <class News>
  void wait(const News& news) noexcept {
    for (unsigned look = 0; look < spins + yields; ++look) {
      if (news()) return;
      if (look >= spins) yield();
    }
    sleepers_.fetch_add(1, relaxed);             // (2)
    for (;;) {
      const std::uint32_t seen = rings_.load(relaxed);  // (1) before the look, so that a later ring ends the sleep
      if (news()) break;
      sleep_unless_rung(seen);
    }
    sleepers_.fetch_sub(1, relaxed);
  }

 private:
  static constexpr unsigned spins = 32;
  static constexpr unsigned yields = 32;

  void wake() noexcept;
  void sleep_unless_rung(std::uint32_t seen) noexcept;

  atomic<std::uint32_t> rings_{0};
  atomic<std::uint32_t> sleepers_{0};
};

}  // namespace orderly::detail
