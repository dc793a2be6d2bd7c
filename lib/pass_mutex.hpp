/// \file
/// The mutex of a pool's passes, which can tell a thread that it holds it, and others whether its holder gets on.
#pragma once

#include <cstdint>

#include "atomic.hpp"
#include "thread_fronts.hpp"

namespace orderly::detail {

class pass_mutex {
 public:
  void lock() noexcept {
    mutex_.lock();
    holder_.store(this_thread_number(), relaxed);
    beat();
  }
  [[nodiscard]] bool try_lock() noexcept {
    if (!mutex_.try_lock()) return false;
    holder_.store(this_thread_number(), relaxed);
    beat();
    return true;
  }
  void unlock() noexcept {
    holder_.store(0, relaxed);
    mutex_.unlock();
  }

  /// The holder says that it gets on; each one does when it comes. Relaxed: a sign of life, which orders nothing.
  void beat() noexcept { beats_.store(beats_.load(relaxed) + 1, relaxed); }
  [[nodiscard]] std::uint64_t beats() const noexcept { return beats_.load(relaxed); }

  /// Does the calling thread hold it? Relaxed: no other thread writes the name that this one looks for.
  [[nodiscard]] bool is_mine() const noexcept { return holder_.load(relaxed) == this_thread_number(); }

 private:
  mutex mutex_;
  atomic<std::uint64_t> holder_{0};  ///< number of the thread; 0: none
  atomic<std::uint64_t> beats_{0};
};

}  // namespace orderly::detail
