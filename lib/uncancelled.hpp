/// \file
/// Waiting without being cancelled.
#pragma once

#include <pthread.h>

namespace orderly::detail {

/// While it lives, a request to cancel the thread (pthread_cancel) is kept for later. What the library waits in, and writes
/// to stderr with, are points where a thread ends on request; but most of its functions do not throw, so that the process
/// would end with it.
class uncancelled {
 public:
  uncancelled() noexcept { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
  uncancelled(const uncancelled&) = delete;
  uncancelled& operator=(const uncancelled&) = delete;
  ~uncancelled() { pthread_setcancelstate(before_, nullptr); }

 private:
  int before_ = 0;
};

}  // namespace orderly::detail
