#include "orderly/cuda.hpp"

#include <cuda.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "runtime.hpp"

namespace orderly {
namespace {

using detail::cuda_call;
using detail::driver_call;

/// The driver's functions for virtual memory. All set, or all null where the driver does not give them.
struct virtual_functions {
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;

  /// Pre: a device exists.
  [[nodiscard]] static virtual_functions find() noexcept {
    virtual_functions all;
    const bool complete =
        found(all.granularity, "cuMemGetAllocationGranularity") && found(all.reserve, "cuMemAddressReserve") &&
        found(all.free, "cuMemAddressFree") && found(all.create, "cuMemCreate") && found(all.release, "cuMemRelease") &&
        found(all.map, "cuMemMap") && found(all.set_access, "cuMemSetAccess") && found(all.unmap, "cuMemUnmap");
    return complete ? all : virtual_functions{};
  }
  [[nodiscard]] bool found() const noexcept { return unmap != nullptr; }

 private:
  template <class Function>
  [[nodiscard]] static bool found(Function*& function, const char* name) noexcept {
    function = reinterpret_cast<Function*>(detail::driver_function(name));
    return function != nullptr;
  }
};

[[nodiscard]] CUmemAllocationProp properties(int device, cuda_sharing sharing) noexcept {
  CUmemAllocationProp all{};
  all.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  all.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  all.location.id = device;
  switch (sharing) {
    case cuda_sharing::none: all.requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE; break;
    case cuda_sharing::file_descriptor: all.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR; break;
    case cuda_sharing::fabric: all.requestedHandleTypes = static_cast<CUmemAllocationHandleType>(8); break;  // CUDA 12.3
  }
  return all;
}

/// One range of addresses at a time, and physical memory by piece inside it.
///
/// A piece is what one cuMemCreate gave; it is mapped once and unmapped once, as a whole, and its handle is released as
/// soon as it is mapped: from then on the mapping alone keeps it. What the driver takes its time for is the piece, not
/// the byte, so pieces are as large as they may be: a chunk, since no less is given back; and in commit_together() each power
/// of two that fits, and that the piece's own place is aligned to.
///
/// The sizes of pieces lie in a table by unit, at the piece's first one. They are written by whoever commits or
/// decommits there, and nobody else is at work in the same chunk meanwhile (see memory_source); the pool's own
/// hand-over of the chunk orders one owner's entries before the next one's.
class virtual_source final : public memory_source {
 public:
  virtual_source(const virtual_functions& functions, const CUmemAllocationProp& kind, std::size_t unit,
                 std::size_t capacity, std::vector<CUmemAccessDesc> access) noexcept
      : functions_(functions), kind_(kind), unit_(unit), capacity_(capacity), access_(std::move(access)) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return unit_; }
  [[nodiscard]] std::size_t capacity() const noexcept override { return capacity_; }
  [[nodiscard]] bool is_virtual() const noexcept override { return true; }

  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    if (base_ != 0 || bytes == 0 || bytes % unit_ != 0) return nullptr;
    const detail::device_guard guard(device());
    const detail::outside_capture apart;
    if (!guard.holds()) return nullptr;
    CUdeviceptr range = 0;
    const auto call = [&] { return functions_.reserve(&range, bytes, std::max(alignment, unit_), 0, 0); };
    if (driver_call("cuMemAddressReserve", call) != CUDA_SUCCESS) return nullptr;
    // After the range: of what the driver refuses, the table may be larger than all memory. Its pages are the system's
    // zero page until something is written.
    pieces_.reset(static_cast<std::uint8_t*>(std::calloc(bytes / unit_, 1)));
    if (pieces_ == nullptr) {
      static_cast<void>(driver_call("cuMemAddressFree", [&] { return functions_.free(range, bytes); }));
      return nullptr;
    }
    base_ = range;
    bytes_ = bytes;
    chunk_ = std::max<std::size_t>(alignment / unit_, 1);
    return reinterpret_cast<void*>(range);
  }

