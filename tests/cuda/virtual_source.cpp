// Virtual memory of a device: the conformance suite of sources, and what is CUDA's own. Runs against the stand-in, where
// memory that is not mapped cannot be touched, and on a device.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "conformance/source.hpp"
#include "orderly/cuda.hpp"
#include "orderly/pool.hpp"
#ifdef ORDERLY_SOFTWARE_CUDA
#include "faults.hpp"
#include "orderly/stream_pool.hpp"
#include "software_cuda.hpp"
#else
#include "kernels.hpp"
#endif

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;
constexpr std::size_t most = 64 * mib;

#ifdef ORDERLY_SOFTWARE_CUDA
constexpr bool guarded = true;
#else
constexpr bool guarded = false;
#endif

}  // namespace

std::span<const source_kind> orderly::test::source_kinds() {
  static constexpr source_kind all[] = {
      {"device", [] { return make_cuda_virtual_source(0, {.bytes = most}); }, most, guarded},
      {"device, larger units", [] { return make_cuda_virtual_source(0, {.bytes = most, .unit = 4 * mib}); }, most, guarded},
  };
  return all;
}

#ifdef ORDERLY_SOFTWARE_CUDA

void orderly::test::fill(void* address, unsigned char value, std::size_t bytes) { std::memset(address, value, bytes); }
bool orderly::test::holds(const void* address, unsigned char value, std::size_t bytes) {
  const auto* const first = static_cast<const unsigned char*>(address);
  return *first == value && std::memcmp(first, first + 1, bytes - 1) == 0;
}

#else

void orderly::test::fill(void* address, unsigned char value, std::size_t bytes) {
  REQUIRE(cudaMemset(address, value, bytes) == cudaSuccess);
}
bool orderly::test::holds(const void* address, unsigned char value, std::size_t bytes) {
  std::vector<unsigned char> seen(bytes);
  REQUIRE(cudaMemcpy(seen.data(), address, bytes, cudaMemcpyDefault) == cudaSuccess);
  return std::all_of(seen.begin(), seen.end(), [=](unsigned char byte) { return byte == value; });
}

#endif

TEST_CASE("a capacity is what is asked for, or a part of the device's memory; the unit at least what the device wants") {
  std::size_t free = 0;
  std::size_t total = 0;
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  const auto whole = make_cuda_virtual_source(0);
  const auto half = make_cuda_virtual_source(0, {.fraction = 0.5});
  const auto odd = make_cuda_virtual_source(0, {.bytes = 5 * mib, .unit = 4 * mib});
  REQUIRE(whole != nullptr);
  REQUIRE(half != nullptr);
  REQUIRE(odd != nullptr);
  const std::size_t unit = whole->granularity();
  CHECK(unit >= 2 * mib);
  CHECK(whole->is_virtual());
  CHECK_FALSE(whole->is_host_memory());
  CHECK(whole->capacity() == total / unit * unit);
  CHECK(half->capacity() == total / 2 / unit * unit);
  CHECK(odd->granularity() == 4 * mib);
  CHECK(odd->capacity() == 8 * mib);
  CHECK(make_cuda_virtual_source(0, {.unit = 1})->granularity() == unit);
}

TEST_CASE("what cannot be had is refused") {
  CHECK(make_cuda_virtual_source(-1) == nullptr);
  CHECK(make_cuda_virtual_source(1000) == nullptr);
  CHECK(make_cuda_virtual_source(0, {.unit = 3 * mib}) == nullptr);
  for (const double fraction : {0.0, -1.0, 1.01, std::numeric_limits<double>::quiet_NaN()})
    CHECK(make_cuda_virtual_source(0, {.fraction = fraction}) == nullptr);
  CHECK(make_cuda_virtual_source(0, {.bytes = most, .peers = {1000}}) == nullptr);
  CHECK(make_cuda_virtual_source(0, {.bytes = most, .peers = {0}}) != nullptr);  // itself

  const auto source = make_cuda_virtual_source(0, {.bytes = most});
  void* const range = source->reserve(most, source->granularity());
  REQUIRE(range != nullptr);
  CHECK(source->reserve(most, source->granularity()) == nullptr);  // one at a time
  source->release(range, most);
  CHECK(source->reserve(most + 1, source->granularity()) == nullptr);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
}

