// What orderly leaves behind in CUDA, against a stand-in for the runtime that fails where a test wants it to. Needs no
// device, and shows what one cannot: errors of every kind, other devices, captures that start at the worst moment.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "orderly/cuda.hpp"

using namespace orderly;

namespace {

struct stand_in {
  int devices = 2;
  int device = 0;
  cudaError_t last_error = cudaSuccess;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool has_driver_functions = true;
  CUresult driver_answer = CUDA_SUCCESS;

  std::map<std::string, cudaError_t> failures;  ///< what the next calls of a function return
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  int capture_begins_after = -1;  ///< that many more questions
  std::size_t free_memory = std::size_t{1} << 30;

  std::vector<std::string> calls;
  std::vector<std::pair<cudaHostFn_t, void*>> kept;  ///< by the graph
  std::set<void*> events;
  std::set<void*> blocks;
  std::set<void*> streams;
  std::map<void*, int> device_of;  ///< of an event, a block or a stream
  bool unsafe_call = false;        ///< one that a capture of another thread would not have survived

  cudaError_t answer(const char* function, cudaError_t otherwise = cudaSuccess) {
    calls.emplace_back(function);
    const auto failure = failures.find(function);
    const cudaError_t result = failure == failures.end() ? otherwise : failure->second;
    if (result != cudaSuccess) last_error = result;
    return result;
  }
  void unsafe() { unsafe_call = unsafe_call || mode != cudaStreamCaptureModeRelaxed; }
};

stand_in cuda;
cudaGraph_t const a_graph = reinterpret_cast<cudaGraph_t>(std::uintptr_t{8192});

cudaError_t allocate(const char* function, void** address, std::size_t bytes) {
  cuda.unsafe();
  const cudaError_t result = cuda.answer(function, bytes > cuda.free_memory ? cudaErrorMemoryAllocation : cudaSuccess);
  if (result != cudaSuccess) return result;
  *address = std::aligned_alloc(4096, 4096);  // never touched
  cuda.blocks.insert(*address);
  cuda.device_of[*address] = cuda.device;
  return result;
}

cudaError_t free_block(const char* function, void* address) {
  cuda.unsafe();
  CHECK(cuda.blocks.erase(address) == 1);
  std::free(address);
  return cuda.answer(function);
}

CUresult query_by_driver(CUevent) {
  cuda.calls.emplace_back("cuEventQuery");
  cuda.unsafe();
  return cuda.driver_answer;
}

CUresult synchronize_by_driver(CUevent) {
  cuda.calls.emplace_back("cuEventSynchronize");
  cuda.unsafe();
  return cuda.driver_answer;
}

CUresult exchange_by_driver(CUstreamCaptureMode* mode) {
  cuda.calls.emplace_back("cuThreadExchangeStreamCaptureMode");
  const auto previous = static_cast<CUstreamCaptureMode>(cuda.mode);
  cuda.mode = static_cast<cudaStreamCaptureMode>(*mode);
  *mode = previous;
  return CUDA_SUCCESS;
}

cudaError_t find_function(const char* name, void** address, cudaDriverEntryPointQueryResult* outcome) {
  const std::map<std::string, void*> known = {
      {"cuEventQuery", reinterpret_cast<void*>(&query_by_driver)},
      {"cuEventSynchronize", reinterpret_cast<void*>(&synchronize_by_driver)},
      {"cuThreadExchangeStreamCaptureMode", reinterpret_cast<void*>(&exchange_by_driver)},
  };
  const auto found = known.find(name);
  const bool has = cuda.has_driver_functions && found != known.end();
  *address = has ? found->second : nullptr;
  *outcome = has ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cuda.answer("cudaGetDriverEntryPoint");
}

}  // namespace