  void release(void*, std::size_t) noexcept override {
    const detail::device_guard guard(device());
    const detail::outside_capture apart;
    // Unlike cudaFree, unmapping waits for nobody.
    static_cast<void>(cuda_call("cudaDeviceSynchronize", [] { return cudaDeviceSynchronize(); }));
    const auto* const first = pieces_.get();
    const auto* const end = first + bytes_ / unit_;
    for (const auto* at = first; (at = std::find_if(at, end, [](std::uint8_t piece) { return piece != 0; })) != end;) {
      const std::size_t length = std::size_t{1} << (*at - 1);
      static_cast<void>(unmap_for_good(base_ + static_cast<std::size_t>(at - first) * unit_, length * unit_));
      at += length;
    }
    const auto call = [&] { return functions_.free(base_, bytes_); };
    static_cast<void>(driver_call("cuMemAddressFree", call));
    base_ = 0;
    pieces_.reset();
  }

  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    return commit(address, bytes, chunk_);
  }
  [[nodiscard]] bool commit_together(void* address, std::size_t bytes) noexcept override {
    return commit(address, bytes, bytes / unit_);
  }

  void why_refused(char* text, std::size_t bytes) const noexcept override {
    try {
      std::snprintf(text, bytes, "%s", cuda_failure().c_str());  // of this thread
    } catch (const std::bad_alloc&) {
      if (bytes != 0) text[0] = '\0';
    }
  }

  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    const std::size_t first = unit_of(address);
    const std::size_t end = first + bytes / unit_;
    std::size_t at = first;
    while (at < end && pieces_[at] != 0) at += std::size_t{1} << (pieces_[at] - 1);
    if (at != end) return false;  // it would cut a piece
    const detail::device_guard guard(device());
    const detail::outside_capture apart;
    if (!guard.holds() || !unmap(base_ + first * unit_, bytes)) return false;
    std::fill(&pieces_[first], &pieces_[end], std::uint8_t{0});
    return true;
  }

 private:
  struct freed {
    void operator()(std::uint8_t* table) const noexcept { std::free(table); }
  };

  [[nodiscard]] int device() const noexcept { return kind_.location.id; }
  [[nodiscard]] std::size_t unit_of(const void* address) const noexcept {
    return (reinterpret_cast<CUdeviceptr>(address) - base_) / unit_;
  }

  /// Units of the piece that begins at a unit: a power of two that it is aligned to.
  [[nodiscard]] static std::size_t piece_at(std::size_t unit, std::size_t most) noexcept {
    const std::size_t fits = std::bit_floor(most);
    return unit == 0 ? fits : std::min(fits, std::size_t{1} << std::countr_zero(unit));
  }

  [[nodiscard]] bool commit(void* address, std::size_t bytes, std::size_t largest_piece) noexcept {
    const detail::device_guard guard(device());
    const detail::outside_capture apart;
    const std::size_t first = unit_of(address);
    const std::size_t end = first + bytes / unit_;
    if (!guard.holds() || !clear(first, end)) return false;
    std::size_t at = first;
    while (at < end) {
      const std::size_t length = piece_at(at, std::min(largest_piece, end - at));
      if (!map_new(base_ + at * unit_, length * unit_)) break;
      pieces_[at] = static_cast<std::uint8_t>(std::countr_zero(length) + 1);
      at += length;
    }
    if (at == end && open(base_ + first * unit_, bytes)) return true;
    if (at != first && unmap_for_good(base_ + first * unit_, (at - first) * unit_))
      std::fill(&pieces_[first], &pieces_[at], std::uint8_t{0});
    return false;
  }

  /// Unmaps what a commit that failed has left there, because it could not be unmapped then.
  [[nodiscard]] bool clear(std::size_t first, std::size_t end) noexcept {
    for (std::size_t at = first; at < end; ++at) {
      if (pieces_[at] == 0) continue;
      if (!unmap(base_ + at * unit_, unit_ << (pieces_[at] - 1))) return false;
      pieces_[at] = 0;
    }
    return true;
  }

  [[nodiscard]] bool map_new(CUdeviceptr at, std::size_t bytes) noexcept {
    CUmemGenericAllocationHandle handle{};
    const auto create = [&] { return functions_.create(&handle, bytes, &kind_, 0); };
    if (driver_call("cuMemCreate", create) != CUDA_SUCCESS) return false;
    const bool mapped = driver_call("cuMemMap", [&] { return functions_.map(at, bytes, 0, handle, 0); }) == CUDA_SUCCESS;
    // Refused only with a device that is lost.
    static_cast<void>(driver_call("cuMemRelease", [&] { return functions_.release(handle); }));
    return mapped;
  }

  [[nodiscard]] bool open(CUdeviceptr at, std::size_t bytes) noexcept {
    const auto call = [&] { return functions_.set_access(at, bytes, access_.data(), access_.size()); };
    return driver_call("cuMemSetAccess", call) == CUDA_SUCCESS;
  }

  [[nodiscard]] bool unmap(CUdeviceptr at, std::size_t bytes) noexcept {
    return driver_call("cuMemUnmap", [&] { return functions_.unmap(at, bytes); }) == CUDA_SUCCESS;
  }

  /// Where there is no other way. Twice, for once may be a passing failure: otherwise the device is lost, and its
  /// memory with it, or the process ends.
  [[nodiscard]] bool unmap_for_good(CUdeviceptr at, std::size_t bytes) noexcept {
    return unmap(at, bytes) || unmap(at, bytes);
  }

  virtual_functions functions_;
  CUmemAllocationProp kind_;
  std::size_t unit_;
  std::size_t capacity_;
  std::vector<CUmemAccessDesc> access_;  ///< the device's own, then peers'
  CUdeviceptr base_ = 0;                 ///< 0: nothing is reserved
  std::size_t bytes_ = 0;
  std::size_t chunk_ = 1;                          ///< units that are committed and decommitted together at least
  std::unique_ptr<std::uint8_t[], freed> pieces_;  ///< by unit: 1 + log2 of the units of the piece that begins there; 0: none
};

