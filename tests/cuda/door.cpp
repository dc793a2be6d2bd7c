// What orderly leaves behind in CUDA, against the stand-in of software_cuda.cpp, which fails where a test wants it to.
// Needs no device, and shows what one cannot: errors of every kind, other devices, captures that start at the worst
// moment.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "faults.hpp"
#include "orderly/cuda.hpp"
#include "software_cuda.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

const stream_handle legacy = cudaStreamLegacy;
const stream_handle per_thread = cudaStreamPerThread;

/// A stand-in as at the start, and a stream of it; at the end of the test nothing is left over, and every call was one
/// that a capture survives.
struct fresh_cuda {
  fresh_cuda() {
    restart_software_cuda(software_schedule::eager);
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  }
  fresh_cuda(const fresh_cuda&) = delete;
  fresh_cuda& operator=(const fresh_cuda&) = delete;
  ~fresh_cuda() {
    stand_in.failures.clear();
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
    for (const cuda_thing kind : {cuda_thing::block, cuda_thing::event, cuda_thing::graph_object, cuda_thing::stream}) {
      CAPTURE(to_string(kind));
      CHECK(things_left(kind) == 0);
    }
    int device = -1;
    CHECK(cudaGetDevice(&device) == cudaSuccess);
    CHECK(device == 0);
    CHECK(capture_mode() == cudaStreamCaptureModeGlobal);
    CHECK_FALSE(stand_in.unsafe_call);
  }

  cudaStream_t stream = nullptr;
};

int device_now() {
  int device = -1;
  CHECK(cudaGetDevice(&device) == cudaSuccess);
  return device;
}

using names = std::vector<std::string>;

/// The calls that an operation makes.
template <class Operation>
names calls_of(const Operation& operation) {
  stand_in.calls.clear();
  stand_in.logs = true;
  const std::uint64_t before = cuda_calls();
  operation();
  stand_in.logs = false;
  CHECK(cuda_calls() - before == stand_in.calls.size());
  return stand_in.calls;
}

}  // namespace

TEST_CASE("without a device there are no sources and no drivers, and no error is left behind") {
  const fresh_cuda fresh;
  for (const cudaError_t reason : {cudaSuccess, cudaErrorNoDevice, cudaErrorInsufficientDriver}) {
    stand_in.devices = 0;
    stand_in.failures["cudaGetDeviceCount"] = reason;
    CHECK(make_cuda_device_source(0) == nullptr);
    CHECK(make_cuda_pinned_source(4096) == nullptr);
    CHECK(make_cuda_managed_source(0, 4096) == nullptr);
    CHECK(make_cuda_stream_driver(0) == nullptr);
    CHECK(make_cuda_stream(0) == nullptr);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
  }
}

TEST_CASE("a stream is made on its device, and destroyed there with its last owner") {
  const fresh_cuda fresh;
  {
    const std::shared_ptr<void> stream = make_cuda_stream(1);
    CHECK(things_left(cuda_thing::stream) == 2);
    CHECK(device_of(stream.get()) == 1);
    CHECK(device_now() == 0);
  }
  CHECK(things_left(cuda_thing::stream) == 1);
  stand_in.failures["cudaStreamCreateWithFlags"] = cudaErrorMemoryAllocation;
  CHECK(make_cuda_stream(0) == nullptr);
  stand_in.failures.clear();
  stand_in.failures["cudaSetDevice"] = cudaErrorDevicesUnavailable;
  CHECK(make_cuda_stream(1) == nullptr);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
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
      CHECK(things_left(cuda_thing::block) == 1);
      CHECK(device_of(range) == (source == kinds[2] ? 0 : 1));
      CHECK(source->reserve(256, 256) == nullptr);
      source->release(range, bytes);
      CHECK(things_left(cuda_thing::block) == 0);
    }
    const std::size_t plenty = std::exchange(stand_in.memory, bytes - 1);
    CHECK(source->reserve(bytes, 256) == nullptr);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    stand_in.memory = bytes;  // not enough to align by hand
    if (void* const range = source->reserve(bytes, std::size_t{1} << 40)) source->release(range, bytes);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    CHECK(source->reserve(bytes, SIZE_MAX / 2 + 1) == nullptr);
    stand_in.memory = plenty;
  }
  stand_in.memory = (std::size_t{1} << 30) + 12345;
  CHECK(make_cuda_device_source(1)->capacity() == std::size_t{960} << 20);
}

