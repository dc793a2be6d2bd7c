#include "software_cuda.hpp"

#include <cuda.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "faults.hpp"
#include "software_memory.hpp"

namespace orderly::test {

software_cuda stand_in;

}  // namespace orderly::test

struct CUgraph_st {
  std::vector<CUuserObject_st*> objects;
  orderly::software_graph work;
};

struct CUuserObject_st {
  cudaHostFn_t gone;
  void* context;
};

/// An event of the runtime outlives its records.
struct CUevent_st {
  std::mutex mutex;
  std::shared_ptr<orderly::stream_driver> recorded_by;
  orderly::event_handle record = nullptr;  ///< null: none yet, so the event counts as complete

  void replace(std::shared_ptr<orderly::stream_driver> driver, orderly::event_handle next) {
    const std::lock_guard hold(mutex);
    if (record != nullptr) recorded_by->release(record);
    recorded_by = std::move(driver);
    record = next;
  }
};

namespace {

using namespace orderly::test;
using orderly::event_status;

constexpr std::size_t alignment = 4096;

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

/// The rest of the process is of no use, and the error does not go away.
bool is_sticky(cudaError_t error) { return error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure; }

class machine {
 public:
  explicit machine(orderly::software_schedule schedule = orderly::software_schedule::workers, std::uint64_t seed = 0)
      : device_(schedule, seed) {}

  /// One that never ends, as CUDA's does not: its threads may be at work until the process ends.
  static machine*& only() {
    static machine* it = nullptr;
    return it;
  }
  static machine& get() {
    static std::mutex making;
    const std::lock_guard hold(making);
    if (only() == nullptr) only() = new machine;
    return *only();
  }

  /// What a call returns that is to fail; cudaSuccess: it does not.
  cudaError_t enter(const char* function) {
    const std::lock_guard hold(mutex_);
    if (stand_in.logs) stand_in.calls.emplace_back(function);
    const auto failure = stand_in.failures.find(function);
    return failure != stand_in.failures.end() ? failure->second : fault_of(function);
  }
  void unsafe() {
    const std::lock_guard hold(mutex_);
    stand_in.unsafe_call = stand_in.unsafe_call || mode_of_thread != cudaStreamCaptureModeRelaxed;
  }