/// That much of the device's memory, in whole units. 0: the device does not say.
[[nodiscard]] std::size_t part_of_memory(double fraction, std::size_t unit) noexcept {
  std::size_t free = 0;
  std::size_t total = 0;
  if (cuda_call("cudaMemGetInfo", [&] { return cudaMemGetInfo(&free, &total); }) != cudaSuccess) return 0;
  return static_cast<std::size_t>(static_cast<double>(total) * fraction) / unit * unit;
}

[[nodiscard]] bool reaches(int device, int other) noexcept {
  int can = 0;
  const auto ask = [&] { return cudaDeviceCanAccessPeer(&can, other, device); };
  return cuda_call("cudaDeviceCanAccessPeer", ask) == cudaSuccess && can != 0;
}

[[nodiscard]] CUmemAccessDesc access_of(int device) noexcept {
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return access;
}

}  // namespace

std::unique_ptr<memory_source> make_cuda_virtual_source(int device, const cuda_virtual_options& settings) {
  if (!(settings.fraction > 0 && settings.fraction <= 1)) return nullptr;
  if (settings.unit != 0 && !std::has_single_bit(settings.unit)) return nullptr;
  if (!detail::cuda_device_exists(device)) return nullptr;
  const detail::device_guard guard(device);
  const detail::outside_capture apart;
  const virtual_functions functions = virtual_functions::find();
  if (!guard.holds() || !functions.found()) return nullptr;

  const CUmemAllocationProp kind = properties(device, settings.sharing);
  std::size_t least = 0;
  const auto ask = [&] { return functions.granularity(&least, &kind, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED); };
  if (driver_call("cuMemGetAllocationGranularity", ask) != CUDA_SUCCESS) return nullptr;
  const std::size_t unit = std::max(std::bit_ceil(least), settings.unit);

  std::vector<CUmemAccessDesc> access{access_of(device)};
  for (const int peer : settings.peers) {
    if (peer == device) continue;
    if (!detail::cuda_device_exists(peer) || !reaches(device, peer)) return nullptr;
    access.push_back(access_of(peer));
  }

  // Whether handles of this kind can be had, shows when one is made.
  CUmemGenericAllocationHandle probe{};
  const auto create = [&] { return functions.create(&probe, unit, &kind, 0); };
  if (driver_call("cuMemCreate", create) != CUDA_SUCCESS) return nullptr;
  static_cast<void>(driver_call("cuMemRelease", [&] { return functions.release(probe); }));

  const std::size_t capacity =
      settings.bytes == 0 ? part_of_memory(settings.fraction, unit) : (settings.bytes + unit - 1) / unit * unit;
  if (capacity == 0) return nullptr;
  return std::make_unique<virtual_source>(functions, kind, unit, capacity, std::move(access));
}

}  // namespace orderly
