/// \file
/// How much work a test does: less under a sanitizer, more when ORDERLY_TEST_LONG=FACTOR asks for it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ORDERLY_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define ORDERLY_TEST_SANITIZED 1
#endif
#endif

namespace orderly::test {

#ifdef ORDERLY_TEST_SANITIZED
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif

/// `count` as this build and this run can afford; never 0.
[[nodiscard]] inline std::size_t scaled(std::size_t count) {
  static const std::size_t factor = [] {
    const char* text = std::getenv("ORDERLY_TEST_LONG");
    return std::max<std::size_t>(1, text != nullptr ? std::strtoul(text, nullptr, 10) : 1);
  }();
  return std::max<std::size_t>(1, count * factor / (sanitized ? 8 : 1));
}

}  // namespace orderly::test
