/// \file
/// orderly-growth-bench: what it costs to take 1 GiB of a device's memory, to give it back, and to have it in other
/// pieces.
///
///   grow/ALLOCATOR/PIECE     1 GiB in blocks of PIECE MiB, where there is nothing yet
///   shrink/ALLOCATOR/PIECE   all of it back to the device
///   remap/ALLOCATOR/PIECE    1 GiB was had in blocks of PIECE MiB, which are freed; one block of 1 GiB is asked for where
///                            no more than 1 GiB may be held
///   split/ALLOCATOR/PIECE    the other way round: one block of 1 GiB is freed, blocks of PIECE MiB are asked for
///
/// `driver` makes the calls that these take at least, and times them by kind; the pool has to come close to that. What
/// cudaMallocAsync holds is bounded by nothing: `held` says how much it was at most.
#include <benchmark/benchmark.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "harness.hpp"
#include "orderly/cuda.hpp"
#include "orderly/pool.hpp"
#include "stream/cuda.hpp"

namespace orderly::bench {
namespace {

constexpr std::size_t mib = std::size_t{1} << 20;
constexpr std::size_t all = 1024 * mib;

using seconds = std::chrono::duration<double>;

template <class Work>
[[nodiscard]] double time_of(Work work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return seconds(std::chrono::steady_clock::now() - begin).count();
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "orderly-growth-bench: %s (%s)\n", what, cuda_failure().c_str());
  std::abort();
}

// ---------------------------------------------------------------------------------------------------------- allocators

/// A pool that may hold 1 GiB of virtual memory.
class orderly_peer {
 public:
  static constexpr const char* name = "orderly";

  orderly_peer() : pool_(make_cuda_virtual_source(0, {.bytes = 2 * all}), {.limit = all}) {}

  void* take(std::size_t bytes) {
    void* const block = pool_.try_allocate(bytes);
    if (block == nullptr) fail("the pool refused");
    return block;
  }
  void free(void* block, std::size_t bytes) { pool_.deallocate(block, bytes); }
  void shrink() {
    static_cast<void>(pool_.trim());
    if (pool_.stats().committed != 0) fail("memory is left");
  }
  [[nodiscard]] std::size_t held() { return pool_.stats().peak_committed; }
  void report(benchmark::State&) {}

 private:
  pool pool_;
};

class malloc_peer {
 public:
  static constexpr const char* name = "cudaMalloc";

  void* take(std::size_t bytes) {
    void* block = nullptr;
    check(cudaMalloc(&block, bytes), "cudaMalloc");
    held_ = std::max(held_, live_ += bytes);
    return block;
  }
  void free(void* block, std::size_t bytes) {
    check(cudaFree(block), "cudaFree");
    live_ -= bytes;
  }
  void shrink() {}
  [[nodiscard]] std::size_t held() const { return held_; }
  void report(benchmark::State&) {}

 private:
  std::size_t live_ = 0;
  std::size_t held_ = 0;
};

/// A new pool of the driver's, which keeps what is freed until it is told to give it back.
class async_peer {
 public:
  static constexpr const char* name = "cudaMallocAsync";

  async_peer() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  ~async_peer() {
    cudaStreamDestroy(stream_);
    cudaMemPoolDestroy(pool_);
  }
  async_peer(const async_peer&) = delete;
  async_peer& operator=(const async_peer&) = delete;

  void* take(std::size_t bytes) {
    void* block = nullptr;
    check(cudaMallocFromPoolAsync(&block, bytes, pool_, stream_), "cudaMallocFromPoolAsync");
    return block;
  }
  void free(void* block, std::size_t) { check(cudaFreeAsync(block, stream_), "cudaFreeAsync"); }
  void shrink() {
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    check(cudaMemPoolTrimTo(pool_, 0), "cudaMemPoolTrimTo");
  }
  [[nodiscard]] std::size_t held() {
    std::uint64_t most = 0;
    check(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemHigh, &most), "cudaMemPoolGetAttribute");
    return most;
  }
  void report(benchmark::State&) {}

 private:
  cudaMemPool_t pool_ = new_driver_pool();
  cudaStream_t stream_ = nullptr;
};

/// The driver's calls for virtual memory, and nothing else: each block is one piece at an address of its own.
class driver_peer {
 public:
  static constexpr const char* name = "driver";

  driver_peer() {
    kind_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    kind_.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access_.location = kind_.location;
    access_.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    call(calls().reserve(&base_, 2 * all, all, 0, 0), "cuMemAddressReserve");
  }
  ~driver_peer() { calls().free(base_, 2 * all); }
  driver_peer(const driver_peer&) = delete;
  driver_peer& operator=(const driver_peer&) = delete;

  void* take(std::size_t bytes) {
    if (bytes == all) next_ = all;
    const CUdeviceptr at = base_ + std::exchange(next_, next_ + bytes);
    CUmemGenericAllocationHandle handle{};
    create_ += time_of([&] { call(calls().create(&handle, bytes, &kind_, 0), "cuMemCreate"); });
    map_ += time_of([&] { call(calls().map(at, bytes, 0, handle, 0), "cuMemMap"); });
    release_ += time_of([&] { call(calls().release(handle), "cuMemRelease"); });
    access_time_ += time_of([&] { call(calls().set_access(at, bytes, &access_, 1), "cuMemSetAccess"); });
    return reinterpret_cast<void*>(at);
  }
  void free(void* block, std::size_t bytes) {
    unmap_ += time_of([&] { call(calls().unmap(reinterpret_cast<CUdeviceptr>(block), bytes), "cuMemUnmap"); });
    next_ = 0;
  }
  void shrink() {}
  [[nodiscard]] static std::size_t held() { return all; }
  void report(benchmark::State& state) {
    const auto add = [&](const char* what, double time) {
      state.counters[what] = benchmark::Counter(time * 1e6, benchmark::Counter::kAvgIterations);
    };
    add("create_us", create_);
    add("map_us", map_);
    add("release_us", release_);
    add("set_access_us", access_time_);
    add("unmap_us", unmap_);
  }
  void forget() { create_ = map_ = release_ = access_time_ = unmap_ = 0; }

