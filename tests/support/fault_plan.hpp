/// \file
/// Which call is refused: the k-th of those that may fail, for every k there is.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "support/scale.hpp"

namespace orderly::test {

/// Counts calls and refuses some. Constant-initialised, so that it may serve calls that come before main().
class fault_plan {
 public:
  /// From now on the `first`-th call (1 is the next one) is refused, and `more` calls after it.
  void arm(std::size_t first, std::size_t more = 0) noexcept {
    seen_.store(0);
    refused_.store(0);
    last_.store(first + more);
    first_.store(first);
  }
  void disarm() noexcept { first_.store(0); }

  /// Counts a call; true: it is to be refused.
  [[nodiscard]] bool refuses() noexcept {
    const std::size_t first = first_.load();
    if (first == 0) return false;
    const std::size_t number = seen_.fetch_add(1) + 1;
    if (number < first || number > last_.load()) return false;
    refused_.fetch_add(1);
    return true;
  }

  [[nodiscard]] std::size_t refused() const noexcept { return refused_.load(); }

 private:
  std::atomic<std::size_t> first_{0};  // 0: nothing is counted
  std::atomic<std::size_t> last_{0};
  std::atomic<std::size_t> seen_{0};
  std::atomic<std::size_t> refused_{0};
};

inline constexpr std::size_t all_more = SIZE_MAX / 2;

/// Runs `body(k)` with the k-th call refused and `more` after it, for k = 1, 2, … until a run has no k-th call; every
/// `stride`-th k, for what takes too long. The body disarms the plan where its checks begin. Returns how many runs had a
/// call refused.
template <class Body>
std::size_t for_each_fault(fault_plan& plan, std::size_t more, const Body& body, std::size_t stride = sanitized ? 16 : 1) {
  std::size_t points = 0;
  for (std::size_t k = 1;; k += stride) {
    plan.arm(k, more);
    body(k);
    plan.disarm();
    if (plan.refused() == 0) return points;
    ++points;
  }
}

/// True while the thread is in a call of the library: what the test itself does is never refused.
inline thread_local constinit bool in_library = false;

/// Calls the library.
template <class Call>
auto lib(const Call& call) {
  struct leaving {
    bool outer = in_library;
    ~leaving() { in_library = outer; }
  } const leave;
  in_library = true;
  return call();
}

/// In a double that the library calls: it is the test again.
class outside_library {
 public:
  outside_library() noexcept { in_library = false; }
  outside_library(const outside_library&) = delete;
  outside_library& operator=(const outside_library&) = delete;
  ~outside_library() { in_library = outer_; }

 private:
  bool outer_ = in_library;
};

}  // namespace orderly::test
