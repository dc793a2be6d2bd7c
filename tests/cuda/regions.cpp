// What compute-sanitizer is told of a pool's blocks, by a tool of the test's own and against the stand-in of
// software_cuda.cpp. sanitizer.cu asks the real tool, on a device.
#define NVTX_NO_IMPL
#include <nvtx3/nvToolsExtMem.h>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "faults.hpp"
#include "orderly/cuda.hpp"
#include "orderly/stream_pool.hpp"
#include "software_cuda.hpp"
#include "support/random.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

using ranges = std::map<const std::byte*, std::size_t>;

/// A tool that believes nothing.
struct watching_tool {
  const std::byte* heap = nullptr;
  std::size_t heap_bytes = 0;
  ranges regions;
  int heaps = 0;
  int calls = 0;
  std::function<void()> on_withdrawal;
};
watching_tool tool;

nvtxMemHeapHandle_t register_heap(nvtxDomainHandle_t, const nvtxMemHeapDesc_t* heap) {
  ++tool.calls;
  ++tool.heaps;
  CHECK(tool.heap == nullptr);
  CHECK(heap->extCompatID == NVTX_EXT_COMPATID_MEM);
  CHECK(heap->structSize == sizeof *heap);
  CHECK(heap->usage == NVTX_MEM_HEAP_USAGE_TYPE_SUB_ALLOCATOR);
  CHECK(heap->type == NVTX_MEM_TYPE_VIRTUAL_ADDRESS);
  CHECK(heap->typeSpecificDescSize == sizeof(nvtxMemVirtualRangeDesc_t));
  const auto* const range = static_cast<const nvtxMemVirtualRangeDesc_t*>(heap->typeSpecificDesc);
  tool.heap = static_cast<const std::byte*>(range->ptr);
  tool.heap_bytes = range->size;
  return reinterpret_cast<nvtxMemHeapHandle_t>(std::uintptr_t{4096});
}

void unregister_heap(nvtxDomainHandle_t, nvtxMemHeapHandle_t heap) {
  ++tool.calls;
  CHECK(heap == reinterpret_cast<nvtxMemHeapHandle_t>(std::uintptr_t{4096}));
  CHECK(device_of(const_cast<std::byte*>(tool.heap)) >= 0);  // the memory is there yet
  tool.heap = nullptr;
  tool.regions.clear();
}

void register_regions(nvtxDomainHandle_t, const nvtxMemRegionsRegisterBatch_t* batch) {
  ++tool.calls;
  CHECK(batch->extCompatID == NVTX_EXT_COMPATID_MEM);
  CHECK(batch->structSize == sizeof *batch);
  CHECK(batch->regionType == NVTX_MEM_TYPE_VIRTUAL_ADDRESS);
  CHECK(batch->heap == reinterpret_cast<nvtxMemHeapHandle_t>(std::uintptr_t{4096}));
  REQUIRE(batch->regionCount == 1);
  CHECK(batch->regionDescElementSize == sizeof(nvtxMemVirtualRangeDesc_t));
  const auto* const range = static_cast<const nvtxMemVirtualRangeDesc_t*>(batch->regionDescElements);
  const auto* const start = static_cast<const std::byte*>(range->ptr);
  CHECK(start >= tool.heap);
  CHECK(start + range->size <= tool.heap + tool.heap_bytes);
  const auto after = tool.regions.lower_bound(start);
  CHECK((after == tool.regions.end() || start + range->size <= after->first));
  CHECK((after == tool.regions.begin() || std::prev(after)->first + std::prev(after)->second <= start));
  tool.regions[start] = range->size;
}

void unregister_regions(nvtxDomainHandle_t, const nvtxMemRegionsUnregisterBatch_t* batch) {
  ++tool.calls;
  CHECK(batch->extCompatID == NVTX_EXT_COMPATID_MEM);
  CHECK(batch->structSize == sizeof *batch);
  CHECK(batch->refType == NVTX_MEM_REGION_REF_TYPE_POINTER);
  CHECK(batch->refElementSize == sizeof(nvtxMemRegionRef_t));
  REQUIRE(batch->refCount == 1);
  CHECK(tool.regions.erase(static_cast<const std::byte*>(batch->refElements->pointer)) == 1);
  if (tool.on_withdrawal) tool.on_withdrawal();
}

