#include "kernel/kernels.hpp"

namespace orderly::bench {
namespace {

constexpr unsigned block = 256;

__device__ unsigned self() { return blockIdx.x * blockDim.x + threadIdx.x; }

template <class Magazine>
__global__ void allocate_kernel(Magazine from, void** out, unsigned threads) {
  if (self() < threads) out[self()] = from.allocate();
}

template <class Magazine>
__global__ void free_kernel(Magazine to, void** in, unsigned threads) {
  if (self() < threads) to.deallocate(in[self()]);
}

__global__ void malloc_kernel(std::size_t bytes, void** out, unsigned threads) {
  if (self() < threads) out[self()] = malloc(bytes);
}

__global__ void device_free_kernel(void** in, unsigned threads) {
  if (self() < threads) free(in[self()]);
}

__global__ void write_kernel(void** in, unsigned threads) {
  if (self() < threads && in[self()] != nullptr) *static_cast<unsigned*>(in[self()]) = self();
}

__global__ void read_kernel(void** in, unsigned threads, unsigned* wrong) {
  if (self() >= threads) return;
  if (in[self()] == nullptr || *static_cast<unsigned*>(in[self()]) != self()) atomicAdd(wrong, 1U);
}

unsigned blocks(unsigned threads) { return (threads + block - 1) / block; }

}  // namespace

cudaError_t allocate_in(const orderly::cuda::lease& from, void** out, unsigned threads, cudaStream_t stream) {
  allocate_kernel<<<blocks(threads), block, 0, stream>>>(from, out, threads);
  return cudaPeekAtLastError();
}

cudaError_t allocate_in(const orderly::cuda::ring& from, void** out, unsigned threads, cudaStream_t stream) {
  allocate_kernel<<<blocks(threads), block, 0, stream>>>(from, out, threads);
  return cudaPeekAtLastError();
}

cudaError_t allocate_by_malloc(std::size_t bytes, void** out, unsigned threads, cudaStream_t stream) {
  malloc_kernel<<<blocks(threads), block, 0, stream>>>(bytes, out, threads);
  return cudaPeekAtLastError();
}

cudaError_t free_in(const orderly::cuda::lease& to, void** in, unsigned threads, cudaStream_t stream) {
  free_kernel<<<blocks(threads), block, 0, stream>>>(to, in, threads);
  return cudaPeekAtLastError();
}

cudaError_t free_in(const orderly::cuda::ring& to, void** in, unsigned threads, cudaStream_t stream) {
  free_kernel<<<blocks(threads), block, 0, stream>>>(to, in, threads);
  return cudaPeekAtLastError();
}

cudaError_t free_by_free(void** in, unsigned threads, cudaStream_t stream) {
  device_free_kernel<<<blocks(threads), block, 0, stream>>>(in, threads);
  return cudaPeekAtLastError();
}

cudaError_t check(void** in, unsigned threads, unsigned* wrong, cudaStream_t stream) {
  write_kernel<<<blocks(threads), block, 0, stream>>>(in, threads);
  read_kernel<<<blocks(threads), block, 0, stream>>>(in, threads, wrong);
  return cudaPeekAtLastError();
}

}  // namespace orderly::bench
