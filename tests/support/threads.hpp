/// \file
/// Threads that start together, and a place for what they find: doctest's own checks are for the main thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <latch>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace orderly::test {

/// Runs body(index) on `count` threads, none of which starts before all exist. Returns when all have ended.
template <class Body>
void run_threads(std::size_t count, const Body& body) {
  std::latch start(static_cast<std::ptrdiff_t>(count));
  std::vector<std::thread> threads;
  threads.reserve(count);
  for (std::size_t index = 0; index < count; ++index) {
    threads.emplace_back([&start, &body, index] {
      start.arrive_and_wait();
      body(index);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// Counts failed expectations of any number of threads and keeps the first one's text. A met expectation costs
/// nothing and orders nothing between the threads.
class findings {
 public:
  template <class... Parts>
  void expect(bool met, const Parts&... parts) {
    if (met) return;
    if (count_.fetch_add(1, std::memory_order_relaxed) != 0) return;
    std::ostringstream text;
    (text << ... << parts);
    const std::lock_guard hold(mutex_);
    first_ = text.str();
  }

  [[nodiscard]] std::size_t count() const noexcept { return count_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::string first() const {
    const std::lock_guard hold(mutex_);
    return first_;
  }

 private:
  std::atomic<std::size_t> count_ = 0;
  mutable std::mutex mutex_;
  std::string first_;
};

/// Reports on the main thread what the threads found.
#define ORDERLY_CHECK_FINDINGS(found) \
  CHECK_MESSAGE((found).count() == 0, (found).count(), " times, first: ", (found).first())

}  // namespace orderly::test
