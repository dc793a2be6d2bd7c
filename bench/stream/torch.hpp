/// \file
/// PyTorch's caching allocator, called from C++ as its operators call it. It has one instance, for the process.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "stream/cuda.hpp"

namespace orderly::bench {

class torch_peer {
 public:
  static constexpr std::string_view name = "pytorch";
  static constexpr bool calls_unknown = true;
  static constexpr const char* version = TORCH_VERSION;

  torch_peer(cuda_world&, std::size_t bytes) {
    static const bool initialised = [] {
      int devices = 0;
      check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
      c10::cuda::CUDACachingAllocator::init(devices);
      return true;
    }();
    static_cast<void>(initialised);
    std::size_t free = 0;
    std::size_t total = 1;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    // As much as the others' arenas hold, in segments of 2 MiB or more for each stream.
    const double fraction = static_cast<double>(bytes) / static_cast<double>(total);
    c10::cuda::CUDACachingAllocator::setMemoryFraction(std::min(fraction, 1.0), 0);
  }
  torch_peer(const torch_peer&) = delete;
  torch_peer& operator=(const torch_peer&) = delete;
  ~torch_peer() { c10::cuda::CUDACachingAllocator::emptyCache(); }

  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream) noexcept {
    try {
      return c10::cuda::CUDACachingAllocator::raw_alloc_with_stream(bytes, static_cast<cudaStream_t>(stream));
    } catch (const c10::Error&) {
      return nullptr;
    }
  }
  void deallocate(void* block, std::size_t, stream_handle) noexcept {
    if (block != nullptr) c10::cuda::CUDACachingAllocator::raw_delete(block);
  }
};

}  // namespace orderly::bench