TEST_CASE("a pool may be larger than the device: what is not there is refused, and all else goes on") {
  std::size_t free = 0;
  std::size_t total = 0;
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  pool tested(make_cuda_virtual_source(0, {.bytes = 2 * total}));
  void* const block = tested.try_allocate(4 * mib);
  REQUIRE(block != nullptr);
  CHECK(tested.try_allocate(total + mib) == nullptr);
  try {
    static_cast<void>(tested.allocate(total + mib));
    FAIL("the device has no more than its total");
  } catch (const out_of_memory& refused) {
    const memory_report& r = refused.report();
    CHECK(r.tried.by_source);
    CHECK(std::string(r.tried.source_error).starts_with("cuMemCreate: "));
    REQUIRE(r.find(memory_report::remedy::elsewhere) != nullptr);
    CHECK(r.find(memory_report::remedy::elsewhere)->bytes == r.limit - r.committed);
  }
  CHECK(conformance::usable(block, 4 * mib));
  void* const another = tested.try_allocate(4 * mib);
  CHECK(another != nullptr);
  tested.deallocate(block);
  tested.deallocate(another);
  check_idle(tested);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
}

#ifdef ORDERLY_SOFTWARE_CUDA

namespace {

/// At the end nothing is left over, and every call was one that a capture survives.
struct fresh_cuda {
  fresh_cuda() { restart_software_cuda(software_schedule::eager); }
  fresh_cuda(const fresh_cuda&) = delete;
  fresh_cuda& operator=(const fresh_cuda&) = delete;
  ~fresh_cuda() {
    for (const cuda_thing kind : {cuda_thing::mapping, cuda_thing::piece, cuda_thing::range}) {
      CAPTURE(to_string(kind));
      CHECK(things_left(kind) == 0);
    }
    CHECK(capture_mode() == cudaStreamCaptureModeGlobal);
    CHECK_FALSE(stand_in.unsafe_call);
  }
};

/// How often a function is called meanwhile.
template <class Operation>
std::size_t calls_of(std::string_view function, const Operation& operation) {
  stand_in.calls.clear();
  stand_in.logs = true;
  operation();
  stand_in.logs = false;
  return static_cast<std::size_t>(std::count(stand_in.calls.begin(), stand_in.calls.end(), function));
}

}  // namespace

TEST_CASE("memory is made on its device; peers reach it; it can be shared in the forms that there are") {
  const fresh_cuda fresh;
  const auto source = make_cuda_virtual_source(1, {.bytes = most, .sharing = cuda_sharing::file_descriptor, .peers = {0}});
  REQUIRE(source != nullptr);
  {
    const conformance::range whole(*source, most, 2 * mib);
    CHECK(device_of(whole.at(0)) == -1);
    REQUIRE(source->commit(whole.at(0), 2 * mib));
    CHECK(device_of(whole.at(0)) == 1);
  }
  CHECK(make_cuda_virtual_source(0, {.bytes = most, .sharing = cuda_sharing::fabric}) == nullptr);
  CHECK(cuda_failure().find("cuMemCreate") != std::string::npos);
  stand_in.peers = false;
  CHECK(make_cuda_virtual_source(1, {.bytes = most, .peers = {0}}) == nullptr);
  stand_in.driver_functions = false;
  CHECK(make_cuda_virtual_source(0) == nullptr);
}