extern "C" {

cudaError_t cudaPeekAtLastError() { return cuda.last_error; }
cudaError_t cudaGetLastError() {
  const bool sticky = cuda.last_error == cudaErrorIllegalAddress;
  return sticky ? cuda.last_error : std::exchange(cuda.last_error, cudaSuccess);
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = cuda.devices;
  return cuda.answer("cudaGetDeviceCount");
}
cudaError_t cudaGetDevice(int* device) {
  *device = cuda.device;
  return cuda.answer("cudaGetDevice");
}
cudaError_t cudaSetDevice(int device) {
  const cudaError_t result = cuda.answer("cudaSetDevice", device < cuda.devices ? cudaSuccess : cudaErrorInvalidDevice);
  if (result == cudaSuccess) cuda.device = device;
  return result;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(cuda.mode, *mode);
  return cuda.answer("cudaThreadExchangeStreamCaptureMode");
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
  return allocate("cudaHostAlloc", address, bytes);
}
cudaError_t cudaMallocManaged(void** address, std::size_t bytes, unsigned) {
  return allocate("cudaMallocManaged", address, bytes);
}
cudaError_t cudaFree(void* address) { return free_block("cudaFree", address); }
cudaError_t cudaFreeHost(void* address) { return free_block("cudaFreeHost", address); }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = cuda.free_memory;
  *total = 2 * cuda.free_memory;
  return cuda.answer("cudaMemGetInfo");
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  CHECK(flags == cudaEventDisableTiming);
  cuda.unsafe();
  const cudaError_t result = cuda.answer("cudaEventCreateWithFlags");
  if (result != cudaSuccess) return result;
  void* const made = std::malloc(1);
  cuda.events.insert(made);
  cuda.device_of[made] = cuda.device;
  *event = static_cast<cudaEvent_t>(made);
  return result;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cuda.answer("cudaEventRecord"); }
cudaError_t cudaEventQuery(cudaEvent_t) {
  cuda.unsafe();
  return cuda.answer("cudaEventQuery");
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  cuda.unsafe();
  return cuda.answer("cudaEventSynchronize");
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  cuda.unsafe();
  CHECK(cuda.events.erase(event) == 1);
  std::free(event);
  return cuda.answer("cudaEventDestroy");
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cuda.answer("cudaStreamWaitEvent"); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  CHECK(flags == cudaStreamNonBlocking);
  cuda.unsafe();
  const cudaError_t result = cuda.answer("cudaStreamCreateWithFlags");
  if (result != cudaSuccess) return result;
  void* const made = std::malloc(1);
  cuda.streams.insert(made);
  cuda.device_of[made] = cuda.device;
  *stream = static_cast<cudaStream_t>(made);
  return result;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cuda.unsafe();
  CHECK(cuda.streams.erase(stream) == 1);
  CHECK(cuda.device_of[stream] == cuda.device);
  std::free(stream);
  return cuda.answer("cudaStreamDestroy");
}
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* number) {
  *number = reinterpret_cast<std::uintptr_t>(stream) / 4096;
  return cuda.answer("cudaStreamGetId");
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* number,
                                     cudaGraph_t* graph, const cudaGraphNode_t**,
#if CUDART_VERSION >= 13000
                                     const cudaGraphEdgeData**,
#endif
                                     std::size_t*) {
  if (graph != nullptr && cuda.capture == cudaStreamCaptureStatusActive) *graph = a_graph;
  if (cuda.capture_begins_after-- == 0) cuda.capture = cudaStreamCaptureStatusActive;
  *status = cuda.capture;
  *number = 0;
  return cuda.answer("cudaStreamGetCaptureInfo");
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t* made, void* context, cudaHostFn_t forget, unsigned count, unsigned flags) {
  CHECK(count == 1);
  CHECK(flags == cudaUserObjectNoDestructorSync);
  const cudaError_t result = cuda.answer("cudaUserObjectCreate");
  if (result != cudaSuccess) return result;
  cuda.kept.emplace_back(forget, context);
  *made = reinterpret_cast<cudaUserObject_t>(cuda.kept.size());
  return result;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t, unsigned count, unsigned flags) {
  CHECK(graph == a_graph);
  CHECK(count == 1);
  CHECK(flags == cudaGraphUserObjectMove);
  return cuda.answer("cudaGraphRetainUserObject");
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned) {
  const auto [forget, context] = cuda.kept[reinterpret_cast<std::uintptr_t>(object) - 1];
  forget(context);
  return cuda.answer("cudaUserObjectRelease");
}
cudaError_t cudaDeviceSynchronize() {
  cuda.unsafe();
  CHECK(cuda.device == 1);
  return cuda.answer("cudaDeviceSynchronize");
}

}  // extern "C"

