/// \file
/// CUDA: sources of memory, and CUDA's streams. Part of the library orderly_cuda, which a build with the option `cuda`
/// has.
///
/// No CUDA header is needed here. A cudaStream_t is a stream_handle as it stands; the default streams are the handles 0
/// and 1 (legacy) and 2 (per thread). The handle 0 always means the legacy stream, also to callers that are compiled
/// with per-thread default streams: those pass cudaStreamPerThread. As everywhere in CUDA, the handle of a destroyed
/// stream must not be passed.
///
/// Of the calling thread, the current device, the stream capture mode and the last error are left as they were, unless
/// CUDA refuses to set the former two back. Where a
/// request of orderly's own fails while the thread has an error that it has not fetched yet, an error stays to be
/// fetched, but its code may be the newer one.
///
/// Once the process exits, nothing here calls CUDA any more: memory and events are left to the system, and streams and
/// events are answered for as if the device had failed. That begins with the destruction of static objects that were
/// made before the first source or driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "orderly/export.h"
#include "orderly/source.hpp"
#include "orderly/stream.hpp"

namespace orderly {

/// Memory of a device: one cudaMalloc for the whole pool. `bytes`: its capacity; 0: 15/16 of what cudaMemGetInfo says
/// is free now, in whole 2 MiB; the rest is for modules, local memory and libraries. The memory is had when a pool is
/// made, and given back with it; giving it back waits for the device.
/// Null: CUDA or the device is missing.
///
/// `with_regions`, here and below, or ORDERLY_CUDA_REGIONS=1 in the environment: compute-sanitizer is told of a
/// stream_pool's blocks (NVTX memory regions), so that its memcheck reports an access to a freed block, or past the end
/// of a live one. Such a pool is for looking for errors: each call takes a mutex, and each free waits until all work of
/// the device is done, because work that is there already may use the block; so that work must not wait for the calling
/// thread, nor an out-of-memory handler for another one. It watches captures, too: what they allocate or free stays
/// allowed until the pool goes, because graphs use it again; so does what was freed while the device could not be
/// waited for. What kernels allocate from a lease or ring is not told of, the blocks that they were lent are. Without
/// effect where the toolkit at build time has no nvtx3/nvToolsExtMem.h.
[[nodiscard]] ORDERLY_API std::unique_ptr<memory_source> make_cuda_device_source(int device, std::size_t bytes = 0,
                                                                                 bool with_regions = false);

/// In which form physical memory of a virtual source can be handed to other processes: what
/// cuMemExportToShareableHandle gives for the handle that cuMemRetainAllocationHandle has of an address in a pool.
enum class cuda_sharing : std::uint8_t { none, file_descriptor, fabric };

struct cuda_virtual_options {
  /// Capacity in bytes, rounded up to whole units. 0: that fraction of the device's memory.
  std::size_t bytes = 0;
  double fraction = 1.0;  ///< above 0, at most 1

  /// Smallest piece of physical memory in bytes, a power of two; raised to what the device recommends (2 MiB). It is
  /// the pool's chunk, too, unless options::chunk is larger, which then is the smallest piece. Larger pieces cost fewer
  /// calls and more memory.
  std::size_t unit = 0;

  cuda_sharing sharing = cuda_sharing::none;

  /// Other devices that may use the memory. They must be able to access the device's.
  std::vector<int> peers = {};
};

/// Memory of a device that grows and shrinks with the pool: a range of addresses is reserved, and physical memory is
/// mapped into it by unit, for large blocks in larger pieces (CUDA's virtual memory management). Addresses are never
/// what is missing, so the pool does not fragment above the unit, and what it no longer needs goes back to the device
/// without waiting for kernels. Growing costs some 50 us for each small piece, shrinking 40 (H200, driver 580), nothing while
/// the pool has what is asked for. Memory that others took is met when the pool grows: it then gives back what lies
/// idle and tries again before it refuses.
///
/// Unmapping does not wait for work of the device. A stream_pool unmaps only what all streams have passed; a block of a
/// pool without streams must not be freed before the device is done with it. With the end of the pool all is unmapped,
/// after a wait for the device.
/// Null: CUDA, the device or its virtual memory is missing, an option is wrong, handles of that kind cannot be had, or
/// a peer does not reach the device.
[[nodiscard]] ORDERLY_API std::unique_ptr<memory_source> make_cuda_virtual_source(
    int device, const cuda_virtual_options& settings = {});

/// Page-locked host memory that every device reaches: one cudaHostAlloc. `bytes`: the capacity; 0: that of the pool,
/// which must then be given. Null: CUDA is missing.
[[nodiscard]] ORDERLY_API std::unique_ptr<memory_source> make_cuda_pinned_source(std::size_t bytes,
                                                                                 bool with_regions = false);

/// Managed memory, which host and devices reach and which may exceed the device's: one cudaMallocManaged with the
/// device current. `bytes` as for pinned memory. Null: CUDA or the device is missing.
[[nodiscard]] ORDERLY_API std::unique_ptr<memory_source> make_cuda_managed_source(int device, std::size_t bytes,
                                                                                  bool with_regions = false);

/// The streams of a device. A stream of another device may wait for the driver's events; record() in it is refused.
///
/// capture() is unknown_capture for the legacy stream while a blocking stream captures, for a capture that has failed,
/// and for a device that has failed. Nothing is recorded or awaited then. A capture that starts in a stream while
/// another thread records there is noticed, and record() refuses. query() and synchronize() neither fail by nor
/// invalidate a capture that goes on elsewhere. identity() is 0 while the stream captures: CUDA does not tell then.
///
/// A pool knows a stream by its handle, which costs nothing; that a handle is not another stream's by now is what the
/// program says with release_stream(). That is the default, since CUDA's answers cost more than an allocation: with
/// stream_options::watch_captures a pair of calls takes 0.3 us on one thread, in safe mode 1.2 us, and both more where
/// many threads ask at once (H100, driver 580); by default 0.01 us.
/// Null: CUDA or the device is missing.
[[nodiscard]] ORDERLY_API std::shared_ptr<stream_driver> make_cuda_stream_driver(int device);

/// A new stream of the device, for which the legacy default stream does not wait. get() is its handle; it is destroyed
/// with its last owner. Null: CUDA or the device is missing, or has no room for it.
[[nodiscard]] ORDERLY_API std::shared_ptr<void> make_cuda_stream(int device);

/// Calls of CUDA that orderly has made in this process, those apart that only look at a thread's last error. For tests
/// and benchmarks: the difference over a number of operations is what they cost in calls.
[[nodiscard]] ORDERLY_API std::uint64_t cuda_calls() noexcept;

/// The call of CUDA that failed last inside orderly in the calling thread, and its error, as in "cudaMalloc:
/// cudaErrorMemoryAllocation, out of memory". Empty: none has. For messages, where a function has answered null or
/// false or thrown out_of_memory; a success does not clear it. That an event is not ready yet is no failure.
[[nodiscard]] ORDERLY_API std::string cuda_failure();

}  // namespace orderly
