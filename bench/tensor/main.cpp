// One tensor at a time, allocated and freed again: by the tensor cache, by the pool, and by malloc, the latter two with a
// descriptor made for it, as a program would without a cache. On threads with tensors of their own. CPU time counts: the
// other is not what the calls cost where a machine has other work.
#include <benchmark/benchmark.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "harness.hpp"
#include "orderly/pool.hpp"
#include "orderly/tensor_cache.hpp"

namespace {

constexpr orderly::tensor_type type = orderly::tensor_types::float32;

[[nodiscard]] std::array<std::int64_t, 3> shape_of(std::int64_t bytes) { return {4, bytes / 1024 / 4, 256}; }

/// One for all threads and runs: what lies in it is what a program has after a while.
orderly::pool& shared_pool() {
  static orderly::pool instance({.capacity = std::size_t{4} << 30});
  return instance;
}
orderly::tensor_cache& shared_cache() {
  static orderly::tensor_cache instance(shared_pool());
  return instance;
}

void cache_by_layout(benchmark::State& state) {
  orderly::tensor_cache& cache = shared_cache();
  const orderly::tensor_layout layout(shape_of(state.range(0)), type);
  for (auto _ : state) {
    const orderly::tensor t = cache.empty(layout);
    benchmark::DoNotOptimize(t);
    cache.free(t);
  }
}

void cache_by_shape(benchmark::State& state) {
  orderly::tensor_cache& cache = shared_cache();
  const auto shape = shape_of(state.range(0));
  for (auto _ : state) {
    const orderly::tensor t = cache.empty(shape, type);
    benchmark::DoNotOptimize(t);
    cache.free(t);
  }
}

void pool_alone(benchmark::State& state) {
  orderly::pool& pool = shared_pool();
  const auto bytes = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    void* const block = pool.allocate(bytes);
    benchmark::DoNotOptimize(block);
    pool.deallocate(block, bytes);
  }
}

void pool_and_descriptor(benchmark::State& state) {
  orderly::pool& pool = shared_pool();
  const auto shape = shape_of(state.range(0));
  for (auto _ : state) {
    orderly::tensor_layout layout(shape, type);
    const orderly::checked_block block = pool.allocate_checked(layout.bytes());
    benchmark::DoNotOptimize(block);
    benchmark::DoNotOptimize(layout);
    pool.deallocate(block, layout.bytes());
  }
}

void malloc_and_descriptor(benchmark::State& state) {
  const auto shape = shape_of(state.range(0));
  for (auto _ : state) {
    auto* const layout = new orderly::tensor_layout(shape, type);
    void* block = std::malloc(layout->bytes());
    benchmark::DoNotOptimize(block);
    std::free(block);
    delete layout;
  }
}

void sizes(benchmark::internal::Benchmark* of) {
  for (const std::int64_t kib : {4, 64, 1024, 4096, 32768}) of->Arg(kib * 1024);
  of->ThreadRange(1, 2)->ArgName("bytes");
}

BENCHMARK(cache_by_layout)->Apply(sizes);
BENCHMARK(cache_by_shape)->Apply(sizes);
BENCHMARK(pool_alone)->Apply(sizes);
BENCHMARK(pool_and_descriptor)->Apply(sizes);
BENCHMARK(malloc_and_descriptor)->Apply(sizes);

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return EXIT_FAILURE;
  orderly::bench::report_distortion();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
