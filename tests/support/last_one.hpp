/// \file
/// Two threads that want the last of something.
#pragma once

#include <array>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <thread>

#include "support/scale.hpp"
#include "support/threads.hpp"

namespace orderly::test {

/// Round after round prepare() leaves one, and two threads take(self). One gets it; the other sees what that one did before,
/// for a pass relies on it that who finds nothing knows who is at work. The data is plain, and nothing else orders the two:
/// ThreadSanitizer reports a take that does not. In every second round one comes when the other is done.
template <class Prepare, class Take>
void want_the_last(std::size_t rounds, const Prepare& prepare, const Take& take) {
  if (!sanitized) rounds = rounds / 32 + 1;  // what the processor does not let happen is not looked for long
  std::array<std::size_t, 2> at_work{};
  std::array<bool, 2> got{};
  std::atomic<std::size_t> here = 0;
  std::atomic<std::size_t> gone = 0;
  findings found;
  std::barrier begin(2, [&]() noexcept { prepare(); });
  std::barrier end(2, [&]() noexcept { found.expect(got[0] != got[1], got[0] ? "both" : "nobody", " got the last"); });
  run_threads(2, [&](std::size_t self) {
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
      ++at_work[self];
      got[self] = take(self);
      if (!got[self]) found.expect(at_work[1 - self] == round, "the last is gone, and nobody was at work");
      gone.fetch_add(1, std::memory_order_relaxed);
      end.arrive_and_wait();
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
}

}  // namespace orderly::test
