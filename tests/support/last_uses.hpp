/// \file
/// Freed memory, and the work of streams that may still use it: who gets some of it must come behind that work, and the
/// source must not get it back before.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "support/decorated_source.hpp"

namespace orderly::test {

/// Any thread; outlives the pool and the streams.
class last_uses {
 public:
  /// A piece of work that has run or not.
  using work = std::shared_ptr<std::atomic<bool>>;

  /// Before a block is freed: what may still use it.
  void leave(const void* block, std::size_t bytes, const std::vector<work>& by) {
    const auto begin = reinterpret_cast<std::uintptr_t>(block);
    const std::lock_guard hold(mutex_);
    left_[begin] = {begin + bytes, by};
  }

  /// For who gets memory: all work that may still use some of it, which is forgotten here.
  [[nodiscard]] std::vector<work> take(const void* memory, std::size_t bytes) {
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t end = begin + bytes;
    std::vector<work> found;
    const std::lock_guard hold(mutex_);
    auto at = left_.upper_bound(begin);
    if (at != left_.begin() && std::prev(at)->second.end > begin) --at;
    while (at != left_.end() && at->first < end) {
      const auto [first, old] = *at;
      at = left_.erase(at);
      std::ranges::copy_if(old.by, std::back_inserter(found), [](const work& each) { return !each->load(); });
      if (first < begin) left_[first] = {begin, old.by};
      if (old.end > end) left_[end] = old;
    }
    return found;
  }

  /// Times that the source got back what work may still have used.
  [[nodiscard]] std::size_t torn_away() const noexcept { return torn_away_.load(); }

 private:
  friend class last_uses_source;
  struct entry {
    std::uintptr_t end = 0;
    std::vector<work> by;
  };
  std::mutex mutex_;
  std::map<std::uintptr_t, entry> left_;  ///< by its beginning; none overlaps another
  std::atomic<std::size_t> torn_away_ = 0;
};

/// A virtual source that looks at each decommit whether the memory is in use.
class last_uses_source final : public decorated_source {
 public:
  last_uses_source(std::unique_ptr<memory_source> inner, last_uses& of)
      : decorated_source(std::move(inner)), of_(of) {}

  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    if (!of_.take(address, bytes).empty()) ++of_.torn_away_;
    return decorated_source::decommit(address, bytes);
  }

 private:
  last_uses& of_;
};

}  // namespace orderly::test
