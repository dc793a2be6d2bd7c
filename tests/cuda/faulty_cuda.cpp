// Stands before the real CUDA runtime: the functions that orderly calls are defined here, fail where faults.hpp has it,
// and are the runtime's otherwise. Needs the shared runtime. What frees has its effect even where it fails.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include <dlfcn.h>

#include "faults.hpp"

using namespace orderly::test;

namespace {

/// The error of a planned fault that the thread has not fetched. The real runtime knows nothing of it.
thread_local cudaError_t unfetched = cudaSuccess;

void* find(const char* name) {
  void* const found = dlsym(RTLD_NEXT, name);
  if (found != nullptr) return found;
  std::fprintf(stderr, "the CUDA runtime has no %s\n", name);
  std::abort();
}

// Some names are macros for those of a later version.
#define ORDERLY_TEXT_OF(name) #name
#define ORDERLY_TEXT(name) ORDERLY_TEXT_OF(name)
#define ORDERLY_REAL(function)                                                                      \
  ([] {                                                                                             \
    static auto* const found = reinterpret_cast<decltype(&function)>(find(ORDERLY_TEXT(function))); \
    return found;                                                                                   \
  }())

template <class... Arguments, class... Given>
cudaError_t perform(const char* name, cudaError_t (*real)(Arguments...), Given... given) {
  const cudaError_t failure = fault_of(name);
  const cudaError_t result = failure != cudaSuccess ? failure : real(given...);
  if (result != cudaSuccess) unfetched = failure;
  return result;
}

template <class... Arguments, class... Given>
cudaError_t perform_always(const char* name, cudaError_t (*real)(Arguments...), Given... given) {
  const cudaError_t failure = fault_of(name);
  const cudaError_t result = real(given...);
  if (failure == cudaSuccess && result == cudaSuccess) return cudaSuccess;
  unfetched = failure;
  return failure != cudaSuccess ? failure : result;
}

cudaError_t made(cuda_thing kind, cudaError_t result) {
  if (result == cudaSuccess) count_made(kind);
  return result;
}
cudaError_t gone(cuda_thing kind, cudaError_t result) {
  count_gone(kind);
  return result;
}

/// When a function of the driver has its effect even where it fails.
enum class effect { never, when_lost, always };

/// A function of the driver, and the one that stands before it.
template <class Signature>
struct driver_door;
template <class... Arguments>
struct driver_door<CUresult(Arguments...)> {
  template <int Number>
  static inline CUresult (*real)(Arguments...) = nullptr;
  template <int Number>
  static inline const char* name = nullptr;
  template <int Number, effect On>
  static CUresult call(Arguments... given) {
    const cudaError_t failure = fault_of(name<Number>);
    if (failure == cudaSuccess) return real<Number>(given...);
    if (On == effect::always || (On == effect::when_lost && fault_lasts())) static_cast<void>(real<Number>(given...));
    return static_cast<CUresult>(failure);
  }
};

template <class Signature, int Number, effect On = effect::never>
void* stand_before(const char* name, void* real) {
  using door = driver_door<Signature>;
  door::template real<Number> = reinterpret_cast<Signature*>(real);
  door::template name<Number> = name;
  return reinterpret_cast<void*>(&door::template call<Number, On>);
}

void stand_before_driver(const char* name, void** address) {
  const auto is = [name](const char* known) { return std::strcmp(name, known) == 0; };
  using range_function = CUresult(CUdeviceptr, std::size_t);
  if (is("cuEventQuery"))
    *address = stand_before<CUresult(CUevent), 0>("cuEventQuery", *address);
  else if (is("cuEventSynchronize"))
    *address = stand_before<CUresult(CUevent), 1>("cuEventSynchronize", *address);
  else if (is("cuThreadExchangeStreamCaptureMode"))
    *address = stand_before<CUresult(CUstreamCaptureMode*), 0>("cuThreadExchangeStreamCaptureMode", *address);
  else if (is("cuMemGetAddressRange"))
    *address =
        stand_before<CUresult(CUdeviceptr*, std::size_t*, CUdeviceptr), 0>("cuMemGetAddressRange", *address);
  else if (is("cuMemGetAllocationGranularity"))
    *address = stand_before<std::remove_pointer_t<decltype(&cuMemGetAllocationGranularity)>, 0>(
        "cuMemGetAllocationGranularity", *address);
  else if (is("cuMemAddressReserve"))
    *address = stand_before<std::remove_pointer_t<decltype(&cuMemAddressReserve)>, 0>("cuMemAddressReserve", *address);
  else if (is("cuMemCreate"))
    *address = stand_before<std::remove_pointer_t<decltype(&cuMemCreate)>, 0>("cuMemCreate", *address);
  else if (is("cuMemMap"))
    *address = stand_before<std::remove_pointer_t<decltype(&cuMemMap)>, 0>("cuMemMap", *address);
  else if (is("cuMemSetAccess"))
    *address = stand_before<std::remove_pointer_t<decltype(&cuMemSetAccess)>, 0>("cuMemSetAccess", *address);
  else if (is("cuMemRelease"))
    *address = stand_before<CUresult(CUmemGenericAllocationHandle), 0, effect::always>("cuMemRelease", *address);
  else if (is("cuMemAddressFree"))
    *address = stand_before<range_function, 0, effect::always>("cuMemAddressFree", *address);
  else if (is("cuMemUnmap"))
    *address = stand_before<range_function, 1, effect::when_lost>("cuMemUnmap", *address);
}

struct counted_object {
  cudaHostFn_t gone;
  void* context;

