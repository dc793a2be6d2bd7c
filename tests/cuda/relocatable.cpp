// Blocks of a device's memory that move in stream order. Runs on a device, and against the stand-in of software_cuda.cpp,
// where a missing order is a data race.
#include "orderly/relocatable_streams.hpp"

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/portable.hpp"
#include "orderly/cuda.hpp"
#include "orderly/stream_pool.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

[[nodiscard]] std::unique_ptr<memory_source> make_source() {
  auto source = make_cuda_virtual_source(0, {.bytes = 64 * mib});
  REQUIRE(source != nullptr);
  return source;
}

/// First and last byte, to the host.
void read_ends(relocatable_stream_blocks& blocks, relocatable block, cudaStream_t in, unsigned char* to) {
  const auto* const address = static_cast<const unsigned char*>(blocks.pin(block, in));
  REQUIRE(address != nullptr);
  REQUIRE(cudaMemcpyAsync(to, address, 1, cudaMemcpyDefault, in) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(to + 1, address + blocks.size(block) - 1, 1, cudaMemcpyDefault, in) == cudaSuccess);
  blocks.unpin(block, in);
}

void write(relocatable_stream_blocks& blocks, relocatable block, cudaStream_t in, int value) {
  void* const address = blocks.pin(block, in);
  REQUIRE(address != nullptr);
  REQUIRE(cudaMemsetAsync(address, value, blocks.size(block), in) == cudaSuccess);
  blocks.unpin(block, in);
}

}  // namespace

TEST_CASE("blocks move while their streams stand still; the calls return at once, contents follow, chunks come free") {
  const stream user;
  const stream reader;
  const stream copies;
  const host_array<unsigned char> seen(512);
  stream_pool tested(make_source(), make_cuda_stream_driver(0));
  std::optional<relocatable_stream_blocks> blocks(std::in_place, tested);
  std::vector<relocatable> all;
  while (all.size() < 1000) {
    const relocatable block = blocks->try_allocate(250 * kib, user.get());
    if (block == relocatable::none) break;
    all.push_back(block);
  }
  REQUIRE(all.size() > 200);
  std::vector<relocatable> live;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i % 4 == 0)
      live.push_back(all[i]);
    else
      CHECK(blocks->deallocate(all[i], user.get()) == error::none);
  }
  CHECK(tested.synchronize());
  const std::size_t committed = tested.stats().memory.committed;
  {
    // What CUDA loads for these, it loads now: a device that stands still would hold it up.
    write(*blocks, live[0], user.get(), 200);
    void* const to = blocks->pin(live[1], user.get());
    REQUIRE(cudaMemcpyAsync(to, blocks->pin(live[0], user.get()), 250 * kib, cudaMemcpyDefault, user.get()) == cudaSuccess);
    read_ends(*blocks, live[1], user.get(), seen.at(0));
    blocks->unpin(live[0], user.get());
    blocks->unpin(live[1], user.get());
    CHECK(cudaStreamSynchronize(user.get()) == cudaSuccess);
    CHECK(*seen.at(1) == 200);
    host_gate held(user.get());
    for (std::size_t i = 0; i < live.size(); ++i) write(*blocks, live[i], user.get(), static_cast<int>(i + 1));
    blocks->begin({.bytes = 4 * mib});
    std::set<relocatable> moved;
    std::size_t steps = 0;
    for (auto moves = blocks->step(copies.get()); !moves.empty(); moves = blocks->step(copies.get())) {
      for (const relocation& each : moves) moved.insert(each.block);
      ++steps;
    }
    CHECK_FALSE(blocks->last_step_failed());
    CHECK(moved.size() > live.size() / 2);
    CHECK(steps > 1);
    // The reader is not ordered behind the user but by the moves.
    for (std::size_t i = 0; i < live.size(); ++i)
      if (moved.contains(live[i])) read_ends(*blocks, live[i], reader.get(), seen.at(2 * i));
    held.open();
    CHECK(cudaStreamSynchronize(reader.get()) == cudaSuccess);
    for (std::size_t i = 0; i < live.size(); ++i) {
      if (!moved.contains(live[i])) continue;
      CHECK(*seen.at(2 * i) == static_cast<unsigned char>(i + 1));
      CHECK(*seen.at(2 * i + 1) == static_cast<unsigned char>(i + 1));
    }
  }
  CHECK(tested.synchronize());
  for (std::size_t i = 0; i < live.size(); ++i) read_ends(*blocks, live[i], reader.get(), seen.at(2 * i));
  CHECK(cudaStreamSynchronize(reader.get()) == cudaSuccess);
  for (std::size_t i = 0; i < live.size(); ++i) {
    CHECK(*seen.at(2 * i) == static_cast<unsigned char>(i + 1));
    CHECK(*seen.at(2 * i + 1) == static_cast<unsigned char>(i + 1));
  }
  CHECK(blocks->end().chunks > 8);
  tested.trim();
  CHECK(tested.stats().memory.committed < committed / 2);
  for (const relocatable each : live) CHECK(blocks->deallocate(each, reader.get()) == error::none);
  CHECK(tested.synchronize());
  blocks.reset();
  CHECK(tested.stats().memory.allocated == 0);
}

