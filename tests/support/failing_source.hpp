/// \file
/// A memory source that watches the pool keep its side of the contract, and that refuses a call on request.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "orderly/source.hpp"
#include "support/fault_plan.hpp"

namespace orderly::test {

/// What one failing_source saw, and what it is to refuse. Outlives the pool that owns the source.
class source_log {
 public:
  enum class call { reserve, commit, decommit };

  struct range {
    void* address;
    std::size_t bytes;
  };

  /// From now on, calls of this kind number first, first + 1, … last (1 is the next one) are refused.
  void refuse(call kind, std::size_t first, std::size_t last) {
    const std::lock_guard hold(mutex_);
    plans_[kind] = {seen_[kind] + first, seen_[kind] + last};
  }
  void refuse(call kind, std::size_t number) { refuse(kind, number, number); }
  void refuse_all(call kind) { refuse(kind, 1, SIZE_MAX / 2); }
  /// Besides: `plan`, which counts the calls of every kind in one row. Outlives the source.
  void obey(fault_plan& plan) { plan_of_all_ = &plan; }
  void refuse_none() {
    const std::lock_guard hold(mutex_);
    plans_.clear();
  }

  [[nodiscard]] std::size_t seen(call kind) const {
    const std::lock_guard hold(mutex_);
    const auto found = seen_.find(kind);
    return found == seen_.end() ? 0 : found->second;
  }
  [[nodiscard]] std::size_t committed() const { return locked(committed_); }
  [[nodiscard]] std::size_t peak_committed() const { return locked(peak_committed_); }
  /// Of a virtual source. All of it, which lies in one range.
  [[nodiscard]] bool is_committed(const void* address, std::size_t bytes) const {
    const std::lock_guard hold(mutex_);
    const auto begin = reinterpret_cast<std::uintptr_t>(address);
    const auto after = ranges_.upper_bound(begin);
    if (after == ranges_.begin() || bytes == 0) return false;
    const auto& [start, reserved] = *std::prev(after);
    if (bytes > reserved.bytes || begin - start > reserved.bytes - bytes) return false;
    const std::size_t last = (begin - start + bytes - 1) / reserved.unit;
    std::size_t unit = (begin - start) / reserved.unit;
    while (unit <= last && reserved.committed[unit]) ++unit;
    return unit > last;
  }
  [[nodiscard]] std::size_t reserved_ranges() const {
    const std::lock_guard hold(mutex_);
    return ranges_.size();
  }
  [[nodiscard]] std::vector<range> ranges() const {
    const std::lock_guard hold(mutex_);
    std::vector<range> all;
    for (const auto& [address, reserved] : ranges_) all.push_back({reinterpret_cast<void*>(address), reserved.bytes});
    return all;
  }
  /// Calls that broke the contract of memory_source; the first one's text.
  [[nodiscard]] std::size_t violations() const { return locked(violations_); }
  [[nodiscard]] std::string first_violation() const {
    const std::lock_guard hold(mutex_);
    return first_violation_;
  }

 private:
  friend class failing_source;

  template <class T>
  [[nodiscard]] T locked(const T& value) const {
    const std::lock_guard hold(mutex_);
    return value;
  }

  /// Counts the call; true if it is to be refused.
  bool refused(call kind) {
    const std::size_t number = ++seen_[kind];
    if (plan_of_all_ != nullptr && plan_of_all_->refuses()) return true;
    const auto plan = plans_.find(kind);
    return plan != plans_.end() && number >= plan->second.first && number <= plan->second.second;
  }

  void expect(bool kept, const char* rule) {
    if (kept) return;
    if (violations_++ == 0) first_violation_ = rule;
  }

  /// A range of reserve(), and which of its units of the granularity are committed.
  struct reservation {
    std::size_t bytes;
    std::size_t unit;
    std::vector<bool> committed;
  };

  /// Marks a part of a range. False: it lies in no range, or some of it was marked so already.
  [[nodiscard]] bool mark(std::uintptr_t address, std::size_t bytes, bool committed) {
    const auto after = ranges_.upper_bound(address);
    if (after == ranges_.begin()) return false;
    auto& [begin, reserved] = *std::prev(after);
    const std::size_t offset = address - begin;
    if (offset > reserved.bytes || bytes > reserved.bytes - offset) return false;
    bool all_changed = offset % reserved.unit == 0 && bytes % reserved.unit == 0;
    for (std::size_t index = offset / reserved.unit; index < (offset + bytes) / reserved.unit; ++index) {
      all_changed &= reserved.committed[index] != committed;
      reserved.committed[index] = committed;
    }
    return all_changed;
  }

