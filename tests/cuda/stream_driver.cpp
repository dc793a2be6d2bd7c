// The driver of CUDA streams: order of events, identity, default streams, captures, and what it leaves behind in CUDA.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <ostream>
#include <thread>
#include <vector>

#include "cuda/device.hpp"
#include "orderly/cuda.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

const stream_handle legacy = cudaStreamLegacy;
const stream_handle per_thread = cudaStreamPerThread;

std::shared_ptr<stream_driver> driver_of_first_device() {
  std::shared_ptr<stream_driver> driver = make_cuda_stream_driver(0);
  REQUIRE(driver != nullptr);
  return driver;
}

/// Is destroyed when CUDA must not be called any more.
std::shared_ptr<stream_driver> made_before_cuda;

/// A capture for the length of a scope, which must end in a good graph.
class capture_in {
 public:
  explicit capture_in(cudaStream_t stream, cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) : stream_(stream) {
    ORDERLY_CUDA(cudaStreamBeginCapture(stream_, mode));
  }
  capture_in(const capture_in&) = delete;
  capture_in& operator=(const capture_in&) = delete;
  ~capture_in() {
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream_, &graph) == cudaSuccess);
    CHECK(graph != nullptr);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }

 private:
  cudaStream_t stream_;
};

}  // namespace

TEST_CASE("there is no driver for a device that does not exist") {
  const untouched state;
  CHECK(make_cuda_stream_driver(-1) == nullptr);
  CHECK(make_cuda_stream_driver(1000) == nullptr);
}

TEST_CASE("an event is pending while the work before it runs, and complete after") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream stream;
  const shared_words words(1);
  const gate held;
  held.hold(stream.get(), words.at(0), 7);
  const event_handle event = driver->record(stream.get());
  REQUIRE(event != nullptr);
  for (int round = 0; round < 100; ++round) CHECK(driver->query(event) == event_status::pending);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  CHECK(words[0] == 0);
  held.open();
  CHECK(driver->synchronize(event));
  CHECK(words[0] == 7);
  CHECK(driver->query(event) == event_status::complete);
  driver->release(event);
}

TEST_CASE("an event of an idle stream is complete") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream stream;
  const event_handle event = driver->record(stream.get());
  REQUIRE(event != nullptr);
  CHECK(driver->synchronize(event));
  CHECK(driver->query(event) == event_status::complete);
  driver->release(event);
}

TEST_CASE("a stream that waits for an event sees what was written late before it") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream writer;
  const own_stream reader;
  const shared_words words(2);
  const gate held;
  held.hold(writer.get(), words.at(0), 7);
  const event_handle event = driver->record(writer.get());
  REQUIRE(event != nullptr);
  REQUIRE(driver->wait(reader.get(), event));
  driver->release(event);  // the wait stays, also when the event is recorded anew
  const event_handle again = driver->record(reader.get());
  ORDERLY_CUDA(copy_word(reader.get(), words.at(0), words.at(1)));
  const event_handle after = driver->record(reader.get());
  REQUIRE(after != nullptr);
  CHECK(driver->query(after) == event_status::pending);
  held.open();
  CHECK(driver->synchronize(after));
  CHECK(words[1] == 7);
  driver->release(again);
  driver->release(after);
}

TEST_CASE("an event outlives its stream") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const shared_words words(1);
  const gate held;
  event_handle event = nullptr;
  {
    const own_stream stream;
    held.hold(stream.get(), words.at(0), 7);
    event = driver->record(stream.get());
    REQUIRE(event != nullptr);
  }
  CHECK(driver->query(event) == event_status::pending);
  held.open();
  CHECK(driver->synchronize(event));
  CHECK(words[0] == 7);
  driver->release(event);
}

TEST_CASE("a stream keeps its identity, and no later stream has it, whatever its handle") {
  const untouched state;
  const auto driver = driver_of_first_device();
  std::vector<std::uint64_t> seen;
  int handles_used_again = 0;
  cudaStream_t last = nullptr;
  for (int round = 0; round < 50; ++round) {
    const own_stream stream;
    handles_used_again += stream.get() == last ? 1 : 0;
    last = stream.get();
    const std::uint64_t identity = driver->identity(stream.get());
    CHECK(identity != 0);
    CHECK(driver->identity(stream.get()) == identity);
    CHECK_FALSE(driver->is_per_thread(stream.get()));
    seen.push_back(identity);
  }
  for (const stream_handle handle : {legacy, per_thread}) seen.push_back(driver->identity(handle));
  std::sort(seen.begin(), seen.end());
  CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
  MESSAGE("handles used again: ", handles_used_again, " of 49");
}