namespace {

const stream_handle a_stream = reinterpret_cast<stream_handle>(std::uintptr_t{4096});
const stream_handle legacy = cudaStreamLegacy;
const stream_handle per_thread = cudaStreamPerThread;

/// A fresh stand-in; at the end of the test nothing is left over, and every call was one that a capture survives.
struct fresh_cuda {
  fresh_cuda() { cuda = stand_in{}; }
  fresh_cuda(const fresh_cuda&) = delete;
  fresh_cuda& operator=(const fresh_cuda&) = delete;
  ~fresh_cuda() {
    CHECK(cuda.events.empty());
    CHECK(cuda.blocks.empty());
    CHECK(cuda.streams.empty());
    CHECK(cuda.device == 0);
    CHECK(cuda.mode == cudaStreamCaptureModeGlobal);
    CHECK_FALSE(cuda.unsafe_call);
  }
};

using names = std::vector<std::string>;

/// The calls that an operation makes.
template <class Operation>
names calls_of(const Operation& operation) {
  cuda.calls.clear();
  const std::uint64_t before = cuda_calls();
  operation();
  CHECK(cuda_calls() - before == cuda.calls.size());
  return cuda.calls;
}

}  // namespace

TEST_CASE("without a device there are no sources and no drivers, and no error is left behind") {
  const fresh_cuda fresh;
  for (const cudaError_t reason : {cudaSuccess, cudaErrorNoDevice, cudaErrorInsufficientDriver}) {
    cuda.devices = 0;
    cuda.failures["cudaGetDeviceCount"] = reason;
    CHECK(make_cuda_device_source(0) == nullptr);
    CHECK(make_cuda_pinned_source(4096) == nullptr);
    CHECK(make_cuda_managed_source(0, 4096) == nullptr);
    CHECK(make_cuda_stream_driver(0) == nullptr);
    CHECK(make_cuda_stream(0) == nullptr);
    CHECK(cuda.last_error == cudaSuccess);
  }
}

TEST_CASE("a stream is made on its device, and destroyed there with its last owner") {
  const fresh_cuda fresh;
  {
    const std::shared_ptr<void> stream = make_cuda_stream(1);
    REQUIRE(cuda.streams.size() == 1);
    CHECK(*cuda.streams.begin() == stream.get());
    CHECK(cuda.device_of[stream.get()] == 1);
    CHECK(cuda.device == 0);
  }
  CHECK(cuda.streams.empty());
  cuda.failures["cudaStreamCreateWithFlags"] = cudaErrorMemoryAllocation;
  CHECK(make_cuda_stream(0) == nullptr);
  cuda.failures.clear();
  cuda.failures["cudaSetDevice"] = cudaErrorDevicesUnavailable;
  CHECK(make_cuda_stream(1) == nullptr);
  CHECK(cuda.last_error == cudaSuccess);
}

