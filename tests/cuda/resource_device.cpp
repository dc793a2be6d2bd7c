// Pools of CUDA memory as cuda::mr resources, on a device: who allocates through a type-erased resource gets memory
// that kernels can write, in the order of streams, across threads; and CUB works in it.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/memory_resource.hpp"
#include "cuda/reduce.hpp"
#include "orderly/cuda.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

unsigned* word(void* block) { return static_cast<unsigned*>(block); }

stream_options counting() {
  stream_options settings;
  settings.memory.on_bad_free = on_bad_free::count;
  return settings;
}

/// All is freed, and was well.
template <class Resource>
void check_clean(const Resource& resource) {
  CHECK(resource.upstream().synchronize());
  const stream_statistics stats = resource.upstream().stats();
  CHECK(stats.memory.requested == 0);
  CHECK(stats.memory.bad_frees == 0);
}

#if ORDERLY_TEST_ANY_RESOURCE
using erased = mr::any_resource<mr::device_accessible>;
#else
using erased = device_ref;
#endif

}  // namespace

TEST_CASE("kernels write through an erased resource: sizes from 0, large alignments") {
  const untouched state;
  const own_stream stream;
  const shared_words words(2);
  *words.at(0) = 77;
  cuda_device_resource resource = make_cuda_device_resource(0, 256 * mib, counting());
  erased any(resource);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{4}, kib, 5 * mib, 128 * mib}) {
    for (const std::size_t alignment : {std::size_t{4}, std::size_t{256}, 4 * kib}) {
      CAPTURE(bytes);
      CAPTURE(alignment);
      void* const block = allocate(any, stream.get(), bytes, alignment);
      REQUIRE(reinterpret_cast<std::uintptr_t>(block) % alignment == 0);
      if (bytes != 0) {
        unsigned* const last = word(block) + bytes / sizeof(unsigned) - 1;
        *words.at(1) = 0;
        ORDERLY_CUDA(copy_word(stream.get(), words.at(0), last));
        ORDERLY_CUDA(copy_word(stream.get(), last, words.at(1)));
        ORDERLY_CUDA(cudaStreamSynchronize(stream.get()));
        CHECK(words[1] == 77);
        cudaPointerAttributes attributes{};
        ORDERLY_CUDA(cudaPointerGetAttributes(&attributes, block));
        CHECK(attributes.type == cudaMemoryTypeDevice);
        CHECK(attributes.device == 0);
      }
      deallocate(any, stream.get(), block, bytes, alignment);
    }
  }
  check_clean(resource);
}

TEST_CASE("a pebibyte is out of memory, and leaves no error behind") {
  const untouched state;
  const own_stream stream;
  cuda_device_resource resource = make_cuda_device_resource(0, 64 * mib, counting());
  erased any(resource);
  constexpr std::size_t pebibyte = std::size_t{1} << 50;
  CHECK_THROWS_WITH_AS(static_cast<void>(allocate(any, stream.get(), pebibyte)), doctest::Contains("out of memory"),
                       out_of_memory);
  CHECK_THROWS_AS(static_cast<void>(allocate_sync(any, pebibyte)), std::bad_alloc);
  check_clean(resource);
}

TEST_CASE("page-locked and managed memory is the host's at once") {
  const untouched state;
  const own_stream stream;
  const shared_words seen(1);
  for (cuda_pinned_resource resource :
       {make_cuda_pinned_resource(0, 16 * mib, counting()), make_cuda_managed_resource(0, 16 * mib, counting())}) {
    for (unsigned round = 1; round <= 3; ++round) {
      unsigned* const block = word(allocate_sync(resource, mib));
      block[1000] = round;
      ORDERLY_CUDA(copy_word(stream.get(), block + 1000, seen.at(0)));
      ORDERLY_CUDA(cudaStreamSynchronize(stream.get()));
      CHECK(seen[0] == round);
      deallocate_sync(resource, block, mib);
    }
    check_clean(resource);
  }
}

