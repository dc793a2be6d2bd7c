// What PyTorch calls, against the stand-in of software_cuda.cpp: orderly/cuda/torch.h. Pools last as long as their
// process, so every test has one of its own.
#include "orderly/cuda/torch.h"

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "software_cuda.hpp"
#include "support/process.hpp"
#include "support/threads.hpp"

using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

/// As doctest's REQUIRE, in a child process.
#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      _exit(1);                                                            \
    }                                                                      \
  } while (false)

/// Runs a test in a process whose pools have that capacity. Returns what was written to stderr.
std::string run(const char* capacity, const std::function<void()>& body) {
  const child_end end = run_child([&] {
    if (capacity != nullptr) setenv("ORDERLY_TORCH_CAPACITY", capacity, 1);
    try {
      body();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "an exception: %s\n", e.what());
      _exit(1);
    }
  });
  CHECK_MESSAGE(end.signal == 0, end.output);
  CHECK_MESSAGE(end.status == 0, end.output);
  return end.output;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// What an allocation throws; empty: nothing.
std::string refusal(std::size_t bytes, int device, cudaStream_t stream) {
  try {
    orderly_torch_free(orderly_torch_alloc(bytes, device, stream), bytes, device, stream);
    return "";
  } catch (const std::runtime_error& e) {
    return e.what();
  }
}

/// What a device's pool has of its memory.
std::size_t pool_bytes(int device) {
  void* const block = orderly_torch_alloc(256, device, nullptr);
  std::size_t size = 0;
  EXPECT(orderly_torch_base_alloc(block, &size) != nullptr);
  orderly_torch_free(block, 256, device, nullptr);
  return size;
}

cudaStream_t new_stream() {
  cudaStream_t made = nullptr;
  EXPECT(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking) == cudaSuccess);
  return made;
}

/// Work that stands in a stream until open().
class gate {
 public:
  explicit gate(cudaStream_t in) {
    const auto stand = [](void* self) {
      while (!static_cast<gate*>(self)->open_.load(std::memory_order_acquire)) std::this_thread::yield();
    };
    EXPECT(cudaLaunchHostFunc(in, stand, this) == cudaSuccess);
  }
  void open() noexcept { open_.store(true, std::memory_order_release); }

 private:
  std::atomic<bool> open_ = false;
};

}  // namespace

TEST_CASE("a stream gets its block again, another one another") {
  run("1M", [] {
    cudaStream_t const first = new_stream();
    cudaStream_t const second = new_stream();
    void* const block = orderly_torch_alloc(1000, 0, first);
    EXPECT(block != nullptr);
    gate busy(first);
    orderly_torch_free(block, 1000, 0, first);
    EXPECT(orderly_torch_alloc(1000, 0, first) == block);
    orderly_torch_free(block, 1000, 0, first);
    void* const elsewhere = orderly_torch_alloc(1000, 0, second);
    EXPECT(elsewhere != nullptr);
    EXPECT(elsewhere != block);
    EXPECT(orderly_torch_try_alloc(1000, 0, first) == block);
    busy.open();
    orderly_torch_free(elsewhere, 1000, 0, second);
    orderly_torch_free(block, 1000, 0, first);
  });
}

TEST_CASE("nothing is asked for: null, and null is freed") {
  const std::string printed = run("1M", [] {
    EXPECT(orderly_torch_alloc(0, 0, nullptr) == nullptr);
    EXPECT(orderly_torch_try_alloc(0, 0, nullptr) == nullptr);
    orderly_torch_free(nullptr, 0, 0, nullptr);
    orderly_torch_free(nullptr, 100, 0, nullptr);
    orderly_torch_record_stream(nullptr, nullptr);
    orderly_torch_reset();
    EXPECT(stand_in.allocations == 0);
  });
  CHECK(printed.empty());
}