TEST_CASE("memory is made on its device, and aligned as asked; refusals leave no error behind") {
  const fresh_cuda fresh;
  const std::size_t bytes = 65536;
  const std::unique_ptr<memory_source> kinds[] = {make_cuda_device_source(1, bytes), make_cuda_managed_source(1, bytes),
                                                  make_cuda_pinned_source(bytes)};
  for (const auto& source : kinds) {
    for (const std::size_t alignment : {std::size_t{256}, std::size_t{4096}, std::size_t{1} << 20}) {
      void* const range = source->reserve(bytes, alignment);
      REQUIRE(range != nullptr);
      CHECK(reinterpret_cast<std::uintptr_t>(range) % alignment == 0);
      CHECK(cuda.blocks.size() == 1);
      CHECK(cuda.device_of[*cuda.blocks.begin()] == (source == kinds[2] ? 0 : 1));
      CHECK(source->reserve(256, 256) == nullptr);
      source->release(range, bytes);
      CHECK(cuda.blocks.empty());
    }
    const std::size_t plenty = std::exchange(cuda.free_memory, bytes - 1);
    CHECK(source->reserve(bytes, 256) == nullptr);
    CHECK(cuda.last_error == cudaSuccess);
    cuda.free_memory = bytes;  // not enough to align by hand
    if (void* const range = source->reserve(bytes, std::size_t{1} << 40)) source->release(range, bytes);
    CHECK(cuda.last_error == cudaSuccess);
    CHECK(source->reserve(bytes, SIZE_MAX / 2 + 1) == nullptr);
    cuda.free_memory = plenty;
  }
  cuda.free_memory = (std::size_t{1} << 30) + 12345;
  CHECK(make_cuda_device_source(1)->capacity() == std::size_t{960} << 20);
}

TEST_CASE("the calls of each operation") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(0);
  event_handle event = driver->record(a_stream);
  driver->release(event);
  const names exchange_around_query = {"cuThreadExchangeStreamCaptureMode", "cuEventQuery",
                                       "cuThreadExchangeStreamCaptureMode"};
  CHECK(calls_of([&] { CHECK(driver->identity(a_stream) == (1 << 2 | 1)); }) ==
        names{"cudaStreamGetCaptureInfo", "cudaStreamGetId"});
  CHECK(calls_of([&] { CHECK(driver->identity(nullptr) != 0); }).empty());
  CHECK(calls_of([&] { CHECK(driver->capture(a_stream) == 0); }) == names{"cudaStreamGetCaptureInfo"});
  CHECK(calls_of([&] { event = driver->record(a_stream); }) ==
        names{"cudaStreamGetCaptureInfo", "cudaEventRecord", "cudaStreamGetCaptureInfo"});
  CHECK(calls_of([&] { CHECK(driver->wait(a_stream, event)); }) ==
        names{"cudaStreamGetCaptureInfo", "cudaStreamWaitEvent"});
  CHECK(calls_of([&] { CHECK(driver->query(event) == event_status::complete); }) == exchange_around_query);
  CHECK(calls_of([&] { driver->release(event); }).empty());
}

TEST_CASE("events are made on the driver's device; default streams are that device's; the caller's device comes back") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(1);
  for (const stream_handle stream : {a_stream, stream_handle{nullptr}, legacy, per_thread}) {
    const event_handle event = driver->record(stream);
    REQUIRE(event != nullptr);
    CHECK(cuda.device == 0);
    CHECK(cuda.device_of[event] == 1);
    driver->release(event);
  }
  const names guarded = {"cudaGetDevice", "cudaSetDevice", "cudaStreamGetCaptureInfo", "cudaSetDevice"};
  CHECK(calls_of([&] { CHECK(driver->capture(nullptr) == 0); }) == guarded);
  cuda.device = 1;
  const names right_already = {"cudaGetDevice", "cudaStreamGetCaptureInfo"};
  CHECK(calls_of([&] { CHECK(driver->capture(nullptr) == 0); }) == right_already);
  cuda.device = 0;
  cuda.failures["cudaSetDevice"] = cudaErrorDevicesUnavailable;
  CHECK(driver->record(nullptr) == nullptr);
  CHECK(driver->capture(nullptr) == UINT64_MAX);
  CHECK_FALSE(driver->wait(nullptr, nullptr));
  CHECK(cuda.last_error == cudaSuccess);
  cuda.failures.clear();
}

