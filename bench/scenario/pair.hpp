/// \file
/// pair: one block of 512 B at a time.
#pragma once

#include <cstddef>
#include <string_view>

#include "scenario/scenario.hpp"

namespace orderly::bench {

template <static_peer Peer>
class pair_scenario {
 public:
  static constexpr std::string_view name = "pair";
  static constexpr bool one_size = true;
  static constexpr bool needs_two = false;
  static constexpr std::size_t steps_at_a_time = 10'000;
  using shared = nothing_shared;

  pair_scenario(Peer& peer, shared&, int) noexcept : peer_(peer), resident_(peer.allocate(block_bytes)) {
    fill_caches(peer, block_bytes);
  }
  pair_scenario(const pair_scenario&) = delete;
  pair_scenario& operator=(const pair_scenario&) = delete;
  ~pair_scenario() {
    if (resident_ != nullptr) peer_.deallocate(resident_, block_bytes);
  }

  void step() noexcept {
    void* const block = peer_.allocate(block_bytes);
    use(block, block_bytes);
    if (block == nullptr) {
      ++refused_;
      return;
    }
    peer_.deallocate(block, block_bytes);
  }

  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return 1; }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  static constexpr std::size_t block_bytes = 512;

  Peer& peer_;
  void* resident_;  // lives on, as some block does in any program: mimalloc retires a page that is empty
  std::size_t refused_ = 0;
};

}  // namespace orderly::bench