  static void CUDART_CB forget(void* self) {
    const std::unique_ptr<counted_object> known(static_cast<counted_object*>(self));
    known->gone(known->context);
    count_gone(cuda_thing::graph_object);
  }
};

}  // namespace

#define ORDERLY_PERFORM(function, ...) perform(#function, ORDERLY_REAL(function) __VA_OPT__(, ) __VA_ARGS__)
#define ORDERLY_PERFORM_ALWAYS(function, ...) perform_always(#function, ORDERLY_REAL(function) __VA_OPT__(, ) __VA_ARGS__)

extern "C" {

cudaError_t cudaPeekAtLastError() {
  return unfetched != cudaSuccess ? unfetched : ORDERLY_REAL(cudaPeekAtLastError)();
}
cudaError_t cudaGetLastError() {
  const cudaError_t real = ORDERLY_REAL(cudaGetLastError)();
  if (unfetched == cudaSuccess) return real;
  const bool stays = fault_lasts() && (unfetched == cudaErrorIllegalAddress || unfetched == cudaErrorLaunchFailure);
  return stays ? unfetched : std::exchange(unfetched, cudaSuccess);
}

cudaError_t cudaGetDeviceCount(int* count) { return ORDERLY_PERFORM(cudaGetDeviceCount, count); }
cudaError_t cudaGetDevice(int* device) { return ORDERLY_PERFORM(cudaGetDevice, device); }
cudaError_t cudaSetDevice(int device) { return ORDERLY_PERFORM(cudaSetDevice, device); }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return ORDERLY_PERFORM(cudaThreadExchangeStreamCaptureMode, mode);
}
#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** address, unsigned version,
                                             unsigned long long flags, cudaDriverEntryPointQueryResult* outcome) {
  const auto real = ORDERLY_REAL(cudaGetDriverEntryPointByVersion);
  const cudaError_t result = perform("cudaGetDriverEntryPoint", real, name, address, version, flags, outcome);
#else
cudaError_t cudaGetDriverEntryPoint(const char* name, void** address, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* outcome) {
  const auto real = ORDERLY_REAL(cudaGetDriverEntryPoint);
  const cudaError_t result = perform("cudaGetDriverEntryPoint", real, name, address, flags, outcome);
#endif
  if (result == cudaSuccess && *outcome == cudaDriverEntryPointSuccess) stand_before_driver(name, address);
  return result;
}

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  return made(cuda_thing::block, ORDERLY_PERFORM(cudaMalloc, address, bytes));
}
cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned flags) {
  return made(cuda_thing::block, ORDERLY_PERFORM(cudaHostAlloc, address, bytes, flags));
}
cudaError_t cudaMallocManaged(void** address, std::size_t bytes, unsigned flags) {
  return made(cuda_thing::block, ORDERLY_PERFORM(cudaMallocManaged, address, bytes, flags));
}
cudaError_t cudaFree(void* address) { return gone(cuda_thing::block, ORDERLY_PERFORM_ALWAYS(cudaFree, address)); }
cudaError_t cudaFreeHost(void* address) {
  return gone(cuda_thing::block, ORDERLY_PERFORM_ALWAYS(cudaFreeHost, address));
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) { return ORDERLY_PERFORM(cudaMemGetInfo, free, total); }

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return ORDERLY_PERFORM(cudaDeviceCanAccessPeer, can, device, peer);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return made(cuda_thing::event, ORDERLY_PERFORM(cudaEventCreateWithFlags, event, flags));
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return gone(cuda_thing::event, ORDERLY_PERFORM_ALWAYS(cudaEventDestroy, event));
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return ORDERLY_PERFORM(cudaEventRecord, event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return ORDERLY_PERFORM(cudaEventQuery, event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return ORDERLY_PERFORM(cudaEventSynchronize, event); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return ORDERLY_PERFORM(cudaStreamWaitEvent, stream, event, flags);
}
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* number) {
  return ORDERLY_PERFORM(cudaStreamGetId, stream, number);
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* number,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
#if CUDART_VERSION >= 13000
                                     const cudaGraphEdgeData** edges, std::size_t* count) {
  return perform("cudaStreamGetCaptureInfo", ORDERLY_REAL(cudaStreamGetCaptureInfo), stream, status, number, graph,
                 dependencies, edges, count);
}
#else
                                     std::size_t* count) {
  return perform("cudaStreamGetCaptureInfo", ORDERLY_REAL(cudaStreamGetCaptureInfo), stream, status, number, graph,
                 dependencies, count);
}
#endif
cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* context, cudaHostFn_t destroy, unsigned count,
                                 unsigned flags) {
  auto counted = std::make_unique<counted_object>(counted_object{destroy, context});
  const auto real = ORDERLY_REAL(cudaUserObjectCreate);
  const cudaError_t result = perform("cudaUserObjectCreate", real, object, static_cast<void*>(counted.get()),
                                     cudaHostFn_t{counted_object::forget}, count, flags);
  if (result == cudaSuccess) static_cast<void>(counted.release());
  return made(cuda_thing::graph_object, result);
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count, unsigned flags) {
  return ORDERLY_PERFORM(cudaGraphRetainUserObject, graph, object, count, flags);
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  return ORDERLY_PERFORM_ALWAYS(cudaUserObjectRelease, object, count);
}
cudaError_t cudaDeviceSynchronize() { return ORDERLY_PERFORM(cudaDeviceSynchronize); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return made(cuda_thing::stream, ORDERLY_PERFORM(cudaStreamCreateWithFlags, stream, flags));
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return gone(cuda_thing::stream, ORDERLY_PERFORM_ALWAYS(cudaStreamDestroy, stream));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return ORDERLY_PERFORM(cudaMemcpyAsync, to, from, bytes, kind, stream);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return ORDERLY_PERFORM(cudaLaunchHostFunc, stream, function, data);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* of, const void* address) {
  return ORDERLY_PERFORM(cudaPointerGetAttributes, of, address);
}
cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t stream) {
  return ORDERLY_PERFORM(cudaMemsetAsync, at, value, bytes, stream);
}

}  // extern "C"
