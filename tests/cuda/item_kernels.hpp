/// \file
/// Kernels that allocate and free items. Each thread has a place in arrays in memory that host and device reach.
#pragma once

#include <cuda_runtime_api.h>

#include "orderly/cuda/kernel.hpp"

namespace orderly::test {

using lease_set = orderly::cuda::set<orderly::cuda::lease>;

/// Thread t leaves what it got in out[t], and its number at the item's start and end.
cudaError_t allocate_items(const orderly::cuda::lease& from, void** out, unsigned threads, cudaStream_t stream);
cudaError_t allocate_items(const orderly::cuda::ring& from, void** out, unsigned threads, cudaStream_t stream);

/// The same, of 16 << t % sizes bytes.
cudaError_t allocate_sizes(const lease_set& from, unsigned sizes, void** out, unsigned threads, cudaStream_t stream);

/// Threads with t % step == 0 free in[t]; *freed counts those that could.
cudaError_t free_items(const orderly::cuda::lease& to, void** in, unsigned step, unsigned threads, unsigned* freed,
                       cudaStream_t stream);
cudaError_t free_items(const orderly::cuda::ring& to, void** in, unsigned step, unsigned threads, unsigned* freed,
                       cudaStream_t stream);
cudaError_t free_items(const lease_set& to, void** in, unsigned step, unsigned threads, unsigned* freed,
                       cudaStream_t stream);

/// *wrong counts the threads with an item that does not hold their number any more.
cudaError_t check_items(void** in, unsigned item_bytes, unsigned threads, unsigned* wrong, cudaStream_t stream);

}  // namespace orderly::test