TEST_CASE("outside of streams memory comes after the work that still used it, and without such work at once") {
  const untouched state;
  const own_stream writer;
  const shared_words words(1);
  const gate held;
  cuda_device_resource resource = make_cuda_device_resource(0, 16 * mib, counting());
  deallocate_sync(resource, allocate_sync(resource, mib), mib);
  CHECK(resource.upstream().synchronize());

  void* const block = allocate(resource, writer.get(), 16 * mib);
  held.hold(writer.get(), word(block), 5);
  deallocate(resource, writer.get(), block, 16 * mib);
  std::future<void*> later = std::async(std::launch::async, [&] { return allocate_sync(resource, 16 * mib); });
  CHECK(later.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
  held.open();
  void* const settled = later.get();
  CHECK(settled == block);
  CHECK(cudaStreamQuery(writer.get()) == cudaSuccess);
  unsigned written = 0;
  ORDERLY_CUDA(cudaMemcpy(&written, settled, sizeof written, cudaMemcpyDeviceToHost));
  CHECK(written == 5);
  deallocate_sync(resource, settled, 16 * mib);

  const std::uint64_t before = cuda_calls();
  for (int round = 0; round < 100; ++round) deallocate_sync(resource, allocate_sync(resource, 16 * mib), 16 * mib);
  CHECK(cuda_calls() == before);
  check_clean(resource);
}

namespace {

/// Blocks on their way from a thread that fills them to one that reads and frees them.
class belt {
 public:
  using item = std::tuple<void*, std::size_t, cudaEvent_t>;
  void put(item one) {
    const std::lock_guard hold(mutex_);
    items_.push_back(one);
  }
  bool take(item& one) {
    const std::lock_guard hold(mutex_);
    if (items_.empty()) return false;
    one = items_.front();
    items_.pop_front();
    return true;
  }

 private:
  std::mutex mutex_;
  std::deque<item> items_;
};

/// One thread allocates and writes in a stream, another reads and frees in another or the same. Counts what went wrong.
unsigned pass_on(erased& resource, cudaStream_t from, cudaStream_t to, unsigned seed) {
  constexpr unsigned rounds = 300;
  const shared_words sent(rounds);
  const shared_words seen(rounds);
  belt between;
  unsigned failures = 0;
  std::thread producer([&] {
    std::mt19937 random(seed);
    for (unsigned round = 0; round < rounds; ++round) {
      const std::size_t bytes = 4 + random() % (5 * mib) / 4 * 4;
      void* block = nullptr;
      while (block == nullptr) {
        try {
          block = allocate(resource, from, bytes);
        } catch (const std::bad_alloc&) {
          std::this_thread::yield();  // until the consumer has freed some
        }
      }
      *sent.at(round) = seed + round + 1;
      cudaEvent_t written = nullptr;
      const bool done = copy_word(from, sent.at(round), word(block)) == cudaSuccess &&
                        cudaEventCreateWithFlags(&written, cudaEventDisableTiming) == cudaSuccess &&
                        cudaEventRecord(written, from) == cudaSuccess;
      between.put({done ? block : nullptr, bytes, written});
    }
  });
  for (unsigned round = 0; round < rounds; ++round) {
    belt::item one{};
    while (!between.take(one)) std::this_thread::yield();
    const auto& [block, bytes, written] = one;
    const bool done = block != nullptr && cudaStreamWaitEvent(to, written, 0) == cudaSuccess &&
                      copy_word(to, word(block), seen.at(round)) == cudaSuccess;
    failures += !done;
    if (block != nullptr) deallocate(resource, to, block, bytes);
    if (written != nullptr) failures += cudaEventDestroy(written) != cudaSuccess;
  }
  producer.join();
  failures += cudaStreamSynchronize(to) != cudaSuccess;
  for (unsigned round = 0; round < rounds; ++round) failures += seen[round] != seed + round + 1;
  return failures;
}

}  // namespace

TEST_CASE("one thread allocates, another frees: in one stream, in two, in default streams; several pairs at once") {
  const untouched state;
  const own_stream first;
  const own_stream second;
  std::vector<std::unique_ptr<own_stream>> streams;  // all of them outlive the pools
  cuda_device_resource resource = make_cuda_device_resource(0, 64 * mib, counting());
  erased any(resource);
  CHECK(pass_on(any, first.get(), first.get(), 1000) == 0);
  CHECK(pass_on(any, first.get(), second.get(), 2000) == 0);
  CHECK(pass_on(any, cudaStreamLegacy, cudaStreamLegacy, 3000) == 0);
  // What was freed in a per-thread stream is other threads' only after its own thread has put an event behind it. So
  // there is memory enough for both.
  cuda_device_resource roomy = make_cuda_device_resource(0, 1024 * mib, counting());
  erased any_roomy(roomy);
  CHECK(pass_on(any_roomy, cudaStreamPerThread, cudaStreamPerThread, 4000) == 0);
  CHECK(pass_on(any_roomy, cudaStreamPerThread, first.get(), 5000) == 0);
  check_clean(roomy);
  std::vector<std::future<unsigned>> pairs;
  for (unsigned pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 2; ++i) streams.push_back(std::make_unique<own_stream>());
    cudaStream_t const from = streams[2 * pair]->get();
    cudaStream_t const to = streams[2 * pair + 1]->get();
    pairs.push_back(std::async(std::launch::async, [&any, from, to, pair] {
      erased copy(any);
      return pass_on(copy, from, to, 10000 * (pair + 1));
    }));
  }
  for (std::future<unsigned>& each : pairs) CHECK(each.get() == 0);
  check_clean(resource);
}