TEST_CASE("calls are as many as the pieces that come and go, and none while the pool has what is asked for") {
  const fresh_cuda fresh;
  pool tested(make_cuda_virtual_source(0, {.bytes = 256 * mib}));
  void* block = nullptr;
  CHECK(calls_of("cuMemCreate", [&] { block = tested.try_allocate(mib); }) == 1);
  std::uint64_t before = 0;
  for (std::size_t round = 0; round < 1000; ++round) {
    tested.deallocate(block);
    block = tested.try_allocate(mib + round % 2 * mib / 4);
    if (round == 2) before = cuda_calls();
  }
  CHECK(cuda_calls() == before);
  tested.deallocate(block);
  CHECK(calls_of("cuMemUnmap", [&] { tested.trim(); }) == 1);
  // 16 units are a root, each a piece, for each may be needed on its own; 64 of a slot are few.
  CHECK(calls_of("cuMemCreate", [&] { block = tested.try_allocate(32 * mib); }) == 16);
  tested.deallocate(block);
  tested.trim();
  CHECK(calls_of("cuMemCreate", [&] { block = tested.try_allocate(128 * mib); }) <= 4);
  tested.deallocate(block);
  CHECK(calls_of("cuMemUnmap", [&] { tested.trim(); }) == 1);
}

TEST_CASE("a piece is as large as the pool's chunk, or as a large block, wherever that lies") {
  for (const std::size_t chunk : {2 * mib, 8 * mib, 32 * mib}) {
    CAPTURE(chunk);
    const fresh_cuda fresh;
    pool tested(make_cuda_virtual_source(0, {.bytes = 256 * mib}), {.chunk = chunk});
    void* block = nullptr;
    CHECK(calls_of("cuMemCreate", [&] { block = tested.try_allocate(chunk); }) == 1);
    CHECK(conformance::usable(block, chunk));
    tested.deallocate(block);
    CHECK(calls_of("cuMemUnmap", [&] { tested.trim(); }) == 1);
    CHECK(calls_of("cuMemCreate", [&] { block = tested.try_allocate(4 * chunk); }) == 4);
    tested.deallocate(block);
  }
  for (const std::size_t capacity : {250 * mib, 252 * mib, 254 * mib, 256 * mib}) {
    CAPTURE(capacity);
    const fresh_cuda fresh;
    pool tested(make_cuda_virtual_source(0, {.bytes = capacity}));
    for (const std::size_t bytes : {64 * mib, 128 * mib}) {
      void* block = nullptr;
      CHECK(calls_of("cuMemCreate", [&] { block = tested.try_allocate(bytes); }) == 1);
      tested.deallocate(block);
      tested.trim();
    }
  }
}

TEST_CASE("what is kept goes all the same where else a request would be refused") {
  const fresh_cuda fresh;
  pool tested(make_cuda_virtual_source(0, {.bytes = 100 * mib}));
  CHECK(tested.reserve(100 * mib) == 100 * mib);
  void* block = tested.try_allocate(64 * mib);  // one piece, which cannot be cut
  tested.deallocate(block);
  std::vector<void*> blocks;
  while ((block = tested.try_allocate(2 * mib)) != nullptr) blocks.push_back(block);
  CHECK(blocks.size() == 50);
  for (void* const each : blocks) tested.deallocate(each);
}

