/// \file
/// orderly-stream-bench: pools in stream order, under many threads.
///
///   WORLD/WORKLOAD/ALLOCATOR[/streams:LAYOUT][/latency]/threads:N     workloads.hpp says what they do
///   cuda/kernels/ALLOCATOR/streams:S/kernels:K/warm:W                 kernels.hpp
///
/// Each thread has a stream of its own; or all share one (streams:one); or each goes round the same four
/// (streams:four). items_per_second are allocate+free pairs of all threads together. Counters, for each pair: calls, of
/// the streams' driver (software) or of CUDA; records and waits, which the allocator put into streams. What an
/// allocator does not tell is missing. With latency, every 13th call is timed: nanoseconds of allocate_* and free_*.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

#include "clock.hpp"
#include "cores.hpp"
#include "harness.hpp"
#include "latency.hpp"
#include "stream/peers.hpp"
#include "stream/software.hpp"
#include "stream/timed_peer.hpp"
#include "stream/workloads.hpp"
#if defined(ORDERLY_BENCH_CUDA)
#include "stream/cuda.hpp"
#include "stream/kernels.hpp"
#endif
#if defined(ORDERLY_BENCH_TORCH)
#include "stream/torch.hpp"
#endif

namespace orderly::bench {
namespace {

enum class layout { own, one, four };

constexpr std::string_view name_of(layout of) {
  return of == layout::own ? "" : of == layout::one ? "/streams:one" : "/streams:four";
}

template <stream_world World, class Peer, template <class, class, std::size_t> class Workload, layout Layout,
          bool Timed>
class measurement {
 public:
  // There are some hundred of these: what is not measured is compiled for size, which takes a seventh less time.
  [[gnu::cold]] static void add() {
    const std::string name = std::string(World::name) + '/' + std::string(workload::name) + '/' +
                             std::string(Peer::name) + std::string(name_of(Layout)) + (Timed ? "/latency" : "");
    auto* const added = benchmark::RegisterBenchmark(name.c_str(), measure);
    added->UseRealTime()->Setup(set_up)->Teardown(tear_down);
    for (const int threads : counts()) added->Threads(threads);
  }

 private:
  static constexpr std::size_t streams_each = Layout == layout::four ? 4 : 1;
  using seen_peer = std::conditional_t<Timed, timed_peer<Peer>, Peer>;
  using workload = Workload<World, seen_peer, streams_each>;

  struct run {
    explicit run(int threads)
        : peer(world, workload::arena(threads)),
          shared(world, threads),
          samples(Timed ? static_cast<std::size_t>(threads) : 0),
          ready(threads) {
      const int count = Layout == layout::own ? threads : static_cast<int>(streams_each);
      for (int i = 0; i < count; ++i) streams.push_back(world.make_stream());
    }
    World world;
    Peer peer;
    typename workload::shared shared;
    std::vector<stream_handle> streams;
    std::vector<call_samples> samples;  // by thread
    std::barrier<> ready;
    alignas(128) std::atomic<std::size_t> steps_drawn{0};
    std::atomic<std::size_t> pairs{0};
    std::atomic<std::size_t> refused{0};
  };
  static inline std::unique_ptr<run> current;

  /// All of them for a stream each; the ends and two where only the layout differs.
  [[gnu::cold]] static std::vector<int> counts() {
    std::vector<int> all = thread_counts();
    if (Layout != layout::own || Timed)
      std::erase_if(all, [](int count) { return count > 2 && count != static_cast<int>(cores().size()); });
    std::erase_if(all, [](int count) {
      return (workload::needs_two && count % 2 != 0) || (Layout == layout::one && count == 1);
    });
    return all;
  }

  [[gnu::cold]] static void set_up(const benchmark::State& state) { current = std::make_unique<run>(state.threads()); }
  [[gnu::cold]] static void tear_down(const benchmark::State&) {
    current->world.finish();
    current.reset();
  }

  [[nodiscard]] static stream_counts counts_of(const Peer& peer) {
    if constexpr (requires { peer.counts(); }) return peer.counts();
    return {};
  }

  static void measure(benchmark::State& state) {
    pin(state.thread_index(), state.threads());
    const auto self = static_cast<std::size_t>(state.thread_index());
    std::span<const stream_handle> streams = current->streams;
    if (Layout == layout::own) streams = streams.subspan(self, 1);
    const seat<World> at{current->world, state.thread_index(), state.threads(), streams, Layout == layout::one};
    if constexpr (Timed) {
      timed_peer<Peer> peer(current->peer, current->samples[self]);
      measure(state, peer, at);
    } else {
      measure(state, current->peer, at);
    }
  }