TEST_CASE("the calls of each operation") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(0);
  event_handle event = driver->record(fresh.stream);
  driver->release(event);
  const names exchange_around_query = {"cuThreadExchangeStreamCaptureMode", "cuEventQuery",
                                       "cuThreadExchangeStreamCaptureMode"};
  CHECK(calls_of([&] { CHECK(driver->identity(fresh.stream) % 4 == 1); }) ==
        names{"cudaStreamGetCaptureInfo", "cudaStreamGetId"});
  CHECK(calls_of([&] { CHECK(driver->identity(nullptr) != 0); }).empty());
  CHECK(calls_of([&] { CHECK(driver->capture(fresh.stream) == 0); }) == names{"cudaStreamGetCaptureInfo"});
  CHECK(calls_of([&] { event = driver->record(fresh.stream); }) ==
        names{"cudaStreamGetCaptureInfo", "cudaEventRecord", "cudaStreamGetCaptureInfo"});
  CHECK(calls_of([&] { CHECK(driver->wait(fresh.stream, event)); }) ==
        names{"cudaStreamGetCaptureInfo", "cudaStreamWaitEvent"});
  CHECK(calls_of([&] { CHECK(driver->query(event) == event_status::complete); }) == exchange_around_query);
  CHECK(calls_of([&] { driver->release(event); }).empty());
  const int sent = 7;
  int arrived = 0;
  CHECK(calls_of([&] { CHECK(driver->copy(fresh.stream, &arrived, &sent, sizeof sent)); }) ==
        names{"cudaGetDevice", "cudaStreamGetCaptureInfo", "cudaPointerGetAttributes", "cudaMemcpyAsync"});
  CHECK(arrived == 7);
}

TEST_CASE("events are made on the driver's device; default streams are that device's; the caller's device comes back") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(1);
  for (const stream_handle stream : {stream_handle{fresh.stream}, stream_handle{nullptr}, legacy, per_thread}) {
    const event_handle event = driver->record(stream);
    REQUIRE(event != nullptr);
    CHECK(device_now() == 0);
    CHECK(device_of(event) == 1);
    driver->release(event);
  }
  const names guarded = {"cudaGetDevice", "cudaSetDevice", "cudaStreamGetCaptureInfo", "cudaSetDevice"};
  CHECK(calls_of([&] { CHECK(driver->capture(nullptr) == 0); }) == guarded);
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  const names right_already = {"cudaGetDevice", "cudaStreamGetCaptureInfo"};
  CHECK(calls_of([&] { CHECK(driver->capture(nullptr) == 0); }) == right_already);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  stand_in.failures["cudaSetDevice"] = cudaErrorDevicesUnavailable;
  CHECK(driver->record(nullptr) == nullptr);
  CHECK(driver->capture(nullptr) == UINT64_MAX);
  CHECK_FALSE(driver->wait(nullptr, nullptr));
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  stand_in.failures.clear();
}

TEST_CASE("a failure of orderly's own is cleared, an earlier error stays, and the device's errors are left to see") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(0);
  stand_in.failures["cudaEventRecord"] = cudaErrorInvalidResourceHandle;
  CHECK(driver->record(fresh.stream) == nullptr);
  CHECK(cudaPeekAtLastError() == cudaSuccess);

  set_last_error(cudaErrorLaunchOutOfResources);  // not fetched yet
  CHECK(driver->record(fresh.stream) == nullptr);
  CHECK(cudaPeekAtLastError() != cudaSuccess);
  stand_in.failures.clear();
  set_last_error(cudaErrorLaunchOutOfResources);
  const event_handle event = driver->record(fresh.stream);
  stand_in.failures["cuEventQuery"] = cudaErrorNotReady;
  CHECK(driver->query(event) == event_status::pending);
  CHECK(cudaPeekAtLastError() == cudaErrorLaunchOutOfResources);

  set_last_error(cudaSuccess);
  stand_in.failures["cudaMemcpyAsync"] = cudaErrorInvalidValue;
  char copied = 0;
  CHECK_FALSE(driver->copy(fresh.stream, &copied, "7", 1));
  stand_in.failures["cudaPointerGetAttributes"] = cudaErrorInvalidValue;
  CHECK_FALSE(driver->copy(fresh.stream, &copied, "7", 1));
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  stand_in.failures["cudaStreamWaitEvent"] = cudaErrorIllegalAddress;
  CHECK_FALSE(driver->wait(fresh.stream, event));
  CHECK(cudaPeekAtLastError() == cudaErrorIllegalAddress);
  stand_in.failures["cuEventQuery"] = stand_in.failures["cuEventSynchronize"] = cudaErrorIllegalAddress;
  CHECK(driver->query(event) == event_status::failed);
  CHECK_FALSE(driver->synchronize(event));
  driver->release(event);
}

TEST_CASE("a graph tells when it is gone; where it cannot be asked to, nothing is told") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(1);
  int told = 0;
  const auto tell = [](void* context) { ++*static_cast<int*>(context); };
  CHECK_FALSE(driver->when_graph_is_gone(fresh.stream, tell, &told));  // it does not capture
  REQUIRE(cudaStreamBeginCapture(fresh.stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(calls_of([&] { CHECK(driver->when_graph_is_gone(fresh.stream, tell, &told)); }) ==
        names{"cudaStreamGetCaptureInfo", "cudaUserObjectCreate", "cudaGraphRetainUserObject"});
  CHECK(told == 0);
  for (const char* const function : {"cudaStreamGetCaptureInfo", "cudaUserObjectCreate", "cudaGraphRetainUserObject"}) {
    CAPTURE(function);
    stand_in.failures = {{function, cudaErrorInvalidValue}};
    CHECK_FALSE(driver->when_graph_is_gone(fresh.stream, tell, &told));
    CHECK(cudaPeekAtLastError() == cudaSuccess);
  }
  stand_in.failures.clear();
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(fresh.stream, &graph) == cudaSuccess);
  CHECK(told == 0);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(told == 1);
  stand_in.capture = cudaStreamCaptureStatusInvalidated;
  CHECK_FALSE(driver->when_graph_is_gone(fresh.stream, tell, &told));
  CHECK(told == 1);
}