int attach(nvtxExtModuleInfo_t* module) {
  if (module->moduleId != NVTX_EXT_MODULEID_MEM) return 0;
  std::intptr_t* const slots = module->segments[0].functionSlots;
  slots[NVTX3EXT_CBID_nvtxMemHeapRegister] = reinterpret_cast<std::intptr_t>(&register_heap);
  slots[NVTX3EXT_CBID_nvtxMemHeapUnregister] = reinterpret_cast<std::intptr_t>(&unregister_heap);
  slots[NVTX3EXT_CBID_nvtxMemRegionsRegister] = reinterpret_cast<std::intptr_t>(&register_regions);
  slots[NVTX3EXT_CBID_nvtxMemRegionsUnregister] = reinterpret_cast<std::intptr_t>(&unregister_regions);
  return 1;
}

}  // namespace

extern "C" {
NvtxExtInitializeInjectionFunc_t InitializeInjectionNvtxExtension_fnptr = &attach;
}

namespace {

constexpr std::size_t capacity = std::size_t{1} << 20;

struct bench {
  explicit bench(bool told = true, software_schedule schedule = software_schedule::lazy) {
    tool = {};
    restart_software_cuda(schedule);
    for (cudaStream_t& each : stream) REQUIRE(cudaStreamCreateWithFlags(&each, cudaStreamNonBlocking) == cudaSuccess);
    stream_options settings;
    settings.memory.on_bad_free = on_bad_free::count;
    pool.emplace(make_cuda_device_source(0, capacity, told), make_cuda_stream_driver(0), settings);
  }
  bench(const bench&) = delete;
  bench& operator=(const bench&) = delete;
  ~bench() {
    pool.reset();
    CHECK(tool.heap == nullptr);
    CHECK(things_left(cuda_thing::block) == 0);
    for (cudaStream_t const each : stream) CHECK(cudaStreamDestroy(each) == cudaSuccess);
  }

  /// The regions are the live blocks, each as long as it was asked for.
  void check_regions() const {
    ranges live;
    pool->for_each_block([&](const block_info& block) {
      if (block.state == block_state::live) live[static_cast<const std::byte*>(block.address)] = block.requested;
    });
    CHECK(tool.regions == live);
  }
  [[nodiscard]] bool is_allowed(const void* address) const {
    const auto* const at = static_cast<const std::byte*>(address);
    const auto after = tool.regions.upper_bound(at);
    return after != tool.regions.begin() && at < std::prev(after)->first + std::prev(after)->second;
  }

  std::array<cudaStream_t, 2> stream{};
  std::optional<stream_pool> pool;
};

}  // namespace

TEST_CASE("a pool that is not asked to tells nothing; one that is tells its range, once") {
  {
    bench b(false);
    b.pool->deallocate(b.pool->allocate(1000, b.stream[0]), 1000, b.stream[0]);
  }
  CHECK(tool.calls == 0);
  bench told;
  CHECK(tool.heaps == 1);
  CHECK(tool.heap_bytes == told.pool->capacity());
  void* const block = told.pool->allocate(100, told.stream[0]);
  CHECK(tool.heap <= block);
  told.pool->deallocate(block, 100, told.stream[0]);
}

TEST_CASE("the environment asks for it too") {
  for (const char* const value : {"1", "0", "yes"}) {
    setenv("ORDERLY_CUDA_REGIONS", value, 1);
    bench b(false);
    CHECK((tool.heaps == 1) == (value[0] == '1'));
    unsetenv("ORDERLY_CUDA_REGIONS");
  }
}

TEST_CASE("at random: what is allowed is what is live, as long as it was asked for") {
  for (const software_schedule schedule : {software_schedule::lazy, software_schedule::eager}) {
    bench b(true, schedule);
    random_engine random = make_random(static_cast<std::uint64_t>(schedule));
    std::vector<std::pair<void*, std::size_t>> live;
    for (int round = 0; round < 2000; ++round) {
      cudaStream_t const in = b.stream[uniform(random, 0, 1)];
      if (uniform(random, 0, 2) != 0 || live.empty()) {
        const std::size_t bytes = log_uniform(random, 1, capacity / 8);
        if (void* const block = b.pool->try_allocate(bytes, in)) {
          live.emplace_back(block, bytes);
          CHECK(cudaMemsetAsync(block, 1, bytes, in) == cudaSuccess);
        }
      } else {
        std::swap(live[uniform(random, 0, live.size() - 1)], live.back());
        const auto [block, bytes] = live.back();
        live.pop_back();
        CHECK(b.pool->try_deallocate(static_cast<std::byte*>(block) + 1, bytes, in) != error::none);  // tells nothing
        CHECK(b.pool->try_deallocate(block, bytes, in) == error::none);
      }
      if (round % 16 == 0) b.check_regions();
    }
    b.check_regions();
    for (const auto& [block, bytes] : live) b.pool->deallocate(block, bytes, b.stream[0]);
    CHECK(tool.regions.empty());
  }
}

