/// \file
/// A pool whose every block is watched: by a stamp inside it, and by a map of owners beside the source's ranges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "orderly/pool.hpp"
#include "support/failing_source.hpp"
#include "support/oracles.hpp"
#include "support/threads.hpp"

namespace orderly::test {

/// A block and whoever may touch it. Owners are never 0.
struct owned_block {
  void* address = nullptr;
  std::size_t bytes = 0;  // requested
  std::uint32_t owner = 0;
};

enum class backing { host, fixed_buffer };

class watched_pool {
 public:
  /// Writes what it finds to `found`. Pre: settings.capacity is set, to whole chunks.
  watched_pool(backing kind, const options& settings, findings& found)
      : found_(found), buffer_(kind == backing::host ? nullptr : make_buffer(settings.capacity)),
        pool_(std::make_unique<failing_source>(
                  kind == backing::host ? make_host_source()
                                        : make_fixed_buffer_source(buffer_.get(), settings.capacity), log_),
              settings) {
    for (const source_log::range& range : log_->ranges()) {
      shadows_.emplace_back(range.address, range.bytes, pool_.granule());
    }
  }

  /// An owned_block without address: refused.
  [[nodiscard]] owned_block allocate(std::size_t bytes, std::size_t alignment, std::uint32_t owner) {
    void* block = pool_.try_allocate(bytes, alignment);
    if (block == nullptr) return {};
    const std::size_t length = pool_.block_size(block);
    found_.expect(length >= bytes, "the block of ", length, " bytes is too short for ", bytes);
    found_.expect(reinterpret_cast<std::uintptr_t>(block) % alignment == 0, block, " is not aligned to ", alignment);
    found_.expect(reinterpret_cast<std::uintptr_t>(block) % pool_.granule() == 0, block, " is not a granule's start");
    shadow* range = range_of(block, length);
    found_.expect(range != nullptr, block, " of ", length, " bytes lies outside the source's ranges");
    if (range != nullptr) {
      found_.expect(range->claim(block, length, owner), block, " of ", length, " bytes overlaps a live block");
    }
    stamp(block, length).put(owner);
    return {block, bytes, owner};
  }

  void deallocate(const owned_block& block) {
    const std::size_t length = pool_.block_size(block.address);
    found_.expect(length >= block.bytes, block.address, " is no longer live");
    found_.expect(stamp(block.address, length).remove(block.owner), block.address, " was written by another owner");
    shadow* range = range_of(block.address, length);
    if (range != nullptr) {
      found_.expect(range->release(block.address, length, block.owner), block.address, " had another owner");
    }
    const error code = pool_.try_deallocate(block.address, block.bytes);
    found_.expect(code == error::none, block.address, ": ", to_string(code));
  }

  /// Hands a block on to another owner; only the old one may call it.
  void rename(owned_block& block, std::uint32_t owner) {
    const std::size_t length = pool_.block_size(block.address);
    found_.expect(stamp(block.address, length).remove(block.owner), block.address, " was written by another owner");
    shadow* range = range_of(block.address, length);
    if (range != nullptr) {
      (void)range->release(block.address, length, block.owner);
      (void)range->claim(block.address, length, owner);
    }
    stamp(block.address, length).put(owner);
    block.owner = owner;
  }

  [[nodiscard]] pool& get() noexcept { return pool_; }
  [[nodiscard]] const source_log& log() const noexcept { return *log_; }

 private:
  struct free_buffer {
    void operator()(void* buffer) const noexcept { std::free(buffer); }
  };

  static std::unique_ptr<void, free_buffer> make_buffer(std::size_t bytes) {
    return std::unique_ptr<void, free_buffer>(std::aligned_alloc(1024 * 1024, (bytes + 1024 * 1024 - 1) >> 20 << 20));
  }

  shadow* range_of(const void* block, std::size_t bytes) {
    for (shadow& range : shadows_) {
      if (range.contains(block, bytes)) return &range;
    }
    return nullptr;
  }

  std::shared_ptr<source_log> log_ = std::make_shared<source_log>();
  findings& found_;
  std::unique_ptr<void, free_buffer> buffer_;
  pool pool_;
  std::vector<shadow> shadows_;
};

}  // namespace orderly::test