TEST_CASE("default streams: null is the legacy one, the per-thread one is another in every thread") {
  const untouched state;
  const auto driver = driver_of_first_device();
  CHECK(driver->identity(nullptr) == driver->identity(legacy));
  CHECK(driver->identity(legacy) != 0);
  CHECK_FALSE(driver->is_per_thread(nullptr));
  CHECK_FALSE(driver->is_per_thread(legacy));
  CHECK(driver->is_per_thread(per_thread));

  const std::uint64_t here = driver->identity(per_thread);
  CHECK(here != 0);
  CHECK(driver->identity(per_thread) == here);
  std::uint64_t there = 0;
  std::uint64_t legacy_there = 0;
  std::thread other([&] {
    there = driver->identity(per_thread);
    legacy_there = driver->identity(nullptr);
  });
  other.join();
  CHECK(there != 0);
  CHECK(there != here);
  CHECK(legacy_there == driver->identity(legacy));

  for (const stream_handle stream : {stream_handle{nullptr}, legacy, per_thread}) {
    CHECK(driver->capture(stream) == 0);
    const event_handle event = driver->record(stream);
    REQUIRE(event != nullptr);
    CHECK(driver->wait(stream, event));
    CHECK(driver->synchronize(event));
    CHECK(driver->query(event) == event_status::complete);
    driver->release(event);
  }
}

TEST_CASE("the null stream is the legacy one in fact: it waits for blocking streams") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream blocking(cudaStreamDefault);
  const shared_words words(1);
  const gate held;
  held.hold(blocking.get(), words.at(0), 7);
  const event_handle event = driver->record(nullptr);
  REQUIRE(event != nullptr);
  CHECK(driver->query(event) == event_status::pending);
  held.open();
  CHECK(driver->synchronize(event));
  CHECK(words[0] == 7);
  driver->release(event);
}

TEST_CASE("a capture has a number of its own, and nothing is recorded or awaited in it") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream stream;
  const own_stream other;
  CHECK(driver->capture(stream.get()) == 0);
  const event_handle before = driver->record(other.get());
  REQUIRE(before != nullptr);
  std::uint64_t first = 0;
  {
    const capture_in graph(stream.get());
    first = driver->capture(stream.get());
    CHECK(first != 0);
    CHECK(first != UINT64_MAX);
    CHECK(driver->capture(stream.get()) == first);
    CHECK(driver->capture(other.get()) == 0);
    CHECK(driver->record(stream.get()) == nullptr);
    CHECK_FALSE(driver->wait(stream.get(), before));
    CHECK(driver->identity(stream.get()) == 0);  // nor does this question
    const event_handle elsewhere = driver->record(other.get());
    REQUIRE(elsewhere != nullptr);
    CHECK(driver->wait(other.get(), elsewhere));
    CHECK(driver->query(elsewhere) != event_status::failed);  // asking does not invalidate the capture
    CHECK(driver->synchronize(elsewhere));
    driver->release(elsewhere);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
  }
  CHECK(driver->capture(stream.get()) == 0);
  {
    const capture_in graph(stream.get(), cudaStreamCaptureModeRelaxed);
    CHECK(driver->capture(stream.get()) != 0);
    CHECK(driver->capture(stream.get()) != first);
  }
  CHECK(driver->synchronize(before));
  driver->release(before);
}

TEST_CASE("another thread's questions do not invalidate a capture") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream stream;
  const own_stream other;
  const capture_in graph(stream.get());
  findings found;
  run_threads(2, [&](std::size_t) {
    for (int round = 0; round < 200; ++round) {
      const event_handle event = driver->record(other.get());
      found.expect(event != nullptr, "record was refused");
      if (event == nullptr) return;
      found.expect(driver->query(event) != event_status::failed, "query failed");
      found.expect(driver->synchronize(event), "synchronize failed");
      driver->release(event);
    }
    found.expect(cudaGetLastError() == cudaSuccess, "an error was left behind");
  });
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("while a blocking stream captures, the legacy stream counts as capturing") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream blocking(cudaStreamDefault);
  {
    const capture_in graph(blocking.get());
    CHECK(driver->capture(nullptr) == UINT64_MAX);
    CHECK(driver->record(nullptr) == nullptr);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
  }
  CHECK(driver->capture(nullptr) == 0);
}

TEST_CASE("a capture that has failed counts as capturing until it is ended") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream stream;
  ORDERLY_CUDA(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal));
  CHECK(cudaStreamSynchronize(stream.get()) != cudaSuccess);
  static_cast<void>(cudaGetLastError());
  CHECK(driver->capture(stream.get()) == UINT64_MAX);
  CHECK(driver->record(stream.get()) == nullptr);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream.get(), &graph) != cudaSuccess);
  static_cast<void>(cudaGetLastError());
  CHECK(driver->capture(stream.get()) == 0);
}