TEST_CASE("a block is forbidden when the work that may use it is done, and not before, nor after it is another's") {
  bench b;
  auto* const block = static_cast<unsigned char*>(b.pool->allocate(1000, b.stream[0]));
  REQUIRE(b.pool->record_stream(block, b.stream[1]) == error::none);
  block[0] = block[1] = 0;
  CHECK(cudaMemsetAsync(block, 1, 1, b.stream[0]) == cudaSuccess);
  CHECK(cudaMemsetAsync(block + 1, 1, 1, b.stream[1]) == cudaSuccess);
  int withdrawals = 0;
  tool.on_withdrawal = [&] {
    ++withdrawals;
    CHECK(block[0] == 1);
    CHECK(block[1] == 1);
  };
  CHECK(b.pool->try_deallocate(block, 1000, b.stream[0]) == error::none);
  CHECK(withdrawals == 1);
  CHECK_FALSE(b.is_allowed(block));
  CHECK(b.pool->allocate(500, b.stream[0]) != nullptr);
  b.check_regions();
}

TEST_CASE("threads that free and allocate the same blocks: a block is told of before it is another's") {
  bench b(true, software_schedule::workers);
  run_threads(2, [&](std::size_t self) {
    for (int round = 0; round < 300; ++round) {
      void* const block = b.pool->try_allocate(capacity / 2, b.stream[self]);
      if (block != nullptr) b.pool->deallocate(block, capacity / 2, b.stream[self]);
    }
  });
  b.check_regions();
  CHECK(tool.calls > 100);
}

TEST_CASE("what graphs use stays allowed, also where it is handed out again in another shape") {
  bench b;
  REQUIRE(b.pool->begin_capture(b.stream[0]) == error::none);
  REQUIRE(cudaStreamBeginCapture(b.stream[0], cudaStreamCaptureModeGlobal) == cudaSuccess);
  auto* const inside = static_cast<std::byte*>(b.pool->allocate(4096, b.stream[0]));
  CHECK(b.pool->try_deallocate(inside, 4096, b.stream[0]) == error::none);
  CHECK(b.is_allowed(inside + 4095));
  void* const again = b.pool->allocate(1000, b.stream[0]);
  CHECK(b.is_allowed(inside + 4095));
  REQUIRE(b.pool->end_capture(b.stream[0]) == error::none);
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(b.stream[0], &graph) == cudaSuccess);
  CHECK(b.pool->try_deallocate(again, 1000, b.stream[0]) == error::none);
  CHECK(b.is_allowed(inside + 4095));
  CHECK(b.is_allowed(again));
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(b.pool->synchronize());
  void* const whole = b.pool->allocate(capacity, b.stream[1]);
  CHECK(b.is_allowed(whole));
  CHECK(b.is_allowed(static_cast<std::byte*>(whole) + capacity - 1));
  b.pool->deallocate(whole, capacity, b.stream[1]);
}

TEST_CASE("where the device cannot be waited for, a block stays allowed") {
  bench b;
  void* const block = b.pool->allocate(1000, b.stream[0]);
  stand_in.failures["cudaDeviceSynchronize"] = cudaErrorNotReady;
  CHECK(b.pool->try_deallocate(block, 1000, b.stream[0]) == error::none);
  stand_in.failures.clear();
  CHECK(b.is_allowed(block));
}

TEST_CASE("of a block that is divided, the live parts stay allowed, and no more") {
  for (const bool settled : {false, true}) {
    bench b;
    auto* const block = static_cast<std::byte*>(b.pool->allocate(4096, b.stream[0]));
    const std::uint32_t live = 0b0110;
    const error code = settled ? b.pool->divide_settled(block, 1024, &live, 1)
                               : b.pool->divide(block, 1024, &live, 1, b.stream[0]);
    REQUIRE(code == error::none);
    b.check_regions();
    CHECK(tool.regions == ranges{{block + 1024, 1024}, {block + 2048, 1024}});
    for (const std::size_t part : {1U, 2U}) b.pool->deallocate(block + part * 1024, 1024, b.stream[1]);
    CHECK(tool.regions.empty());
  }
}
