/// \file
/// The one door to CUDA: every call goes through cuda_call() or driver_call(), which count it, make none while the
/// process exits, keep the thread's last error in order, note what failed, and give the outcome as a value. And guards
/// for what a thread has set in CUDA.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "atomic.hpp"
#include "orderly/stream.hpp"
#include "thread_fronts.hpp"

namespace orderly::detail {

/// True once CUDA must not be called any more. A thread that reads false an instant too early makes a call that CUDA
/// answers with cudaErrorCudartUnloading.
[[nodiscard]] bool cuda_is_over() noexcept;

/// From the process's exit on, cuda_is_over(). Handlers of exit run last one first: one that is registered after CUDA
/// was used runs before CUDA takes itself down, so this comes behind a CUDA call.
void watch_for_exit() noexcept;

/// True if the device exists. The first CUDA call of every source and driver; watches for the exit.
[[nodiscard]] bool cuda_device_exists(int device) noexcept;

void count_cuda_call() noexcept;

/// After a call that failed: puts the thread's last error right. `before`: what it was when the call began.
void settle_failure(cudaError_t before, cudaError_t failure) noexcept;

/// Remembers a call that failed, for the thread's cuda_failure(). That an event is not ready is none. The codes of the
/// driver are those of the runtime. `function`: a literal.
void note_failure(const char* function, cudaError_t failure) noexcept;

/// The call that failed last in a thread.
struct failed_call {
  const char* function = nullptr;
  cudaError_t error = cudaSuccess;
  std::uint64_t number = 0;  ///< of failures
};
ORDERLY_FIXED_OFFSET extern constinit thread_local failed_call last_failure;

/// Tells what failed in its thread while it lives. Costs a load.
class failure_watch {
 public:
  failure_watch() noexcept : before_(last_failure.number) {}
  failure_watch(const failure_watch&) = delete;
  failure_watch& operator=(const failure_watch&) = delete;
  ~failure_watch() = default;

  /// The end of a message: the last call that failed since, in parentheses and behind a space. Empty: none.
  [[nodiscard]] std::string text() const;

 private:
  std::uint64_t before_;
};

/// Runs a call of the CUDA runtime. `function`: its name.
template <class Call>
[[nodiscard]] cudaError_t cuda_call(const char* function, const Call& call) noexcept {
  if (cuda_is_over()) return cudaErrorCudartUnloading;
  const cudaError_t before = cudaPeekAtLastError();
  count_cuda_call();
  const cudaError_t result = call();
  if (result == cudaSuccess) return result;
  settle_failure(before, result);
  note_failure(function, result);
  return result;
}

/// Runs a call of the CUDA driver. These have no last error.
template <class Call>
[[nodiscard]] CUresult driver_call(const char* function, const Call& call) noexcept {
  if (cuda_is_over()) return CUDA_ERROR_DEINITIALIZED;
  count_cuda_call();
  const CUresult result = call();
  if (result != CUDA_SUCCESS) note_failure(function, static_cast<cudaError_t>(result));
  return result;
}

/// The handle null means one of two streams, depending on how its caller was compiled. These names do not.
[[nodiscard]] inline cudaStream_t named(stream_handle stream) noexcept {
  return stream == nullptr ? cudaStreamLegacy : static_cast<cudaStream_t>(stream);
}

/// Makes a device the thread's current one while it lives. Costs one call if it is that already.
class device_guard {
 public:
  explicit device_guard(int device) noexcept;
  device_guard(const device_guard&) = delete;
  device_guard& operator=(const device_guard&) = delete;
  ~device_guard();

  /// False: the device cannot be had.
  [[nodiscard]] bool holds() const noexcept { return holds_; }

 private:
  static constexpr int none = -1;
  int previous_ = none;
  bool holds_ = false;
};

/// While it lives, the thread's calls do not take part in captures: CUDA counts allocating, freeing, and asking events
/// among the calls that a capture forbids, on all threads by default, and they would invalidate it. What orderly calls
/// inside has nothing to do with the work that is captured.
class outside_capture {
 public:
  outside_capture() noexcept;
  outside_capture(const outside_capture&) = delete;
  outside_capture& operator=(const outside_capture&) = delete;
  ~outside_capture();

 private:
  [[nodiscard]] bool exchange() noexcept;

  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  bool exchanged_ = false;
};

/// A function of the driver, as CUDA 12.0 has it. Null: it has no such function. There are no variants for per-thread
/// default streams of those that are asked for.
[[nodiscard]] void* driver_function(const char* name) noexcept;

/// Functions of the driver that serve better than the runtime's. The runtime would write "not ready" over an error that
/// the program has not fetched yet, and would make a context on whatever device is current in the calling thread. All
/// set, or all null where the driver does not give them.
struct driver_functions {
  CUresult (*event_query)(CUevent) = nullptr;
  CUresult (*event_synchronize)(CUevent) = nullptr;
  CUresult (*exchange_capture_mode)(CUstreamCaptureMode*) = nullptr;

  /// Pre: a device exists.
  [[nodiscard]] static driver_functions find() noexcept;
  [[nodiscard]] bool found() const noexcept { return event_query != nullptr; }
};

}  // namespace orderly::detail
