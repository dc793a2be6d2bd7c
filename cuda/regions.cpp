#include "regions.hpp"

#include <nvtx3/nvToolsExtMem.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace orderly::detail {
namespace {

nvtxDomainHandle_t domain() noexcept {
  static nvtxDomainHandle_t const ours = nvtxDomainCreateA("orderly");  // never destroyed: tools end with the process
  return ours;
}

/// A descriptor of NVTX with what all of them begin with, the rest 0.
template <class Descriptor>
Descriptor descriptor() noexcept {
  Descriptor made{};
  made.extCompatID = NVTX_EXT_COMPATID_MEM;
  made.structSize = static_cast<std::uint16_t>(sizeof made);
  return made;
}

}  // namespace

bool regions_are_asked_for() noexcept {
  const char* const text = std::getenv("ORDERLY_CUDA_REGIONS");
  return text != nullptr && std::strcmp(text, "1") == 0;
}

void regions::begin(void* address, std::size_t bytes) noexcept {
  const nvtxMemVirtualRangeDesc_t range{bytes, address};
  auto heap = descriptor<nvtxMemHeapDesc_t>();
  heap.usage = NVTX_MEM_HEAP_USAGE_TYPE_SUB_ALLOCATOR;
  heap.type = NVTX_MEM_TYPE_VIRTUAL_ADDRESS;
  heap.typeSpecificDescSize = sizeof range;
  heap.typeSpecificDesc = &range;
  nvtxMemHeapHandle_t const made = nvtxMemHeapRegister(domain(), &heap);
  // NVTX_MEM_HEAP_HANDLE_NO_TOOL, which C++ does not compile.
  heap_ = reinterpret_cast<std::intptr_t>(made) == -1 ? nullptr : made;
}

void regions::end() noexcept {
  if (heap_ != nullptr) nvtxMemHeapUnregister(domain(), static_cast<nvtxMemHeapHandle_t>(heap_));
  heap_ = nullptr;
}

void regions::allowed(void* address, std::size_t bytes) noexcept {
  if (heap_ == nullptr) return;
  const nvtxMemVirtualRangeDesc_t range{bytes, address};
  auto batch = descriptor<nvtxMemRegionsRegisterBatch_t>();
  batch.regionType = NVTX_MEM_TYPE_VIRTUAL_ADDRESS;
  batch.heap = static_cast<nvtxMemHeapHandle_t>(heap_);
  batch.regionCount = 1;
  batch.regionDescElementSize = sizeof range;
  batch.regionDescElements = &range;
  nvtxMemRegionsRegister(domain(), &batch);
}

void regions::forbidden(void* address) noexcept {
  if (heap_ == nullptr) return;
  nvtxMemRegionRef_t block;
  block.pointer = address;
  auto batch = descriptor<nvtxMemRegionsUnregisterBatch_t>();
  batch.refType = NVTX_MEM_REGION_REF_TYPE_POINTER;
  batch.refCount = 1;
  batch.refElementSize = sizeof block;
  batch.refElements = &block;
  nvtxMemRegionsUnregister(domain(), &batch);
}

}  // namespace orderly::detail
