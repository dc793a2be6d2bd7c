#include "orderly/cuda.hpp"

#include <cstdint>
#include <memory>

#include "regions.hpp"
#include "runtime.hpp"

namespace orderly {
namespace {

using detail::cuda_call;

/// How one kind of memory is had and given back, and how it is aligned at least.
struct memory_kind {
  const char* allocate_name;
  cudaError_t (*allocate)(void** address, std::size_t bytes);
  const char* free_name;
  cudaError_t (*free)(void* address);
  std::size_t alignment;
};

constexpr std::size_t cuda_alignment = 256;  // CUDA promises it for every allocation

constexpr memory_kind device_memory{
    "cudaMalloc",   [](void** address, std::size_t bytes) { return cudaMalloc(address, bytes); },
    "cudaFree",     [](void* address) { return cudaFree(address); },
    cuda_alignment,
};
constexpr memory_kind pinned_memory{
    "cudaHostAlloc",
    [](void** address, std::size_t bytes) { return cudaHostAlloc(address, bytes, cudaHostAllocPortable); },
    "cudaFreeHost",
    [](void* address) { return cudaFreeHost(address); },
    cuda_alignment,
};
constexpr memory_kind managed_memory{
    "cudaMallocManaged",
    [](void** address, std::size_t bytes) { return cudaMallocManaged(address, bytes, cudaMemAttachGlobal); },
    "cudaFree",
    [](void* address) { return cudaFree(address); },
    cuda_alignment,
};

/// One allocation, handed out as one range at a time.
class flat_source final : public memory_source {
 public:
  flat_source(const memory_kind& kind, int device, std::size_t bytes, bool with_regions)
      : kind_(kind),
        device_(device),
        bytes_(bytes),
        regions_(with_regions || detail::regions_are_asked_for() ? std::make_unique<detail::regions>() : nullptr) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return kind_.alignment; }
  [[nodiscard]] std::size_t capacity() const noexcept override { return bytes_; }
  [[nodiscard]] bool is_virtual() const noexcept override { return false; }
  [[nodiscard]] block_observer* observer() noexcept override { return regions_.get(); }

  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    void* const range = reserve_plain(bytes, alignment);
    if (range != nullptr && regions_ != nullptr) regions_->begin(range, bytes);
    return range;
  }

  void release(void*, std::size_t) noexcept override {
    if (regions_ != nullptr) regions_->end();
    free();
  }

  [[nodiscard]] bool commit(void*, std::size_t) noexcept override { return true; }
  [[nodiscard]] bool decommit(void*, std::size_t) noexcept override { return false; }

 private:
  [[nodiscard]] void* reserve_plain(std::size_t bytes, std::size_t alignment) noexcept {
    const bool too_much = bytes_ != 0 && bytes > bytes_;
    if (allocation_ != nullptr || too_much || bytes == 0) return nullptr;
    // Large allocations are aligned to pages of the device or the system, which is mostly enough.
    void* const plain = allocate(bytes);
    if (plain == nullptr) return nullptr;
    allocation_ = plain;
    if (align(plain, alignment) == plain) return plain;
    free();
    if (bytes + alignment < bytes) return nullptr;
    allocation_ = allocate(bytes + alignment);
    return allocation_ == nullptr ? nullptr : align(allocation_, alignment);
  }

  [[nodiscard]] static void* align(void* address, std::size_t alignment) noexcept {
    const auto start = reinterpret_cast<std::uintptr_t>(address);
    const std::uintptr_t aligned = (start + alignment - 1) & ~(static_cast<std::uintptr_t>(alignment) - 1);
    return static_cast<std::byte*>(address) + (aligned - start);
  }

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept {
    const detail::device_guard guard(device_);
    const detail::outside_capture apart;
    void* address = nullptr;
    const auto call = [&] { return kind_.allocate(&address, bytes); };
    return guard.holds() && cuda_call(kind_.allocate_name, call) == cudaSuccess ? address : nullptr;
  }

  void free() noexcept {
    const detail::device_guard guard(device_);
    const detail::outside_capture apart;
    // A failure means that the device is lost, and its memory with it, or that the process ends.
    static_cast<void>(cuda_call(kind_.free_name, [&] { return kind_.free(allocation_); }));
    allocation_ = nullptr;
  }

  const memory_kind& kind_;
  int device_;
  std::size_t bytes_;
  std::unique_ptr<detail::regions> regions_;  ///< null: no tool is to be told
  void* allocation_ = nullptr;
};

/// 15/16 of what is free, in whole 2 MiB. 0: the device does not say.
std::size_t most_of_free_memory(int device) noexcept {
  const detail::device_guard guard(device);
  std::size_t free = 0;
  std::size_t total = 0;
  const auto ask = [&] { return cudaMemGetInfo(&free, &total); };
  if (!guard.holds() || cuda_call("cudaMemGetInfo", ask) != cudaSuccess) return 0;
  constexpr std::size_t unit = std::size_t{2} << 20;
  return (free - free / 16) / unit * unit;
}

}  // namespace

std::unique_ptr<memory_source> make_cuda_device_source(int device, std::size_t bytes, bool with_regions) {
  if (!detail::cuda_device_exists(device)) return nullptr;
  if (bytes == 0) bytes = most_of_free_memory(device);
  return bytes == 0 ? nullptr : std::make_unique<flat_source>(device_memory, device, bytes, with_regions);
}

std::unique_ptr<memory_source> make_cuda_pinned_source(std::size_t bytes, bool with_regions) {
  // Page-locked memory belongs to the context that is current when it is made, and is of use in all.
  int device = 0;
  if (!detail::cuda_device_exists(device)) return nullptr;
  if (cuda_call("cudaGetDevice", [&] { return cudaGetDevice(&device); }) != cudaSuccess) return nullptr;
  return std::make_unique<flat_source>(pinned_memory, device, bytes, with_regions);
}

std::unique_ptr<memory_source> make_cuda_managed_source(int device, std::size_t bytes, bool with_regions) {
  if (!detail::cuda_device_exists(device)) return nullptr;
  return std::make_unique<flat_source>(managed_memory, device, bytes, with_regions);
}

}  // namespace orderly
