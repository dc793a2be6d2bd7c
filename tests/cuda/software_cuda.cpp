#include "software_cuda.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "orderly/software_stream.hpp"

namespace {

using orderly::event_handle;
using orderly::event_status;

constexpr std::size_t alignment = 4096;

std::atomic<int> device_count = 2;
std::atomic<std::size_t> free_memory = std::size_t{256} << 20;
std::atomic<std::uint64_t> allocation_count = 0;

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

/// An event of the runtime outlives its records.
struct event {
  std::mutex mutex;
  std::shared_ptr<orderly::stream_driver> recorded_by;
  event_handle record = nullptr;  ///< null: none yet, so the event counts as complete

  void replace(std::shared_ptr<orderly::stream_driver> driver, event_handle next) {
    const std::lock_guard hold(mutex);
    if (record != nullptr) recorded_by->release(record);
    recorded_by = std::move(driver);
    record = next;
  }
};

class machine {
 public:
  /// One that never ends, as CUDA's does not: its threads may be at work until the process ends.
  static machine& get() {
    static machine& only = *new machine;
    return only;
  }

  cudaStream_t open() {
    const std::lock_guard hold(mutex_);
    auto made = std::make_unique<orderly::software_stream>(device_);
    auto* const handle = static_cast<cudaStream_t>(made->handle());
    streams_[handle] = std::move(made);
    return handle;
  }
  bool close(cudaStream_t handle) {
    const std::lock_guard hold(mutex_);
    return streams_.erase(handle) == 1;
  }

  /// Null: no stream.
  std::shared_ptr<orderly::software_stream> find(cudaStream_t handle) {
    const std::lock_guard hold(mutex_);
    if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
      auto& named = defaults_[{current_device, handle == cudaStreamPerThread}];
      if (named == nullptr) named = std::make_shared<orderly::software_stream>(device_);
      return named;
    }
    const auto at = streams_.find(handle);
    return at == streams_.end() ? nullptr : at->second;
  }

  [[nodiscard]] std::shared_ptr<orderly::stream_driver> driver() const { return device_.driver(); }

  std::size_t free_memory_of(int device) {
    const std::lock_guard hold(mutex_);
    return free_on(device);
  }
  cudaError_t allocate(void** address, std::size_t bytes) {
    ++allocation_count;
    const std::lock_guard hold(mutex_);
    if (bytes == 0 || bytes > free_on(current_device)) return cudaErrorMemoryAllocation;
    *address = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (*address == nullptr) return cudaErrorMemoryAllocation;
    blocks_[*address] = {bytes, current_device};
    return cudaSuccess;
  }
  cudaError_t free(void* address) {
    const std::lock_guard hold(mutex_);
    if (blocks_.erase(address) == 0) return cudaErrorInvalidValue;
    std::free(address);
    return cudaSuccess;
  }
  CUresult find_block(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr of) {
    const std::lock_guard hold(mutex_);
    auto at = blocks_.upper_bound(reinterpret_cast<void*>(of));
    if (at == blocks_.begin()) return CUDA_ERROR_NOT_FOUND;
    --at;
    const auto start = reinterpret_cast<CUdeviceptr>(at->first);
    if (of >= start + at->second.bytes) return CUDA_ERROR_NOT_FOUND;
    if (base != nullptr) *base = start;
    if (bytes != nullptr) *bytes = at->second.bytes;
    return CUDA_SUCCESS;
  }

 private:
  struct block {
    std::size_t bytes;
    int device;
  };

  /// Pre: the mutex is held.
  [[nodiscard]] std::size_t free_on(int device) const {
    std::size_t used = 0;
    for (const auto& [address, of] : blocks_) used += of.device == device ? of.bytes : 0;
    return free_memory > used ? free_memory - used : 0;
  }

  orderly::software_device device_;
  std::mutex mutex_;
  std::map<cudaStream_t, std::shared_ptr<orderly::software_stream>> streams_;
  std::map<std::pair<int, bool>, std::shared_ptr<orderly::software_stream>> defaults_;
  std::map<void*, block> blocks_;
};

cudaError_t answer(cudaError_t result) {
  if (result != cudaSuccess) last_error = result;
  return result;
}

event& event_of(cudaEvent_t handle) { return *reinterpret_cast<event*>(handle); }

