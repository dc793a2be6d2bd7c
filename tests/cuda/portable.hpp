/// \file
/// What tests share that run on a device and against the stand-in of software_cuda.cpp: no kernels.
#pragma once

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstring>

namespace orderly::test {

/// Outlives the pools that know it.
class stream {
 public:
  stream() { REQUIRE(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess); }
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() {
    CHECK(cudaStreamSynchronize(stream_) == cudaSuccess);
    CHECK(cudaStreamDestroy(stream_) == cudaSuccess);
  }
  [[nodiscard]] cudaStream_t get() const noexcept { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Numbers that host and device see, all 0.
template <class Number>
class host_array {
 public:
  explicit host_array(std::size_t count) {
    const std::size_t bytes = count * sizeof(Number);
    REQUIRE(cudaHostAlloc(reinterpret_cast<void**>(&numbers_), bytes, cudaHostAllocPortable) == cudaSuccess);
    std::memset(numbers_, 0, bytes);
  }
  host_array(const host_array&) = delete;
  host_array& operator=(const host_array&) = delete;
  ~host_array() { CHECK(cudaFreeHost(numbers_) == cudaSuccess); }
  [[nodiscard]] Number* at(std::size_t index) const noexcept { return numbers_ + index; }

 private:
  Number* numbers_ = nullptr;
};

/// Work of the host that stands in a stream until open(). Nothing that waits for the device may be asked of CUDA meanwhile.
class host_gate {
 public:
  explicit host_gate(cudaStream_t in) {
    const auto stand = [](void* self) {
      while (!static_cast<host_gate*>(self)->open_.load(std::memory_order_acquire)) {
      }
    };
    REQUIRE(cudaLaunchHostFunc(in, stand, this) == cudaSuccess);
  }
  host_gate(const host_gate&) = delete;
  host_gate& operator=(const host_gate&) = delete;
  ~host_gate() { open(); }
  void open() noexcept { open_.store(true, std::memory_order_release); }

 private:
  std::atomic<bool> open_ = false;
};

}  // namespace orderly::test
