// Sources of CUDA memory: the contract of memory_source, memory that the device can use, and pools over each of them.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <ostream>
#include <string_view>
#include <vector>

#include "cuda/device.hpp"
#include "orderly/cuda.hpp"
#include "orderly/pool.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;
constexpr std::size_t capacity = 8 * mib;

struct source_kind {
  std::string_view name;
  std::unique_ptr<memory_source> (*make)(std::size_t bytes);
  cudaMemoryType type;
};

/// A new source is one line here.
constexpr source_kind every_kind[] = {
    {"device", [](std::size_t bytes) { return make_cuda_device_source(0, bytes); }, cudaMemoryTypeDevice},
    {"pinned", [](std::size_t bytes) { return make_cuda_pinned_source(bytes); }, cudaMemoryTypeHost},
    {"managed", [](std::size_t bytes) { return make_cuda_managed_source(0, bytes); }, cudaMemoryTypeManaged},
};

bool aligned(const void* pointer, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0;
}

/// Fills a range by the device and reads both ends back.
bool usable(void* address, std::size_t bytes, int value) {
  unsigned char ends[2] = {};
  if (cudaMemset(address, value, bytes) != cudaSuccess) return false;
  const auto* first = static_cast<const unsigned char*>(address);
  if (cudaMemcpy(&ends[0], first, 1, cudaMemcpyDefault) != cudaSuccess) return false;
  if (cudaMemcpy(&ends[1], first + bytes - 1, 1, cudaMemcpyDefault) != cudaSuccess) return false;
  return ends[0] == value && ends[1] == value;
}

}  // namespace

TEST_CASE("a range is aligned, of the right kind and usable, can be given back, and can be had again") {
  const untouched state;
  for (const source_kind& kind : every_kind) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make(capacity);
    REQUIRE(source != nullptr);
    CHECK(source->capacity() == capacity);
    CHECK_FALSE(source->is_virtual());
    CHECK(source->granularity() >= 256);
    for (std::size_t alignment = source->granularity(); alignment <= 4 * mib; alignment *= 4) {
      CAPTURE(alignment);
      for (const std::size_t bytes : {256 * kib, capacity}) {
        void* const range = source->reserve(bytes, alignment);
        REQUIRE(range != nullptr);
        CHECK(aligned(range, alignment));
        cudaPointerAttributes attributes{};
        ORDERLY_CUDA(cudaPointerGetAttributes(&attributes, range));
        CHECK(attributes.type == kind.type);
        CHECK(usable(range, bytes, 0xa5));
        source->release(range, bytes);
      }
    }
  }
}

TEST_CASE("what cannot be had is refused") {
  const untouched state;
  for (const source_kind& kind : every_kind) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make(capacity);
    CHECK(source->reserve(SIZE_MAX - 255, 256) == nullptr);
    CHECK(source->reserve(SIZE_MAX / 2 + 1, SIZE_MAX / 2 + 1) == nullptr);
    CHECK(source->reserve(capacity + 256, 256) == nullptr);
    void* const range = source->reserve(capacity, 256);
    REQUIRE(range != nullptr);
    CHECK(source->reserve(256, 256) == nullptr);
    source->release(range, capacity);

    const std::unique_ptr<memory_source> boundless = kind.make(std::size_t{1} << 60);
    CHECK(boundless->reserve(std::size_t{1} << 60, 256) == nullptr);  // and the refusal leaves no error behind
    CHECK(cudaPeekAtLastError() == cudaSuccess);
  }
  CHECK(make_cuda_device_source(-1) == nullptr);
  CHECK(make_cuda_device_source(1000) == nullptr);
  CHECK(make_cuda_managed_source(1000, capacity) == nullptr);
}

TEST_CASE("a device source of no given size takes most of what is free") {
  const untouched state;
  std::size_t free = 0;
  std::size_t total = 0;
  ORDERLY_CUDA(cudaMemGetInfo(&free, &total));
  const std::unique_ptr<memory_source> source = make_cuda_device_source(0);
  REQUIRE(source != nullptr);
  CHECK(source->capacity() % (2 * mib) == 0);
  CHECK(source->capacity() <= free);
  CHECK(source->capacity() >= free / 2);
}

TEST_CASE("a refusal does not swallow an error that the program has not fetched yet") {
  const untouched state;
  const std::unique_ptr<memory_source> source = make_cuda_device_source(0, capacity);
  const std::unique_ptr<memory_source> boundless = make_cuda_device_source(0, std::size_t{1} << 60);
  REQUIRE(cudaSetDevice(-1) != cudaSuccess);
  const cudaError_t pending = cudaPeekAtLastError();
  REQUIRE(pending != cudaSuccess);
  void* const range = source->reserve(capacity, 256);
  CHECK(range != nullptr);
  source->release(range, capacity);
  CHECK(cudaPeekAtLastError() == pending);
  CHECK(boundless->reserve(std::size_t{1} << 60, 256) == nullptr);
  CHECK(cudaGetLastError() != cudaSuccess);
}

TEST_CASE("pools over each source hand out disjoint blocks that the device can use") {
  const untouched state;
  for (const source_kind& kind : every_kind) {
    CAPTURE(kind.name);
    pool tested(kind.make(capacity));
    std::vector<unsigned char*> blocks;
    while (void* block = tested.try_allocate(256 * kib)) blocks.push_back(static_cast<unsigned char*>(block));
    CHECK(blocks.size() == capacity / (256 * kib));
    for (std::size_t index = 0; index < blocks.size(); ++index) {
      ORDERLY_CUDA(cudaMemset(blocks[index], static_cast<int>(index + 1), 256 * kib));
    }
    for (std::size_t index = 0; index < blocks.size(); ++index) {
      CHECK(aligned(blocks[index], 256));
      unsigned char last = 0;
      ORDERLY_CUDA(cudaMemcpy(&last, blocks[index] + 256 * kib - 1, 1, cudaMemcpyDefault));
      CHECK(last == index + 1);
    }
    for (unsigned char* block : blocks) CHECK(tested.try_deallocate(block, 256 * kib) == error::none);
  }
}

TEST_CASE("memory can be had and given back while another stream captures") {
  const untouched state;
  const own_stream stream;
  ORDERLY_CUDA(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal));
  for (const source_kind& kind : every_kind) {
    CAPTURE(kind.name);
    const std::unique_ptr<memory_source> source = kind.make(capacity);
    void* const range = source->reserve(capacity, 256);
    CHECK(range != nullptr);
    source->release(range, capacity);
  }
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream.get(), &graph) == cudaSuccess);  // it was not invalidated
  if (graph != nullptr) cudaGraphDestroy(graph);
}
