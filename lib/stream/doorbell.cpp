#include "doorbell.hpp"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#else
#include <chrono>
#endif

namespace orderly::detail {

#if defined(__linux__)

namespace {

constexpr timespec longest_sleep{0, 10'000'000};

}  // namespace

void doorbell::wake() noexcept {
  syscall(SYS_futex, &rings_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void doorbell::sleep_unless_rung(std::uint32_t seen) noexcept {
  static_assert(sizeof(rings_) == sizeof(std::uint32_t), "the system compares the word itself");
  syscall(SYS_futex, &rings_, FUTEX_WAIT_PRIVATE, seen, &longest_sleep, nullptr, 0);
}

#else

namespace {

constexpr std::chrono::microseconds longest_sleep{100};

}  // namespace

void doorbell::wake() noexcept {}

void doorbell::sleep_unless_rung(std::uint32_t /*seen*/) noexcept { rest(longest_sleep); }

#endif

}  // namespace orderly::detail
