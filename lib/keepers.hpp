/// \file
/// Who keeps blocks of a pool beside it, for whoever asks there first, and gives them up when the pool needs them. To the
/// pool such a block is live.
///
/// Order of mutexes: the list's, a keeper's own, the pool's. So a keeper is asked while nothing of the pool is held, and
/// may free blocks; it allocates nothing then.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "atomic.hpp"

namespace orderly::detail {

class keeper {
 public:
  keeper() = default;
  keeper(const keeper&) = delete;
  keeper& operator=(const keeper&) = delete;

  /// Frees kept blocks of that many bytes, or all there are. Returns the bytes. On return nothing is on its way back.
  virtual std::size_t give_up(std::size_t bytes) noexcept = 0;
  /// Frees all that is kept for the lane of that serial number.
  virtual void give_up_lane(std::uint64_t serial) noexcept = 0;
  /// The pool is going, and takes no block back any more.
  virtual void pool_goes() noexcept = 0;
  virtual void before_fork() noexcept = 0;
  virtual void after_fork() noexcept = 0;

 protected:
  ~keeper() = default;
};

/// Those of one pool.
class keepers {
 public:
  /// Throws std::bad_alloc.
  void add(keeper& one) {
    const std::lock_guard lock(mutex_);
    all_.push_back(&one);
    count_.store(all_.size(), relaxed);
  }
  void remove(keeper& one) noexcept {
    const std::lock_guard lock(mutex_);
    std::erase(all_, &one);
    count_.store(all_.size(), relaxed);
  }

  /// Each in turn, until that many bytes were given up. Returns the bytes.
  std::size_t give_up(std::size_t bytes) noexcept {
    std::size_t given = 0;
    each([&](keeper& one) {
      if (given < bytes) given += one.give_up(bytes - given);
    });
    return given;
  }
  void give_up_lane(std::uint64_t serial) noexcept {
    each([&](keeper& one) { one.give_up_lane(serial); });
  }
  void pool_goes() noexcept {
    each([](keeper& one) { one.pool_goes(); });
  }

  void before_fork() noexcept {
    mutex_.lock();
    for (keeper* const one : all_) one->before_fork();
  }
  void after_fork() noexcept {
    for (keeper* const one : all_) one->after_fork();
    mutex_.unlock();
  }

 private:
  template <class Visit>
  void each(const Visit& visit) noexcept {
    // Relaxed: whoever has blocks kept has added the keeper before, and the program orders that before this call; of one
    // that is just added, nothing is missed that this call had to see.
    if (count_.load(relaxed) == 0) return;
    const std::lock_guard lock(mutex_);
    for (keeper* const one : all_) visit(*one);
  }

  mutex mutex_;
  std::vector<keeper*> all_;        ///< guarded by mutex_
  atomic<std::size_t> count_{0};
};

}  // namespace orderly::detail
