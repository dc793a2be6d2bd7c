#include "cuda/reduce.hpp"

#include <cub/device/device_reduce.cuh>

namespace orderly::test {
namespace {

__global__ void fill(unsigned long long* numbers, std::size_t count) {
  for (std::size_t at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += std::size_t{gridDim.x} * blockDim.x)
    numbers[at] = at;
}

}  // namespace

cudaError_t sum_of_numbers(const cuda_device_resource& resource, cudaStream_t stream, std::size_t count,
                           unsigned long long* sum) {
  cuda_device_resource from(resource);
  const ::cuda::stream_ref in(stream);
  const std::size_t bytes = count * sizeof(unsigned long long);
  auto* const numbers = static_cast<unsigned long long*>(allocate(from, in, bytes));
  fill<<<64, 256, 0, stream>>>(numbers, count);
#if ORDERLY_TEST_ANY_RESOURCE
  // CUB asks its environment for temporary storage.
  const auto environment = ::cuda::std::execution::env{in, mr::any_resource<mr::device_accessible>(from)};
  const cudaError_t result = cub::DeviceReduce::Sum(numbers, sum, count, environment);
#else
  std::size_t needed = 0;
  cudaError_t result = cub::DeviceReduce::Sum(nullptr, needed, numbers, sum, count, stream);
  void* const storage = allocate(from, in, needed);
  if (result == cudaSuccess) result = cub::DeviceReduce::Sum(storage, needed, numbers, sum, count, stream);
  deallocate(from, in, storage, needed);
#endif
  deallocate(from, in, numbers, bytes);
  return result == cudaSuccess ? cudaPeekAtLastError() : result;
}

}  // namespace orderly::test
