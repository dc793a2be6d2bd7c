/// \file
/// CUDA streams and one allocation of device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "orderly/cuda.hpp"
#include "stream/busy.hpp"
#include "stream/world.hpp"

namespace orderly::bench {

/// Ends the program: no figure is worth anything after an error of CUDA's.
inline void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "orderly-stream-bench: %s: %s\n", what, cudaGetErrorString(code));
  std::abort();
}

/// Tells the device and the versions, for the record.
template <class Tell>
void describe_device(const Tell& tell) {
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  tell("device", std::string(device.name));
  const auto version = [](int number) {
    return std::to_string(number / 1000) + '.' + std::to_string(number % 1000 / 10);
  };
  int runtime = 0;
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  tell("cuda_runtime", version(runtime));
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  tell("cuda_driver", version(driver));
  // "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build ..."
  std::ifstream module("/proc/driver/nvidia/version");
  for (std::string word; module >> word;) {
    if (word.find_first_not_of("0123456789.") != std::string::npos || word.find('.') == std::string::npos) continue;
    tell("driver", word);
    break;
  }
}

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
    for (cudaEvent_t const each : events_) cudaEventDestroy(each);
    for (cudaStream_t const each : streams_) cudaStreamDestroy(each);
  }

  [[nodiscard]] std::shared_ptr<stream_driver> driver() { return make_cuda_stream_driver(0); }
  [[nodiscard]] std::unique_ptr<memory_source> source(std::size_t bytes) { return make_cuda_device_source(0, bytes); }
  [[nodiscard]] stream_handle make_stream() {
    cudaStream_t made = nullptr;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return streams_.emplace_back(made);
  }
  void finish(stream_handle stream) {
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "cudaStreamSynchronize");
  }
  void finish() { check(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }
  void occupy(stream_handle stream) {
    if (!launch_busy(stream, nullptr, 40'000)) check(cudaErrorLaunchFailure, "a kernel");
  }
  void record(mark& at, stream_handle stream) {
    if (at.event == nullptr) {
      cudaEvent_t made = nullptr;
      check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreateWithFlags");
      const std::lock_guard lock(events_mutex_);
      at.event = events_.emplace_back(made);
    }
    check(cudaEventRecord(static_cast<cudaEvent_t>(at.event), static_cast<cudaStream_t>(stream)), "cudaEventRecord");
  }
  void wait(stream_handle stream, mark& at) {
    check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(at.event), 0),
          "cudaStreamWaitEvent");
  }
  [[nodiscard]] std::uint64_t calls() const { return cuda_calls(); }

 private:
  std::vector<cudaStream_t> streams_;
  std::mutex events_mutex_;
  std::deque<cudaEvent_t> events_;
};

/// A pool of the driver's on device 0 that keeps what is freed.
[[nodiscard]] inline cudaMemPool_t new_driver_pool() {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  cudaMemPool_t made = nullptr;
  check(cudaMemPoolCreate(&made, &properties), "cudaMemPoolCreate");
  std::uint64_t all = UINT64_MAX;
  check(cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &all), "cudaMemPoolSetAttribute");
  return made;
}

/// cudaMallocAsync from a new pool of the driver's, told to keep what is freed. Primed: made to hold the whole arena at
/// the start, as RMM does.
template <bool Primed>
class cuda_async_peer_of {
 public:
  static constexpr std::string_view name = Primed ? "cudaMallocAsync-primed" : "cudaMallocAsync";
  static constexpr double calls_a_pair = 2;

  cuda_async_peer_of(cuda_world&, std::size_t bytes) {
    pool_ = new_driver_pool();
    check(cudaDeviceSetMemPool(0, pool_), "cudaDeviceSetMemPool");
    if constexpr (Primed) {
      deallocate(allocate(bytes, nullptr), bytes, nullptr);
      check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }
  }
  cuda_async_peer_of(const cuda_async_peer_of&) = delete;
  cuda_async_peer_of& operator=(const cuda_async_peer_of&) = delete;
  ~cuda_async_peer_of() {
    cudaMemPool_t first = nullptr;
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaDeviceGetDefaultMemPool(&first, 0), "cudaDeviceGetDefaultMemPool");
    check(cudaDeviceSetMemPool(0, first), "cudaDeviceSetMemPool");
    check(cudaMemPoolDestroy(pool_), "cudaMemPoolDestroy");
  }

  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream) noexcept {
    void* block = nullptr;
    return cudaMallocAsync(&block, bytes, static_cast<cudaStream_t>(stream)) == cudaSuccess ? block : nullptr;
  }
  void deallocate(void* block, std::size_t, stream_handle stream) noexcept {
    cudaFreeAsync(block, static_cast<cudaStream_t>(stream));
  }

 private:
  cudaMemPool_t pool_ = nullptr;
};
using cuda_async_peer = cuda_async_peer_of<false>;
using cuda_async_primed_peer = cuda_async_peer_of<true>;

}  // namespace orderly::bench
