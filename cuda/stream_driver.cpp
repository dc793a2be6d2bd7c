#include "orderly/cuda.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

#include "event_pool.hpp"
#include "runtime.hpp"

namespace orderly {
namespace {

using detail::cuda_call;
using detail::named;

/// What identity() is made of: the kind in the low bits, so that kinds cannot meet, and a number within the kind.
enum class stream_kind : std::uint64_t { created = 1, legacy = 2, per_thread = 3 };

/// Number of the calling thread, from 1, never used again for another.
std::uint64_t thread_number() noexcept {
  constinit static detail::atomic<std::uint64_t> last{0};
  thread_local const std::uint64_t number = last.fetch_add(1, detail::relaxed) + 1;  // counts; nothing is published
  return number;
}

stream_kind kind_of(cudaStream_t stream) noexcept {
  if (stream == cudaStreamLegacy) return stream_kind::legacy;
  if (stream == cudaStreamPerThread) return stream_kind::per_thread;
  return stream_kind::created;
}

/// What a graph keeps until it is gone; CUDA then calls forget().
struct farewell {
  void (*gone)(void*);
  void* context;

  static void CUDART_CB forget(void* self) noexcept {
    const std::unique_ptr<farewell> told(static_cast<farewell*>(self));
    if (told->gone != nullptr) told->gone(told->context);
  }
};

/// A copy in page-locked memory, which cudaMemcpyAsync makes before it returns, once the stream has come to it. Here a thread
/// of CUDA's makes it. Where the device fails before, CUDA does not call it, and its 24 bytes are lost.
struct host_copy {
  void* to;
  const void* from;
  std::size_t bytes;

  static bool put(cudaStream_t stream, const host_copy& wanted) noexcept {
    std::unique_ptr<host_copy> kept(new (std::nothrow) host_copy(wanted));
    if (kept == nullptr) return false;
    const auto launch = [&] { return cudaLaunchHostFunc(stream, run, kept.get()); };
    if (cuda_call("cudaLaunchHostFunc", launch) != cudaSuccess) return false;
    static_cast<void>(kept.release());  // run()'s
    return true;
  }
  static void CUDART_CB run(void* self) noexcept {
    const std::unique_ptr<host_copy> copy(static_cast<host_copy*>(self));
    std::memcpy(copy->to, copy->from, copy->bytes);
  }
};

class cuda_stream_driver final : public stream_driver {
 public:
  explicit cuda_stream_driver(int device) noexcept
      : device_(device), driver_(detail::driver_functions::find()), events_(device) {}

  [[nodiscard]] std::uint64_t identity(stream_handle stream) noexcept override {
    auto* const handle = named(stream);
    unsigned long long number = 0;
    switch (kind_of(handle)) {
      // CUDA never gives a number twice in a process, and counts them up: 62 bits hold them.
      case stream_kind::created:
        // The question invalidates a capture that the stream takes part in (seen with driver 580).
        if (capture_of(handle) != 0) return 0;
        if (cuda_call("cudaStreamGetId", [&] { return cudaStreamGetId(handle, &number); }) != cudaSuccess) return 0;
        return number << 2 | static_cast<std::uint64_t>(stream_kind::created);
      case stream_kind::legacy:
        return device_bits() << 2 | static_cast<std::uint64_t>(stream_kind::legacy);
      case stream_kind::per_thread:
        return (thread_number() << 16 | device_bits()) << 2 | static_cast<std::uint64_t>(stream_kind::per_thread);
    }
    return 0;
  }

  [[nodiscard]] bool is_per_thread(stream_handle stream) noexcept override {
    return kind_of(named(stream)) == stream_kind::per_thread;
  }

  [[nodiscard]] std::uint64_t capture(stream_handle stream) noexcept override {
    const use of(*this, stream);
    return of.possible() ? capture_of(of.handle()) : unknown_capture;
  }

