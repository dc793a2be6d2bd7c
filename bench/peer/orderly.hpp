/// \file
/// orderly over host memory. Every free is checked; a bad one ends a benchmark.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "orderly/pool.hpp"
#include "peer/peer.hpp"
#include "peer/pieces.hpp"
#include "peer/watched.hpp"

namespace orderly::bench {

class orderly_peer {
 public:
  static constexpr std::string_view name = "orderly";
  static constexpr bool arena = true;

  explicit orderly_peer(const arena_config& config)
      : moves_(config.pieces ? std::make_shared<move_counter>() : nullptr),
        pool_(source_for(config), options_for(config)) {}

  [[nodiscard]] static options options_for(const arena_config& config) {
    options settings{.capacity = config.capacity,
                     .chunk = config.chunk,
                     .limit = config.limit,
                     .on_out_of_memory = {},
                     .on_bad_free = on_bad_free::abort};
    if (config.slack >= 0) settings.slack = config.slack;
    // Some 480 GiB of addresses go with the default granule, twice as many with twice that.
    for (settings.granule = 256; config.capacity >> 30 > settings.granule;) settings.granule *= 2;
    return settings;
  }

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept { return pool_.try_allocate(bytes); }
  void deallocate(void* pointer, std::size_t bytes) noexcept { pool_.deallocate(pointer, bytes); }
  [[nodiscard]] bool try_deallocate(void* pointer, std::size_t bytes) noexcept {
    return pool_.try_deallocate(pointer, bytes) == error::none;
  }

  [[nodiscard]] std::size_t committed() const noexcept { return pool_.stats().committed; }
  [[nodiscard]] std::size_t peak_committed() const noexcept { return pool_.stats().peak_committed; }
  [[nodiscard]] std::optional<memory_moves> moved() const noexcept {
    return moves_ != nullptr ? std::optional(moves_->total()) : std::nullopt;
  }
  [[nodiscard]] pool& memory() noexcept { return pool_; }
  [[nodiscard]] const pool& memory() const noexcept { return pool_; }
  [[nodiscard]] std::size_t rounded(std::size_t bytes) const noexcept { return pool_.rounded(bytes); }

 private:
  [[nodiscard]] std::unique_ptr<memory_source> source_for(const arena_config& config) const {
    auto memory = watched_host_source(config.watcher);
    if (moves_ == nullptr) return memory;
    return std::make_unique<piecewise_source>(std::move(memory), moves_);
  }

  std::shared_ptr<move_counter> moves_;
  pool pool_;
};

}  // namespace orderly::bench
