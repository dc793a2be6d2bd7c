/// \file
/// hot16: 16 live blocks of 1 KiB; free the oldest, allocate another.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "scenario/scenario.hpp"

namespace orderly::bench {

template <static_peer Peer>
class hot16_scenario {
 public:
  static constexpr std::string_view name = "hot16";
  static constexpr bool one_size = true;
  static constexpr bool needs_two = false;
  static constexpr std::size_t steps_at_a_time = 10'000;
  using shared = nothing_shared;

  hot16_scenario(Peer& peer, shared&, int) noexcept : peer_(peer) {
    fill_caches(peer, block_bytes);
    for (void*& block : blocks_) block = allocate();
  }
  hot16_scenario(const hot16_scenario&) = delete;
  hot16_scenario& operator=(const hot16_scenario&) = delete;
  ~hot16_scenario() {
    for (void* const block : blocks_) release(block);
  }

  void step() noexcept {
    void*& oldest = blocks_[oldest_];
    release(oldest);
    oldest = allocate();
    oldest_ = (oldest_ + 1) % blocks_.size();
  }

  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return 1; }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  static constexpr std::size_t block_bytes = 1024;

  void* allocate() noexcept {
    void* const block = peer_.allocate(block_bytes);
    use(block, block_bytes);
    if (block == nullptr) ++refused_;
    return block;
  }
  void release(void* block) noexcept {
    if (block != nullptr) peer_.deallocate(block, block_bytes);
  }

  Peer& peer_;
  std::array<void*, 16> blocks_{};
  std::size_t oldest_ = 0;
  std::size_t refused_ = 0;
};

}  // namespace orderly::bench
