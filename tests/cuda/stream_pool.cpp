// The pool in stream order on a device: whoever gets a block uses it after its last user, and CUDA is not called where it
// need not be.
#include "orderly/stream_pool.hpp"

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cuda/device.hpp"
#include "orderly/cuda.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

stream_pool make_pool(std::size_t bytes, bool safe_mode = false) {
  stream_options settings;
  settings.memory.on_bad_free = on_bad_free::count;
  settings.safe_mode = safe_mode;
  return stream_pool(make_cuda_device_source(0, bytes), make_cuda_stream_driver(0), settings);
}

unsigned* word(void* block) { return static_cast<unsigned*>(block); }

}  // namespace

TEST_CASE("the same stream gets its block again without a call of CUDA") {
  const untouched state;
  const own_stream stream;
  stream_pool tested = make_pool(64 * mib);
  for (const std::size_t bytes : {std::size_t{512}, 64 * kib, 4 * mib}) {
    CAPTURE(bytes);
    void* const first = tested.allocate(bytes, stream.get());
    tested.deallocate(first, bytes, stream.get());
    const std::uint64_t before = cuda_calls();
    for (int i = 0; i < 1000; ++i) {
      void* const block = tested.allocate(bytes, stream.get());
      REQUIRE(block == first);
      tested.deallocate(block, bytes, stream.get());
    }
    CHECK(cuda_calls() == before);
  }
}

TEST_CASE("a block that another stream still writes late is handed over behind that work") {
  for (const std::size_t bytes : {64 * kib, 16 * mib}) {
    CAPTURE(bytes);
    const untouched state;
    const own_stream writer;
    const own_stream taker;
    const shared_words words(3);
    *words.at(0) = 2;
    const gate held;
    stream_pool tested = make_pool(16 * mib);
    std::vector<void*> blocks;
    while (void* const block = tested.try_allocate(bytes, writer.get())) blocks.push_back(block);
    REQUIRE(blocks.size() == 16 * mib / bytes);
    held.hold(writer.get(), word(blocks[0]), 1);
    for (void* const block : blocks) tested.deallocate(block, bytes, writer.get());
    for (void*& block : blocks) {
      block = tested.try_allocate(bytes, taker.get());
      REQUIRE(block != nullptr);
      ORDERLY_CUDA(copy_word(taker.get(), words.at(0), word(block)));
    }
    CHECK(tested.stats().waits >= 1);
    CHECK(tested.stats().waits <= 2 + blocks.size() / 64);
    CHECK(cudaStreamQuery(taker.get()) == cudaErrorNotReady);  // it waits for the writer
    static_cast<void>(cudaGetLastError());
    held.open();
    for (void* const block : blocks) {
      ORDERLY_CUDA(copy_word(taker.get(), word(block), words.at(1)));
      ORDERLY_CUDA(cudaStreamSynchronize(taker.get()));
      CHECK(words[1] == 2);
      tested.deallocate(block, bytes, taker.get());
    }
    CHECK(tested.synchronize());
    CHECK(tested.stats().memory.requested == 0);
    CHECK(tested.stats().held == 0);
  }
}

TEST_CASE("threads and streams at random, frees in other threads' streams: no write is lost or misplaced") {
  const untouched state;
  constexpr std::size_t threads = 4;
  constexpr unsigned rounds = 2000;
  std::vector<std::unique_ptr<own_stream>> streams;
  for (std::size_t i = 0; i < threads; ++i) streams.push_back(std::make_unique<own_stream>());
  const shared_words sent(threads * rounds);
  const shared_words seen(threads * rounds);
  stream_pool tested = make_pool(8 * mib);
  std::vector<unsigned> refused(threads);
  std::vector<std::thread> at_work;
  for (std::size_t self = 0; self < threads; ++self) {
    at_work.emplace_back([&, self] {
      std::mt19937 random(static_cast<unsigned>(self));
      for (unsigned round = 0; round < rounds; ++round) {
        const std::size_t at = self * rounds + round;
        cudaStream_t const in = streams[random() % threads]->get();
        const std::size_t bytes = std::size_t{256} << random() % 13;
        void* const block = tested.try_allocate(bytes, in);
        if (block == nullptr) {
          ++refused[self];
          continue;
        }
        *sent.at(at) = static_cast<unsigned>(at) + 1;
        unsigned* const end = word(block) + bytes / sizeof(unsigned) - 1;
        if (copy_word(in, sent.at(at), end) != cudaSuccess || copy_word(in, end, seen.at(at)) != cudaSuccess) return;
        tested.deallocate(block, bytes, in);
      }
    });
  }
  for (std::thread& each : at_work) each.join();
  ORDERLY_CUDA(cudaDeviceSynchronize());
  std::size_t wrong = 0;
  for (std::size_t at = 0; at < threads * rounds; ++at) wrong += seen[at] != sent[at];
  CHECK(wrong == 0);
  for (const unsigned count : refused) CHECK(count < rounds / 2);
  CHECK(tested.synchronize());
  CHECK(tested.stats().memory.requested == 0);
  CHECK(tested.stats().held == 0);
}

