// orderly-kernel-bench: allocating and freeing inside kernels, one allocation for each of 1,048,576 threads.
//
//   ALLOCATOR/MEASURE/cold|warm/BYTES
//     malloc   the device's malloc and free
//     lease    a kernel_lease; ring: a kernel_ring
//     alloc, free   time of the kernel, between two events
//     round         the host's clock: hand-out, both kernels, and the return until the host has all memory again. For
//                   a ring warm, the hand-out and the return are its turn: the memory stays on the device.
//     refill        of a ring: the round with the host, each block allocated and freed in the pool
//   cold: the first use of the size in the process, the loading of the kernels included. warm: the median of many.
//   Counters: items are allocations or frees, both in a round; times_malloc: how many times malloc takes as long for as
//   much; wrong: threads whose memory was not theirs alone (null counts). Where a kernel of malloc would take minutes
//   it is measured with fewer threads: threads.
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernel/kernels.hpp"
#include "orderly/cuda.hpp"
#include "orderly/cuda_kernel.hpp"

namespace orderly::bench {
namespace {

constexpr unsigned all_threads = 1U << 20;
constexpr std::array<std::size_t, 5> sizes = {16, 64, 256, 1024, 4096};
constexpr std::size_t heap_bytes = std::size_t{8} << 30;

void require(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  std::fprintf(stderr, "orderly-kernel-bench: %s: %s\n", what, cudaGetErrorString(result));
  std::exit(1);
}
#define ORDERLY_REQUIRE(call) require((call), #call)

/// What all measurements use: a stream, events, a pointer for each thread.
struct world {
  world() {
    ORDERLY_REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (cudaEvent_t& each : mark) ORDERLY_REQUIRE(cudaEventCreate(&each));
    ORDERLY_REQUIRE(cudaMalloc(reinterpret_cast<void**>(&pointers), all_threads * sizeof(void*)));
    ORDERLY_REQUIRE(cudaMalloc(reinterpret_cast<void**>(&wrong), sizeof(unsigned)));
  }
  /// Threads whose memory is not theirs.
  [[nodiscard]] unsigned count_wrong(unsigned threads) const {
    unsigned count = 0;
    ORDERLY_REQUIRE(cudaMemsetAsync(wrong, 0, sizeof count, stream));
    ORDERLY_REQUIRE(check(pointers, threads, wrong, stream));
    ORDERLY_REQUIRE(cudaMemcpyAsync(&count, wrong, sizeof count, cudaMemcpyDeviceToHost, stream));
    ORDERLY_REQUIRE(cudaStreamSynchronize(stream));
    return count;
  }

  cudaStream_t stream = nullptr;
  std::array<cudaEvent_t, 4> mark{};
  void** pointers = nullptr;
  unsigned* wrong = nullptr;
};

world& the_world() {
  static world made;  // never destroyed before CUDA is
  return made;
}

/// Seconds.
struct sample {
  double alloc = 0;
  double free = 0;
  double round = 0;
};

struct series {
  sample cold;
  std::vector<sample> warm;
  unsigned threads = all_threads;
  unsigned wrong = 0;

  [[nodiscard]] double median(double sample::*of) const {
    std::vector<double> times;
    for (const sample& each : warm) times.push_back(each.*of);
    if (times.empty()) return cold.*of;
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
  }
};

class malloc_peer {
 public:
  malloc_peer(std::size_t bytes, unsigned threads) : bytes_(bytes), threads_(threads) {}
  void hand_out() {}
  void allocate() { ORDERLY_REQUIRE(allocate_by_malloc(bytes_, the_world().pointers, threads_, the_world().stream)); }
  void free() { ORDERLY_REQUIRE(free_by_free(the_world().pointers, threads_, the_world().stream)); }
  void take_back() { ORDERLY_REQUIRE(cudaStreamSynchronize(the_world().stream)); }