TEST_CASE("an error that the program has not fetched yet is still there, as it was") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream stream;
  const shared_words words(1);
  const gate held;
  held.hold(stream.get(), words.at(0), 7);
  REQUIRE(cudaSetDevice(-1) != cudaSuccess);
  const cudaError_t unfetched = cudaPeekAtLastError();
  REQUIRE(unfetched != cudaSuccess);
  const event_handle event = driver->record(stream.get());
  REQUIRE(event != nullptr);
  CHECK(driver->query(event) == event_status::pending);
  CHECK(cudaPeekAtLastError() == unfetched);
  held.open();
  CHECK(driver->synchronize(event));
  driver->release(event);
  CHECK(cudaGetLastError() == unfetched);
}

TEST_CASE("calls of CUDA are counted") {
  const untouched state;
  const auto driver = driver_of_first_device();
  const own_stream stream;
  driver->release(driver->record(stream.get()));  // from here on an event lies ready
  const auto calls = [&](const char* what, auto&& operation) {
    const std::uint64_t before = cuda_calls();
    operation();
    const std::uint64_t count = cuda_calls() - before;
    std::printf("%-12s %u calls\n", what, static_cast<unsigned>(count));
    return count;
  };
  event_handle event = nullptr;
  CHECK(calls("identity", [&] { static_cast<void>(driver->identity(stream.get())); }) == 2);
  CHECK(calls("identity(0)", [&] { static_cast<void>(driver->identity(nullptr)); }) == 0);
  CHECK(calls("capture", [&] { static_cast<void>(driver->capture(stream.get())); }) == 1);
  CHECK(calls("record", [&] { event = driver->record(stream.get()); }) == 3);
  CHECK(calls("wait", [&] { static_cast<void>(driver->wait(stream.get(), event)); }) == 2);
  CHECK(calls("query", [&] { static_cast<void>(driver->query(event)); }) == 3);
  CHECK(calls("synchronize", [&] { static_cast<void>(driver->synchronize(event)); }) == 3);
  CHECK(calls("release", [&] { driver->release(event); }) == 0);
}

TEST_CASE("threads record, wait and ask at once; more events than are kept") {
  const untouched state;
  const auto driver = driver_of_first_device();
  findings found;
  run_threads(2, [&](std::size_t) {
    cudaStream_t streams[2] = {};
    for (cudaStream_t& stream : streams) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    std::vector<event_handle> events;
    for (int round = 0; round < 1000; ++round) {
      const event_handle event = driver->record(streams[round % 2]);
      found.expect(event != nullptr, "record was refused");
      found.expect(driver->wait(streams[(round + 1) % 2], event), "wait was refused");
      found.expect(driver->query(event) != event_status::failed, "query failed");
      events.push_back(event);
    }
    found.expect(driver->synchronize(events.back()), "synchronize failed");
    for (const event_handle event : events) driver->release(event);
    for (cudaStream_t stream : streams) cudaStreamDestroy(stream);
    found.expect(cudaGetLastError() == cudaSuccess, "an error was left behind");
  });
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("a driver of another device serves a thread whose device is the first") {
  int devices = 0;
  ORDERLY_CUDA(cudaGetDeviceCount(&devices));
  if (devices < 2) {
    MESSAGE("one device: not tested");
    return;
  }
  const untouched state;
  const auto first = driver_of_first_device();
  const std::shared_ptr<stream_driver> second = make_cuda_stream_driver(1);
  REQUIRE(second != nullptr);
  CHECK(first->identity(nullptr) != second->identity(nullptr));
  CHECK(first->identity(per_thread) != second->identity(per_thread));
  ORDERLY_CUDA(cudaSetDevice(1));
  const own_stream there;
  ORDERLY_CUDA(cudaSetDevice(0));
  const own_stream here;
  CHECK(first->record(there.get()) == nullptr);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  for (const stream_handle stream : {stream_handle{there.get()}, stream_handle{nullptr}, per_thread}) {
    const event_handle event = second->record(stream);
    REQUIRE(event != nullptr);
    CHECK(first->wait(here.get(), event));
    CHECK(second->synchronize(event));
    second->release(event);
  }
}

TEST_CASE("drivers that live until the process exits do no harm") {
  const untouched state;
  static std::shared_ptr<stream_driver> made_after_cuda;  // is destroyed while CUDA can be called
  made_after_cuda = driver_of_first_device();
  made_before_cuda = driver_of_first_device();
  const own_stream stream;
  for (const auto& driver : {made_after_cuda, made_before_cuda}) driver->release(driver->record(stream.get()));
}
