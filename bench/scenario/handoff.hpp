/// \file
/// handoff: pairs of threads. One allocates 2 KiB and passes the block through a bounded ring; the other frees it.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "scenario/ring.hpp"
#include "scenario/scenario.hpp"

namespace orderly::bench {

template <static_peer Peer>
class handoff_scenario {
 public:
  static constexpr std::string_view name = "handoff";
  static constexpr bool one_size = true;
  static constexpr bool needs_two = true;
  static constexpr std::size_t steps_at_a_time = 1'000;

  struct shared {
    explicit shared(int threads) : rings(static_cast<std::size_t>(threads) / 2) {}
    std::vector<ring> rings;
  };

  handoff_scenario(Peer& peer, shared& common, int thread) noexcept
      : peer_(peer), ring_(common.rings[static_cast<std::size_t>(thread) / 2]), producer_(thread % 2 == 0) {}

  /// A null block passes as well, so that both sides always make equally many steps.
  void step() noexcept {
    if (producer_) {
      void* const block = peer_.allocate(block_bytes);
      use(block, block_bytes);
      if (block == nullptr) ++refused_;
      ring_.push(block);
    } else if (void* const block = ring_.pop(); block != nullptr) {
      peer_.deallocate(block, block_bytes);
    }
  }

  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return producer_ ? 1 : 0; }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  static constexpr std::size_t block_bytes = 2048;

  Peer& peer_;
  ring& ring_;
  bool producer_;
  std::size_t refused_ = 0;
};

}  // namespace orderly::bench