TEST_CASE("one pool for each device, made once however many threads come first") {
  run("4M", [] {
    std::vector<void*> blocks(8);
    run_threads(blocks.size(), [&](std::size_t index) {
      blocks[index] = orderly_torch_alloc(1000, static_cast<int>(index % 2), nullptr);
    });
    EXPECT(stand_in.allocations == 2);
    for (std::size_t index = 0; index < blocks.size(); ++index) {
      std::size_t size = 0;
      void* const base = orderly_torch_base_alloc(blocks[index], &size);
      EXPECT(base == orderly_torch_base_alloc(blocks[index % 2], nullptr));
      EXPECT(base != orderly_torch_base_alloc(blocks[1 - index % 2], nullptr));
    }
    for (std::size_t index = 0; index < blocks.size(); ++index)
      orderly_torch_free(blocks[index], 1000, static_cast<int>(index % 2), nullptr);
    int device = -1;
    EXPECT(cudaGetDevice(&device) == cudaSuccess && device == 0);
  });
}

TEST_CASE("used-up memory is an exception that tells so, or null, and the program goes on") {
  const std::string printed = run("1M", [] {
    cudaStream_t const in = new_stream();
    void* const half = orderly_torch_alloc(512 * kib, 0, in);
    for (int round = 0; round < 3; ++round) {
      const std::string text = refusal(mib, 0, in);
      EXPECT(text.find("CUDA out of memory.") == 0);
      EXPECT(contains(text, "\n  would help:"));
      EXPECT(contains(text, std::to_string(mib) + " bytes were asked for on device 0"));
      EXPECT(contains(text, std::to_string(512 * kib) + " in use"));
      EXPECT(orderly_torch_try_alloc(mib, 0, in) == nullptr);
      EXPECT(orderly_torch_try_alloc(SIZE_MAX, 0, in) == nullptr);
    }
    orderly_torch_free(half, 512 * kib, 0, in);
    EXPECT(refusal(mib, 0, in).empty());
    EXPECT(cudaGetLastError() == cudaSuccess);
  });
  CHECK(printed.empty());
}

TEST_CASE("what other streams hold is had behind their work, before memory is said to be used up") {
  run("1M", [] {
    cudaStream_t const first = new_stream();
    cudaStream_t const second = new_stream();
    std::vector<void*> blocks;
    while (void* const block = orderly_torch_try_alloc(64 * kib, 0, first)) blocks.push_back(block);
    EXPECT(blocks.size() == 16);
    gate late(first);
    for (void* const block : blocks) {
      EXPECT(cudaMemsetAsync(block, 1, 64 * kib, first) == cudaSuccess);
      orderly_torch_free(block, 64 * kib, 0, first);
    }
    auto* const all = static_cast<unsigned char*>(orderly_torch_alloc(mib, 0, second));
    EXPECT(cudaMemsetAsync(all, 2, mib, second) == cudaSuccess);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    late.open();
    EXPECT(cudaStreamSynchronize(second) == cudaSuccess);
    EXPECT(cudaStreamSynchronize(first) == cudaSuccess);
    EXPECT(std::count(all, all + mib, 2) == mib);
    orderly_torch_free(all, mib, 0, second);
  });
}

TEST_CASE("a device that is not there") {
  const std::string printed = run(nullptr, [] {
    for (const int device : {-1, 2, 127, 128, INT32_MAX}) {
      const std::string text = refusal(1000, device, nullptr);
      EXPECT(contains(text, "no CUDA device " + std::to_string(device)));
      EXPECT(!contains(text, "out of memory"));
      char other = 0;
      orderly_torch_free(&other, 1000, device, nullptr);
      orderly_torch_memory_fraction(0.5, device);
    }
    EXPECT(orderly_torch_try_alloc(1000, 5, nullptr) == nullptr);
    EXPECT(cudaGetLastError() == cudaSuccess);
  });
  CHECK(contains(printed, "no CUDA device 5"));
  CHECK(contains(printed, "foreign pointer"));
  CHECK(contains(printed, "of device 128: not a part"));
}

