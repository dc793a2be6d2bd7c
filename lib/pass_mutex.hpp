/// \file
/// The mutex of a pool's passes, which can tell a thread that it holds it.
#pragma once

#include "atomic.hpp"
#include "thread_fronts.hpp"

namespace orderly::detail {

class pass_mutex {
 public:
  void lock() noexcept {
    mutex_.lock();
    holder_.store(this_thread_number(), relaxed);
  }
  [[nodiscard]] bool try_lock() noexcept {
    if (!mutex_.try_lock()) return false;
    holder_.store(this_thread_number(), relaxed);
    return true;
  }
  void unlock() noexcept {
    holder_.store(0, relaxed);
    mutex_.unlock();
  }

  /// Does the calling thread hold it? Relaxed: no other thread writes the name that this one looks for.
  [[nodiscard]] bool is_mine() const noexcept { return holder_.load(relaxed) == this_thread_number(); }

 private:
  mutex mutex_;
  atomic<std::uint64_t> holder_{0};  ///< number of the thread; 0: none
};

}  // namespace orderly::detail
