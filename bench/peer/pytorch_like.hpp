/// \file
/// The scheme of PyTorch's caching allocator for devices, with its default settings, over ranges of host memory.
///
/// Sizes are rounded to 512 B. Memory comes in segments: of 2 MiB for blocks of at most 1 MiB, of 20 MiB for blocks
/// below 10 MiB, else as large as the block, rounded to 2 MiB. A segment belongs to the stream that it was made for,
/// and so do its blocks for as long as it exists. A request takes the smallest free block of its stream and of its kind
/// (small or large); the rest is split off, unless it is below 512 B or, of a large block, not above 1 MiB. A freed
/// block joins its free neighbours in the segment. Before a request is refused, every segment without a live block is
/// given back, and the request is tried once more. One mutex.
#pragma once

#include <algorithm>
#include <boost/intrusive/set.hpp>
#include <cstddef>
#include <deque>
#include <list>
#include <mutex>
#include <new>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "peer/address_range.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class pytorch_like_peer {
 public:
  static constexpr std::string_view name = "pytorch-like";
  static constexpr bool arena = true;

  /// The limit is on the sum of the segments.
  explicit pytorch_like_peer(const arena_config& config)
      : limit_(config.limit != 0 ? config.limit : config.capacity) {}
  ~pytorch_like_peer() {
    for (cache* each : {&small_, &large_}) each->clear();
  }

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept { return allocate_in(0, bytes); }

  [[nodiscard]] void* allocate_in(std::size_t stream, std::size_t bytes) noexcept {
    if (bytes > limit_) return nullptr;
    const std::size_t length = rounded(bytes);
    const std::lock_guard lock(mutex_);
    block* found = take_cached(stream, length);
    if (found == nullptr) found = make_segment(stream, length);
    if (found == nullptr && release_segments()) found = make_segment(stream, length);
    if (found == nullptr) return nullptr;
    const std::size_t rest = found->length - length;
    if (is_small(length) ? rest >= unit : rest > largest_small) split(*found, length);
    live_.emplace(found->begin, found);
    return found->begin;
  }

  void deallocate(void* pointer, std::size_t) noexcept {
    const std::lock_guard lock(mutex_);
    const auto known = live_.find(pointer);
    block* freed = known->second;
    live_.erase(known);
    if (block* const before = freed->previous; before != nullptr && before->is_linked()) freed = join(*before, *freed);
    if (block* const after = freed->next; after != nullptr && after->is_linked()) freed = join(*freed, *after);
    cache_of(*freed).insert(*freed);
  }

  /// The sum of the segments: what PyTorch calls reserved.
  [[nodiscard]] std::size_t committed() const noexcept {
    const std::lock_guard lock(mutex_);
    return held_;
  }
  [[nodiscard]] std::size_t peak_committed() const noexcept {
    const std::lock_guard lock(mutex_);
    return most_held_;
  }

  [[nodiscard]] static std::size_t rounded(std::size_t bytes) noexcept {
    return round_up(std::max(bytes, std::size_t{1}), unit);
  }

 private:
  static constexpr std::size_t mib = std::size_t{1} << 20;
  static constexpr std::size_t unit = 512;
  static constexpr std::size_t largest_small = mib;
  static constexpr std::size_t small_segment = 2 * mib;
  static constexpr std::size_t least_own_segment = 10 * mib;  // from here on a segment is as large as its block
  static constexpr std::size_t large_segment = 20 * mib;
  static constexpr std::size_t own_segment_unit = 2 * mib;

  using segments = std::list<address_range>;
  using hook = boost::intrusive::set_base_hook<boost::intrusive::link_mode<boost::intrusive::safe_link>>;

  /// Linked while it is free.
  struct block : hook {
    std::size_t stream = 0;
    std::byte* begin = nullptr;
    std::size_t length = 0;
    bool small = false;
    block* previous = nullptr;  // in the segment
    block* next = nullptr;
    segments::iterator segment;
  };
  struct place {
    using type = std::tuple<std::size_t, std::size_t, std::byte*>;
    type operator()(const block& of) const noexcept { return {of.stream, of.length, of.begin}; }
  };
  using cache = boost::intrusive::set<block, boost::intrusive::key_of_value<place>>;

  static std::size_t round_up(std::size_t bytes, std::size_t to) noexcept { return (bytes + to - 1) / to * to; }
  static bool is_small(std::size_t length) noexcept { return length <= largest_small; }
  static std::size_t segment_for(std::size_t length) noexcept {
    if (is_small(length)) return small_segment;
    return length < least_own_segment ? large_segment : round_up(length, own_segment_unit);
  }
  cache& cache_of(const block& of) noexcept { return of.small ? small_ : large_; }

  block* take_cached(std::size_t stream, std::size_t length) noexcept {
    cache& from = is_small(length) ? small_ : large_;
    const auto found = from.lower_bound(place::type{stream, length, nullptr});
    if (found == from.end() || found->stream != stream) return nullptr;
    from.erase(found);
    return &*found;
  }

  block* make_segment(std::size_t stream, std::size_t length) noexcept {
    const std::size_t bytes = segment_for(length);
    if (bytes > limit_ || held_ > limit_ - bytes) return nullptr;
    try {
      segments_.emplace_front(bytes);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
    held_ += bytes;
    most_held_ = std::max(most_held_, held_);
    block& made = new_block();
    made.stream = stream;
    made.begin = segments_.front().begin();
    made.length = bytes;
    made.small = is_small(length);
    made.previous = made.next = nullptr;
    made.segment = segments_.begin();
    return &made;
  }

  /// Gives back the segments that are free as a whole. False: there was none.
  bool release_segments() noexcept {
    const std::size_t before = held_;
    for (cache* each : {&small_, &large_}) {
      for (auto at = each->begin(); at != each->end();) {
        block& free = *at++;
        if (free.previous != nullptr || free.next != nullptr) continue;
        each->erase(each->iterator_to(free));
        held_ -= free.length;
        segments_.erase(free.segment);
        unused_.push_back(&free);
      }
    }
    return held_ != before;
  }

  void split(block& whole, std::size_t length) noexcept {
    block& rest = new_block();
    rest.stream = whole.stream;
    rest.begin = whole.begin + length;
    rest.length = whole.length - length;
    rest.small = whole.small;
    rest.segment = whole.segment;
    rest.previous = &whole;
    rest.next = whole.next;
    if (rest.next != nullptr) rest.next->previous = &rest;
    whole.next = &rest;
    whole.length = length;
    cache_of(rest).insert(rest);
  }

  /// One block of two neighbours, which is in no cache.
  block* join(block& left, block& right) noexcept {
    for (block* each : {&left, &right})
      if (each->is_linked()) cache_of(*each).erase(cache_of(*each).iterator_to(*each));
    left.length += right.length;
    left.next = right.next;
    if (left.next != nullptr) left.next->previous = &left;
    unused_.push_back(&right);
    return &left;
  }

  block& new_block() {
    if (unused_.empty()) return blocks_.emplace_back();
    block& made = *unused_.back();
    unused_.pop_back();
    return made;
  }

  std::size_t limit_;
  mutable std::mutex mutex_;
  segments segments_;
  std::deque<block> blocks_;
  std::vector<block*> unused_;
  cache small_;
  cache large_;
  std::unordered_map<void*, block*> live_;
  std::size_t held_ = 0;
  std::size_t most_held_ = 0;
};

}  // namespace orderly::bench