TEST_CASE("where a commit could neither be finished nor undone, the next one there begins anew") {
  const fresh_cuda fresh;
  const auto source = make_cuda_virtual_source(0, {.bytes = most});
  const conformance::range whole(*source, most, 2 * mib);
  for (const bool together : {false, true}) {
    const auto commit = [&] {
      return together ? source->commit_together(whole.at(0), 14 * mib) : source->commit(whole.at(0), 14 * mib);
    };
    stand_in.failures["cuMemSetAccess"] = cudaErrorUnknown;
    stand_in.failures["cuMemUnmap"] = cudaErrorUnknown;
    CHECK_FALSE(commit());
    CHECK_FALSE(commit());
    stand_in.failures = {{"cuMemCreate", cudaErrorMemoryAllocation}};
    CHECK_FALSE(commit());
    CHECK(things_left(cuda_thing::piece) == 0);
    stand_in.failures.clear();
    CHECK(source->commit(whole.at(16 * mib), 2 * mib));  // beside it
    REQUIRE(commit());
    CHECK(conformance::usable(whole.at(0), 14 * mib));
    CHECK_FALSE(source->decommit(whole.at(0), 18 * mib));  // a part of that is not committed
    REQUIRE(source->decommit(whole.at(0), 14 * mib));
    REQUIRE(source->decommit(whole.at(16 * mib), 2 * mib));
    CHECK(things_left(cuda_thing::piece) == 0);
  }
}

TEST_CASE("each call fails once, and nothing is lost, and the next attempt succeeds") {
  for (const char* const function : {"cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease",
                                     "cuMemAddressReserve", "cuMemAddressFree", "cudaSetDevice"}) {
    CAPTURE(function);
    const fresh_cuda fresh;
    {
      const auto source = make_cuda_virtual_source(1, {.bytes = most});
      stand_in.failures[function] = cudaErrorUnknown;
      void* range = source->reserve(most, 2 * mib);
      stand_in.failures.clear();
      if (range == nullptr) range = source->reserve(most, 2 * mib);
      REQUIRE(range != nullptr);
      auto* const start = static_cast<unsigned char*>(range);
      for (const bool together : {false, true}) {
        stand_in.failures[function] = cudaErrorUnknown;
        const bool had = together ? source->commit_together(start, 14 * mib) : source->commit(start, 14 * mib);
        stand_in.failures.clear();
        if (!had) {
          CHECK(things_left(cuda_thing::piece) == 0);
          REQUIRE(source->commit(start, 14 * mib));
        }
        CHECK(conformance::usable(start, 14 * mib));
        stand_in.failures[function] = cudaErrorUnknown;
        const bool gone = source->decommit(start, 14 * mib);
        stand_in.failures.clear();
        if (!gone) {
          CHECK(holds(start, 0xa5, 14 * mib));
          REQUIRE(source->decommit(start, 14 * mib));
        }
        CHECK(things_left(cuda_thing::piece) == 0);
        CHECK(things_left(cuda_thing::mapping) == 0);
      }
      REQUIRE(source->commit_together(start + 2 * mib, 8 * mib));
      source->release(range, most);
    }
  }
}