TEST_CASE("streams come and go, with a word to the pool or in safe mode without") {
  for (const bool safe_mode : {false, true}) {
    CAPTURE(safe_mode);
    const untouched state;
    const shared_words words(2);
    *words.at(0) = 7;
    stream_pool tested = make_pool(4 * mib, safe_mode);
    for (int round = 0; round < 50; ++round) {
      const own_stream passing;
      void* const block = tested.try_allocate(4 * mib, passing.get());
      REQUIRE(block != nullptr);
      ORDERLY_CUDA(copy_word(passing.get(), words.at(0), word(block)));
      tested.deallocate(block, 4 * mib, passing.get());
      if (!safe_mode) tested.release_stream(passing.get());
    }
    CHECK(tested.synchronize());
    CHECK(tested.stats().memory.requested == 0);
  }
}

TEST_CASE("a stream that captures keeps what it has, and its capture stays valid") {
  const untouched state;
  const own_stream capturing;
  const own_stream other;
  const shared_words words(1);
  stream_pool tested = make_pool(16 * mib);
  void* const first = tested.allocate(mib, capturing.get());  // the pool meets the stream before it captures
  ORDERLY_CUDA(cudaStreamBeginCapture(capturing.get(), cudaStreamCaptureModeGlobal));
  tested.deallocate(first, mib, capturing.get());
  CHECK(tested.try_allocate(mib, capturing.get()) == first);
  ORDERLY_CUDA(copy_word(capturing.get(), words.at(0), word(first)));
  tested.deallocate(first, mib, capturing.get());
  void* const elsewhere = tested.try_allocate(mib, other.get());
  CHECK(elsewhere != nullptr);
  CHECK(elsewhere != first);
  tested.deallocate(elsewhere, mib, other.get());
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(capturing.get(), &graph) == cudaSuccess);
  CHECK(graph != nullptr);
  if (graph != nullptr) cudaGraphDestroy(graph);
  CHECK(tested.synchronize());
  CHECK(tested.stats().held == 0);
}

TEST_CASE("memory of a capture stays with its graph, its executable and its launches") {
  const untouched state;
  const own_stream capturing;
  const own_stream other;
  const shared_words words(4);
  *words.at(0) = 5;
  *words.at(2) = 6;
  const gate held;
  stream_pool tested = make_pool(4 * mib);
  REQUIRE(tested.begin_capture(capturing.get()) == error::none);
  ORDERLY_CUDA(cudaStreamBeginCapture(capturing.get(), cudaStreamCaptureModeGlobal));
  void* const first = tested.allocate(mib, capturing.get());
  ORDERLY_CUDA(copy_word(capturing.get(), words.at(0), word(first)));
  tested.deallocate(first, mib, capturing.get());
  void* const again = tested.allocate(mib, capturing.get());
  CHECK(again == first);
  ORDERLY_CUDA(copy_word(capturing.get(), word(again), words.at(1)));
  tested.deallocate(again, mib, capturing.get());
  CHECK(tested.end_capture(capturing.get()) == error::none);
  cudaGraph_t graph = nullptr;
  ORDERLY_CUDA(cudaStreamEndCapture(capturing.get(), &graph));
  cudaGraphExec_t executable = nullptr;
  ORDERLY_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  ORDERLY_CUDA(cudaGraphDestroy(graph));
  CHECK(tested.synchronize());

  const auto take_all = [&](cudaStream_t in) {
    std::vector<void*> blocks;
    while (void* const block = tested.try_allocate(mib, in)) blocks.push_back(block);
    return blocks;
  };
  for (int round = 0; round < 3; ++round) {
    std::vector<void*> others = take_all(other.get());
    CHECK(others.size() == 3);
    for (void* const block : others) {
      CHECK(block != first);
      ORDERLY_CUDA(copy_word(other.get(), words.at(2), word(block)));
    }
    *words.at(1) = 0;
    ORDERLY_CUDA(cudaGraphLaunch(executable, capturing.get()));
    ORDERLY_CUDA(cudaStreamSynchronize(capturing.get()));
    CHECK(words[1] == 5);
    for (void* const block : others) {
      ORDERLY_CUDA(copy_word(other.get(), word(block), words.at(3)));
      ORDERLY_CUDA(cudaStreamSynchronize(other.get()));
      CHECK(words[3] == 6);
      tested.deallocate(block, mib, other.get());
    }
  }
  // A launch in flight keeps it, when all else is gone.
  held.hold(capturing.get(), words.at(3), 1);
  ORDERLY_CUDA(cudaGraphLaunch(executable, capturing.get()));
  ORDERLY_CUDA(cudaGraphExecDestroy(executable));
  std::vector<void*> others = take_all(other.get());
  CHECK(others.size() == 3);
  held.open();
  ORDERLY_CUDA(cudaStreamSynchronize(capturing.get()));
  // CUDA tells it on a thread of its own, some time later.
  for (int i = 0; i < 1000 && others.size() == 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (void* const block = tested.try_allocate(mib, other.get())) others.push_back(block);
  }
  CHECK(others.size() == 4);
  for (void* const block : others) tested.deallocate(block, mib, other.get());
  CHECK(tested.synchronize());
  CHECK(tested.stats().held == 0);
  CHECK(tested.stats().memory.requested == 0);
}