TEST_CASE("CUB computes in memory of a resource") {
  const untouched state;
  const own_stream stream;
  const own_stream other;
  cuda_device_resource resource = make_cuda_device_resource(0, 64 * mib, counting());
  unsigned long long* sums = nullptr;
  ORDERLY_CUDA(cudaMallocHost(reinterpret_cast<void**>(&sums), 8 * sizeof *sums));
  constexpr std::size_t count = mib;
  for (std::size_t i = 0; i < 8; ++i) {
    cudaStream_t const in = i % 2 == 0 ? stream.get() : other.get();
    ORDERLY_CUDA(sum_of_numbers(resource, in, count + i, sums + i));
  }
  ORDERLY_CUDA(cudaDeviceSynchronize());
  for (std::size_t i = 0; i < 8; ++i) CHECK(sums[i] == (count + i) * (count + i - 1) / 2);
  ORDERLY_CUDA(cudaFreeHost(sums));
  CHECK(resource.upstream().stats().memory.allocations >= 16);
  check_clean(resource);
}

TEST_CASE("a pool takes its memory from another's resource") {
  const untouched state;
  const own_stream stream;
  const shared_words words(2);
  *words.at(0) = 3;
  cuda_device_resource below = make_cuda_device_resource(0, 64 * mib, counting());
  const auto use = [&](std::unique_ptr<memory_source> source) {
    cuda_device_resource above(std::make_shared<stream_pool>(std::move(source), make_cuda_stream_driver(0), counting()),
                               0);
    void* const block = allocate(above, stream.get(), 8 * mib);
    ORDERLY_CUDA(copy_word(stream.get(), words.at(0), word(block)));
    ORDERLY_CUDA(copy_word(stream.get(), word(block), words.at(1)));
    deallocate(above, stream.get(), block, 8 * mib);
    ORDERLY_CUDA(cudaStreamSynchronize(stream.get()));
    CHECK(words[1] == 3);
    check_clean(above);
    *words.at(1) = 0;
  };
  use(make_resource_source(below, 16 * mib));
  use(make_resource_source(erased(below), 16 * mib));
#if ORDERLY_TEST_ANY_RESOURCE
  use(make_resource_source(erased(::cuda::device_default_memory_pool(::cuda::device_ref{0})), 16 * mib));
#endif
  check_clean(below);
}
