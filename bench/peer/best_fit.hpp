/// \file
/// Best fit with coalescing behind one mutex: what most GPU pools do, done well.
///
/// The free blocks stand in two trees, by size and by address, so that both calls take O(log n). The nodes lie outside
/// the memory and are recycled: no call allocates once it has seen its peak. A block is carved from the front of the
/// smallest free block that fits, the lowest one among equals, so the arena's end stays unused as long as possible.
/// A live block needs no record: the caller knows its size.
#pragma once

#include <algorithm>
#include <boost/intrusive/set.hpp>
#include <cstddef>
#include <deque>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "peer/address_range.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class best_fit_peer {
 public:
  static constexpr std::string_view name = "best-fit";
  static constexpr bool arena = true;

  /// The limit is the size of the arena.
  explicit best_fit_peer(const arena_config& config)
      : range_(std::max(granule, (config.limit != 0 ? config.limit : config.capacity) / granule * granule)) {
    insert(by_address_.end(), 0, range_.size());
  }
  ~best_fit_peer() {
    by_size_.clear();
    by_address_.clear();
  }

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept {
    if (bytes > range_.size()) return nullptr;
    const std::size_t length = rounded(bytes);
    const std::lock_guard lock(mutex_);
    const auto found = by_size_.lower_bound(std::pair{length, std::size_t{0}});
    if (found == by_size_.end()) return nullptr;
    free_block& block = *found;
    const std::size_t start = block.start;
    by_size_.erase(found);
    if (block.length == length) {
      by_address_.erase(by_address_.iterator_to(block));
      unused_.push_back(&block);
    } else {  // the rest keeps its place in the order of addresses
      block.start += length;
      block.length -= length;
      by_size_.insert(block);
    }
    high_water_ = std::max(high_water_, start + length);
    return range_.begin() + start;
  }

  void deallocate(void* pointer, std::size_t bytes) noexcept {
    const auto start = static_cast<std::size_t>(static_cast<std::byte*>(pointer) - range_.begin());
    const std::size_t length = rounded(bytes);
    const std::lock_guard lock(mutex_);
    const auto next = by_address_.upper_bound(start);
    const auto previous = next == by_address_.begin() ? by_address_.end() : std::prev(next);
    const bool joins_next = next != by_address_.end() && next->start == start + length;
    if (previous != by_address_.end() && previous->start + previous->length == start) {
      resize(*previous, previous->start, previous->length + length + (joins_next ? next->length : 0));
      if (joins_next) remove(*next);
    } else if (joins_next) {
      resize(*next, start, next->length + length);
    } else {
      insert(next, start, length);
    }
  }

  /// The highest end of a block so far. An arena does not shrink.
  [[nodiscard]] std::size_t committed() const noexcept { return peak_committed(); }
  [[nodiscard]] std::size_t peak_committed() const noexcept {
    const std::lock_guard lock(mutex_);
    return high_water_;
  }

  [[nodiscard]] static std::size_t rounded(std::size_t bytes) noexcept {
    return (std::max(bytes, std::size_t{1}) + granule - 1) / granule * granule;
  }

 private:
  static constexpr std::size_t granule = 256;

  struct address_tag;
  struct size_tag;
  template <class Tag>
  using hook = boost::intrusive::set_base_hook<boost::intrusive::tag<Tag>,
                                               boost::intrusive::link_mode<boost::intrusive::normal_link>,
                                               boost::intrusive::optimize_size<false>>;

  struct free_block : hook<address_tag>, hook<size_tag> {
    std::size_t start = 0;  // offset in the arena
    std::size_t length = 0;
  };
  struct start_of {
    using type = std::size_t;
    type operator()(const free_block& block) const noexcept { return block.start; }
  };
  struct length_and_start_of {
    using type = std::pair<std::size_t, std::size_t>;
    type operator()(const free_block& block) const noexcept { return {block.length, block.start}; }
  };
  using address_order = boost::intrusive::set<free_block, boost::intrusive::base_hook<hook<address_tag>>,
                                              boost::intrusive::key_of_value<start_of>>;
  using size_order = boost::intrusive::set<free_block, boost::intrusive::base_hook<hook<size_tag>>,
                                           boost::intrusive::key_of_value<length_and_start_of>>;

  void insert(address_order::iterator next, std::size_t start, std::size_t length) {
    if (unused_.empty()) unused_.push_back(&nodes_.emplace_back());
    free_block& block = *unused_.back();
    unused_.pop_back();
    block.start = start;
    block.length = length;
    by_address_.insert_before(next, block);
    by_size_.insert(block);
  }

  void resize(free_block& block, std::size_t start, std::size_t length) noexcept {
    by_size_.erase(by_size_.iterator_to(block));
    block.start = start;
    block.length = length;
    by_size_.insert(block);
  }

  void remove(free_block& block) noexcept {
    by_size_.erase(by_size_.iterator_to(block));
    by_address_.erase(by_address_.iterator_to(block));
    unused_.push_back(&block);
  }

  address_range range_;
  mutable std::mutex mutex_;
  std::deque<free_block> nodes_;
  std::vector<free_block*> unused_;
  address_order by_address_;
  size_order by_size_;
  std::size_t high_water_ = 0;
};

}  // namespace orderly::bench