  static void measure(benchmark::State& state, seen_peer& peer, const seat<World>& at) {
    workload work(peer, current->shared, at);
    for (int i = 0; i < 100; ++i) work.step();
    current->ready.arrive_and_wait();
    if constexpr (Timed) {
      call_samples& mine = current->samples[static_cast<std::size_t>(state.thread_index())];
      mine.allocate.clear();
      mine.free.clear();
    }
    const std::uint64_t calls = current->world.calls();
    const stream_counts counts = counts_of(current->peer);
    current->ready.arrive_and_wait();
    std::size_t pairs = 0;
    const auto steps = static_cast<std::size_t>(state.max_iterations);
    while (state.KeepRunningBatch(state.max_iterations)) {  // once; waits for all threads before and after
      pairs = run_steps(work, steps, at.threads) * work.pairs_per_step();
      current->pairs.fetch_add(pairs, std::memory_order_relaxed);             // a figure
      current->refused.fetch_add(work.refused(), std::memory_order_relaxed);  // a figure
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(pairs));
    if (state.thread_index() == 0) count(state, calls, counts);
    current->ready.arrive_and_wait();  // before any thread frees what it has live
    if (current->refused.load(std::memory_order_relaxed) != 0) state.SkipWithError("an allocation was refused");
  }

  /// As many steps as there are for this thread; returns how many it took.
  static std::size_t run_steps(workload& work, std::size_t steps, int threads) {
    if constexpr (workload::in_step) {
      for (std::size_t i = 0; i < steps; ++i) work.step();
      return steps;
    }
    return share_out(work, current->steps_drawn, std::clamp<std::size_t>(steps / 32, 1, 4096),
                     steps * static_cast<std::size_t>(threads));
  }

  [[gnu::cold]] static void count(benchmark::State& state, std::uint64_t calls_before, const stream_counts& before) {
    const auto pairs = static_cast<double>(current->pairs.load(std::memory_order_relaxed));
    const auto each = [&](std::uint64_t now, std::uint64_t then) { return static_cast<double>(now - then) / pairs; };
    if constexpr (requires { Peer::calls_a_pair; }) {
      state.counters["calls"] = Peer::calls_a_pair;
    } else if constexpr (requires { Peer::calls_unknown; }) {
      // Nothing is better than a wrong figure.
    } else {
      state.counters["calls"] = each(current->world.calls(), calls_before);
    }
    if constexpr (requires(const Peer& peer) { peer.counts(); }) {
      const stream_counts now = counts_of(current->peer);
      state.counters["records"] = each(now.records, before.records);
      state.counters["waits"] = each(now.waits, before.waits);
    }
    if constexpr (Timed) {
      add_latency(state, "allocate_", &call_samples::allocate);
      add_latency(state, "free_", &call_samples::free);
    }
  }

  [[gnu::cold]] static void add_latency(benchmark::State& state, const std::string& kind,
                          std::vector<std::uint64_t> call_samples::*of) {
    std::vector<std::uint64_t> all;
    for (const call_samples& each : current->samples) all.insert(all.end(), (each.*of).begin(), (each.*of).end());
    add_counters(state, kind, summarise(all, the_clock()));
  }
};

template <stream_world World, template <class, class, std::size_t> class Workload, layout Layout, bool Timed,
          class... Peers>
void add_workload() {
  (measurement<World, Peers, Workload, Layout, Timed>::add(), ...);
}

template <stream_world World, class... Peers>
void add_world() {
  if (!World::available()) return;
  add_workload<World, pair_work, layout::own, false, Peers..., orderly_stream_peer<World, care::watching>,
               orderly_stream_peer<World, care::safe>>();
  add_workload<World, pair_work, layout::one, false, Peers...>();
  add_workload<World, pair_work, layout::four, false, Peers...>();
  add_workload<World, batch_work, layout::own, false, Peers...>();
  add_workload<World, batch_work, layout::one, false, Peers...>();
  add_workload<World, batch_work, layout::four, false, Peers...>();
  add_workload<World, slots_work, layout::own, false, Peers...>();
  add_workload<World, handoff_work, layout::own, false, Peers...>();
  add_workload<World, handoff_work, layout::one, false, Peers...>();
  add_workload<World, cross_work, layout::own, false, Peers...>();
  add_workload<World, cross_busy_work, layout::own, false, Peers...>();
  add_workload<World, pair_work, layout::own, true, Peers...>();
  add_workload<World, batch_work, layout::own, true, Peers...>();
  add_workload<World, slots_work, layout::own, true, Peers...>();
  add_workload<World, handoff_work, layout::own, true, Peers...>();
  add_workload<World, cross_busy_work, layout::own, true, Peers...>();
}

template <class... More>
void add_cuda() {
#if defined(ORDERLY_BENCH_CUDA)
  if (!cuda_world::available()) return;
  describe_device([](const char* key, const std::string& value) { benchmark::AddCustomContext(key, value); });
  add_world<cuda_world, orderly_stream_peer<cuda_world>, orderly_host_peer<cuda_world>, classic_peer<cuda_world>,
            cuda_async_peer, More...>();
  add_kernels<orderly_stream_peer<cuda_world>, classic_peer<cuda_world>, cuda_async_peer, cuda_async_primed_peer,
              More...>();
#endif
}

}  // namespace
}  // namespace orderly::bench

int main(int argc, char** argv) {
  using namespace orderly::bench;
  std::thread([] {}).join();  // no peer shall profit from a process that has one thread
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  report_distortion();
  the_clock();
  add_world<software_world, orderly_stream_peer<software_world>, orderly_host_peer<software_world>,
            classic_peer<software_world>>();
#if defined(ORDERLY_BENCH_TORCH)
  benchmark::AddCustomContext("pytorch", torch_peer::version);
  add_cuda<torch_peer>();
#else
  add_cuda<>();
#endif
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
