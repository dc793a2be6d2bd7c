/// \file
/// What the device tests share: streams, page-locked words, and checks that a test leaves CUDA as it found it.
#pragma once

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <atomic>

#include "cuda/kernels.hpp"

namespace orderly::test {

#define ORDERLY_CUDA(call) REQUIRE_MESSAGE((call) == cudaSuccess, #call)

/// Current device and last error are at the end of a scope what they were at its start: the first device, and none.
class untouched {
 public:
  untouched() {
    ORDERLY_CUDA(cudaSetDevice(0));
    REQUIRE(cudaPeekAtLastError() == cudaSuccess);
  }
  untouched(const untouched&) = delete;
  untouched& operator=(const untouched&) = delete;
  ~untouched() {
    int device = -1;
    CHECK(cudaGetDevice(&device) == cudaSuccess);
    CHECK(device == 0);
    CHECK(cudaGetLastError() == cudaSuccess);
  }
};

/// A stream that the legacy default stream does not wait for.
class own_stream {
 public:
  explicit own_stream(unsigned flags = cudaStreamNonBlocking) {
    ORDERLY_CUDA(cudaStreamCreateWithFlags(&stream_, flags));
  }
  own_stream(const own_stream&) = delete;
  own_stream& operator=(const own_stream&) = delete;
  ~own_stream() { cudaStreamDestroy(stream_); }

  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Words that host and device see, all 0.
class shared_words {
 public:
  explicit shared_words(std::size_t count) {
    ORDERLY_CUDA(cudaHostAlloc(reinterpret_cast<void**>(&words_), count * sizeof(unsigned), cudaHostAllocPortable));
    for (std::size_t index = 0; index < count; ++index) words_[index] = 0;
  }
  shared_words(const shared_words&) = delete;
  shared_words& operator=(const shared_words&) = delete;
  ~shared_words() { cudaFreeHost(words_); }

  [[nodiscard]] unsigned* at(std::size_t index) const { return words_ + index; }
  [[nodiscard]] unsigned operator[](std::size_t index) const {
    return std::atomic_ref<unsigned>(words_[index]).load(std::memory_order_acquire);
  }

 private:
  unsigned* words_ = nullptr;
};

/// Work that stands in a stream until open(), so that the stream is busy for certain.
///
/// While it is closed, nothing may be asked of CUDA that waits for the device: freeing memory, loading a kernel.
class gate {
 public:
  gate() : words_(2) {
    // The first launch loads the kernels, which a held device would hold up.
    const own_stream warm_up;
    open();
    ORDERLY_CUDA(write_behind_gate(warm_up.get(), words_.at(0), words_.at(1), 0));
    ORDERLY_CUDA(copy_word(warm_up.get(), words_.at(1), words_.at(1)));
    ORDERLY_CUDA(cudaStreamSynchronize(warm_up.get()));
    set(0);
  }
  gate(const gate&) = delete;
  gate& operator=(const gate&) = delete;
  /// Opens and waits, so that a failed test does not free what a kernel still uses.
  ~gate() {
    open();
    cudaDeviceSynchronize();
  }

  /// Work that stores `value` at `target` once the gate is open.
  void hold(cudaStream_t stream, unsigned* target, unsigned value) const {
    ORDERLY_CUDA(write_behind_gate(stream, words_.at(0), target, value));
  }
  void open() const { set(1); }

 private:
  void set(unsigned value) const { std::atomic_ref<unsigned>(*words_.at(0)).store(value, std::memory_order_release); }

  shared_words words_;
};

}  // namespace orderly::test
