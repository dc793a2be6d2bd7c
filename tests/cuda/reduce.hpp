/// \file
/// CUB with a resource of ours as its memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/memory_resource.hpp"

namespace orderly::test {

/// Fills an array of the resource with 0 to count - 1, sums it up, and stores the sum at `sum`, all of it in the stream
/// and with memory of the resource only; frees it all before the work is done.
cudaError_t sum_of_numbers(const cuda_device_resource& resource, cudaStream_t stream, std::size_t count,
                           unsigned long long* sum);

}  // namespace orderly::test
