#include "software_memory.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "faults.hpp"

namespace orderly::test {
namespace {

[[nodiscard]] bool is_whole(std::size_t bytes) { return bytes != 0 && bytes % software_memory::granularity == 0; }
[[nodiscard]] void* pointer(CUdeviceptr at) { return reinterpret_cast<void*>(at); }

void* reserve_addresses(void* at, std::size_t bytes, int flags) {
  return mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

}  // namespace

software_memory::software_memory() : file_(memfd_create("device memory", MFD_CLOEXEC)) {}

software_memory::~software_memory() {
  for (const auto& [at, bytes] : ranges_) munmap(pointer(at), bytes);
  close(file_);
}

CUresult software_memory::reserve(CUdeviceptr* range, std::size_t bytes, std::size_t alignment) {
  const std::lock_guard hold(mutex_);
  if (!is_whole(bytes) || (alignment & (alignment - 1)) != 0 || bytes + alignment < bytes) return CUDA_ERROR_INVALID_VALUE;
  const std::size_t extra = std::max(alignment, granularity);
  void* const raw = reserve_addresses(nullptr, bytes + extra, 0);
  if (raw == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const auto start = reinterpret_cast<CUdeviceptr>(raw);
  const CUdeviceptr aligned = (start + extra - 1) / extra * extra;
  if (aligned != start) munmap(raw, aligned - start);
  munmap(pointer(aligned + bytes), start + extra - aligned);
  ranges_[aligned] = bytes;
  *range = aligned;
  count_made(cuda_thing::range);
  return CUDA_SUCCESS;
}

CUresult software_memory::free(CUdeviceptr range, std::size_t bytes) {
  const std::lock_guard hold(mutex_);
  const auto at = ranges_.find(range);
  const auto mapped = mappings_.lower_bound(range);
  if (at == ranges_.end() || at->second != bytes) return CUDA_ERROR_INVALID_VALUE;
  if (mapped != mappings_.end() && mapped->first < range + bytes) return CUDA_ERROR_INVALID_VALUE;
  munmap(pointer(range), bytes);
  ranges_.erase(at);
  count_gone(cuda_thing::range);
  return CUDA_SUCCESS;
}

CUresult software_memory::create(CUmemGenericAllocationHandle* handle, std::size_t bytes, int device, std::size_t most) {
  const std::lock_guard hold(mutex_);
  if (!is_whole(bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (bytes > most) return CUDA_ERROR_OUT_OF_MEMORY;
  // Places in the file are used once; the holes cost nothing.
  if (ftruncate(file_, static_cast<off_t>(file_bytes_ + bytes)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = ++last_handle_;
  pieces_[*handle] = {std::exchange(file_bytes_, file_bytes_ + bytes), bytes, device};
  count_made(cuda_thing::piece);
  return CUDA_SUCCESS;
}

CUresult software_memory::release(CUmemGenericAllocationHandle handle) {
  const std::lock_guard hold(mutex_);
  const auto at = pieces_.find(handle);
  if (at == pieces_.end() || !at->second.has_handle) return CUDA_ERROR_INVALID_VALUE;
  at->second.has_handle = false;
  drop_if_unused(at);
  return CUDA_SUCCESS;
}

CUresult software_memory::map(CUdeviceptr at, std::size_t bytes, std::size_t offset,
                              CUmemGenericAllocationHandle handle) {
  const std::lock_guard hold(mutex_);
  const auto found = pieces_.find(handle);
  if (found == pieces_.end() || !found->second.has_handle || offset != 0 || bytes != found->second.bytes ||
      at % granularity != 0 || !is_reserved(at, bytes))
    return CUDA_ERROR_INVALID_VALUE;
  const auto next = mappings_.lower_bound(at);
  if (next != mappings_.end() && next->first < at + bytes) return CUDA_ERROR_INVALID_VALUE;
  if (next != mappings_.begin() && std::prev(next)->first + std::prev(next)->second.bytes > at)
    return CUDA_ERROR_INVALID_VALUE;
  const auto place = static_cast<off_t>(found->second.offset);
  if (mmap(pointer(at), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file_, place) == MAP_FAILED)
    return CUDA_ERROR_OUT_OF_MEMORY;
  mappings_[at] = {.bytes = bytes, .of = handle, .accessible = {}};
  ++found->second.mappings;
  count_made(cuda_thing::mapping);
  return CUDA_SUCCESS;
}

CUresult software_memory::set_access(CUdeviceptr at, std::size_t bytes, const CUmemAccessDesc* access,
                                     std::size_t count) {
  const std::lock_guard hold(mutex_);
  const auto [first, end] = whole_mappings(at, bytes);
  if (first == end || count == 0) return CUDA_ERROR_INVALID_VALUE;
  for (std::size_t index = 0; index < count; ++index) {
    if (access[index].location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        access[index].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
      return CUDA_ERROR_INVALID_VALUE;
  }
  if (mprotect(pointer(at), bytes, PROT_READ | PROT_WRITE) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
  for (auto each = first; each != end; ++each)
    for (std::size_t index = 0; index < count; ++index) each->second.accessible.insert(access[index].location.id);
  return CUDA_SUCCESS;
}

CUresult software_memory::unmap(CUdeviceptr at, std::size_t bytes) {
  const std::lock_guard hold(mutex_);
  const auto [first, end] = whole_mappings(at, bytes);
  if (first == end) return CUDA_ERROR_INVALID_VALUE;
  if (reserve_addresses(pointer(at), bytes, MAP_FIXED) == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  for (auto each = first; each != end; ++each) {
    const auto of = pieces_.find(each->second.of);
    --of->second.mappings;
    drop_if_unused(of);
    count_gone(cuda_thing::mapping);
  }
  mappings_.erase(first, end);
  return CUDA_SUCCESS;
}

std::size_t software_memory::physical(int device) {
  const std::lock_guard hold(mutex_);
  std::size_t bytes = 0;
  for (const auto& [handle, each] : pieces_) bytes += each.device == device ? each.bytes : 0;
  return bytes;
}

int software_memory::device_at(const void* address) {
  const std::lock_guard hold(mutex_);
  const mapping* const found = mapping_with(address);
  return found == nullptr ? -1 : pieces_.at(found->of).device;
}

bool software_memory::is_reached_by(int device, const void* address) {
  const std::lock_guard hold(mutex_);
  const mapping* const found = mapping_with(address);
  return found == nullptr || found->accessible.contains(device);
}

const software_memory::mapping* software_memory::mapping_with(const void* address) const {
  const auto at = reinterpret_cast<CUdeviceptr>(address);
  const auto next = mappings_.upper_bound(at);
  if (next == mappings_.begin()) return nullptr;
  const auto& [start, found] = *std::prev(next);
  return at < start + found.bytes ? &found : nullptr;
}

void software_memory::drop_if_unused(piece_at at) {
  if (at->second.has_handle || at->second.mappings != 0) return;
  static_cast<void>(fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at->second.offset),
                              static_cast<off_t>(at->second.bytes)));
  pieces_.erase(at);
  count_gone(cuda_thing::piece);
}

std::pair<software_memory::mapping_at, software_memory::mapping_at> software_memory::whole_mappings(CUdeviceptr at,
                                                                                                    std::size_t bytes) {
  const auto first = mappings_.find(at);
  auto end = first;
  CUdeviceptr reached = at;
  while (end != mappings_.end() && end->first == reached && reached < at + bytes) reached += (end++)->second.bytes;
  return reached == at + bytes ? std::pair(first, end) : std::pair(mappings_.end(), mappings_.end());
}

bool software_memory::is_reserved(CUdeviceptr at, std::size_t bytes) const {
  auto range = ranges_.upper_bound(at);
  if (range == ranges_.begin()) return false;
  --range;
  return at + bytes <= range->first + range->second;
}

}  // namespace orderly::test
