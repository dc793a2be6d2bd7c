/// \file
/// orderly-memory-bench: what passes and limits cost, and whether they keep what they promise.
///
///   passes/WORKLOAD/KIND[/latency]/threads:2     a workload while a further thread runs passes; see passes.hpp. The
///                                                latency is that of single calls
///   at-limit/threads:N                           allocations while all of the limit is live but what is asked for,
///                                                of sizes that change, so that memory is moved for them
///   fragmented/PATTERN/BLOCKS/BYTES              memory full of small blocks, of which every second, or those in
///                                                every second chunk, are freed; then one request for the largest
///                                                power of two that the free bytes make up
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "cores.hpp"
#include "harness.hpp"
#include "latency.hpp"
#include "memory/passes.hpp"
#include "peer/orderly.hpp"
#include "scenario/pair.hpp"
#include "scenario/slots1000.hpp"

namespace orderly::bench {
namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

// ------------------------------------------------------------------------------------------------------------- passes

/// Times every 13th call of a thread, of either kind.
class timed_orderly : public orderly_peer {
 public:
  using orderly_peer::orderly_peer;

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept {
    if (--calls_left != 0) return orderly_peer::allocate(bytes);
    const std::uint64_t begin = section_begin();
    void* const block = orderly_peer::allocate(bytes);
    add(section_end() - begin);
    return block;
  }
  void deallocate(void* block, std::size_t bytes) noexcept {
    if (--calls_left != 0) return orderly_peer::deallocate(block, bytes);
    const std::uint64_t begin = section_begin();
    orderly_peer::deallocate(block, bytes);
    add(section_end() - begin);
  }
  /// Of the calling thread, from now on.
  static void start() {
    ticks.clear();
    ticks.reserve(most);
    calls_left = every;
  }
  static const std::vector<std::uint64_t>& seen() noexcept { return ticks; }

 private:
  static constexpr int every = 13;
  static constexpr std::size_t most = std::size_t{1} << 20;
  static void add(std::uint64_t time) noexcept {
    calls_left = every;
    if (ticks.size() < ticks.capacity()) ticks.push_back(time);
  }

  static inline thread_local std::vector<std::uint64_t> ticks;
  static inline thread_local int calls_left = every;
};

template <template <class> class Scenario, class Passes, bool Timed>
class beside_passes {
 public:
  static void add() {
    const std::string name = "passes/" + std::string(Scenario<orderly_peer>::name) + '/' + std::string(Passes::name) +
                             (Timed ? "/latency" : "");
    benchmark::RegisterBenchmark(name.c_str(), measure)->UseRealTime()->Setup(set_up)->Teardown(tear_down)->Threads(2);
  }

 private:
  using peer_type = std::conditional_t<Timed, timed_orderly, orderly_peer>;

  struct run {
    explicit run(int threads) : peer(arena_config{}), shared(threads), ready(threads) {}
    peer_type peer;
    nothing_shared shared;
    std::unique_ptr<pass_thread<Passes>> passes;
    std::barrier<> ready;
    std::vector<std::uint64_t> ticks;
    alignas(128) std::atomic<std::size_t> steps_drawn{0};
    std::atomic<std::size_t> refused{0};
  };

  static void set_up(const benchmark::State& state) { current_ = std::make_unique<run>(state.threads()); }
  static void tear_down(const benchmark::State&) { current_.reset(); }

  static void measure(benchmark::State& state) {
    pin(state.thread_index(), state.threads());
    const bool first = state.thread_index() == 0;
    {
      Scenario<peer_type> scenario(current_->peer, current_->shared, state.thread_index());
      for (std::size_t i = 0; i < 4 * scenario.steps_at_a_time; ++i) scenario.step();
      if constexpr (Timed) timed_orderly::start();
      current_->ready.arrive_and_wait();
      if (first) current_->passes = std::make_unique<pass_thread<Passes>>(current_->peer.memory());
      current_->ready.arrive_and_wait();
      std::size_t steps = 0;
      const auto all = static_cast<std::size_t>(state.max_iterations) * static_cast<std::size_t>(state.threads());
      while (state.KeepRunningBatch(state.max_iterations))
        steps = share_out(scenario, current_->steps_drawn, scenario.steps_at_a_time / 10, all);
      state.SetItemsProcessed(static_cast<std::int64_t>(steps * scenario.pairs_per_step()));
      current_->refused.fetch_add(scenario.refused(), std::memory_order_relaxed);  // a figure
      current_->ready.arrive_and_wait();
      if constexpr (Timed) collect(state);
      if (first) {
        state.counters["passes"] = static_cast<double>(current_->passes->count());
        state.counters["pass_us"] = current_->passes->mean_microseconds();
        current_->passes.reset();
      }
    }
    if (current_->refused.load(std::memory_order_relaxed) != 0) state.SkipWithError("an allocation was refused");
  }