TEST_CASE("without any device") {
  run(nullptr, [] {
    stand_in.devices = 0;
    EXPECT(contains(refusal(1000, 0, nullptr), "no CUDA device 0"));
    EXPECT(orderly_torch_try_alloc(1000, 0, nullptr) == nullptr);
    stand_in.devices = 1;  // it was not there yet
    EXPECT(refusal(1000, 0, nullptr).empty());
  });
}

TEST_CASE("bad frees are printed and change nothing") {
  const std::string printed = run("1M", [] {
    void* const block = orderly_torch_alloc(1000, 0, nullptr);
    void* const on_other = orderly_torch_alloc(1000, 1, nullptr);
    char own = 0;
    orderly_torch_free(&own, 1000, 0, nullptr);
    orderly_torch_free(static_cast<char*>(block) + 256, 1000, 0, nullptr);
    orderly_torch_free(block, 5000, 0, nullptr);
    orderly_torch_free(block, 1000, 1, nullptr);
    orderly_torch_free(block, 1000, 0, nullptr);
    orderly_torch_free(block, 1000, 0, nullptr);
    orderly_torch_record_stream(block, nullptr);
    orderly_torch_record_stream(&own, nullptr);
    orderly_torch_free(on_other, 1000, 1, nullptr);
    EXPECT(orderly_torch_alloc(1000, 0, nullptr) == block);
    EXPECT(orderly_torch_alloc(1000, 1, nullptr) == on_other);
  });
  for (const char* const what : {"foreign pointer", "inside a live block", "another class", "another pool",
                                 "double free", "cannot be recorded"}) {
    CAPTURE(what);
    CHECK_MESSAGE(contains(printed, what), printed);
  }
}

TEST_CASE("the capacity is what the environment says") {
  for (const auto& [text, bytes] : {std::pair<const char*, std::size_t>{"1048576", mib},
                                    {"1024K", mib},
                                    {"1024k", mib},
                                    {"1M", mib},
                                    {"3m", 3 * mib},
                                    {"100000", 100000 / 256 * 256}}) {
    run(text, [bytes = bytes] { EXPECT(pool_bytes(0) == bytes); });
  }
  for (const char* const text :
       {"", "0", "-1", " -1", "M", "1MB", "1X", "1.5G", "lots", "99999999999999999999", "20000000T", "1 M"}) {
    INFO("capacity \"", std::string(text), "\"");
    const std::string printed = run(text, [] {
      orderly_torch_init(2);
      EXPECT(contains(refusal(1000, 0, nullptr), "ORDERLY_TORCH_CAPACITY is"));
    });
    CHECK(contains(printed, "ORDERLY_TORCH_CAPACITY is \"" + std::string(text) + "\""));
  }
  run("1T", [] {  // more than the device has
    EXPECT(contains(refusal(1000, 0, nullptr), "set ORDERLY_TORCH_CAPACITY to less"));
    EXPECT(refusal(1000, 0, nullptr).find("CUDA out of memory.") == 0);
    EXPECT(cudaGetLastError() == cudaSuccess);
  });
  run(nullptr, [] {
    stand_in.memory = 64 * mib;
    EXPECT(pool_bytes(0) == 60 * mib);
  });
}

