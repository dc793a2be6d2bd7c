/// \file
/// The mutex of a pool's passes, which can tell a thread that it holds it.
#pragma once

#include <mutex>

#include "atomic.hpp"
#include "thread_fronts.hpp"

namespace orderly::detail {

class pass_mutex {
 public:
  void lock() noexcept {
    mutex_.lock();
    holder_.store(&this_thread_fronts, relaxed);
  }
  [[nodiscard]] bool try_lock() noexcept {
    if (!mutex_.try_lock()) return false;
    holder_.store(&this_thread_fronts, relaxed);
    return true;
  }
  void unlock() noexcept {
    holder_.store(nullptr, relaxed);
    mutex_.unlock();
  }

  /// Does the calling thread hold it? Relaxed: no other thread writes the name that this one looks for.
  [[nodiscard]] bool is_mine() const noexcept { return holder_.load(relaxed) == &this_thread_fronts; }

 private:
  std::mutex mutex_;
  atomic<const thread_fronts*> holder_{nullptr};  ///< named by what each thread has of its own
};

}  // namespace orderly::detail