  static void collect(benchmark::State& state) {
    for (int thread = 0; thread < state.threads(); ++thread) {
      if (thread == state.thread_index()) {
        current_->ticks.insert(current_->ticks.end(), timed_orderly::seen().begin(), timed_orderly::seen().end());
      }
      current_->ready.arrive_and_wait();
    }
    if (state.thread_index() != 0) return;
    add_counters(state, "", summarise(current_->ticks, the_clock()));
  }

  static inline std::unique_ptr<run> current_;
};

template <template <class> class Scenario, class... Passes>
void add_passes() {
  (beside_passes<Scenario, Passes, false>::add(), ...);
  (beside_passes<Scenario, Passes, true>::add(), ...);
}

// ---------------------------------------------------------------------------------------------------------- the limit

/// Each thread has a share of the limit. Before each request it frees blocks, chosen by chance, until the request fits
/// its share; so all that is live and the request always fit the limit. Sizes are whole chunks: powers of two up to a
/// root, which classes do not round, and any number above.
class at_limit {
 public:
  static constexpr std::size_t operations = 10'000'000;  // of all threads

  static void add() {
    for (const int threads : {1, 2}) {
      benchmark::RegisterBenchmark("at-limit", measure)
          ->UseRealTime()
          ->Setup(set_up)
          ->Teardown(tear_down)
          ->Threads(threads)
          ->Iterations(static_cast<std::int64_t>(operations) / threads)
          ->Repetitions(1);
    }
  }

 private:
  static constexpr std::size_t chunk = std::size_t{64} << 10;
  static constexpr std::size_t share = 64;  // chunks of a thread

  static void set_up(const benchmark::State& state) {
    const std::size_t bytes = share * chunk * static_cast<std::size_t>(state.threads());
    current_ = std::make_unique<pool>(options{.capacity = bytes, .chunk = chunk, .limit = bytes});
  }
  static void tear_down(const benchmark::State&) { current_.reset(); }

  static void measure(benchmark::State& state) {
    pin(state.thread_index(), state.threads());
    random_source random = random_source_of(state.thread_index());
    std::vector<std::size_t> sizes{1, 2, 4, 8, 16};
    for (std::size_t chunks = 17; chunks <= 48; ++chunks) sizes.push_back(chunks);
    std::vector<std::size_t> draws(4096);
    for (std::size_t& each : draws) each = sizes[random() % sizes.size()];
    std::vector<std::pair<void*, std::size_t>> live;
    std::size_t held = 0;
    std::size_t refused = 0;
    std::size_t next = 0;
    for ([[maybe_unused]] auto step : state) {
      const std::size_t chunks = draws[next++ % draws.size()];
      while (held + chunks > share) {
        std::swap(live[next % live.size()], live.back());
        held -= live.back().second;
        current_->deallocate(live.back().first, live.back().second * chunk);
        live.pop_back();
      }
      void* const block = current_->try_allocate(chunks * chunk);
      if (block == nullptr) {
        ++refused;
        continue;
      }
      live.emplace_back(block, chunks);
      held += chunks;
    }
    for (const auto& [block, chunks] : live) current_->deallocate(block, chunks * chunk);
    state.SetItemsProcessed(state.iterations());
    state.counters["refused"] = benchmark::Counter(static_cast<double>(refused));
    state.counters["requests"] = benchmark::Counter(static_cast<double>(state.iterations()));
    if (state.thread_index() == 0) state.counters["passes"] = static_cast<double>(current_->stats().passes);
  }

