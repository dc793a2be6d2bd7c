/// \file
/// Allocators that check how the replay uses them.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "peer/peer.hpp"

namespace orderly::test {

/// Hands out numbers for addresses, and refuses what would bring the live bytes above a limit. Counts everything.
class counting_peer final : public bench::any_peer {
 public:
  explicit counting_peer(std::size_t limit = SIZE_MAX) : limit_(limit) {}

  void* allocate(std::size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    if (bytes > limit_ - live_) return nullptr;
    live_ += bytes;
    peak_ = std::max(peak_, live_);
    next_ += granule;
    blocks_[next_] = bytes;
    order_.push_back(static_cast<std::int64_t>(bytes));
    return reinterpret_cast<void*>(next_);
  }

  bool deallocate(void* pointer, std::size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(reinterpret_cast<std::uintptr_t>(pointer));
    if (found == blocks_.end() || found->second != bytes) {
      ++mistakes_;
      return false;
    }
    live_ -= bytes;
    blocks_.erase(found);
    order_.push_back(-static_cast<std::int64_t>(bytes));
    return true;
  }

  [[nodiscard]] std::size_t committed() const noexcept override {
    const std::lock_guard lock(mutex_);
    return live_;
  }
  [[nodiscard]] std::size_t peak_committed() const noexcept override {
    const std::lock_guard lock(mutex_);
    return peak_;
  }

  [[nodiscard]] std::size_t live() const noexcept { return live_; }
  [[nodiscard]] std::size_t mistakes() const noexcept { return mistakes_; }

  /// The calls in the order in which they came: the size, negative for a free.
  [[nodiscard]] const std::vector<std::int64_t>& order() const noexcept { return order_; }

 private:
  static constexpr std::uintptr_t granule = 64;

  mutable std::mutex mutex_;
  std::size_t limit_;
  std::size_t live_ = 0;
  std::size_t peak_ = 0;
  std::size_t mistakes_ = 0;
  std::uintptr_t next_ = 0;
  std::map<std::uintptr_t, std::size_t> blocks_;
  std::vector<std::int64_t> order_;
};

}  // namespace orderly::test
