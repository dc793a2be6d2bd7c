/// \file
/// What a workload is. Each has a file in this folder and an entry in the list of scenarios.hpp.
///
/// A workload is a class template over the peer. One object per thread does the thread's share:
///
///   static constexpr std::string_view name;
///   static constexpr bool one_size;             all blocks have one size, of at most 2 KiB
///   static constexpr bool needs_two;            runs on an even number of threads only
///   static constexpr std::size_t steps_at_a_time;  about a tenth of a millisecond
///   struct shared { explicit shared(int threads); };   what the threads of one run have in common
///   scenario(Peer&, shared&, int thread);       draws sizes and orders, so that no step does
///   void step();                                the unit of work
///   std::size_t pairs_per_step() const;         allocations, each with its free, that a step of this thread counts for
///   std::size_t refused() const;                allocations that the peer refused so far
///
/// The destructor frees what is live.
#pragma once

#include <benchmark/benchmark.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>

#include "peer/static_peer.hpp"

namespace orderly::bench {

/// Set once at the start: write to every page of a block before it is freed. Else blocks are not touched.
inline bool touch_blocks = false;

/// Makes the optimiser take the block for used, so that no allocate+free pair is optimised away.
inline void use(void* pointer, std::size_t bytes) noexcept {
  benchmark::DoNotOptimize(pointer);
  if (!touch_blocks || pointer == nullptr) return;
  constexpr std::size_t page = 4096;
  for (std::size_t at = 0; at < bytes; at += page) static_cast<volatile std::byte*>(pointer)[at] = std::byte{1};
}

/// The same draws for every peer, others for every thread.
using random_source = std::mt19937_64;
inline random_source random_source_of(int thread) { return random_source(static_cast<std::uint64_t>(thread) + 1); }

/// Equally likely in every doubling from `low` to `high`.
inline std::uint32_t log_uniform(random_source& random, double low, double high) {
  return static_cast<std::uint32_t>(std::exp(std::uniform_real_distribution(std::log(low), std::log(high))(random)));
}

/// Allocates and frees many blocks of one size, as any program has done after a while. Some allocators extend a size's
/// memory a few blocks at a time, and a workload that never has more than these alive would measure the extending.
template <static_peer Peer>
void fill_caches(Peer& peer, std::size_t bytes) noexcept {
  std::array<void*, 256> blocks;
  for (void*& block : blocks) {
    block = peer.allocate(bytes);
    use(block, bytes);
  }
  for (void* const block : blocks) {
    if (block != nullptr) peer.deallocate(block, bytes);
  }
}

/// A scenario without common state.
struct nothing_shared {
  explicit nothing_shared(int) noexcept {}
};

}  // namespace orderly::bench