  static inline std::unique_ptr<pool> current_;
};

// ------------------------------------------------------------------------------------------------------- fragmentation

enum class pattern : std::uint8_t { blocks, chunks };

constexpr std::size_t fragmented_limit = 96 * mib;

/// What is asked for: the largest power of two that the bytes make up which are not live, nor in the last chunk of those.
std::size_t largest_request(std::size_t live, std::size_t chunk) {
  return std::bit_floor(fragmented_limit - (live + chunk - 1) / chunk * chunk);
}

void report(benchmark::State& state, const pool& tested, std::size_t bytes, void* served, std::size_t live) {
  state.counters["asked"] = static_cast<double>(bytes);
  state.counters["free"] = static_cast<double>(fragmented_limit - live);
  state.counters["served"] = served != nullptr ? 1 : 0;
  state.counters["passes"] = static_cast<double>(tested.stats().passes);
}

/// Blocks stay where they are. Sizes are such that classes round them to powers of two, which fill chunks.
void fragment_plain(benchmark::State& state, std::size_t bytes, pattern freed) {
  for ([[maybe_unused]] auto step : state) {
    state.PauseTiming();
    pool tested(options{.capacity = 2 * fragmented_limit, .limit = fragmented_limit});
    std::vector<std::byte*> all;
    while (void* const block = tested.try_allocate(bytes)) all.push_back(static_cast<std::byte*>(block));
    std::ranges::sort(all);
    std::size_t live = 0;
    std::vector<std::byte*> left;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const auto chunk = static_cast<std::size_t>(all[i] - all.front()) / tested.chunk();
      if ((freed == pattern::blocks ? i : chunk) % 2 == 0) {
        tested.deallocate(all[i], bytes);
      } else {
        left.push_back(all[i]);
        live += tested.rounded(bytes);
      }
    }
    const std::size_t asked = largest_request(live, tested.chunk());
    state.ResumeTiming();
    void* const served = tested.try_allocate(asked);
    state.PauseTiming();
    report(state, tested, asked, served, live);
    if (served != nullptr) tested.deallocate(served, asked);
    for (std::byte* const block : left) tested.deallocate(block, bytes);
    state.ResumeTiming();
  }
}

/// Blocks are moved together first, in steps of 1 MiB.
void fragment_relocatable(benchmark::State& state, std::size_t bytes) {
  for ([[maybe_unused]] auto step : state) {
    state.PauseTiming();
    pool tested(options{.capacity = 2 * fragmented_limit, .limit = fragmented_limit});
    relocatable_blocks blocks(tested);
    std::vector<std::pair<void*, relocatable>> all;
    for (;;) {
      const relocatable block = blocks.try_allocate(bytes);
      if (block == relocatable::none) break;
      all.emplace_back(blocks.pin(block), block);
      blocks.unpin(block);
    }
    std::ranges::sort(all);
    std::size_t live = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i % 2 == 0)
        static_cast<void>(blocks.deallocate(all[i].second));
      else
        live += tested.rounded(bytes);
    }
    const std::size_t asked = largest_request(live, tested.chunk());
    state.counters["before"] = tested.try_allocate(asked) != nullptr ? 1 : 0;
    state.ResumeTiming();
    blocks.begin({.bytes = mib});
    while (!blocks.step().empty()) {
    }
    const relocation_statistics done = blocks.end();
    void* const served = tested.try_allocate(asked);
    state.PauseTiming();
    report(state, tested, asked, served, live);
    state.counters["moves"] = static_cast<double>(done.moves);
    state.counters["copied"] = static_cast<double>(done.bytes);
    if (served != nullptr) tested.deallocate(served, asked);
    state.ResumeTiming();
  }
}

void add_fragmented() {
  for (const std::size_t bytes : {std::size_t{256}, std::size_t{1000}, std::size_t{4096}, std::size_t{32768}}) {
    const auto add = [&](const std::string& name, auto run) {
      const std::string full = "fragmented/" + name + '/' + std::to_string(bytes);
      benchmark::RegisterBenchmark(full.c_str(), run)->UseRealTime()->Iterations(1)->Repetitions(1);
    };
    add("blocks/plain", [bytes](benchmark::State& state) { fragment_plain(state, bytes, pattern::blocks); });
    add("chunks/plain", [bytes](benchmark::State& state) { fragment_plain(state, bytes, pattern::chunks); });
    add("blocks/relocatable", [bytes](benchmark::State& state) { fragment_relocatable(state, bytes); });
  }
}

}  // namespace
}  // namespace orderly::bench

int main(int argc, char** argv) {
  using namespace orderly::bench;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return EXIT_FAILURE;
  report_distortion();
  the_clock();
  add_passes<pair_scenario, no_passes, computing, defragmenting, trimming, reserving, relocating>();
  add_passes<slots1000_scenario, no_passes, computing, defragmenting, trimming, reserving, relocating>();
  at_limit::add();
  add_fragmented();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