TEST_CASE("a device as a whole is waited for on that device, and outside of captures") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(1);
  CHECK(driver->synchronize_all());
  stand_in.failures["cudaDeviceSynchronize"] = cudaErrorIllegalAddress;
  CHECK_FALSE(driver->synchronize_all());
  CHECK(cudaPeekAtLastError() == cudaErrorIllegalAddress);  // the program's to see
  set_last_error(cudaSuccess);
}

TEST_CASE("without the driver's functions, or where they want a context, the runtime's serve") {
  for (const bool has_functions : {false, true}) {
    CAPTURE(has_functions);
    const fresh_cuda fresh;
    stand_in.driver_functions = has_functions;
    stand_in.failures = {{"cuEventQuery", cudaErrorDeviceUninitialized}, {"cuEventSynchronize", cudaErrorDeviceUninitialized}};
    const auto driver = make_cuda_stream_driver(1);
    const event_handle event = driver->record(fresh.stream);
    stand_in.failures["cudaEventQuery"] = cudaErrorNotReady;
    CHECK(driver->query(event) == event_status::pending);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    stand_in.failures["cudaEventQuery"] = cudaErrorCapturedEvent;
    CHECK(driver->query(event) == event_status::failed);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    stand_in.failures.clear();
    CHECK(driver->query(event) == event_status::complete);
    CHECK(driver->synchronize(event));
    driver->release(event);
  }
}

TEST_CASE("captures: numbers are never 0, nothing is recorded or awaited, and what cannot be told counts as one") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(0);
  const event_handle event = driver->record(fresh.stream);
  stand_in.capture = cudaStreamCaptureStatusActive;
  CHECK(driver->capture(fresh.stream) == 1);
  CHECK(driver->record(fresh.stream) == nullptr);
  CHECK_FALSE(driver->wait(fresh.stream, event));
  stand_in.capture = cudaStreamCaptureStatusInvalidated;
  CHECK(driver->capture(fresh.stream) == UINT64_MAX);
  CHECK(driver->record(fresh.stream) == nullptr);
  stand_in.capture = cudaStreamCaptureStatusNone;
  stand_in.failures["cudaStreamGetCaptureInfo"] = cudaErrorStreamCaptureImplicit;
  CHECK(driver->capture(nullptr) == UINT64_MAX);
  CHECK(driver->record(nullptr) == nullptr);
  CHECK_FALSE(driver->wait(nullptr, event));
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  stand_in.failures.clear();

  stand_in.capture_begins_after = 1;  // between the question and the record
  CHECK(driver->record(fresh.stream) == nullptr);
  CHECK(things_left(cuda_thing::event) == 1);  // that event is not used again
  stand_in.capture = cudaStreamCaptureStatusNone;
  driver->release(event);
}

TEST_CASE("events are used again, and a bounded number is kept") {
  const fresh_cuda fresh;
  const auto driver = make_cuda_stream_driver(0);
  std::vector<event_handle> events;
  for (int round = 0; round < 1500; ++round) events.push_back(driver->record(fresh.stream));
  for (const event_handle event : events) driver->release(event);
  CHECK(things_left(cuda_thing::event) == 1024);
  event_handle const again = driver->record(fresh.stream);
  CHECK(device_of(again) == 0);
  CHECK(things_left(cuda_thing::event) == 1024);
  stand_in.failures["cudaEventRecord"] = cudaErrorInvalidResourceHandle;
  for (int round = 0; round < 3000; ++round) CHECK(driver->record(fresh.stream) == nullptr);
  CHECK(things_left(cuda_thing::event) == 1024);
  driver->release(nullptr);
  driver->release(again);
}

/// Last: CUDA does not come back.
TEST_CASE("once CUDA unloads, it is not called again") {
  restart_software_cuda();
  cudaStream_t plain = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&plain, cudaStreamNonBlocking) == cudaSuccess);
  auto driver = make_cuda_stream_driver(0);
  auto source = make_cuda_device_source(0, 65536);
  auto stream = make_cuda_stream(0);
  const event_handle event = driver->record(plain);
  void* const range = source->reserve(65536, 256);
  stand_in.failures["cudaStreamGetId"] = cudaErrorCudartUnloading;
  CHECK(driver->identity(plain) == 0);
  stand_in.failures.clear();
  const auto over = [&] {
    CHECK(driver->identity(plain) == 0);
    CHECK(driver->record(plain) == nullptr);
    CHECK_FALSE(driver->wait(plain, event));
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
  CHECK(things_left(cuda_thing::block) == 1);  // left to the system
  CHECK(cudaFree(range) == cudaSuccess);
  CHECK(cudaEventDestroy(static_cast<cudaEvent_t>(event)) == cudaSuccess);
  CHECK(cudaStreamDestroy(plain) == cudaSuccess);
}