TEST_CASE("a failure of orderly's own is cleared, an earlier error stays, and the device's errors are left to see") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(0);
  cuda.failures["cudaEventRecord"] = cudaErrorInvalidResourceHandle;
  CHECK(driver->record(a_stream) == nullptr);
  CHECK(cuda.last_error == cudaSuccess);

  cuda.last_error = cudaErrorLaunchOutOfResources;  // not fetched yet
  CHECK(driver->record(a_stream) == nullptr);
  CHECK(cuda.last_error != cudaSuccess);
  cuda.failures.clear();
  cuda.last_error = cudaErrorLaunchOutOfResources;
  const event_handle event = driver->record(a_stream);
  cuda.driver_answer = CUDA_ERROR_NOT_READY;
  CHECK(driver->query(event) == event_status::pending);
  CHECK(cuda.last_error == cudaErrorLaunchOutOfResources);

  cuda.last_error = cudaSuccess;
  cuda.failures["cudaStreamWaitEvent"] = cudaErrorIllegalAddress;
  CHECK_FALSE(driver->wait(a_stream, event));
  CHECK(cuda.last_error == cudaErrorIllegalAddress);
  cuda.driver_answer = CUDA_ERROR_ILLEGAL_ADDRESS;
  CHECK(driver->query(event) == event_status::failed);
  CHECK_FALSE(driver->synchronize(event));
  driver->release(event);
}

TEST_CASE("a graph tells when it is gone; where it cannot be asked to, nothing is told") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(1);
  int told = 0;
  const auto tell = [](void* context) { ++*static_cast<int*>(context); };
  CHECK_FALSE(driver->when_graph_is_gone(a_stream, tell, &told));  // it does not capture
  cuda.capture = cudaStreamCaptureStatusActive;
  CHECK(calls_of([&] { CHECK(driver->when_graph_is_gone(a_stream, tell, &told)); }) ==
        names{"cudaStreamGetCaptureInfo", "cudaUserObjectCreate", "cudaGraphRetainUserObject"});
  CHECK(told == 0);
  cuda.kept.back().first(cuda.kept.back().second);
  CHECK(told == 1);
  for (const char* const function : {"cudaStreamGetCaptureInfo", "cudaUserObjectCreate", "cudaGraphRetainUserObject"}) {
    CAPTURE(function);
    cuda.failures = {{function, cudaErrorInvalidValue}};
    CHECK_FALSE(driver->when_graph_is_gone(a_stream, tell, &told));
    CHECK(told == 1);
    CHECK(cuda.last_error == cudaSuccess);
  }
  cuda.failures.clear();
  cuda.capture = cudaStreamCaptureStatusInvalidated;
  CHECK_FALSE(driver->when_graph_is_gone(a_stream, tell, &told));
  CHECK(told == 1);
}

TEST_CASE("a device as a whole is waited for on that device, and outside of captures") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(1);
  CHECK(driver->synchronize_all());
  cuda.failures["cudaDeviceSynchronize"] = cudaErrorIllegalAddress;
  CHECK_FALSE(driver->synchronize_all());
  CHECK(cuda.last_error == cudaErrorIllegalAddress);  // the program's to see
  cuda.last_error = cudaSuccess;
}

TEST_CASE("without the driver's functions, or where they want a context, the runtime's serve") {
  for (const bool has_functions : {false, true}) {
    CAPTURE(has_functions);
    const fresh_cuda fresh;
    cuda.has_driver_functions = has_functions;
    cuda.driver_answer = CUDA_ERROR_INVALID_CONTEXT;
    const auto driver = make_cuda_stream_driver(1);
    const event_handle event = driver->record(a_stream);
    cuda.failures["cudaEventQuery"] = cudaErrorNotReady;
    CHECK(driver->query(event) == event_status::pending);
    CHECK(cuda.last_error == cudaSuccess);
    cuda.failures["cudaEventQuery"] = cudaErrorCapturedEvent;
    CHECK(driver->query(event) == event_status::failed);
    CHECK(cuda.last_error == cudaSuccess);
    cuda.failures.clear();
    CHECK(driver->query(event) == event_status::complete);
    CHECK(driver->synchronize(event));
    driver->release(event);
  }
}

