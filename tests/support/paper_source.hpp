/// \file
/// A virtual memory source without memory. It hands out addresses that nobody may touch, so it can be asked for as many
/// as a test likes, in units as small as a test likes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "orderly/source.hpp"
#include "support/failing_source.hpp"

namespace orderly::test {

/// Which units of a paper_source's range are committed. Outlives the source. Read it while no call is in flight.
class paper_map {
 public:
  /// True if all of [offset, offset + bytes) of the range is committed.
  [[nodiscard]] bool committed(std::uint64_t offset, std::uint64_t bytes) const {
    for (std::uint64_t unit = offset / unit_; unit < (offset + bytes + unit_ - 1) / unit_; ++unit) {
      if (!units_[unit]) return false;
    }
    return true;
  }

 private:
  friend class paper_source;
  std::uint64_t unit_ = 1;
  std::vector<bool> units_;
};

/// One range at a time. It remembers, and checks nothing: a failing_source around it watches the contract and keeps its
/// calls apart.
class paper_source final : public memory_source {
 public:
  paper_source(std::size_t granularity, std::shared_ptr<paper_map> map) : map_(std::move(map)) {
    map_->unit_ = granularity;
  }

  [[nodiscard]] std::size_t granularity() const noexcept override { return map_->unit_; }
  [[nodiscard]] bool is_virtual() const noexcept override { return true; }

  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    base_ = (std::uintptr_t{1} << 44) / alignment * alignment;
    map_->units_.assign(bytes / map_->unit_, false);
    return reinterpret_cast<void*>(base_);
  }
  void release(void*, std::size_t) noexcept override { map_->units_.clear(); }
  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override { return mark(address, bytes, true); }
  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    return mark(address, bytes, false);
  }

 private:
  bool mark(void* address, std::size_t bytes, bool committed) noexcept {
    const auto first = map_->units_.begin() +
                       static_cast<std::ptrdiff_t>((reinterpret_cast<std::uintptr_t>(address) - base_) / map_->unit_);
    std::fill_n(first, bytes / map_->unit_, committed);
    return true;
  }

  std::shared_ptr<paper_map> map_;
  std::uintptr_t base_ = 0;
};

/// A paper_source that writes to `log` and obeys it.
[[nodiscard]] inline std::unique_ptr<memory_source> make_paper_source(std::size_t granularity,
                                                                      std::shared_ptr<paper_map> map,
                                                                      std::shared_ptr<source_log> log) {
  return std::make_unique<failing_source>(std::make_unique<paper_source>(granularity, std::move(map)), std::move(log));
}

}  // namespace orderly::test