TEST_CASE("threads write and read blocks in their streams while another moves them") {
  constexpr std::size_t threads = 3;
  std::vector<std::unique_ptr<stream>> streams;
  for (std::size_t i = 0; i <= threads; ++i) streams.push_back(std::make_unique<stream>());
  constexpr std::size_t each_has = 24;
  const host_array<unsigned char> seen(2 * threads * each_has);
  stream_options settings;
  settings.memory.limit = 32 * mib;
  stream_pool tested(make_source(), make_cuda_stream_driver(0), settings);
  std::optional<relocatable_stream_blocks> blocks(std::in_place, tested);
  std::atomic<bool> done = false;
  std::size_t moved = 0;
  std::thread mover([&] {
    while (!done.load()) {
      blocks->begin({.bytes = 2 * mib});
      for (auto moves = blocks->step(streams[threads]->get()); !moves.empty(); moves = blocks->step(streams[threads]->get()))
        moved += moves.size();
      blocks->end();
    }
  });
  std::vector<std::size_t> wrong(threads);
  std::vector<std::size_t> refused(threads);
  std::vector<std::thread> at_work;
  for (std::size_t self = 0; self < threads; ++self) {
    at_work.emplace_back([&, self] {
      cudaStream_t const in = streams[self]->get();
      std::mt19937 random(static_cast<unsigned>(self));
      std::vector<relocatable> own;
      std::vector<unsigned char> values;
      for (unsigned round = 0; round < 60; ++round) {
        while (own.size() < each_has) {
          const relocatable made = blocks->try_allocate((1 + random() % 255) * kib, in);
          refused[self] += made == relocatable::none;
          if (made == relocatable::none) break;
          own.push_back(made);
          values.push_back(static_cast<unsigned char>(random() % 255 + 1));
          void* const address = blocks->pin(made, in);
          static_cast<void>(cudaMemsetAsync(address, values.back(), blocks->size(made), in));
          blocks->unpin(made, in);
        }
        for (std::size_t i = 0; i < own.size(); ++i) {
          const auto* const address = static_cast<const unsigned char*>(blocks->pin(own[i], in));
          unsigned char* const to = seen.at(2 * (self * each_has + i));
          static_cast<void>(cudaMemcpyAsync(to, address, 1, cudaMemcpyDefault, in));
          static_cast<void>(cudaMemcpyAsync(to + 1, address + blocks->size(own[i]) - 1, 1, cudaMemcpyDefault, in));
          blocks->unpin(own[i], in);
        }
        if (cudaStreamSynchronize(in) != cudaSuccess) return;
        for (std::size_t i = 0; i < own.size(); ++i) {
          const unsigned char* const at = seen.at(2 * (self * each_has + i));
          wrong[self] += at[0] != values[i] || at[1] != values[i];
        }
        for (std::size_t i = 0; i < own.size();) {
          if (random() % 3 != 0) {
            ++i;
            continue;
          }
          wrong[self] += blocks->deallocate(own[i], in) != error::none;
          own[i] = own.back();
          own.pop_back();
          values[i] = values.back();
          values.pop_back();
        }
      }
    });
  }
  for (std::thread& each : at_work) each.join();
  done.store(true);
  mover.join();
  for (std::size_t self = 0; self < threads; ++self) {
    CHECK(wrong[self] == 0);
    CHECK(refused[self] < 60);
  }
  MESSAGE("blocks moved: ", moved);
  CHECK(moved > 0);
  CHECK(tested.synchronize());
  blocks.reset();
  CHECK(tested.stats().memory.allocated == 0);
}

