// A device that is lost for certain: a kernel has written where nothing is. In a process of its own, since it is of no more
// use afterwards.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "cuda/device.hpp"
#include "cuda/kernels.hpp"
#include "orderly/cuda.hpp"
#include "orderly/cuda_kernel.hpp"
#include "orderly/orderly_cuda.h"
#include "orderly/stream_pool.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("pools, leases and streams of a lost device refuse, say why, and can be destroyed") {
  cudaStream_t first = nullptr;
  cudaStream_t second = nullptr;
  ORDERLY_CUDA(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
  ORDERLY_CUDA(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
  stream_options settings;
  settings.memory.on_bad_free = on_bad_free::count;
  std::optional<stream_pool> pool(std::in_place, make_cuda_device_source(0, 4 * mib), make_cuda_stream_driver(0),
                                  settings);
  std::optional<stream_pool> safe;
  settings.safe_mode = true;
  safe.emplace(make_cuda_device_source(0, 4 * mib), make_cuda_stream_driver(0), settings);
  std::optional<kernel_handoff> by(std::in_place, *pool, 0);
  std::optional<kernel_lease> lease(std::in_place, *by, 1024, 64, first);
  const orderly_options options = {4 * mib, 0, 0, 0};
  orderly_pool* in_c = nullptr;
  REQUIRE(orderly_pool_create_cuda(0, &options, &in_c) == ORDERLY_OK);
  void* const block = pool->allocate(mib, first);
  void* const marked = safe->allocate(mib, first);
  void* const of_c = orderly_allocate_async(in_c, 4 * mib, first);
  REQUIRE(of_c != nullptr);
  ORDERLY_CUDA(cudaDeviceSynchronize());

  // No allocation lies there.
  REQUIRE(copy_word(first, static_cast<unsigned*>(block), reinterpret_cast<unsigned*>(std::uintptr_t{4096})) ==
          cudaSuccess);
  const cudaError_t lost = cudaStreamSynchronize(first);
  REQUIRE(lost != cudaSuccess);
  const std::string name = cudaGetErrorName(lost);
  INFO(name);

  CHECK(pool->try_deallocate(block, mib, first) == error::none);  // the books are the host's
  static_cast<void>(safe->try_deallocate(marked, mib, first));
  CHECK(pool->try_allocate(4 * mib, second) == nullptr);
  CHECK_FALSE(pool->synchronize());
  CHECK(contains(cuda_failure(), name));
  CHECK_FALSE(pool->release_stream(first));
  CHECK_THROWS(kernel_lease(*by, 256, 16, second));
  CHECK_FALSE(lease->give_back(first));
  CHECK_FALSE(lease->wait());
  CHECK(orderly_deallocate_async(in_c, of_c, 4 * mib, first) == ORDERLY_OK);
  CHECK(orderly_synchronize(in_c) == ORDERLY_ERROR_STREAM_FAILED);
  CHECK_MESSAGE(contains(orderly_last_error(), name), orderly_last_error());
  CHECK(make_cuda_stream(0) == nullptr);
  CHECK(cudaPeekAtLastError() == lost);  // the program's to see

  lease.reset();
  by.reset();
  pool.reset();
  safe.reset();
  orderly_pool_destroy(in_c);
}