  mutable std::mutex mutex_;
  std::map<call, std::size_t> seen_;
  std::map<call, std::pair<std::size_t, std::size_t>> plans_;
  fault_plan* plan_of_all_ = nullptr;
  std::map<std::uintptr_t, reservation> ranges_;
  std::size_t committed_ = 0;
  std::size_t peak_committed_ = 0;
  std::size_t violations_ = 0;
  std::string first_violation_;
};

class failing_source final : public memory_source {
 public:
  failing_source(std::unique_ptr<memory_source> inner, std::shared_ptr<source_log> log)
      : inner_(std::move(inner)), log_(std::move(log)) {}

  ~failing_source() override {
    const std::lock_guard hold(log_->mutex_);
    log_->expect(log_->ranges_.empty(), "every range is released before the source is destroyed");
  }

  [[nodiscard]] std::size_t granularity() const noexcept override { return inner_->granularity(); }
  [[nodiscard]] std::size_t preferred_chunk() const noexcept override { return inner_->preferred_chunk(); }
  [[nodiscard]] std::size_t capacity() const noexcept override { return inner_->capacity(); }
  [[nodiscard]] bool is_virtual() const noexcept override { return inner_->is_virtual(); }
  [[nodiscard]] bool is_host_memory() const noexcept override { return inner_->is_host_memory(); }

  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    const outside_library here;
    const std::lock_guard hold(log_->mutex_);
    log_->expect(bytes != 0 && bytes % granularity() == 0, "reserve() gets a multiple of the granularity");
    if (log_->refused(source_log::call::reserve)) return nullptr;
    void* address = inner_->reserve(bytes, alignment);
    if (address == nullptr) return nullptr;
    const std::size_t units = is_virtual() ? bytes / granularity() : 0;
    log_->ranges_[reinterpret_cast<std::uintptr_t>(address)] = {bytes, granularity(), std::vector<bool>(units)};
    return address;
  }

  void release(void* address, std::size_t bytes) noexcept override {
    const outside_library here;
    const std::lock_guard hold(log_->mutex_);
    const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(address);
    const auto range = log_->ranges_.find(begin);
    const bool known = range != log_->ranges_.end() && range->second.bytes == bytes;
    log_->expect(known, "release() gets a range of reserve(), whole");
    if (!known) return;
    const std::vector<bool>& committed = range->second.committed;
    log_->committed_ -= static_cast<std::size_t>(std::count(committed.begin(), committed.end(), true)) * granularity();
    log_->ranges_.erase(range);
    inner_->release(address, bytes);
  }

  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    const outside_library here;
    const std::lock_guard hold(log_->mutex_);
    log_->expect(inner_->is_virtual(), "commit() is for virtual sources");
    if (log_->refused(source_log::call::commit) || !inner_->commit(address, bytes)) return false;
    log_->expect(log_->mark(reinterpret_cast<std::uintptr_t>(address), bytes, true),
                 "commit() gets whole units inside a range that are not committed");
    log_->committed_ += bytes;
    log_->peak_committed_ = std::max(log_->peak_committed_, log_->committed_);
    return true;
  }

  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    const outside_library here;
    const std::lock_guard hold(log_->mutex_);
    log_->expect(inner_->is_virtual(), "decommit() is for virtual sources");
    if (log_->refused(source_log::call::decommit) || !inner_->decommit(address, bytes)) return false;
    log_->expect(log_->mark(reinterpret_cast<std::uintptr_t>(address), bytes, false),
                 "decommit() gets whole units inside a range that are committed");
    log_->committed_ -= bytes;
    return true;
  }

 private:
  std::unique_ptr<memory_source> inner_;
  std::shared_ptr<source_log> log_;
};

/// A host source that writes to `log` and obeys it.
[[nodiscard]] inline std::unique_ptr<memory_source> make_failing_source(std::shared_ptr<source_log> log) {
  return std::make_unique<failing_source>(make_host_source(), std::move(log));
}

#define ORDERLY_CHECK_CONTRACT(log) CHECK_MESSAGE((log).violations() == 0, (log).first_violation())

}  // namespace orderly::test