TEST_CASE("captures: numbers are never 0, nothing is recorded or awaited, and what cannot be told counts as one") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(0);
  const event_handle event = driver->record(a_stream);
  cuda.capture = cudaStreamCaptureStatusActive;
  CHECK(driver->capture(a_stream) == 1);
  CHECK(driver->record(a_stream) == nullptr);
  CHECK_FALSE(driver->wait(a_stream, event));
  cuda.capture = cudaStreamCaptureStatusInvalidated;
  CHECK(driver->capture(a_stream) == UINT64_MAX);
  CHECK(driver->record(a_stream) == nullptr);
  cuda.capture = cudaStreamCaptureStatusNone;
  cuda.failures["cudaStreamGetCaptureInfo"] = cudaErrorStreamCaptureImplicit;
  CHECK(driver->capture(nullptr) == UINT64_MAX);
  CHECK(driver->record(nullptr) == nullptr);
  CHECK_FALSE(driver->wait(nullptr, event));
  CHECK(cuda.last_error == cudaSuccess);
  cuda.failures.clear();

  cuda.capture_begins_after = 1;  // between the question and the record
  CHECK(driver->record(a_stream) == nullptr);
  CHECK(cuda.events.size() == 1);  // that event is not used again
  cuda.capture = cudaStreamCaptureStatusNone;
  driver->release(event);
}

TEST_CASE("events are used again, and a bounded number is kept") {
  const fresh_cuda fresh;
  {
    const auto driver = make_cuda_stream_driver(0);
    std::vector<event_handle> events;
    for (int round = 0; round < 1500; ++round) events.push_back(driver->record(a_stream));
    for (const event_handle event : events) driver->release(event);
    CHECK(cuda.events.size() == 1024);
    CHECK(cuda.events.count(driver->record(a_stream)) == 1);
    CHECK(cuda.events.size() == 1024);
    cuda.failures["cudaEventRecord"] = cudaErrorInvalidResourceHandle;
    for (int round = 0; round < 3000; ++round) CHECK(driver->record(a_stream) == nullptr);
    CHECK(cuda.events.size() == 1024);
    driver->release(nullptr);
  }
  CHECK(cuda.events.size() == 1);  // the one that was not given back
  std::free(*cuda.events.begin());
  cuda.events.clear();
}

/// Last: CUDA does not come back.
TEST_CASE("once CUDA unloads, it is not called again") {
  cuda = stand_in{};
  auto driver = make_cuda_stream_driver(0);
  auto source = make_cuda_device_source(0, 65536);
  auto stream = make_cuda_stream(0);
  const event_handle event = driver->record(a_stream);
  void* const range = source->reserve(65536, 256);
  cuda.failures["cudaStreamGetId"] = cudaErrorCudartUnloading;
  CHECK(driver->identity(a_stream) == 0);
  const auto over = [&] {
    CHECK(driver->identity(a_stream) == 0);
    CHECK(driver->record(a_stream) == nullptr);
    CHECK_FALSE(driver->wait(a_stream, event));
    CHECK(driver->query(event) == event_status::failed);
    CHECK_FALSE(driver->synchronize(event));
    driver->release(event);
    source->release(range, 65536);
    driver.reset();
    source.reset();
    CHECK(make_cuda_stream_driver(0) == nullptr);
    stream.reset();
    CHECK(make_cuda_stream(0) == nullptr);
  };
  CHECK(calls_of(over).empty());
  CHECK(cuda.blocks.size() == 1);  // left to the system
  for (void* const block : cuda.blocks) std::free(block);
  for (void* const left : cuda.events) std::free(left);
  for (void* const left : cuda.streams) std::free(left);
}
