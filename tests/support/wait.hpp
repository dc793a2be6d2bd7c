/// \file
/// Waiting in a test, and what some sanitizers do not allow.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

#if defined(__SANITIZE_THREAD__)
#define ORDERLY_TEST_UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ORDERLY_TEST_UNDER_TSAN 1
#endif
#endif
#if !defined(ORDERLY_TEST_UNDER_TSAN)
#define ORDERLY_TEST_UNDER_TSAN 0
#endif

namespace orderly::test {

/// Waits for a flag; not for ever, so that a test which waits for what never happens ends.
inline bool comes(const std::atomic<bool>& flag, std::chrono::milliseconds within = std::chrono::seconds(60)) {
  const auto end = std::chrono::steady_clock::now() + within;
  while (!flag.load()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return true;
}

/// Waits in the middle of something for what another thread may do meanwhile, or may have to wait with.
inline void give_way(std::chrono::milliseconds time = std::chrono::milliseconds(50)) { std::this_thread::sleep_for(time); }

}  // namespace orderly::test
