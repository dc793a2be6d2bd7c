/// \file
/// A power-of-two buddy that commits by chunk, behind one mutex: the textbook version where addresses are plentiful.
///
/// A request below a chunk is rounded to a power of two, and comes out of a chunk that is split and merged as by
/// buddy-mutex. One of a chunk or more is rounded to a power of two in addresses only: it gets a slot of that size, and
/// of the slot as many chunks are committed as the request touches. Each size has a range of its own with as many slots
/// as the capacity can ever fill. Slots keep their chunks when they are freed; at the limit free ones lose them.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string_view>
#include <vector>

#include "peer/address_range.hpp"
#include "peer/buddy_lists.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class buddy_chunks_peer {
 public:
  static constexpr std::string_view name = "buddy-chunks";
  static constexpr bool arena = true;

  explicit buddy_chunks_peer(const arena_config& config)
      : chunk_(config.chunk != 0 ? config.chunk : default_chunk),
        capacity_(std::max(std::size_t{1}, config.capacity / chunk_)),
        limit_(std::min(capacity_, config.limit != 0 ? config.limit / chunk_ : capacity_)),
        chunk_order_(static_cast<unsigned>(std::countr_zero(chunk_ / granule))),
        range_(lay_out() * chunk_),
        free_(slots_[0].most << chunk_order_) {}

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept {
    if (bytes > limit_ * chunk_) return nullptr;
    const std::lock_guard lock(mutex_);
    if (bytes > chunk_ / 2) return allocate_slot((bytes + chunk_ - 1) / chunk_);
    return allocate_below_chunk(buddy_lists::order_of(bytes));
  }

  void deallocate(void* pointer, std::size_t bytes) noexcept {
    const std::size_t from_begin = offset(pointer);
    const std::lock_guard lock(mutex_);
    if (bytes > chunk_ / 2) {
      const unsigned size = slot_size_of((bytes + chunk_ - 1) / chunk_);
      return free_slot(size, static_cast<std::uint32_t>((from_begin / chunk_ - slots_[size].first) >> size));
    }
    const buddy_lists::block merged =
        free_.merge({static_cast<std::uint32_t>(from_begin / granule), buddy_lists::order_of(bytes)}, chunk_order_);
    if (merged.order == chunk_order_) return free_slot(0, merged.index >> chunk_order_);
    free_.push(merged);
  }

  [[nodiscard]] std::size_t committed() const noexcept {
    const std::lock_guard lock(mutex_);
    return committed_ * chunk_;
  }
  [[nodiscard]] std::size_t peak_committed() const noexcept {
    const std::lock_guard lock(mutex_);
    return most_committed_ * chunk_;
  }

  [[nodiscard]] std::size_t rounded(std::size_t bytes) const noexcept {
    return bytes > chunk_ / 2 ? (bytes + chunk_ - 1) / chunk_ * chunk_ : granule << buddy_lists::order_of(bytes);
  }

 private:
  static constexpr std::size_t granule = buddy_lists::granule;
  static constexpr std::size_t default_chunk = std::size_t{64} << 10;

  /// The slots of a power of two of chunks.
  struct slot_range {
    std::size_t first = 0;  // chunk of the range
    std::size_t most = 0;   // slots
    std::vector<std::uint32_t> chunks;  // committed, of each slot that was ever used
    std::vector<std::uint32_t> backed;  // free, with committed chunks; the newest last
    std::vector<std::uint32_t> bare;    // free, without
  };

  static unsigned slot_size_of(std::size_t chunks) noexcept {
    return static_cast<unsigned>(std::bit_width(chunks - 1));
  }

  /// Fills in where slots lie; returns the chunks of the whole range. A slot in use has more than half of its chunks.
  std::size_t lay_out() noexcept {
    std::size_t chunks = 0;
    for (unsigned size = 0; size <= slot_size_of(capacity_); ++size) {
      slot_range& range = slots_[size];
      range.first = chunks;
      range.most = size == 0 ? capacity_ : std::max(std::size_t{1}, (2 * capacity_) >> size);
      chunks += range.most << size;
    }
    return chunks;
  }

  [[nodiscard]] std::byte* address(unsigned size, std::uint32_t slot) const noexcept {
    return range_.begin() + (slots_[size].first + (std::size_t{slot} << size)) * chunk_;
  }

  [[nodiscard]] std::size_t offset(void* pointer) const noexcept {
    return static_cast<std::size_t>(static_cast<std::byte*>(pointer) - range_.begin());
  }

  void* allocate_slot(std::size_t chunks) noexcept {
    const unsigned size = slot_size_of(chunks);
    slot_range& range = slots_[size];
    std::uint32_t slot = 0;
    if (!range.backed.empty()) {
      slot = range.backed.back();
      range.backed.pop_back();
    } else if (!range.bare.empty()) {
      slot = range.bare.back();
      range.bare.pop_back();
    } else if (range.chunks.size() < range.most) {
      slot = static_cast<std::uint32_t>(range.chunks.size());
      range.chunks.push_back(0);
    } else {
      return nullptr;
    }
    std::uint32_t& present = range.chunks[slot];
    if (present > chunks) decommit(size, slot, chunks);
    const std::size_t missing = chunks - present;
    if (committed_ + missing > limit_ && !release_free(missing)) {
      free_slot(size, slot);
      return nullptr;
    }
    present = static_cast<std::uint32_t>(chunks);
    committed_ += missing;
    most_committed_ = std::max(most_committed_, committed_);
    return address(size, slot);
  }

  void free_slot(unsigned size, std::uint32_t slot) noexcept {
    slot_range& range = slots_[size];
    (range.chunks[slot] != 0 ? range.backed : range.bare).push_back(slot);
  }

  void decommit(unsigned size, std::uint32_t slot, std::size_t keep) noexcept {
    std::uint32_t& present = slots_[size].chunks[slot];
    madvise(address(size, slot) + keep * chunk_, (present - keep) * chunk_, MADV_DONTNEED);
    committed_ -= present - keep;
    present = static_cast<std::uint32_t>(keep);
  }

  /// Takes chunks from free slots, the largest first, until so many more may be committed. False: they never may.
  bool release_free(std::size_t missing) noexcept {
    for (unsigned size = slot_size_of(capacity_) + 1; size-- > 0;) {
      slot_range& range = slots_[size];
      while (!range.backed.empty()) {
        decommit(size, range.backed.back(), 0);
        range.bare.push_back(range.backed.back());
        range.backed.pop_back();
        if (committed_ + missing <= limit_) return true;
      }
    }
    return false;
  }

  void* allocate_below_chunk(unsigned order) noexcept {
    buddy_lists::block found = free_.take(order);
    if (found.index == buddy_lists::none) {
      void* const chunk = allocate_slot(1);
      if (chunk == nullptr) return nullptr;
      found = {static_cast<std::uint32_t>(offset(chunk) / granule), chunk_order_};
    }
    free_.split(found, order);
    return range_.begin() + std::size_t{found.index} * granule;
  }

  std::size_t chunk_;
  std::size_t capacity_;  // in chunks, as all that follows
  std::size_t limit_;
  unsigned chunk_order_;
  std::array<slot_range, 40> slots_;
  address_range range_;
  buddy_lists free_;
  mutable std::mutex mutex_;
  std::size_t committed_ = 0;
  std::size_t most_committed_ = 0;
};

}  // namespace orderly::bench
