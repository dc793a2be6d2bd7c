/// \file
/// slots1000: 1000 live blocks a thread, sizes log-uniform from 256 B to 1 MiB; replace a random one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string_view>
#include <vector>

#include "scenario/scenario.hpp"

namespace orderly::bench {

template <static_peer Peer>
class slots1000_scenario {
 public:
  static constexpr std::string_view name = "slots1000";
  static constexpr bool one_size = false;
  static constexpr bool needs_two = false;
  static constexpr std::size_t steps_at_a_time = 2'000;
  using shared = nothing_shared;

  slots1000_scenario(Peer& peer, shared&, int thread) : peer_(peer), draws_(draw_count) {
    random_source random = random_source_of(thread);
    std::uniform_int_distribution<std::uint32_t> any_slot(0, static_cast<std::uint32_t>(slots_.size() - 1));
    for (draw& next : draws_) next = {any_slot(random), log_uniform(random, 256, 1 << 20)};
    for (slot& filled : slots_) replace(filled, log_uniform(random, 256, 1 << 20));
  }
  slots1000_scenario(const slots1000_scenario&) = delete;
  slots1000_scenario& operator=(const slots1000_scenario&) = delete;
  ~slots1000_scenario() {
    for (const slot& filled : slots_) release(filled);
  }

  void step() noexcept {
    const draw drawn = draws_[next_];
    next_ = (next_ + 1) % draw_count;
    release(slots_[drawn.slot]);
    replace(slots_[drawn.slot], drawn.bytes);
  }

  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return 1; }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  static constexpr std::size_t draw_count = 16384;

  struct draw {
    std::uint32_t slot;
    std::uint32_t bytes;
  };
  struct slot {
    void* block = nullptr;
    std::size_t bytes = 0;
  };

  void replace(slot& emptied, std::size_t bytes) noexcept {
    emptied = {peer_.allocate(bytes), bytes};
    use(emptied.block, bytes);
    if (emptied.block == nullptr) ++refused_;
  }
  void release(const slot& filled) noexcept {
    if (filled.block != nullptr) peer_.deallocate(filled.block, filled.bytes);
  }

  Peer& peer_;
  std::vector<draw> draws_;
  std::array<slot, 1000> slots_{};
  std::size_t next_ = 0;
  std::size_t refused_ = 0;
};

}  // namespace orderly::bench