TEST_CASE("captures are noticed in safe mode and by a pool that watches, and stay valid") {
  for (const bool safe_mode : {false, true}) {
    CAPTURE(safe_mode);
    const untouched state;
    const own_stream capturing;
    const shared_words words(2);
    stream_options settings;
    settings.memory.on_bad_free = on_bad_free::count;
    settings.safe_mode = safe_mode;
    settings.watch_captures = true;
    stream_pool tested(make_cuda_device_source(0, 4 * mib), make_cuda_stream_driver(0), settings);
    void* const before = tested.allocate(mib, capturing.get());
    ORDERLY_CUDA(copy_word(capturing.get(), words.at(0), word(before)));
    ORDERLY_CUDA(cudaStreamBeginCapture(capturing.get(), cudaStreamCaptureModeGlobal));
    void* const inside = tested.allocate(mib, capturing.get());
    ORDERLY_CUDA(copy_word(capturing.get(), words.at(0), word(inside)));
    CHECK(tested.try_deallocate(inside, mib, capturing.get()) == error::none);
    CHECK(tested.try_deallocate(before, mib, capturing.get()) == error::none);
    CHECK(tested.allocate(mib, capturing.get()) == inside);
    CHECK(tested.try_deallocate(inside, mib, capturing.get()) == error::none);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(capturing.get(), &graph) == cudaSuccess);
    REQUIRE(graph != nullptr);
    void* const after = tested.allocate(mib, capturing.get());
    CHECK(after != inside);
    tested.deallocate(after, mib, capturing.get());
    CHECK(tested.synchronize());
    CHECK(tested.stats().held == mib);
    ORDERLY_CUDA(cudaGraphDestroy(graph));
    for (int i = 0; i < 1000 && tested.stats().held != 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      tested.trim();
      CHECK(tested.synchronize());
    }
    CHECK(tested.stats().held == 0);
    CHECK(tested.stats().memory.requested == 0);
  }
}

TEST_CASE("each device has a pool of its own, whatever device is current") {
  int devices = 0;
  ORDERLY_CUDA(cudaGetDeviceCount(&devices));
  if (devices < 2) {
    MESSAGE("one device: not run");
    return;
  }
  const untouched state;
  std::vector<stream_pool> pools;
  std::vector<cudaStream_t> streams;
  for (int device = 0; device < devices; ++device) {
    ORDERLY_CUDA(cudaSetDevice(device));
    cudaStream_t stream = nullptr;
    ORDERLY_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    streams.push_back(stream);
    ORDERLY_CUDA(cudaSetDevice(0));  // from here on the current device is another one's mostly
    stream_options settings;
    settings.memory.on_bad_free = on_bad_free::count;
    pools.emplace_back(make_cuda_device_source(device, 16 * mib), make_cuda_stream_driver(device), settings);
  }
  for (int device = 0; device < devices; ++device) {
    CAPTURE(device);
    const auto at = static_cast<std::size_t>(device);
    stream_pool& pool = pools[at];
    // Its own stream, its legacy stream and its per-thread stream, one after the other with all the memory.
    const stream_handle kinds[] = {streams[at], cudaStreamLegacy, cudaStreamPerThread, streams[at]};
    for (stream_handle const stream : kinds) {
      void* const block = pool.try_allocate(16 * mib, stream);
      REQUIRE(block != nullptr);
      cudaPointerAttributes where{};
      ORDERLY_CUDA(cudaPointerGetAttributes(&where, block));
      CHECK(where.device == device);
      ORDERLY_CUDA(cudaSetDevice(device));
      ORDERLY_CUDA(cudaMemsetAsync(block, device, 16 * mib, static_cast<cudaStream_t>(stream)));
      ORDERLY_CUDA(cudaSetDevice(0));
      CHECK(pool.try_deallocate(block, 16 * mib, stream) == error::none);
      stream_pool& other = pools[(at + 1) % pools.size()];
      CHECK(other.try_deallocate(block, 16 * mib, streams[(at + 1) % pools.size()]) == error::wrong_pool);
    }
    CHECK(pool.release_stream(streams[at]));
    CHECK(pool.synchronize());
    CHECK(pool.stats().held == 0);
  }
  for (cudaStream_t const stream : streams) cudaStreamDestroy(stream);
}

TEST_CASE("default streams are streams like others") {
  const untouched state;
  stream_pool tested = make_pool(16 * mib);
  const stream_handle legacy = cudaStreamLegacy;
  const stream_handle per_thread = cudaStreamPerThread;
  for (stream_handle const stream : {stream_handle{nullptr}, legacy, per_thread}) {
    void* const block = tested.allocate(mib, stream);
    CHECK(tested.try_deallocate(block, mib, stream) == error::none);
  }
  std::thread([&] {
    void* const block = tested.allocate(mib, cudaStreamPerThread);
    CHECK(tested.try_deallocate(block, mib, cudaStreamPerThread) == error::none);
  }).join();  // its stream ends with it
  CHECK(tested.synchronize());
  CHECK(tested.stats().held == 0);
}
