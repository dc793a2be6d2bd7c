#include "progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace orderly::bench {

progress::progress(std::size_t steps)
    : terminal_(isatty(STDERR_FILENO) != 0), steps_(std::max<std::size_t>(steps, 1)) {}

void progress::refresh() {
  constexpr std::size_t width = 30;
  const auto elapsed = std::chrono::steady_clock::now() - started_;
  if (!terminal_ || elapsed < std::chrono::seconds(1)) return;
  const std::size_t filled = std::min(width, width * done_ / steps_);
  const std::string bar = std::string(filled, '#') + std::string(width - filled, '.');
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(elapsed).count();
  std::fprintf(stderr, "\r\033[K[%s] %zu of %zu, %lld s: %s", bar.c_str(), done_, steps_,
               static_cast<long long>(seconds), label_.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void progress::clear() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace orderly::bench
