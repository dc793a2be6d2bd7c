/// \file
/// Memory sources of scenarios: addresses without memory, so that an execution starts with nothing to map. What is committed
/// is watched, and a commit is refused in some executions where a scenario wants it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "explorer.hpp"
#include "orderly/pool.hpp"
#include "orderly/source.hpp"

namespace orderly::model {

/// What a source does, and what was done with it. Outlives it.
struct source_book {
  unsigned refusals = 0;    ///< commits that may yet be refused
  bool decommits = true;    ///< or they are refused, all of them
  std::size_t committed = 0;  ///< bytes
  std::size_t peak = 0;       ///< of these
  std::vector<bool> units;
};

class paper final : public memory_source {
 public:
  /// A virtual one, in units; or, without units, a buffer of that capacity.
  paper(source_book& book, std::size_t unit, std::size_t capacity) : book_(book), unit_(unit), capacity_(capacity) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return unit_ == 0 ? 1 : unit_; }
  [[nodiscard]] std::size_t capacity() const noexcept override { return capacity_; }
  [[nodiscard]] bool is_virtual() const noexcept override { return unit_ != 0; }
  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t /*alignment*/) noexcept override {
    if (unit_ != 0) book_.units.assign(bytes / unit_, false);
    return reinterpret_cast<void*>(base);
  }
  void release(void* /*address*/, std::size_t /*bytes*/) noexcept override {}
  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    if (book_.refusals != 0 && choose(2) == 1) {
      --book_.refusals;
      return false;
    }
    mark(address, bytes, true);
    return true;
  }
  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    if (!book_.decommits) return false;
    mark(address, bytes, false);
    return true;
  }

  static constexpr std::uintptr_t base = std::uintptr_t{1} << 44;

 private:
  void mark(void* address, std::size_t bytes, bool committed) noexcept {
    const std::size_t first = (reinterpret_cast<std::uintptr_t>(address) - base) / unit_;
    for (std::size_t i = first; i < first + bytes / unit_; ++i) {
      ORDERLY_EXPECT(book_.units[i] != committed, "unit %zu is %s twice", i, committed ? "committed" : "decommitted");
      book_.units[i] = committed;
    }
    book_.committed = committed ? book_.committed + bytes : book_.committed - bytes;
    book_.peak = std::max(book_.peak, book_.committed);
  }

  source_book& book_;
  std::size_t unit_;
  std::size_t capacity_;
};

/// Granules of 16 KiB: two blocks of one granule are all that a front keeps, and magazines hold one.
inline constexpr std::size_t granule = std::size_t{1} << 14;

/// A pool over a buffer of so many granules: nothing is committed, and every block comes from one tree.
[[nodiscard]] inline std::unique_ptr<pool> buffer_pool(source_book& book, std::size_t granules, options settings = {}) {
  settings.granule = granule;
  return std::make_unique<pool>(std::make_unique<paper>(book, 0, granules * granule), settings);
}

/// A pool that commits chunks of `granules_per_chunk`, up to `limit` of them.
[[nodiscard]] inline std::unique_ptr<pool> virtual_pool(source_book& book, std::size_t granules_per_chunk,
                                                        std::size_t limit, options settings = {}) {
  settings.granule = granule;
  settings.chunk = granules_per_chunk * granule;
  settings.capacity = limit * settings.chunk;
  return std::make_unique<pool>(std::make_unique<paper>(book, settings.chunk, settings.capacity), settings);
}

/// Who owns each granule of a pool, plainly: two owners that nothing orders are a race, and one after the other a find.
/// Lengths are those of the requests, so that no look at the pool orders anything.
class owners {
 public:
  static constexpr std::size_t most = 4096;

  void take(const void* block, std::size_t granules, unsigned owner) {
    const std::size_t first = granule_of(block);
    ORDERLY_EXPECT(first % std::bit_ceil(granules) == 0, "a block of %zu granules starts at %zu", granules, first);
    for (std::size_t i = first; i < first + granules; ++i) {
      touch(&owner_[i], true);
      ORDERLY_EXPECT(owner_[i] == 0, "granule %zu is handed to %u, and belongs to %u", i, owner, unsigned{owner_[i]} - 1);
      owner_[i] = static_cast<std::uint8_t>(owner + 1);
    }
  }
  void give(const void* block, std::size_t granules, unsigned owner) {
    const std::size_t first = granule_of(block);
    for (std::size_t i = first; i < first + granules; ++i) {
      touch(&owner_[i], true);
      ORDERLY_EXPECT(owner_[i] == owner + 1, "granule %zu of %u is marked %u", i, owner, unsigned{owner_[i]});
      owner_[i] = 0;
    }
  }

  [[nodiscard]] static std::size_t granule_of(const void* block) {
    const std::size_t at = (reinterpret_cast<std::uintptr_t>(block) - paper::base) / granule;
    ORDERLY_EXPECT(reinterpret_cast<std::uintptr_t>(block) % granule == 0, "block %p is not aligned", block);
    ORDERLY_EXPECT(at < most, "block %p lies outside", block);
    return at;
  }

 private:
  std::uint8_t owner_[most]{};
};

}  // namespace orderly::model
