/// \file
/// batch64: allocate 64 blocks of random powers of two, 256 B to 64 KiB; free them in random order.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "scenario/scenario.hpp"

namespace orderly::bench {

template <static_peer Peer>
class batch64_scenario {
 public:
  static constexpr std::string_view name = "batch64";
  static constexpr bool one_size = false;
  static constexpr bool needs_two = false;
  static constexpr std::size_t steps_at_a_time = 200;
  using shared = nothing_shared;

  batch64_scenario(Peer& peer, shared&, int thread) : peer_(peer), batches_(batch_count) {
    random_source random = random_source_of(thread);
    std::uniform_int_distribution<unsigned> doublings(0, 8);
    for (batch& drawn : batches_) {
      for (std::uint32_t& bytes : drawn.bytes) bytes = std::uint32_t{256} << doublings(random);
      std::iota(drawn.free_order.begin(), drawn.free_order.end(), std::uint8_t{0});
      std::ranges::shuffle(drawn.free_order, random);
    }
  }

  void step() noexcept {
    const batch& drawn = batches_[next_];
    next_ = (next_ + 1) % batch_count;
    std::array<void*, batch_size> blocks;
    for (std::size_t i = 0; i < batch_size; ++i) {
      blocks[i] = peer_.allocate(drawn.bytes[i]);
      use(blocks[i], drawn.bytes[i]);
      if (blocks[i] == nullptr) ++refused_;
    }
    for (const std::size_t i : drawn.free_order) {
      if (blocks[i] != nullptr) peer_.deallocate(blocks[i], drawn.bytes[i]);
    }
  }

  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return batch_size; }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  static constexpr std::size_t batch_size = 64;
  static constexpr std::size_t batch_count = 64;

  struct batch {
    std::array<std::uint32_t, batch_size> bytes;
    std::array<std::uint8_t, batch_size> free_order;
  };

  Peer& peer_;
  std::vector<batch> batches_;
  std::size_t next_ = 0;
  std::size_t refused_ = 0;
};

}  // namespace orderly::bench