 private:
  std::size_t bytes_;
  unsigned threads_;
};

/// A pool with room for four times what the threads take.
struct pool_of_size {
  explicit pool_of_size(std::size_t bytes)
      : pool(make_cuda_device_source(0, std::max(4 * bytes * all_threads, std::size_t{256} << 20)),
             make_cuda_stream_driver(0), settings(bytes)),
        handoff(pool, 0) {}
  [[nodiscard]] static stream_options settings(std::size_t bytes) {
    stream_options all;
    all.memory.granule = std::min<std::size_t>(bytes, 256);
    all.memory.on_bad_free = on_bad_free::abort;
    return all;
  }
  stream_pool pool;
  kernel_handoff handoff;
};

class lease_peer {
 public:
  lease_peer(std::size_t bytes, unsigned) : bytes_(bytes), from_(bytes) {}
  void hand_out() { lease_.emplace(from_.handoff, bytes_, all_threads, the_world().stream); }
  void allocate() {
    ORDERLY_REQUIRE(allocate_in(lease_->view(), the_world().pointers, all_threads, the_world().stream));
  }
  void free() { ORDERLY_REQUIRE(free_in(lease_->view(), the_world().pointers, all_threads, the_world().stream)); }
  void take_back() {
    if (!lease_->give_back(the_world().stream) || !lease_->wait() || lease_->account().kept != 0) {
      std::fputs("orderly-kernel-bench: the lease did not come home whole\n", stderr);
      std::exit(1);
    }
  }

 private:
  std::size_t bytes_;
  pool_of_size from_;
  std::optional<kernel_lease> lease_;
};

/// `resident`: stays on the device between rounds.
template <bool resident>
class ring_peer {
 public:
  ring_peer(std::size_t bytes, unsigned) : bytes_(bytes), from_(bytes) {}
  void hand_out() {
    if (!resident || !ring_) ring_.emplace(from_.handoff, bytes_, all_threads, the_world().stream);
  }
  void allocate() {
    ORDERLY_REQUIRE(allocate_in(ring_->view(), the_world().pointers, all_threads, the_world().stream));
  }
  void free() { ORDERLY_REQUIRE(free_in(ring_->view(), the_world().pointers, all_threads, the_world().stream)); }
  void take_back() {
    const bool done = resident ? ring_->turn(the_world().stream)
                               : ring_->give_back(the_world().stream) && ring_->wait() && ring_->account().kept == 0;
    if (!done) {
      std::fputs("orderly-kernel-bench: the ring did not come home whole\n", stderr);
      std::exit(1);
    }
    if (resident) ORDERLY_REQUIRE(cudaStreamSynchronize(the_world().stream));
  }

