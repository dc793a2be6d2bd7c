/// \file
/// Events of one device that are not in use, kept because making one costs more than recording it.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>

#include "runtime.hpp"

namespace orderly::detail {

/// Thread safety: all functions from any thread. The mutex is held for a few instructions, never over a CUDA call.
class event_pool {
 public:
  explicit event_pool(int device) noexcept : device_(device) {}
  event_pool(const event_pool&) = delete;
  event_pool& operator=(const event_pool&) = delete;
  ~event_pool() {
    for (std::size_t index = 0; index < count_; ++index) destroy(idle_[index]);
  }

  /// Null: none can be had.
  [[nodiscard]] cudaEvent_t take() noexcept {
    {
      const std::lock_guard hold(mutex_);
      if (count_ != 0) return idle_[--count_];
    }
    const device_guard guard(device_);  // an event belongs to the device that is current when it is made
    const outside_capture apart;
    cudaEvent_t event = nullptr;
    const auto create = [&] { return cudaEventCreateWithFlags(&event, cudaEventDisableTiming); };
    return guard.holds() && cuda_call("cudaEventCreateWithFlags", create) == cudaSuccess ? event : nullptr;
  }

  /// The event may still be pending: recording it anew leaves alone the waits for its earlier record.
  void give(cudaEvent_t event) noexcept {
    {
      const std::lock_guard hold(mutex_);
      if (count_ != idle_.size()) {
        idle_[count_++] = event;
        return;
      }
    }
    destroy(event);
  }

  /// For events that are not to be recorded again, and those too many. CUDA keeps a pending one until it has passed.
  void destroy(cudaEvent_t event) noexcept {
    const device_guard guard(device_);
    const outside_capture apart;
    static_cast<void>(cuda_call("cudaEventDestroy", [&] { return cudaEventDestroy(event); }));
  }

 private:
  int device_;
  std::mutex mutex_;
  std::size_t count_ = 0;
  std::array<cudaEvent_t, 1024> idle_{};  // more than streams can want at once without a pool being short of memory
};

}  // namespace orderly::detail
