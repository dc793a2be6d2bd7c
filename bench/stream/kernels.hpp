/// \file
/// kernels: what an allocator's waits cost on the device. One thread launches K short kernels round S streams; each has
/// a temporary of 1 MiB, allocated before the launch and freed after it in the kernel's stream. Time counts from the
/// first allocation to the end of the last kernel. Fresh (warm:0): each time the allocator is new, and has met no
/// stream. Warm: the same was done once before. `no-allocation` does the launches alone: what another needs beyond it
/// is kernel concurrency lost, or time of the launching thread.
#pragma once

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "stream/cuda.hpp"

namespace orderly::bench {

/// Gives every kernel the same memory.
class no_allocation_peer {
 public:
  static constexpr std::string_view name = "no-allocation";
  no_allocation_peer(cuda_world&, std::size_t bytes) { check(cudaMalloc(&block_, bytes), "cudaMalloc"); }
  no_allocation_peer(const no_allocation_peer&) = delete;
  no_allocation_peer& operator=(const no_allocation_peer&) = delete;
  ~no_allocation_peer() { cudaFree(block_); }
  [[nodiscard]] void* allocate(std::size_t, stream_handle) const noexcept { return block_; }
  void deallocate(void*, std::size_t, stream_handle) const noexcept {}

 private:
  void* block_ = nullptr;
};

template <class Peer>
class kernels_measurement {
 public:
  static void add() {
    for (const bool warm : {false, true}) {
      for (const std::size_t streams : {1u, 2u, 3u, 4u}) add(streams, 4, warm);
      add(4, 32, warm);
    }
  }

 private:
  static constexpr std::size_t arena = std::size_t{256} << 20;
  static constexpr std::size_t temporary = std::size_t{1} << 20;
  static constexpr long long clocks = 100'000;  // about 60 us

  static void add(std::size_t streams, std::size_t kernels, bool warm) {
    const std::string name = "cuda/kernels/" + std::string(Peer::name) + "/streams:" + std::to_string(streams) +
                             "/kernels:" + std::to_string(kernels) + "/warm:" + (warm ? "1" : "0");
    benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { measure(state, streams, kernels, warm); })
        ->UseManualTime()
        ->Iterations(30);
  }

  static void measure(benchmark::State& state, std::size_t streams, std::size_t kernels, bool warm) {
    cuda_world world;
    std::vector<stream_handle> used;
    for (std::size_t i = 0; i < streams; ++i) {
      used.push_back(world.make_stream());
      world.occupy(used.back());
    }
    world.finish();
    for (auto _ : state) {
      Peer peer(world, arena);
      if (warm) launch(peer, used, kernels);
      world.finish();
      const auto begin = std::chrono::steady_clock::now();
      const bool good = launch(peer, used, kernels);
      world.finish();
      state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      if (!good) state.SkipWithError("an allocation or a launch was refused");
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(kernels) * state.iterations());
  }

  static bool launch(Peer& peer, const std::vector<stream_handle>& streams, std::size_t kernels) {
    bool good = true;
    for (std::size_t i = 0; i < kernels; ++i) {
      const stream_handle stream = streams[i % streams.size()];
      void* const block = peer.allocate(temporary, stream);
      good = good && block != nullptr && launch_busy(stream, block, clocks);
      if (block != nullptr) peer.deallocate(block, temporary, stream);
    }
    return good;
  }
};

template <class... Peers>
void add_kernels() {
  kernels_measurement<no_allocation_peer>::add();
  (kernels_measurement<Peers>::add(), ...);
}

}  // namespace orderly::bench