TEST_CASE("a pool of streams unmaps nothing that a stream has not passed") {
  const fresh_cuda fresh;
  restart_software_cuda(software_schedule::random, 1);
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  {
    stream_options settings;
    settings.wait_before_refusing = true;  // memory moves, and 64 MiB are soon used up
    stream_pool tested(make_cuda_virtual_source(0, {.bytes = most}), make_cuda_stream_driver(0), settings);
    for (int round = 0; round < 200; ++round) {
      const std::size_t bytes = (1 + static_cast<std::size_t>(round) % 20) * 2 * mib;
      void* const block = tested.try_allocate(bytes, stream);
      REQUIRE(block != nullptr);
      // Comes late: what is unmapped by then, it would be killed for.
      REQUIRE(cudaMemsetAsync(block, round, bytes, stream) == cudaSuccess);
      REQUIRE(tested.try_deallocate(block, bytes, stream) == error::none);
      if (round % 3 == 0) tested.trim();
    }
    REQUIRE(tested.synchronize());
    tested.trim();
    CHECK(tested.stats().memory.committed == 0);
  }
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

#else

namespace {

/// A function of the driver's, which nothing here is linked with.
template <class Function>
Function* driver(const char* name) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  REQUIRE(library != nullptr);
  return reinterpret_cast<Function*>(dlsym(library, name));
}
#define ORDERLY_DRIVER(name) driver<decltype(::name)>(#name)

/// Memory of others at an address of our own.
class imported {
 public:
  imported(int descriptor, std::size_t bytes, int device) : bytes_(bytes) {
    void* const named = reinterpret_cast<void*>(static_cast<std::intptr_t>(descriptor));
    CUmemGenericAllocationHandle handle{};
    REQUIRE(ORDERLY_DRIVER(cuMemImportFromShareableHandle)(&handle, named, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) ==
            CUDA_SUCCESS);
    REQUIRE(ORDERLY_DRIVER(cuMemAddressReserve)(&address_, bytes, 0, 0, 0) == CUDA_SUCCESS);
    REQUIRE(ORDERLY_DRIVER(cuMemMap)(address_, bytes, 0, handle, 0) == CUDA_SUCCESS);
    REQUIRE(ORDERLY_DRIVER(cuMemRelease)(handle) == CUDA_SUCCESS);
    CUmemAccessDesc access{};
    access.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    REQUIRE(ORDERLY_DRIVER(cuMemSetAccess)(address_, bytes, &access, 1) == CUDA_SUCCESS);
  }
  imported(const imported&) = delete;
  imported& operator=(const imported&) = delete;
  ~imported() {
    ORDERLY_DRIVER(cuMemUnmap)(address_, bytes_);
    ORDERLY_DRIVER(cuMemAddressFree)(address_, bytes_);
  }
  [[nodiscard]] void* at() const { return reinterpret_cast<void*>(address_); }

 private:
  CUdeviceptr address_ = 0;
  std::size_t bytes_;
};

}  // namespace

TEST_CASE("a block's memory can be handed to others by a file descriptor, and outlives the pool there") {
  std::optional<pool> owner(std::in_place, make_cuda_virtual_source(0, {.bytes = most,
                                                                        .sharing = cuda_sharing::file_descriptor}));
  void* const block = owner->try_allocate(2 * mib);
  REQUIRE(block != nullptr);
  fill(block, 7, 2 * mib);
  CUmemGenericAllocationHandle handle{};
  REQUIRE(ORDERLY_DRIVER(cuMemRetainAllocationHandle)(&handle, block) == CUDA_SUCCESS);
  int descriptor = -1;
  REQUIRE(ORDERLY_DRIVER(cuMemExportToShareableHandle)(&descriptor, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                                       0) == CUDA_SUCCESS);
  REQUIRE(ORDERLY_DRIVER(cuMemRelease)(handle) == CUDA_SUCCESS);
  const imported seen(descriptor, 2 * mib, 0);
  close(descriptor);
  CHECK(holds(seen.at(), 7, 2 * mib));
  fill(seen.at(), 8, 2 * mib);
  CHECK(holds(block, 8, 2 * mib));
  owner->deallocate(block);
  owner.reset();
  CHECK(holds(seen.at(), 8, 2 * mib));
}

TEST_CASE("another device that is named as a peer uses the memory as it lies") {
  int devices = 0;
  int reaches = 0;
  REQUIRE(cudaGetDeviceCount(&devices) == cudaSuccess);
  if (devices > 1) REQUIRE(cudaDeviceCanAccessPeer(&reaches, 1, 0) == cudaSuccess);
  if (reaches == 0) {
    MESSAGE("not run: no two devices that reach each other");
    return;
  }
  pool tested(make_cuda_virtual_source(0, {.bytes = most, .peers = {1}}));
  void* const block = tested.try_allocate(4 * mib);
  REQUIRE(block != nullptr);
  fill(block, 1, 4 * mib);
  auto* const words = static_cast<unsigned*>(block);
  unsigned* const last = words + 4 * mib / sizeof(unsigned) - 1;
  fill(last, 2, sizeof(unsigned));
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  CHECK(copy_word(nullptr, last, words) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  CHECK(holds(words, 2, sizeof(unsigned)));
  tested.deallocate(block);
  check_idle(tested);
}

#endif
