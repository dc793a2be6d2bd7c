/// \file
/// CUDA streams and one allocation of device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <vector>

#include "orderly/cuda.hpp"
#include "stream/world.hpp"

namespace orderly::bench {

class cuda_world {
 public:
  static constexpr std::string_view name = "cuda";
  [[nodiscard]] static bool available() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count != 0;
  }

  cuda_world() = default;
  cuda_world(const cuda_world&) = delete;
  cuda_world& operator=(const cuda_world&) = delete;
  ~cuda_world() {
    for (cudaStream_t const each : streams_) cudaStreamDestroy(each);
  }

  [[nodiscard]] std::shared_ptr<stream_driver> driver() { return make_cuda_stream_driver(0); }
  [[nodiscard]] std::unique_ptr<memory_source> source(std::size_t bytes) { return make_cuda_device_source(0, bytes); }
  [[nodiscard]] stream_handle make_stream() {
    cudaStream_t made = nullptr;
    if (cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking) != cudaSuccess)
      throw std::runtime_error("orderly-stream-bench: no stream");
    return streams_.emplace_back(made);
  }
  void finish() { cudaDeviceSynchronize(); }
  [[nodiscard]] std::uint64_t calls() const { return cuda_calls(); }

 private:
  std::vector<cudaStream_t> streams_;
};

/// cudaMallocAsync, told to keep what is freed.
class cuda_async_peer {
 public:
  static constexpr std::string_view name = "cudaMallocAsync";

  cuda_async_peer(cuda_world&, std::size_t) {
    cudaMemPool_t pool = nullptr;
    std::uint64_t all = UINT64_MAX;
    if (cudaDeviceGetDefaultMemPool(&pool, 0) == cudaSuccess)
      cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all);
  }
  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream) noexcept {
    void* block = nullptr;
    return cudaMallocAsync(&block, bytes, static_cast<cudaStream_t>(stream)) == cudaSuccess ? block : nullptr;
  }
  void deallocate(void* block, std::size_t, stream_handle stream) noexcept {
    cudaFreeAsync(block, static_cast<cudaStream_t>(stream));
  }
};

}  // namespace orderly::bench
