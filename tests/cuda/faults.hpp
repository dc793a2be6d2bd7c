/// \file
/// Faults of CUDA's calls, by number, and a count of what CUDA keeps: what the stand-in for the runtime (software_cuda.cpp)
/// and the one that stands before the real runtime (faulty_cuda.cpp) have in common.
///
/// Calls of a test's own are neither counted nor failed. That is known by cuda_calls(), so one thread alone may call
/// meanwhile.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace orderly::test {

struct fault {
  std::uint64_t at = 0;  ///< the number of the call of orderly's, from 1; 0: none
  cudaError_t error = cudaSuccess;
  bool lasting = false;  ///< and of all that follow: the device is lost
};

/// From now on. The thread's last error is none.
void set_fault(const fault& planned) noexcept;

/// The function that failed by the plan first. Null: the plan's number was not reached.
[[nodiscard]] const char* failed_function() noexcept;

/// For whoever stands in for CUDA: errors that do not go away, do not, while this is true.
[[nodiscard]] bool fault_lasts() noexcept;

/// The same: what this call is to return. cudaSuccess: what it returns without a fault.
[[nodiscard]] cudaError_t fault_of(const char* function) noexcept;

/// range, piece, mapping: of addresses, of physical memory, of the one in the other.
enum class cuda_thing { block, event, graph_object, mapping, piece, range, stream };
void count_made(cuda_thing kind) noexcept;
void count_gone(cuda_thing kind) noexcept;
/// Made and not gone yet.
[[nodiscard]] std::size_t things_left(cuda_thing kind) noexcept;
[[nodiscard]] const char* to_string(cuda_thing kind) noexcept;

}  // namespace orderly::test
