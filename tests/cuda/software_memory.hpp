/// \file
/// The driver's virtual memory management, on the host: physical memory is a file without a name, and mapping it is
/// mmap(), so that what is unmapped cannot be touched, and what moves really moves. Its rules are the driver's, and what
/// breaks one is refused.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <set>

namespace orderly::test {

class software_memory {
 public:
  static constexpr std::size_t granularity = std::size_t{2} << 20;

  software_memory();
  software_memory(const software_memory&) = delete;
  software_memory& operator=(const software_memory&) = delete;
  ~software_memory();

  CUresult reserve(CUdeviceptr* range, std::size_t bytes, std::size_t alignment);
  CUresult free(CUdeviceptr range, std::size_t bytes);
  /// `most`: that there is to be had.
  CUresult create(CUmemGenericAllocationHandle* handle, std::size_t bytes, int device, std::size_t most);
  CUresult release(CUmemGenericAllocationHandle handle);
  CUresult map(CUdeviceptr at, std::size_t bytes, std::size_t offset, CUmemGenericAllocationHandle handle);
  CUresult set_access(CUdeviceptr at, std::size_t bytes, const CUmemAccessDesc* access, std::size_t count);
  CUresult unmap(CUdeviceptr at, std::size_t bytes);

  /// Bytes that exist on a device.
  [[nodiscard]] std::size_t physical(int device);
  /// -1: nothing is mapped there.
  [[nodiscard]] int device_at(const void* address);
  /// False: it is mapped, and the device has no access.
  [[nodiscard]] bool is_reached_by(int device, const void* address);

 private:
  struct piece {
    std::size_t offset = 0;  ///< in the file
    std::size_t bytes = 0;
    int device = 0;
    bool has_handle = true;
    unsigned mappings = 0;
  };
  struct mapping {
    std::size_t bytes = 0;
    CUmemGenericAllocationHandle of{};
    std::set<int> accessible;  ///< to these devices
  };
  using piece_at = std::map<CUmemGenericAllocationHandle, piece>::iterator;

  void drop_if_unused(piece_at at);
  [[nodiscard]] const mapping* mapping_with(const void* address) const;  ///< null: nothing is mapped there
  /// The whole mappings that make up a range without a gap: the first, and the one behind the last. Both the end: none do.
  using mapping_at = std::map<CUdeviceptr, mapping>::iterator;
  std::pair<mapping_at, mapping_at> whole_mappings(CUdeviceptr at, std::size_t bytes);
  [[nodiscard]] bool is_reserved(CUdeviceptr at, std::size_t bytes) const;

  std::mutex mutex_;
  int file_ = -1;
  std::size_t file_bytes_ = 0;
  std::map<CUdeviceptr, std::size_t> ranges_;
  std::map<CUmemGenericAllocationHandle, piece> pieces_;
  std::map<CUdeviceptr, mapping> mappings_;
  CUmemGenericAllocationHandle last_handle_{};
};

}  // namespace orderly::test