  cudaStream_t open() {
    const std::lock_guard hold(mutex_);
    auto made = std::make_shared<orderly::software_stream>(device_);
    auto* const handle = static_cast<cudaStream_t>(made->handle());
    streams_[handle] = std::move(made);
    device_of_[handle] = current_device;
    count_made(cuda_thing::stream);
    return handle;
  }
  bool close(cudaStream_t handle) {
    const std::lock_guard hold(mutex_);
    if (streams_.erase(handle) == 0) return false;
    device_of_.erase(handle);
    count_gone(cuda_thing::stream);
    return true;
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
  cudaError_t allocate(void** address, std::size_t bytes, bool on_host) {
    const std::lock_guard hold(mutex_);
    ++stand_in.allocations;
    if (bytes == 0 || bytes > free_on(current_device)) return cudaErrorMemoryAllocation;
    *address = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (*address == nullptr) return cudaErrorMemoryAllocation;
    blocks_[*address] = bytes;
    device_of_[*address] = current_device;
    if (on_host) host_blocks_.insert(*address);
    count_made(cuda_thing::block);
    return cudaSuccess;
  }
  cudaError_t free(void* address) {
    static_cast<void>(driver()->synchronize_all());
    const std::lock_guard hold(mutex_);
    if (blocks_.erase(address) == 0) return cudaErrorInvalidValue;
    device_of_.erase(address);
    host_blocks_.erase(address);
    std::free(address);
    count_gone(cuda_thing::block);
    return cudaSuccess;
  }
  /// Is it page-locked memory of the host?
  bool is_on_host(const void* address) {
    const std::lock_guard hold(mutex_);
    auto block = blocks_.upper_bound(const_cast<void*>(address));
    return block != blocks_.begin() && address < static_cast<std::byte*>((--block)->first) + block->second &&
           host_blocks_.contains(block->first);
  }
  CUresult find_block(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr of) {
    const std::lock_guard hold(mutex_);
    auto at = blocks_.upper_bound(reinterpret_cast<void*>(of));
    if (at == blocks_.begin()) return CUDA_ERROR_NOT_FOUND;
    --at;
    const auto start = reinterpret_cast<CUdeviceptr>(at->first);
    if (of >= start + at->second) return CUDA_ERROR_NOT_FOUND;
    if (base != nullptr) *base = start;
    if (bytes != nullptr) *bytes = at->second;
    return CUDA_SUCCESS;
  }

  [[nodiscard]] software_memory& memory() { return memory_; }
  CUresult create_piece(CUmemGenericAllocationHandle* handle, std::size_t bytes, int device) {
    const std::lock_guard hold(mutex_);
    return memory_.create(handle, bytes, device, free_on(device));
  }

  cudaEvent_t make_event() {
    const std::lock_guard hold(mutex_);
    auto* const made = new CUevent_st;
    device_of_[made] = current_device;
    count_made(cuda_thing::event);
    return made;
  }
  bool destroy_event(cudaEvent_t event) {
    const std::lock_guard hold(mutex_);
    if (device_of_.erase(event) == 0) return false;
    event->replace(nullptr, nullptr);
    delete event;
    count_gone(cuda_thing::event);
    return true;
  }
  int device_of_thing(void* thing) {
    if (const int device = memory_.device_at(thing); device >= 0) return device;
    const std::lock_guard hold(mutex_);
    auto block = blocks_.upper_bound(thing);
    if (block != blocks_.begin() && thing < static_cast<std::byte*>((--block)->first) + block->second)
      return device_of_.at(block->first);
    const auto at = device_of_.find(thing);
    return at == device_of_.end() ? -1 : at->second;
  }

  cudaError_t begin_capture(cudaStream_t stream) {
    const auto in = find(stream);
    if (in == nullptr || !in->begin_capture()) return cudaErrorInvalidResourceHandle;
    const std::lock_guard hold(mutex_);
    captures_[stream] = {new CUgraph_st, ++captures_made_};
    return cudaSuccess;
  }
  cudaError_t end_capture(cudaStream_t stream, cudaGraph_t* graph) {
    const auto in = find(stream);
    const std::lock_guard hold(mutex_);
    const auto at = captures_.find(stream);
    if (in == nullptr || at == captures_.end()) return cudaErrorInvalidResourceHandle;
    *graph = at->second.graph;
    (*graph)->work = in->end_capture();
    captures_.erase(at);
    return cudaSuccess;
  }
  void tell_capture(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* number,
                    cudaGraph_t* graph) {
    const std::lock_guard hold(mutex_);
    if (stand_in.capture_begins_after-- == 0) stand_in.capture = cudaStreamCaptureStatusActive;
    *status = stand_in.capture;
    *number = 0;
    const auto at = captures_.find(stream);
    if (at == captures_.end() || stand_in.capture != cudaStreamCaptureStatusNone) return;
    *status = cudaStreamCaptureStatusActive;
    *number = at->second.number;
    if (graph != nullptr) *graph = at->second.graph;
  }

 private:
  struct running_capture {
    cudaGraph_t graph;
    unsigned long long number;
  };

  /// Pre: the mutex is held.
  [[nodiscard]] std::size_t free_on(int device) {
    std::size_t used = memory_.physical(device);
    for (const auto& [address, bytes] : blocks_) used += device_of_.at(address) == device ? bytes : 0;
    return stand_in.memory > used ? stand_in.memory - used : 0;
  }

  orderly::software_device device_;
  software_memory memory_;
  std::mutex mutex_;
  std::map<cudaStream_t, std::shared_ptr<orderly::software_stream>> streams_;
  std::map<std::pair<int, bool>, std::shared_ptr<orderly::software_stream>> defaults_;
  std::map<void*, std::size_t> blocks_;
  std::set<void*> host_blocks_;  ///< of these
  std::map<const void*, int> device_of_;
  std::map<cudaStream_t, running_capture> captures_;
  unsigned long long captures_made_ = 0;
};

cudaError_t answer(cudaError_t result) {
  if (result != cudaSuccess) last_error = result;
  return result;
}

/// A call, unless it is to fail.
template <class Call>
cudaError_t perform(const char* function, const Call& call) {
  const cudaError_t failure = machine::get().enter(function);
  return answer(failure != cudaSuccess ? failure : call());
}

/// The same for one that frees: it has its effect first.
template <class Call>
cudaError_t perform_always(const char* function, const Call& call) {
  const cudaError_t failure = machine::get().enter(function);
  const cudaError_t result = call();
  return answer(failure != cudaSuccess ? failure : result);
}

template <class Call>
CUresult perform_by_driver(const char* function, const Call& call) {
  const cudaError_t failure = machine::get().enter(function);
  return failure != cudaSuccess ? static_cast<CUresult>(failure) : call();
}

/// An operation on a stream.
template <class Operation>
cudaError_t in_stream(const char* function, cudaStream_t handle, const Operation& operation) {
  return perform(function, [&] {
    const auto stream = machine::get().find(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : operation(*stream);
  });
}

template <class Work>
cudaError_t enqueue(const char* function, cudaStream_t handle, const Work& work) {
  return in_stream(function, handle, [&](orderly::software_stream& stream) {
    stream.enqueue(work);
    return cudaSuccess;
  });
}

cudaError_t allocate(const char* function, void** address, std::size_t bytes, bool on_host = false) {
  machine::get().unsafe();
  return perform(function, [&] { return machine::get().allocate(address, bytes, on_host); });
}
cudaError_t free_block(const char* function, void* address) {
  machine::get().unsafe();
  return perform_always(function, [&] { return machine::get().free(address); });
}

event_status query(cudaEvent_t event) {
  machine::get().unsafe();
  const std::lock_guard hold(event->mutex);
  return event->record == nullptr ? event_status::complete : event->recorded_by->query(event->record);
}
bool wait_for(cudaEvent_t event) {
  machine::get().unsafe();
  const std::lock_guard hold(event->mutex);
  return event->record == nullptr || event->recorded_by->synchronize(event->record);
}

CUresult query_by_driver(CUevent event) {
  return perform_by_driver("cuEventQuery", [&] {
    return query(event) == event_status::complete ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
  });
}
CUresult synchronize_by_driver(CUevent event) {
  return perform_by_driver("cuEventSynchronize", [&] { return wait_for(event) ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN; });
}
CUresult exchange_by_driver(CUstreamCaptureMode* mode) {
  return perform_by_driver("cuThreadExchangeStreamCaptureMode", [&] {
    const auto previous = static_cast<CUstreamCaptureMode>(mode_of_thread);
    mode_of_thread = static_cast<cudaStreamCaptureMode>(std::exchange(*mode, previous));
    return CUDA_SUCCESS;
  });
}
CUresult address_range(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr of) {
  return perform_by_driver("cuMemGetAddressRange", [&] { return machine::get().find_block(base, bytes, of); });
}

// Virtual memory. What a fault keeps from being unmapped stays mapped, for its caller to try again, unless the device is lost.

template <class Call>
CUresult perform_unsafe(const char* function, const Call& call) {
  machine::get().unsafe();
  return perform_by_driver(function, call);
}
template <class Call>
CUresult perform_unsafe_always(const char* function, const Call& call) {
  machine::get().unsafe();
  const cudaError_t failure = machine::get().enter(function);
  const CUresult result = call();
  return failure != cudaSuccess ? static_cast<CUresult>(failure) : result;
}
CUresult ask_granularity(std::size_t* bytes, const CUmemAllocationProp* kind, CUmemAllocationGranularity_flags) {
  return perform_by_driver("cuMemGetAllocationGranularity", [&] {
    *bytes = software_memory::granularity;
    return kind->location.id < stand_in.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
  });
}
CUresult reserve_range(CUdeviceptr* range, std::size_t bytes, std::size_t aligned_to, CUdeviceptr, unsigned long long) {
  return perform_unsafe("cuMemAddressReserve", [&] { return machine::get().memory().reserve(range, bytes, aligned_to); });
}
CUresult free_range(CUdeviceptr range, std::size_t bytes) {
  return perform_unsafe_always("cuMemAddressFree", [&] { return machine::get().memory().free(range, bytes); });
}
CUresult create_piece(CUmemGenericAllocationHandle* handle, std::size_t bytes, const CUmemAllocationProp* kind,
                      unsigned long long) {
  return perform_unsafe("cuMemCreate", [&] {
    if (kind->type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
    if ((kind->requestedHandleTypes & ~stand_in.handle_types) != 0) return CUDA_ERROR_NOT_SUPPORTED;
    return machine::get().create_piece(handle, bytes, kind->location.id);
  });
}
CUresult release_piece(CUmemGenericAllocationHandle handle) {
  return perform_unsafe_always("cuMemRelease", [&] { return machine::get().memory().release(handle); });
}
CUresult map_piece(CUdeviceptr at, std::size_t bytes, std::size_t offset, CUmemGenericAllocationHandle handle,
                   unsigned long long) {
  return perform_unsafe("cuMemMap", [&] { return machine::get().memory().map(at, bytes, offset, handle); });
}
CUresult set_access(CUdeviceptr at, std::size_t bytes, const CUmemAccessDesc* access, std::size_t count) {
  return perform_unsafe("cuMemSetAccess", [&] { return machine::get().memory().set_access(at, bytes, access, count); });
}
CUresult unmap(CUdeviceptr at, std::size_t bytes) {
  const auto call = [&] { return machine::get().memory().unmap(at, bytes); };
  return fault_lasts() ? perform_unsafe_always("cuMemUnmap", call) : perform_unsafe("cuMemUnmap", call);
}

cudaError_t find_function(const std::string& name, void** address, cudaDriverEntryPointQueryResult* outcome) {
  static const std::map<std::string, void*> known = {
      {"cuEventQuery", reinterpret_cast<void*>(&query_by_driver)},
      {"cuEventSynchronize", reinterpret_cast<void*>(&synchronize_by_driver)},
      {"cuThreadExchangeStreamCaptureMode", reinterpret_cast<void*>(&exchange_by_driver)},
      {"cuMemGetAddressRange", reinterpret_cast<void*>(&address_range)},
      {"cuMemGetAllocationGranularity", reinterpret_cast<void*>(&ask_granularity)},
      {"cuMemAddressReserve", reinterpret_cast<void*>(&reserve_range)},
      {"cuMemAddressFree", reinterpret_cast<void*>(&free_range)},
      {"cuMemCreate", reinterpret_cast<void*>(&create_piece)},
      {"cuMemRelease", reinterpret_cast<void*>(&release_piece)},
      {"cuMemMap", reinterpret_cast<void*>(&map_piece)},
      {"cuMemSetAccess", reinterpret_cast<void*>(&set_access)},
      {"cuMemUnmap", reinterpret_cast<void*>(&unmap)},
  };
  return perform("cudaGetDriverEntryPoint", [&] {
    const auto found = known.find(name);
    const bool has = stand_in.driver_functions && found != known.end();
    *address = has ? found->second : nullptr;
    *outcome = has ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
  });
}

}  // namespace

namespace orderly::test {

void restart_software_cuda(software_schedule schedule, std::uint64_t seed) {
  delete std::exchange(machine::only(), new machine(schedule, seed));
  stand_in = {};
  current_device = 0;
  last_error = cudaSuccess;
  mode_of_thread = cudaStreamCaptureModeGlobal;
}

software_stream& stream_of(cudaStream_t stream) { return *machine::get().find(stream); }
int device_of(void* thing) { return machine::get().device_of_thing(thing); }
cudaStreamCaptureMode capture_mode() noexcept { return mode_of_thread; }
void set_last_error(cudaError_t error) noexcept { last_error = error; }

}  // namespace orderly::test

extern "C" {

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() {
  return is_sticky(last_error) && fault_lasts() ? last_error : std::exchange(last_error, cudaSuccess);
}
const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    default: return "another error";
  }
}

cudaError_t cudaGetDeviceCount(int* count) {
  return perform("cudaGetDeviceCount", [&] {
    *count = stand_in.devices;
    return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
  });
}
cudaError_t cudaGetDevice(int* device) {
  return perform("cudaGetDevice", [&] {
    *device = current_device;
    return cudaSuccess;
  });
}
cudaError_t cudaSetDevice(int device) {
  return perform("cudaSetDevice", [&] {
    if (device < 0 || device >= stand_in.devices) return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
  });
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return perform("cudaThreadExchangeStreamCaptureMode", [&] {
    std::swap(mode_of_thread, *mode);
    return cudaSuccess;
  });
}
#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** address, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* outcome) {
  return find_function(name, address, outcome);
}
#else
cudaError_t cudaGetDriverEntryPoint(const char* name, void** address, unsigned long long,
                                    cudaDriverEntryPointQueryResult* outcome) {
  return find_function(name, address, outcome);
}
#endif

cudaError_t cudaMalloc(void** address, std::size_t bytes) { return allocate("cudaMalloc", address, bytes); }
cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  return allocate("cudaHostAlloc", address, bytes, true);
}
cudaError_t cudaMallocManaged(void** address, std::size_t bytes, unsigned) {
  return allocate("cudaMallocManaged", address, bytes);
}
cudaError_t cudaFree(void* address) { return free_block("cudaFree", address); }
cudaError_t cudaFreeHost(void* address) { return free_block("cudaFreeHost", address); }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return perform("cudaMemGetInfo", [&] {
    *free = machine::get().free_memory_of(current_device);
    *total = 2 * stand_in.memory;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return perform("cudaDeviceCanAccessPeer", [&] {
    *can = stand_in.peers && device != peer;
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* made, unsigned flags) {
  machine::get().unsafe();
  return perform("cudaEventCreateWithFlags", [&] {
    if (flags != cudaEventDisableTiming) return cudaErrorInvalidValue;  // those would cost more
    *made = machine::get().make_event();
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  machine::get().unsafe();
  return perform_always("cudaEventDestroy", [&] {
    return machine::get().destroy_event(event) ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return in_stream("cudaEventRecord", stream, [&](const orderly::software_stream& in) {
    auto driver = machine::get().driver();
    orderly::event_handle const record = driver->record(in.handle());
    event->replace(std::move(driver), record);
    return cudaSuccess;
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return perform("cudaEventQuery",
                 [&] { return query(event) == event_status::complete ? cudaSuccess : cudaErrorNotReady; });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return perform("cudaEventSynchronize", [&] { return wait_for(event) ? cudaSuccess : cudaErrorUnknown; });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return in_stream("cudaStreamWaitEvent", stream, [&](const orderly::software_stream& in) {
    const std::lock_guard hold(event->mutex);
    if (event->record != nullptr) static_cast<void>(machine::get().driver()->wait(in.handle(), event->record));
    return cudaSuccess;
  });
}
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* number) {
  return in_stream("cudaStreamGetId", stream, [&](const orderly::software_stream& in) {
    *number = machine::get().driver()->identity(in.handle());
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* number,
                                     cudaGraph_t* graph, const cudaGraphNode_t**,
#if CUDART_VERSION >= 13000
                                     const cudaGraphEdgeData**,
#endif
                                     std::size_t*) {
  return perform("cudaStreamGetCaptureInfo", [&] {
    machine::get().tell_capture(stream, status, number, graph);
    return cudaSuccess;
  });
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t* made, void* context, cudaHostFn_t gone, unsigned count,
                                 unsigned flags) {
  return perform("cudaUserObjectCreate", [&] {
    if (count != 1 || flags != cudaUserObjectNoDestructorSync) return cudaErrorInvalidValue;
    *made = new CUuserObject_st{gone, context};
    count_made(cuda_thing::graph_object);
    return cudaSuccess;
  });
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count, unsigned flags) {
  return perform("cudaGraphRetainUserObject", [&] {
    if (count != 1 || flags != cudaGraphUserObjectMove) return cudaErrorInvalidValue;
    graph->objects.push_back(object);
    return cudaSuccess;
  });
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned) {
  return perform_always("cudaUserObjectRelease", [&] {
    object->gone(object->context);
    delete object;
    count_gone(cuda_thing::graph_object);
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceSynchronize() {
  machine::get().unsafe();
  return perform("cudaDeviceSynchronize",
                 [] { return machine::get().driver()->synchronize_all() ? cudaSuccess : cudaErrorUnknown; });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned) {
  return perform("cudaStreamCreateWithFlags", [&] {
    *made = machine::get().open();
    return cudaSuccess;
  });
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return perform_always("cudaStreamDestroy", [&] {
    return machine::get().close(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind != cudaMemcpyDefault) return answer(cudaErrorInvalidMemcpyDirection);
  // It is the current device that copies, whichever the stream is of.
  for (const void* const end : {static_cast<const void*>(to), from})
    if (!machine::get().memory().is_reached_by(current_device, end)) return answer(cudaErrorInvalidValue);
  // Between host memory it is not asynchronous at all.
  const bool waits = machine::get().is_on_host(to) && machine::get().is_on_host(from);
  return in_stream("cudaMemcpyAsync", stream, [&](orderly::software_stream& in) {
    in.enqueue([=] { std::memcpy(to, from, bytes); });
    if (waits) static_cast<void>(in.synchronize());
    return cudaSuccess;
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return enqueue("cudaLaunchHostFunc", stream, [=] { function(data); });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* of, const void* address) {
  return perform("cudaPointerGetAttributes", [&] {
    *of = {};
    of->type = machine::get().is_on_host(address) ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    return cudaSuccess;
  });
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return enqueue("cudaMemsetAsync", stream, [=] { std::memset(to, value, bytes); });
}

// What only tests call.

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return in_stream("cudaStreamSynchronize", stream, [](orderly::software_stream& in) {
    return in.synchronize() ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
  });
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return perform("cudaStreamBeginCapture", [&] { return machine::get().begin_capture(stream); });
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return perform("cudaStreamEndCapture", [&] { return machine::get().end_capture(stream, graph); });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  for (CUuserObject_st* const object : graph->objects) static_cast<void>(cudaUserObjectRelease(object, 1));
  delete graph;
  return cudaSuccess;
}
}  // extern "C"