template <class Work>
cudaError_t enqueue(cudaStream_t handle, Work&& work) {
  const auto stream = machine::get().find(handle);
  if (stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  stream->enqueue(std::forward<Work>(work));
  return cudaSuccess;
}

CUresult address_range(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr of) {
  return machine::get().find_block(base, bytes, of);
}

}  // namespace

namespace orderly::test {

void set_software_cuda_devices(int count) noexcept { device_count = count; }
void set_software_cuda_memory(std::size_t bytes) noexcept { free_memory = bytes; }
std::uint64_t software_cuda_allocations() noexcept { return allocation_count; }

}  // namespace orderly::test

extern "C" {

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count;
  return answer(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count) return answer(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(capture_mode, *mode);
  return cudaSuccess;
}
#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** address, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* outcome) {
#else
cudaError_t cudaGetDriverEntryPoint(const char* name, void** address, unsigned long long,
                                    cudaDriverEntryPointQueryResult* outcome) {
#endif
  const bool has = std::string(name) == "cuMemGetAddressRange";
  *address = has ? reinterpret_cast<void*>(&address_range) : nullptr;
  *outcome = has ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** address, std::size_t bytes) { return answer(machine::get().allocate(address, bytes)); }
cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  return answer(machine::get().allocate(address, bytes));
}
cudaError_t cudaMallocManaged(void** address, std::size_t bytes, unsigned) {
  return answer(machine::get().allocate(address, bytes));
}
cudaError_t cudaFree(void* address) { return answer(machine::get().free(address)); }
cudaError_t cudaFreeHost(void* address) { return answer(machine::get().free(address)); }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = machine::get().free_memory_of(current_device);
  *total = 2 * free_memory;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* made, unsigned) {
  *made = reinterpret_cast<cudaEvent_t>(new event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  event_of(handle).replace(nullptr, nullptr);
  delete &event_of(handle);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  const auto in = machine::get().find(stream);
  if (in == nullptr) return answer(cudaErrorInvalidResourceHandle);
  auto driver = machine::get().driver();
  event_handle const record = driver->record(in->handle());
  event_of(handle).replace(std::move(driver), record);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  event& asked = event_of(handle);
  const std::lock_guard hold(asked.mutex);
  if (asked.record == nullptr) return cudaSuccess;
  return answer(asked.recorded_by->query(asked.record) == event_status::complete ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  event& awaited = event_of(handle);
  const std::lock_guard hold(awaited.mutex);
  if (awaited.record != nullptr) static_cast<void>(awaited.recorded_by->synchronize(awaited.record));
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned) {
  const auto in = machine::get().find(stream);
  if (in == nullptr) return answer(cudaErrorInvalidResourceHandle);
  event& awaited = event_of(handle);
  const std::lock_guard hold(awaited.mutex);
  if (awaited.record != nullptr) static_cast<void>(machine::get().driver()->wait(in->handle(), awaited.record));
  return cudaSuccess;
}
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* number) {
  const auto in = machine::get().find(stream);
  if (in == nullptr) return answer(cudaErrorInvalidResourceHandle);
  *number = machine::get().driver()->identity(in->handle());
  return cudaSuccess;
}
// No stream of the stand-in captures.
cudaError_t cudaUserObjectCreate(cudaUserObject_t*, void*, cudaHostFn_t, unsigned, unsigned) {
  return cudaErrorNotSupported;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) { return cudaErrorNotSupported; }
cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaErrorNotSupported; }
cudaError_t cudaDeviceSynchronize() {
  return machine::get().driver()->synchronize_all() ? cudaSuccess : cudaErrorUnknown;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* number,
                                     cudaGraph_t*, const cudaGraphNode_t**,
#if CUDART_VERSION >= 13000
                                     const cudaGraphEdgeData**,
#endif
                                     std::size_t*) {
  *status = cudaStreamCaptureStatusNone;
  *number = 0;
  return cudaSuccess;
}

// What tests call.

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned) {
  *made = machine::get().open();
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return answer(machine::get().close(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const auto in = machine::get().find(stream);
  if (in == nullptr) return answer(cudaErrorInvalidResourceHandle);
  static_cast<void>(in->synchronize());
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return enqueue(stream, [=] { function(data); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memset(to, value, bytes); });
}
const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }

}  // extern "C"