TEST_CASE("in safe mode streams may go without a word") {
  for (const char* const mode : {"1", "0", "yes"}) {
    INFO("mode ", std::string(mode));
    run("64K", [=] {
      setenv("ORDERLY_TORCH_SAFE_MODE", mode, 1);
      if (std::strcmp(mode, "yes") == 0) {
        EXPECT(contains(refusal(1000, 0, nullptr), "ORDERLY_TORCH_SAFE_MODE is \"yes\""));
        return;
      }
      bool refused = false;
      std::vector<cudaStream_t> streams;  // all made before one is destroyed, so that no handle comes again
      for (int i = 0; i < 20; ++i) streams.push_back(new_stream());
      for (cudaStream_t const passing : streams) {
        void* const block = orderly_torch_try_alloc(64 * kib, 0, passing);
        refused = refused || block == nullptr;
        if (block != nullptr) {
          EXPECT(cudaMemsetAsync(block, 1, 64 * kib, passing) == cudaSuccess);
          orderly_torch_free(block, 64 * kib, 0, passing);
        }
        EXPECT(cudaStreamDestroy(passing) == cudaSuccess);
      }
      EXPECT(refused == (mode[0] == '0'));
    });
  }
}

TEST_CASE("the memory fraction counts when the pool is made, and not afterwards") {
  const std::string printed = run(nullptr, [] {
    stand_in.memory = 64 * mib;  // of 128
    orderly_torch_memory_fraction(0.25, 0);
    EXPECT(pool_bytes(0) == 32 * mib);
    orderly_torch_memory_fraction(0.5, 0);  // it has less
    orderly_torch_memory_fraction(0.125, 0);
    EXPECT(refusal(32 * mib, 0, nullptr).empty());
    EXPECT(pool_bytes(1) == 60 * mib);  // each device has its own
    for (const double wrong : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()})
      orderly_torch_memory_fraction(wrong, 0);
  });
  CHECK(contains(printed, "memory fraction 0.125 of device 0 comes too late"));
  CHECK_FALSE(contains(printed, "memory fraction 0.5 "));
  CHECK(contains(printed, "-0.1 of device 0: not a part"));
  CHECK(contains(printed, "nan of device 0: not a part"));

  run("8M", [] {  // the smaller one counts
    orderly_torch_memory_fraction(0.5, 0);
    EXPECT(pool_bytes(0) == 8 * mib);
    orderly_torch_memory_fraction(0, 1);
    EXPECT(refusal(1, 1, nullptr).find("CUDA out of memory.") == 0);
    orderly_torch_memory_fraction(1, 1);
    EXPECT(pool_bytes(1) == 8 * mib);
  });
}

TEST_CASE("a recorded stream keeps a freed block from its owner's next work") {
  run("64K", [] {
    cudaStream_t const owner = new_stream();
    cudaStream_t const reader = new_stream();
    auto* const block = static_cast<unsigned*>(orderly_torch_alloc(64 * kib, 0, owner));
    unsigned seven = 7;
    unsigned seen = 0;
    EXPECT(cudaMemcpyAsync(block, &seven, sizeof seven, cudaMemcpyDefault, owner) == cudaSuccess);
    EXPECT(cudaStreamSynchronize(owner) == cudaSuccess);
    orderly_torch_record_stream(block, reader);
    gate late(reader);
    EXPECT(cudaMemcpyAsync(&seen, block, sizeof seen, cudaMemcpyDefault, reader) == cudaSuccess);
    orderly_torch_free(block, 64 * kib, 0, owner);
    EXPECT(orderly_torch_alloc(64 * kib, 0, owner) == block);
    EXPECT(cudaMemsetAsync(block, 0, sizeof seven, owner) == cudaSuccess);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    late.open();
    EXPECT(cudaStreamSynchronize(reader) == cudaSuccess);
    EXPECT(cudaStreamSynchronize(owner) == cudaSuccess);
    EXPECT(seen == 7);
  });
}