  [[nodiscard]] bool when_graph_is_gone(stream_handle stream, void (*gone)(void*), void* context) noexcept override {
    const use of(*this, stream);
    if (!of.possible()) return false;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long number = 0;
    cudaGraph_t graph = nullptr;
    const auto ask = [&] { return cudaStreamGetCaptureInfo(of.handle(), &status, &number, &graph); };
    if (cuda_call("cudaStreamGetCaptureInfo", ask) != cudaSuccess || status != cudaStreamCaptureStatusActive ||
        graph == nullptr)
      return false;
    std::unique_ptr<farewell> told(new (std::nothrow) farewell{nullptr, context});
    if (told == nullptr) return false;
    cudaUserObject_t kept = nullptr;
    const auto create = [&] {
      return cudaUserObjectCreate(&kept, told.get(), farewell::forget, 1, cudaUserObjectNoDestructorSync);
    };
    if (cuda_call("cudaUserObjectCreate", create) != cudaSuccess) return false;
    farewell* const known = told.release();  // CUDA's from now on
    known->gone = gone;                      // before the graph can let it go
    const auto keep = [&] { return cudaGraphRetainUserObject(graph, kept, 1, cudaGraphUserObjectMove); };
    if (cuda_call("cudaGraphRetainUserObject", keep) == cudaSuccess) return true;
    known->gone = nullptr;
    static_cast<void>(cuda_call("cudaUserObjectRelease", [&] { return cudaUserObjectRelease(kept, 1); }));
    return false;
  }

  [[nodiscard]] event_handle record(stream_handle stream) noexcept override {
    const use of(*this, stream);
    if (!of.possible() || capture_of(of.handle()) != 0) return nullptr;
    auto* const event = events_.take();
    if (event == nullptr) return nullptr;
    if (cuda_call("cudaEventRecord", [&] { return cudaEventRecord(event, of.handle()); }) != cudaSuccess) {
      events_.give(event);
      return nullptr;
    }
    // Another thread may have started a capture in between. An event of a capture marks nothing, and a stream that
    // waits for it is drawn into the capture.
    if (capture_of(of.handle()) != 0) {
      events_.destroy(event);
      return nullptr;
    }
    return event;
  }

  [[nodiscard]] bool wait(stream_handle stream, event_handle event) noexcept override {
    const use of(*this, stream);
    if (!of.possible() || capture_of(of.handle()) != 0) return false;
    const auto put_wait = [&] { return cudaStreamWaitEvent(of.handle(), static_cast<cudaEvent_t>(event), 0); };
    return cuda_call("cudaStreamWaitEvent", put_wait) == cudaSuccess;
  }

  [[nodiscard]] event_status query(event_handle event) noexcept override {
    auto* const marker = static_cast<cudaEvent_t>(event);
    if (driver_.found()) {
      const CUresult result = outside_capture_by_driver("cuEventQuery", [&] { return driver_.event_query(marker); });
      if (result == CUDA_SUCCESS) return event_status::complete;
      if (result == CUDA_ERROR_NOT_READY) return event_status::pending;
      if (result != CUDA_ERROR_INVALID_CONTEXT) return event_status::failed;
    }
    const detail::device_guard guard(device_);
    const detail::outside_capture apart;
    switch (cuda_call("cudaEventQuery", [&] { return cudaEventQuery(marker); })) {
      case cudaSuccess:
        return event_status::complete;
      case cudaErrorNotReady:
        return event_status::pending;
      default:
        return event_status::failed;
    }
  }

  [[nodiscard]] bool synchronize(event_handle event) noexcept override {
    auto* const marker = static_cast<cudaEvent_t>(event);
    if (driver_.found()) {
      const auto wait_for = [&] { return driver_.event_synchronize(marker); };
      const CUresult result = outside_capture_by_driver("cuEventSynchronize", wait_for);
      if (result != CUDA_ERROR_INVALID_CONTEXT) return result == CUDA_SUCCESS;
    }
    const detail::device_guard guard(device_);
    const detail::outside_capture apart;
    return cuda_call("cudaEventSynchronize", [&] { return cudaEventSynchronize(marker); }) == cudaSuccess;
  }

  [[nodiscard]] bool synchronize_all() noexcept override {
    const detail::device_guard guard(device_);
    const detail::outside_capture apart;
    return guard.holds() && cuda_call("cudaDeviceSynchronize", [] { return cudaDeviceSynchronize(); }) == cudaSuccess;
  }