 private:
  struct functions {
    decltype(&cuMemAddressReserve) reserve = find<decltype(reserve)>("cuMemAddressReserve");
    decltype(&cuMemAddressFree) free = find<decltype(free)>("cuMemAddressFree");
    decltype(&cuMemCreate) create = find<decltype(create)>("cuMemCreate");
    decltype(&cuMemRelease) release = find<decltype(release)>("cuMemRelease");
    decltype(&cuMemMap) map = find<decltype(map)>("cuMemMap");
    decltype(&cuMemSetAccess) set_access = find<decltype(set_access)>("cuMemSetAccess");
    decltype(&cuMemUnmap) unmap = find<decltype(unmap)>("cuMemUnmap");

    template <class Function>
    [[nodiscard]] static Function find(const char* name) {
      static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
      void* const found = library == nullptr ? nullptr : dlsym(library, name);
      if (found == nullptr) fail(name);
      return reinterpret_cast<Function>(found);
    }
  };
  [[nodiscard]] static const functions& calls() {
    static const functions found;
    return found;
  }
  static void call(CUresult result, const char* what) {
    if (result != CUDA_SUCCESS) fail(what);
  }

  CUmemAllocationProp kind_{};
  CUmemAccessDesc access_{};
  CUdeviceptr base_ = 0;
  std::size_t next_ = 0;
  double create_ = 0;
  double map_ = 0;
  double release_ = 0;
  double access_time_ = 0;
  double unmap_ = 0;
};

// ----------------------------------------------------------------------------------------------------------- workloads

template <class Peer>
void take_all(Peer& peer, std::vector<void*>& blocks, std::size_t piece) {
  for (std::size_t had = 0; had < all; had += piece) blocks.push_back(peer.take(piece));
}
template <class Peer>
void free_all(Peer& peer, std::vector<void*>& blocks, std::size_t piece) {
  for (void* const block : blocks) peer.free(block, piece);
  blocks.clear();
}
template <class Peer>
void forget(Peer& peer) {
  if constexpr (requires { peer.forget(); }) peer.forget();
}

enum class step : std::uint8_t { grow, shrink, remap, split };

/// One of the steps, timed. A peer is made anew for each turn: what it has kept from the last one is not to help it.
template <class Peer>
void run(benchmark::State& state, step timed, std::size_t piece) {
  const bool is_remap = timed == step::remap;
  std::vector<void*> blocks;
  std::uint64_t calls = 0;
  std::size_t held = 0;
  std::unique_ptr<Peer> peer;
  const auto timed_step = [&](auto work) {
    forget(*peer);
    const std::uint64_t before = cuda_calls();
    state.SetIterationTime(time_of(work));
    calls += cuda_calls() - before;
  };
  for (auto _ : state) {
    peer = std::make_unique<Peer>();
    switch (timed) {
      case step::grow:
        timed_step([&] { take_all(*peer, blocks, piece); });
        free_all(*peer, blocks, piece);
        break;
      case step::shrink:
        take_all(*peer, blocks, piece);
        timed_step([&] {
          free_all(*peer, blocks, piece);
          peer->shrink();
        });
        break;
      case step::remap:
      case step::split: {
        const std::size_t first = is_remap ? piece : all;
        const std::size_t second = is_remap ? all : piece;
        take_all(*peer, blocks, first);
        timed_step([&] {
          free_all(*peer, blocks, first);
          take_all(*peer, blocks, second);
        });
        held = std::max(held, peer->held());
        free_all(*peer, blocks, second);
        break;
      }
    }
    if (timed != step::shrink) peer->shrink();
  }
  if (held != 0) state.counters["held"] = static_cast<double>(held) / static_cast<double>(mib);
  state.counters["calls"] = benchmark::Counter(static_cast<double>(calls), benchmark::Counter::kAvgIterations);
  peer->report(state);
}

template <class Peer>
void add() {
  for (const auto& [timed, name] : {std::pair(step::grow, "grow"), std::pair(step::shrink, "shrink"),
                                    std::pair(step::remap, "remap"), std::pair(step::split, "split")}) {
    for (const std::size_t piece : {std::size_t{2}, std::size_t{64}, std::size_t{1024}}) {
      if (piece == 1024 && (timed == step::remap || timed == step::split)) continue;
      const std::string title = std::string(name) + '/' + Peer::name + '/' + std::to_string(piece);
      benchmark::RegisterBenchmark(
          title.c_str(), [timed = timed, piece](benchmark::State& state) { run<Peer>(state, timed, piece * mib); })
          ->UseManualTime()
          ->Iterations(1)
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace
}  // namespace orderly::bench

int main(int argc, char** argv) {
  using namespace orderly::bench;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return EXIT_FAILURE;
  if (!cuda_world::available()) {
    std::puts("skipped: no CUDA device");
    return 77;
  }
  report_distortion();
  check(cudaFree(nullptr), "the device");  // its context is nobody's to pay for
  describe_device([](const char* key, const std::string& value) { benchmark::AddCustomContext(key, value); });
  add<driver_peer>();
  add<orderly_peer>();
  add<malloc_peer>();
  add<async_peer>();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
