#include "runtime.hpp"

#include <cstdint>
#include <cstdlib>
#include <mutex>

#include "orderly/cuda.hpp"

namespace orderly::detail {
namespace {

// Neither has a destructor: both are read until the process ends.
constinit atomic<bool> over{false};
constinit atomic<std::uint64_t> calls{0};

std::string describe(const failed_call& failed) {
  return std::string(failed.function) + ": " + cudaGetErrorName(failed.error) + ", " + cudaGetErrorString(failed.error);
}

/// What can come of orderly's own requests, and is over with the answer. Whatever else a call returns, it reports: a
/// kernel that failed, a lost device. That stays for the program to see.
bool is_ours(cudaError_t failure) noexcept {
  switch (failure) {
    case cudaErrorInvalidValue:
    case cudaErrorMemoryAllocation:
    case cudaErrorInitializationError:
    case cudaErrorStubLibrary:
    case cudaErrorInsufficientDriver:
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDeviceUninitialized:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorNotReady:
    case cudaErrorNotSupported:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorCapturedEvent:
    case cudaErrorStreamCaptureWrongThread:
      return true;
    default:
      return false;
  }
}

}  // namespace

constinit thread_local failed_call last_failure;

bool cuda_is_over() noexcept { return over.load(relaxed); }  // a hint: see the declaration

void watch_for_exit() noexcept {
  static std::once_flag once;
  // Where the handler cannot be registered, CUDA's own answer at the end has to do.
  std::call_once(once, [] { static_cast<void>(std::atexit([] { over.store(true, relaxed); })); });
}

bool cuda_device_exists(int device) noexcept {
  int count = 0;
  const cudaError_t result = cuda_call("cudaGetDeviceCount", [&] { return cudaGetDeviceCount(&count); });
  if (result != cudaSuccess || device < 0 || device >= count) return false;
  watch_for_exit();
  return true;
}

void count_cuda_call() noexcept { calls.fetch_add(1, relaxed); }  // a figure; nothing is published

void settle_failure(cudaError_t before, cudaError_t failure) noexcept {
  if (failure == cudaErrorCudartUnloading) {
    over.store(true, relaxed);
    return;
  }
  // With an earlier error behind it, clearing would swallow that one as well; then an error is left as it is due.
  if (before == cudaSuccess && is_ours(failure)) static_cast<void>(cudaGetLastError());
}

void note_failure(const char* function, cudaError_t failure) noexcept {
  if (failure != cudaErrorNotReady) last_failure = {function, failure, last_failure.number + 1};
}

std::string failure_watch::text() const {
  return last_failure.number == before_ ? "" : " (" + describe(last_failure) + ")";
}

device_guard::device_guard(int device) noexcept {
  int current = none;
  if (cuda_call("cudaGetDevice", [&] { return cudaGetDevice(&current); }) != cudaSuccess) return;
  holds_ = current == device || cuda_call("cudaSetDevice", [&] { return cudaSetDevice(device); }) == cudaSuccess;
  if (holds_ && current != device) previous_ = current;
}

device_guard::~device_guard() {
  if (previous_ != none) static_cast<void>(cuda_call("cudaSetDevice", [&] { return cudaSetDevice(previous_); }));
}

outside_capture::outside_capture() noexcept : exchanged_(exchange()) {}

outside_capture::~outside_capture() {
  if (exchanged_) static_cast<void>(exchange());
}

bool outside_capture::exchange() noexcept {
  const auto call = [&] { return cudaThreadExchangeStreamCaptureMode(&mode_); };
  return cuda_call("cudaThreadExchangeStreamCaptureMode", call) == cudaSuccess;
}

void* driver_function(const char* name) noexcept {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult outcome = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t result = cuda_call("cudaGetDriverEntryPoint", [&] {
#if CUDART_VERSION >= 12050  // since then; the other one is deprecated in 13
    return cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableLegacyStream, &outcome);
#else
    return cudaGetDriverEntryPoint(name, &address, cudaEnableLegacyStream, &outcome);
#endif
  });
  return result == cudaSuccess && outcome == cudaDriverEntryPointSuccess ? address : nullptr;
}

driver_functions driver_functions::find() noexcept {
  driver_functions all;
  all.event_query = reinterpret_cast<CUresult (*)(CUevent)>(driver_function("cuEventQuery"));
  all.event_synchronize = reinterpret_cast<CUresult (*)(CUevent)>(driver_function("cuEventSynchronize"));
  all.exchange_capture_mode =
      reinterpret_cast<CUresult (*)(CUstreamCaptureMode*)>(driver_function("cuThreadExchangeStreamCaptureMode"));
  const bool complete =
      all.event_query != nullptr && all.event_synchronize != nullptr && all.exchange_capture_mode != nullptr;
  return complete ? all : driver_functions{};
}

}  // namespace orderly::detail

namespace orderly {

std::uint64_t cuda_calls() noexcept { return detail::calls.load(detail::relaxed); }  // a figure

std::string cuda_failure() {
  return detail::last_failure.function == nullptr ? "" : detail::describe(detail::last_failure);
}

}  // namespace orderly
