// orderly-stream-bench: pools in stream order, under many threads with a stream each.
//
//   WORLD/WORKLOAD/ALLOCATOR/threads:N
//     pair       allocate 512 B and free it, in one stream
//     batch      64 blocks of 256 B to 64 KiB in one stream, freed in the order of their allocation
//     cross      blocks of 64 KiB; two threads take turns with all the memory, a stream each: under pressure
//   Counters: items are pairs; calls is stream operations (software) or CUDA calls (cuda) for each pair.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "cores.hpp"
#include "stream/peers.hpp"
#include "stream/software.hpp"
#if defined(ORDERLY_BENCH_CUDA)
#include "stream/cuda.hpp"
#endif

namespace orderly::bench {
namespace {

constexpr std::size_t arena_bytes = std::size_t{1} << 30;
constexpr std::size_t small_arena_bytes = std::size_t{16} << 20;

struct pair_work {
  static constexpr std::string_view name = "pair";
  static constexpr std::size_t arena = arena_bytes;
  template <class Peer>
  static std::size_t step(Peer& peer, stream_handle stream) {
    void* const block = peer.allocate(512, stream);
    benchmark::DoNotOptimize(block);
    peer.deallocate(block, 512, stream);
    return 1;
  }
};

struct batch_work {
  static constexpr std::string_view name = "batch";
  static constexpr std::size_t arena = arena_bytes;
  template <class Peer>
  static std::size_t step(Peer& peer, stream_handle stream) {
    std::array<void*, 64> blocks;
    for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = peer.allocate(std::size_t{256} << i % 9, stream);
    for (std::size_t i = 0; i < blocks.size(); ++i) peer.deallocate(blocks[i], std::size_t{256} << i % 9, stream);
    return blocks.size();
  }
};

struct cross_work {
  static constexpr std::string_view name = "cross";
  static constexpr std::size_t arena = small_arena_bytes;
  template <class Peer>
  static std::size_t step(Peer& peer, stream_handle stream) {
    // All the memory but a little, so that the next thread must take it from this one's stream.
    static std::mutex turn;
    const std::lock_guard lock(turn);
    std::array<void*, small_arena_bytes / (64 * 1024) * 3 / 4> blocks;
    std::size_t count = 0;
    for (void*& block : blocks) {
      block = peer.allocate(64 * 1024, stream);
      count += block != nullptr;
    }
    for (void* const block : blocks)
      if (block != nullptr) peer.deallocate(block, 64 * 1024, stream);
    return count;
  }
};

template <stream_world World, class Peer, class Work>
class measurement {
 public:
  static void add() {
    const std::string name = std::string(World::name) + '/' + std::string(Work::name) + '/' + std::string(Peer::name);
    auto* const added = benchmark::RegisterBenchmark(name.c_str(), measure);
    added->UseRealTime()->Setup(set_up)->Teardown(tear_down);
    for (const int threads : thread_counts()) added->Threads(threads);
  }

 private:
  struct run {
    explicit run(int threads) : peer(world, Work::arena) {
      for (int i = 0; i < threads; ++i) streams.push_back(world.make_stream());
    }
    World world;
    Peer peer;
    std::vector<stream_handle> streams;
    std::uint64_t calls_before = 0;
  };
  static inline std::unique_ptr<run> current;

  static void set_up(const benchmark::State& state) { current = std::make_unique<run>(state.threads()); }
  static void tear_down(const benchmark::State&) {
    current->world.finish();
    current.reset();
  }

  static void measure(benchmark::State& state) {
    pin(state.thread_index(), state.threads());
    const auto self = static_cast<std::size_t>(state.thread_index());
    for (int i = 0; i < 100; ++i) Work::step(current->peer, current->streams[self]);
    if (self == 0) current->calls_before = current->world.calls();
    std::size_t pairs = 0;
    for (auto _ : state) pairs += Work::step(current->peer, current->streams[self]);
    state.SetItemsProcessed(static_cast<std::int64_t>(pairs));
    if (self == 0)
      state.counters["calls"] = static_cast<double>(current->world.calls() - current->calls_before) /
                                (static_cast<double>(pairs) * state.threads());
  }
};

template <stream_world World, class... Peers>
void add_world() {
  if (!World::available()) return;
  const auto each = []<class Work>(Work) { (measurement<World, Peers, Work>::add(), ...); };
  each(pair_work{});
  each(batch_work{});
  each(cross_work{});
}

}  // namespace
}  // namespace orderly::bench

int main(int argc, char** argv) {
  using namespace orderly::bench;
  std::thread([] {}).join();  // no peer shall profit from a process that has one thread
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_world<software_world, orderly_stream_peer<software_world>, orderly_host_peer<software_world>,
            classic_peer<software_world>>();
#if defined(ORDERLY_BENCH_CUDA)
  add_world<cuda_world, orderly_stream_peer<cuda_world>, orderly_host_peer<cuda_world>, classic_peer<cuda_world>,
            cuda_async_peer>();
#endif
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