  void release(event_handle event) noexcept override {
    if (event != nullptr) events_.give(static_cast<cudaEvent_t>(event));
  }

  [[nodiscard]] bool copy(stream_handle stream, void* to, const void* from, std::size_t bytes) noexcept override {
    // Virtual memory is the current device's to copy, or nobody's, whichever device the stream is of.
    const use of(*this, stream, true);
    if (!of.possible() || capture_of(of.handle()) != 0) return false;
    cudaPointerAttributes where{};
    const auto ask = [&] { return cudaPointerGetAttributes(&where, to); };
    if (cuda_call("cudaPointerGetAttributes", ask) != cudaSuccess) return false;
    if (where.type == cudaMemoryTypeHost) return host_copy::put(of.handle(), {to, from, bytes});
    const auto put_copy = [&] { return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, of.handle()); };
    return cuda_call("cudaMemcpyAsync", put_copy) == cudaSuccess;
  }

 private:
  /// A stream for the length of a call. The default streams are those of the current device; the others know theirs, which
  /// is the current one meanwhile only `on_device`.
  class use {
   public:
    use(const cuda_stream_driver& driver, stream_handle stream, bool on_device = false) noexcept : handle_(named(stream)) {
      if (on_device || kind_of(handle_) != stream_kind::created) guard_.emplace(driver.device_);
    }
    [[nodiscard]] bool possible() const noexcept { return !guard_ || guard_->holds(); }
    [[nodiscard]] cudaStream_t handle() const noexcept { return handle_; }

   private:
    cudaStream_t handle_;
    std::optional<detail::device_guard> guard_;
  };

  [[nodiscard]] std::uint64_t device_bits() const noexcept { return static_cast<std::uint64_t>(device_); }

  [[nodiscard]] static std::uint64_t capture_of(cudaStream_t handle) noexcept {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long number = 0;
    // The parameters behind these three differ between CUDA 12 and 13, and are optional in both.
    const auto ask = [&] { return cudaStreamGetCaptureInfo(handle, &status, &number); };
    if (cuda_call("cudaStreamGetCaptureInfo", ask) != cudaSuccess) return unknown_capture;
    switch (status) {
      case cudaStreamCaptureStatusNone:
        return 0;
      case cudaStreamCaptureStatusActive:
        return number + 1;
      default:
        return unknown_capture;  // invalidated: the number is not valid then
    }
  }

  template <class Call>
  [[nodiscard]] CUresult outside_capture_by_driver(const char* function, const Call& call) const noexcept {
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    const auto exchange = [&] { return driver_.exchange_capture_mode(&mode); };
    const CUresult exchanged = detail::driver_call("cuThreadExchangeStreamCaptureMode", exchange);
    if (exchanged != CUDA_SUCCESS) return exchanged;
    const CUresult result = detail::driver_call(function, call);
    static_cast<void>(detail::driver_call("cuThreadExchangeStreamCaptureMode", exchange));
    return result;
  }

  int device_;
  detail::driver_functions driver_;
  detail::event_pool events_;
};

}  // namespace

std::shared_ptr<stream_driver> make_cuda_stream_driver(int device) {
  if (!detail::cuda_device_exists(device)) return nullptr;
  const detail::device_guard guard(device);  // finding the driver's functions may make a context
  if (!guard.holds()) return nullptr;
  return std::make_shared<cuda_stream_driver>(device);
}

std::shared_ptr<void> make_cuda_stream(int device) {
  if (!detail::cuda_device_exists(device)) return nullptr;
  const detail::device_guard guard(device);
  const detail::outside_capture apart;
  cudaStream_t stream = nullptr;
  const auto create = [&] { return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking); };
  if (!guard.holds() || cuda_call("cudaStreamCreateWithFlags", create) != cudaSuccess) return nullptr;
  return {stream, [device](cudaStream_t made) {
            const detail::device_guard back(device);
            const detail::outside_capture from_any;
            static_cast<void>(cuda_call("cudaStreamDestroy", [&] { return cudaStreamDestroy(made); }));
          }};
}

}  // namespace orderly