TEST_CASE("figures of a device's pool, and of none") {
  run("8M", [] {
    orderly_torch_stats stats{};
    stats.requested = 1;
    EXPECT(orderly_torch_memory_stats(0, &stats) == 1);
    EXPECT(stats.requested == 0 && stats.capacity == 0);
    EXPECT(orderly_torch_memory_stats(-1, &stats) == 1);
    EXPECT(orderly_torch_memory_stats(1000, &stats) == 1);
    void* const block = orderly_torch_alloc(1000, 0, nullptr);
    EXPECT(orderly_torch_memory_stats(0, nullptr) == 1);
    EXPECT(orderly_torch_memory_stats(0, &stats) == 0);
    EXPECT(stats.requested == 1000 && stats.allocated >= 1000 && stats.capacity == 8 * mib);
    EXPECT(stats.allocations == 1 && stats.frees == 0 && stats.held == 0);
    EXPECT(orderly_torch_try_alloc(9 * mib, 0, nullptr) == nullptr);
    orderly_torch_free(block, 1000, 0, nullptr);
    EXPECT(orderly_torch_memory_stats(0, &stats) == 0);
    EXPECT(stats.requested == 0 && stats.frees == 1 && stats.failed == 1 && stats.peak_requested == 1000);
  });
}

TEST_CASE("emptying the cache waits for work that uses freed memory") {
  run("1M", [] {
    cudaStream_t const in = new_stream();
    void* const block = orderly_torch_alloc(100 * kib, 0, in);
    gate late(in);
    orderly_torch_free(block, 100 * kib, 0, in);
    std::atomic<bool> returned = false;
    std::thread emptying([&] {
      orderly_torch_reset();
      returned = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT(!returned);
    late.open();
    emptying.join();
    EXPECT(refusal(mib, 0, nullptr).empty());
  });
}

TEST_CASE("the device's allocation that a pointer lies in") {
  run("1M", [] {
    auto* const block = static_cast<char*>(orderly_torch_alloc(1000, 0, nullptr));
    std::size_t size = 0;
    char* const base = static_cast<char*>(orderly_torch_base_alloc(block + 999, &size));
    EXPECT(base <= block);
    EXPECT(block + 1000 <= base + size);
    EXPECT(size >= mib);
    EXPECT(orderly_torch_base_alloc(block, nullptr) == base);
    char own = 0;
    EXPECT(orderly_torch_base_alloc(&own, &size) == &own);
    EXPECT(size == 0);
    orderly_torch_free(block, 1000, 0, nullptr);
  });
}

TEST_CASE("threads, streams and devices at random: no write is lost or misplaced") {
  run("2M", [] {
    constexpr std::size_t threads = 4;
    constexpr unsigned rounds = 1000;
    std::vector<cudaStream_t> streams;
    for (std::size_t i = 0; i < threads; ++i) streams.push_back(new_stream());
    std::vector<unsigned> sent(threads * rounds);
    std::vector<unsigned> seen(threads * rounds);
    run_threads(threads, [&](std::size_t self) {
      std::mt19937 random(static_cast<unsigned>(self));
      for (unsigned round = 0; round < rounds; ++round) {
        const std::size_t at = self * rounds + round;
        const std::size_t of_stream = random() % threads;
        const int device = static_cast<int>(of_stream % 2);
        cudaStream_t const in = streams[of_stream];
        const std::size_t bytes = std::size_t{256} << random() % 10;
        auto* const block = static_cast<unsigned*>(orderly_torch_try_alloc(bytes, device, in));
        if (block == nullptr) continue;
        sent[at] = static_cast<unsigned>(at) + 1;
        unsigned* const end = block + bytes / sizeof(unsigned) - 1;
        EXPECT(cudaMemcpyAsync(end, &sent[at], sizeof *end, cudaMemcpyDefault, in) == cudaSuccess);
        EXPECT(cudaMemcpyAsync(&seen[at], end, sizeof *end, cudaMemcpyDefault, in) == cudaSuccess);
        if (round % 16 == 0) orderly_torch_record_stream(block, streams[(of_stream + 2) % threads]);
        orderly_torch_free(block, bytes, device, in);
        if (round % 256 == 0) orderly_torch_reset();
      }
    });
    for (cudaStream_t const each : streams) EXPECT(cudaStreamSynchronize(each) == cudaSuccess);
    EXPECT(seen == sent);
  });
}
