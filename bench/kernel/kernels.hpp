/// \file
/// Kernels of one allocation or one free for each thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "orderly/cuda/kernel.hpp"

namespace orderly::bench {

/// Thread t leaves what it got in out[t].
cudaError_t allocate_in(const orderly::cuda::lease& from, void** out, unsigned threads, cudaStream_t stream);
cudaError_t allocate_in(const orderly::cuda::ring& from, void** out, unsigned threads, cudaStream_t stream);
cudaError_t allocate_by_malloc(std::size_t bytes, void** out, unsigned threads, cudaStream_t stream);

/// Thread t frees in[t].
cudaError_t free_in(const orderly::cuda::lease& to, void** in, unsigned threads, cudaStream_t stream);
cudaError_t free_in(const orderly::cuda::ring& to, void** in, unsigned threads, cudaStream_t stream);
cudaError_t free_by_free(void** in, unsigned threads, cudaStream_t stream);

/// Writes each thread's number into its memory, and counts in *wrong what does not hold it afterwards, null included.
cudaError_t check(void** in, unsigned threads, unsigned* wrong, cudaStream_t stream);

}  // namespace orderly::bench