 private:
  std::size_t bytes_;
  pool_of_size from_;
  std::optional<kernel_ring> ring_;
};

enum class part { inside, round, both };

/// One hand-out, a kernel that allocates, one that frees, and the return. Events cost a little, so a round is measured
/// without them where it is short.
template <class Peer>
sample go_round(Peer& peer, part measured, series* checked = nullptr) {
  world& on = the_world();
  using clock = std::chrono::steady_clock;
  ORDERLY_REQUIRE(cudaStreamSynchronize(on.stream));
  const bool inside = measured != part::round;
  const auto mark = [&](std::size_t which) {
    if (inside) ORDERLY_REQUIRE(cudaEventRecord(on.mark[which], on.stream));
  };
  const auto start = clock::now();
  peer.hand_out();
  mark(0);
  peer.allocate();
  mark(1);
  clock::duration aside{};
  if (checked != nullptr) {
    ORDERLY_REQUIRE(cudaStreamSynchronize(on.stream));
    const auto from = clock::now();
    checked->wrong += on.count_wrong(checked->threads);
    aside = clock::now() - from;
  }
  mark(2);
  peer.free();
  mark(3);
  peer.take_back();
  sample all;
  all.round = std::chrono::duration<double>(clock::now() - start - aside).count();
  if (inside) {
    float milliseconds = 0;
    ORDERLY_REQUIRE(cudaEventElapsedTime(&milliseconds, on.mark[0], on.mark[1]));
    all.alloc = static_cast<double>(milliseconds) / 1000;
    ORDERLY_REQUIRE(cudaEventElapsedTime(&milliseconds, on.mark[2], on.mark[3]));
    all.free = static_cast<double>(milliseconds) / 1000;
  }
  return all;
}

template <class Peer>
series measure(std::size_t bytes, int rounds) {
  series all;
  Peer peer(bytes, all.threads);
  all.cold = go_round(peer, part::both);
  static_cast<void>(go_round(peer, part::round, &all));
  for (int i = 0; i < rounds; ++i) {
    sample each = go_round(peer, part::inside);
    each.round = go_round(peer, part::round).round;
    all.warm.push_back(each);
  }
  return all;
}

/// A kernel of malloc takes from tenths of a second to minutes, and cannot be stopped.
series measure_malloc(std::size_t bytes) {
  constexpr double most_seconds = 6;
  series all;
  if (bytes > 256) {
    all.threads = all_threads / 16;
    malloc_peer few(bytes, all.threads);
    all.cold = go_round(few, part::both);
    if (all.cold.round * 16 > most_seconds) {
      all.warm.push_back(go_round(few, part::both, &all));
      return all;
    }
    all.threads = all_threads;
  }
  malloc_peer peer(bytes, all.threads);
  all.cold = go_round(peer, part::both);
  all.warm.push_back(go_round(peer, part::both, &all));
  return all;
}

/// Measured once, when it is first asked for.
const series& measured(std::string_view allocator, std::size_t bytes) {
  static std::map<std::pair<std::string, std::size_t>, series> known;
  const auto key = std::pair(std::string(allocator), bytes);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  if (allocator == "malloc") return known[key] = measure_malloc(bytes);
  if (allocator == "lease") return known[key] = measure<lease_peer>(bytes, 100);
  if (allocator == "ring") return known[key] = measure<ring_peer<true>>(bytes, 100);
  return known[key] = measure<ring_peer<false>>(bytes, 5);
}

void add(const char* allocator, const char* name, double sample::*of, double items) {
  for (const bool warm : {false, true}) {
    for (const std::size_t bytes : sizes) {
      const std::string title =
          std::string(allocator) + '/' + name + (warm ? "/warm/" : "/cold/") + std::to_string(bytes);
      const std::string from = std::string_view(name) == "refill" ? "refill" : allocator;
      benchmark::RegisterBenchmark(title.c_str(),
                                   [=](benchmark::State& state) {
                                     const series& own = measured(from, bytes);
                                     const double time = warm ? own.median(of) : own.cold.*of;
                                     for (auto _ : state) state.SetIterationTime(time);
                                     state.SetItemsProcessed(static_cast<std::int64_t>(items * own.threads));
                                     state.counters["threads"] = own.threads;
                                     state.counters["wrong"] = own.wrong;
                                     if (from == "malloc") return;
                                     const series& peer = measured("malloc", bytes);
                                     const double theirs = (warm ? peer.median(of) : peer.cold.*of) / peer.threads;
                                     state.counters["times_malloc"] = theirs / (time / own.threads);
                                   })
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
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no CUDA device");
    return 77;
  }
  ORDERLY_REQUIRE(cudaSetDevice(0));
  ORDERLY_REQUIRE(cudaDeviceSetLimit(cudaLimitMallocHeapSize, heap_bytes));
  for (const char* const allocator : {"malloc", "lease", "ring"}) {
    add(allocator, "alloc", &sample::alloc, 1);
    add(allocator, "free", &sample::free, 1);
    add(allocator, "round", &sample::round, 2);
  }
  add("ring", "refill", &sample::round, 2);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