TEST_CASE("blocks of a device move while another one is the current device") {
  int devices = 0;
  REQUIRE(cudaGetDeviceCount(&devices) == cudaSuccess);
  const int on = devices - 1;
  if (on == 0) MESSAGE("there is one device: that is the current one");
  REQUIRE(cudaSetDevice(on) == cudaSuccess);
  const stream in;
  const stream copies;
  const host_array<unsigned char> seen(2);
  auto source = make_cuda_virtual_source(on, {.bytes = 16 * mib});
  REQUIRE(source != nullptr);
  stream_pool tested(std::move(source), make_cuda_stream_driver(on));
  std::optional<relocatable_stream_blocks> blocks(std::in_place, tested);
  std::vector<relocatable> live;
  for (int i = 0; i < 16; ++i) live.push_back(blocks->allocate(256 * kib, in.get()));
  for (int i = 0; i < 16; ++i) write(*blocks, live[static_cast<std::size_t>(i)], in.get(), i + 1);
  for (std::size_t i = live.size(); i-- > 0;) {
    if (i % 8 == 0) continue;
    CHECK(blocks->deallocate(live[i], in.get()) == error::none);
    live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
  }
  CHECK(tested.synchronize());
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  blocks->begin();
  CHECK(blocks->step(copies.get()).size() == 1);
  CHECK_FALSE(blocks->last_step_failed());
  CHECK(blocks->end().moves == 1);
  int current = -1;
  CHECK(cudaGetDevice(&current) == cudaSuccess);
  CHECK(current == 0);
  REQUIRE(cudaSetDevice(on) == cudaSuccess);
  for (std::size_t i = 0; i < live.size(); ++i) {
    read_ends(*blocks, live[i], copies.get(), seen.at(0));
    CHECK(cudaStreamSynchronize(copies.get()) == cudaSuccess);
    CHECK(*seen.at(0) == 8 * i + 1);
    CHECK(*seen.at(1) == 8 * i + 1);
    CHECK(blocks->deallocate(live[i], copies.get()) == error::none);
  }
  CHECK(tested.synchronize());
  blocks.reset();
  CHECK(tested.stats().memory.allocated == 0);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("the driver copies in each kind of memory, behind what is in the stream, and returns at once; not in captures") {
  const auto driver = make_cuda_stream_driver(0);
  REQUIRE(driver != nullptr);
  for (int kind = 0; kind < 3; ++kind) {
    CAPTURE(kind);
    const stream in;
    const host_array<unsigned char> seen(1);
    constexpr std::size_t bytes = 2 * mib;
    const auto source = kind == 0   ? make_cuda_device_source(0, bytes)
                        : kind == 1 ? make_cuda_pinned_source(bytes)
                                    : make_cuda_managed_source(0, bytes);
    auto* const memory = static_cast<unsigned char*>(source->reserve(bytes, 256));
    REQUIRE(memory != nullptr);
    // What CUDA loads for these, it loads now: a device that stands still would hold it up.
    REQUIRE(cudaMemsetAsync(memory, 7, bytes, in.get()) == cudaSuccess);
    CHECK(driver->copy(in.get(), memory + mib, memory, mib));
    REQUIRE(cudaStreamSynchronize(in.get()) == cudaSuccess);
    {
      host_gate held(in.get());
      REQUIRE(cudaMemsetAsync(memory, 9, mib, in.get()) == cudaSuccess);
      CHECK(driver->copy(in.get(), memory + mib, memory, mib));  // for ever, if it waited
      held.open();
    }
    REQUIRE(cudaStreamSynchronize(in.get()) == cudaSuccess);
    REQUIRE(cudaMemcpyAsync(seen.at(0), memory + bytes - 1, 1, cudaMemcpyDefault, in.get()) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(in.get()) == cudaSuccess);
    CHECK(*seen.at(0) == 9);
    REQUIRE(cudaStreamBeginCapture(in.get(), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    CHECK_FALSE(driver->copy(in.get(), memory + mib, memory, mib));
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamEndCapture(in.get(), &graph) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    source->release(memory, bytes);
  }
  CHECK(cudaGetLastError() == cudaSuccess);
}
