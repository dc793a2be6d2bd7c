/// \file
/// Two threads want the last of something.
#pragma once

#include <array>
#include <atomic>
#include <barrier>
#include <csignal>
#include <cstddef>
#include <thread>

#include <pthread.h>

#include "support/scale.hpp"
#include "support/threads.hpp"

namespace orderly::test {

/// While it lives, a signal holds the thread that it reaches up, in a take, until the other is done with its own, or has had
/// the time for it: so a step of one comes between two of the other that are neighbours.
class interruptions {
 public:
  interruptions() {
    struct sigaction hold = {};
    hold.sa_handler = [](int) {
      if (others_ == nullptr) return;
      for (int look = 0; look < 1000 && others_->load(std::memory_order_relaxed) < until_; ++look) {
      }
    };
    sigaction(SIGUSR2, &hold, &before_);
  }
  interruptions(const interruptions&) = delete;
  interruptions& operator=(const interruptions&) = delete;
  ~interruptions() { sigaction(SIGUSR2, &before_, nullptr); }

  static void begin(const std::atomic<std::size_t>& others, std::size_t until) noexcept {
    until_ = until;
    std::atomic_signal_fence(std::memory_order_seq_cst);  // for the handler, which runs on this thread
    others_ = &others;
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  static void end() noexcept {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    others_ = nullptr;
  }

 private:
  static inline thread_local const std::atomic<std::size_t>* others_ = nullptr;
  static inline thread_local std::size_t until_ = 0;
  struct sigaction before_ = {};
};

/// Round after round prepare() leaves one, and two threads take(self). One gets it; the other sees what that one did before,
/// for a pass relies on it that who finds nothing knows who is at work. The data is plain, and nothing else orders the two:
/// ThreadSanitizer reports a take that does not. In every second round one comes when the other is done; in half of the
/// others the second interrupts the first.
template <class Prepare, class Take>
void want_the_last(std::size_t rounds, const Prepare& prepare, const Take& take) {
  if (!sanitized) rounds = rounds / 32 + 1;  // what the processor does not let happen is not looked for long
  std::array<std::size_t, 2> at_work{};
  std::array<bool, 2> got{};
  std::array<pthread_t, 2> threads{};
  std::atomic<std::size_t> here = 0;
  std::atomic<std::size_t> gone = 0;
  const interruptions while_it_lasts;
  findings found;
  std::barrier begin(2, [&]() noexcept { prepare(); });
  std::barrier end(2, [&]() noexcept { found.expect(got[0] != got[1], got[0] ? "both" : "nobody", " got the last"); });
  run_threads(2, [&](std::size_t self) {
    threads[self] = pthread_self();
    const auto wait_for = [](const std::atomic<std::size_t>& of, std::size_t count) {
      for (int look = 0; of.load(std::memory_order_relaxed) < count; ++look)
        if (look >= 1000) std::this_thread::yield();
    };
    for (std::size_t round = 1; round <= rounds; ++round) {
      begin.arrive_and_wait();
      if (round % 2 == 1) {
        here.fetch_add(1, std::memory_order_relaxed);
        wait_for(here, round + 1);
      } else if (self == 1) {
        wait_for(gone, 2 * round - 1);
      }
      if (round % 4 == 1 && self == 1) pthread_kill(threads[0], SIGUSR2);
      interruptions::begin(gone, 2 * round - 1);
      ++at_work[self];
      got[self] = take(self);
      if (!got[self]) found.expect(at_work[1 - self] == round, "the last is gone, and nobody was at work");
      interruptions::end();
      gone.fetch_add(1, std::memory_order_relaxed);
      end.arrive_and_wait();
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
}

}  // namespace orderly::test
