/// \file
/// orderly-bench: every workload with every peer at several thread counts.
///
/// A benchmark is WORKLOAD/ALLOCATOR/threads:N, or WORKLOAD/ALLOCATOR/full:80/threads:N for an arena of which live
/// blocks cover 80 % before it starts. items_per_second are allocate+free pairs, of all threads together.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cores.hpp"
#include "harness.hpp"
#include "peer/peers.hpp"
#include "scenario/scenarios.hpp"

namespace orderly::bench {
namespace {

/// The peer of one run, with the arena filled to `FullPercent`, and what its threads share.
template <static_peer Peer, template <class> class Scenario, std::size_t FullPercent>
struct run {
  explicit run(int threads) : config{.capacity = capacity_for(threads)}, peer(config), shared(threads) {
    if constexpr (FullPercent != 0) fill();
  }

  /// Even in a full arena there must be room for what slots1000 keeps live: 125 MiB a thread on average.
  static std::size_t capacity_for(int threads) {
    const std::size_t a_thread = std::size_t{FullPercent != 0 ? 2u : 1u} << 30;
    const std::size_t needed = a_thread * static_cast<std::size_t>(threads);
    return FullPercent != 0 ? needed : std::max(needed, arena_config{}.capacity);
  }

  /// Counts whole blocks, so that every peer starts with the same share of its arena free.
  void fill() {
    random_source random = random_source_of(-1);  // the draws of no thread
    for (std::size_t filled = 0; filled < config.capacity / 100 * FullPercent;) {
      const std::size_t bytes = log_uniform(random, 256, 1 << 20);
      filled += peer.rounded(bytes);
      full = peer.allocate(bytes) != nullptr && full;
    }
  }

  arena_config config;
  Peer peer;
  typename Scenario<Peer>::shared shared;
  bool full = true;  // no allocation was refused while the arena was filled
  alignas(128) std::atomic<std::size_t> steps_drawn = 0;
};

template <static_peer Peer, template <class> class Scenario, std::size_t FullPercent>
class measurement {
 public:
  static void add() {
    using scenario = Scenario<Peer>;
    if constexpr (is_one_size<Peer>() && !scenario::one_size) return;
    std::string name = std::string(scenario::name) + '/' + std::string(Peer::name);
    if constexpr (FullPercent != 0) name += "/full:" + std::to_string(FullPercent);
    auto* const added = benchmark::RegisterBenchmark(name.c_str(), measure);
    added->UseRealTime()->Setup(set_up)->Teardown(tear_down);
    for (const int threads : thread_counts()) {
      if (!scenario::needs_two || threads % 2 == 0) added->Threads(threads);
    }
  }

 private:
  using run_type = run<Peer, Scenario, FullPercent>;

  static void set_up(const benchmark::State& state) { current_ = std::make_unique<run_type>(state.threads()); }
  static void tear_down(const benchmark::State&) { current_.reset(); }

  static void measure(benchmark::State& state) {
    pin(state.thread_index(), state.threads());
    Scenario<Peer> scenario(current_->peer, current_->shared, state.thread_index());
    for (std::size_t i = 0; i < 4 * scenario.steps_at_a_time; ++i) scenario.step();
    std::size_t steps = 0;
    const auto all = static_cast<std::size_t>(state.max_iterations);
    while (state.KeepRunningBatch(state.max_iterations)) steps = work(scenario, all, state.threads());
    state.SetItemsProcessed(static_cast<std::int64_t>(steps * scenario.pairs_per_step()));
    if (!current_->full || scenario.refused() != 0) state.SkipWithError("the peer refused an allocation");
  }

  /// Runs this thread's share of `steps` steps for each thread; returns how many it took.
  static std::size_t work(Scenario<Peer>& scenario, std::size_t steps, int threads) {
    if constexpr (Scenario<Peer>::needs_two) {  // the two sides keep step by themselves
      for (std::size_t i = 0; i < steps; ++i) scenario.step();
      return steps;
    }
    return share_out(scenario, current_->steps_drawn, Scenario<Peer>::steps_at_a_time,
                     steps * static_cast<std::size_t>(threads));
  }

  static inline std::unique_ptr<run_type> current_;
};

template <static_peer Peer, template <class> class... Scenarios>
void add_peer(scenario_list<Scenarios...>) {
  if (!is_available<Peer>()) return;
  (measurement<Peer, Scenarios, 0>::add(), ...);
  if constexpr (Peer::arena) (measurement<Peer, Scenarios, 80>::add(), ...);
}

template <static_peer... Peers>
void add_all(peer_list<Peers...>) {
  (add_peer<Peers>(all_scenarios{}), ...);
}

void print_help() {
  benchmark::PrintDefaultHelp();
  std::fputs(
      "\norderly-bench: benchmarks are WORKLOAD/ALLOCATOR/[full:80/]threads:N\n"
      "          [--touch]  write to every page of a block; else blocks are not touched\n",
      stderr);
}

/// Google Benchmark's arguments: what suits these benchmarks, then what was given, as the last of two equal flags
/// counts. Takes the only flag of this program out.
std::vector<std::string> arguments_of(int argc, char** argv) {
  std::vector<std::string> all = {argv[0], "--benchmark_min_time=0.2", "--benchmark_repetitions=7",
                                  "--benchmark_enable_random_interleaving=true",
                                  "--benchmark_display_aggregates_only=true"};
  all.insert(all.end(), argv + 1, argv + argc);
  touch_blocks = std::erase(all, "--touch") != 0;
  return all;
}

int main(int argc, char** argv) {
  make_room_for_peers(argv);
  // The C library skips atomic instructions in a process that never had a second thread. No user of a shared pool is
  // in that case, so no peer shall profit from it.
  std::thread([] {}).join();

  static std::vector<std::string> arguments = arguments_of(argc, argv);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  int count = static_cast<int>(pointers.size());
  pointers.push_back(nullptr);
  benchmark::Initialize(&count, pointers.data(), print_help);
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return EXIT_FAILURE;

  benchmark::AddCustomContext("blocks_touched", touch_blocks ? "yes" : "no");
  report_distortion();
  add_all(all_peers{});
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace orderly::bench

int main(int argc, char** argv) { return orderly::bench::main(argc, argv); }
