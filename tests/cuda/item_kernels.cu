#include "item_kernels.hpp"

namespace orderly::test {
namespace {

constexpr unsigned block = 256;

unsigned blocks(unsigned threads) { return (threads + block - 1) / block; }

__device__ unsigned self() { return blockIdx.x * blockDim.x + threadIdx.x; }

__device__ void sign(void* item, std::size_t bytes) {
  if (item == nullptr) return;
  auto* const words = static_cast<unsigned*>(item);
  words[0] = self();
  words[bytes / sizeof(unsigned) - 1] = self();
}

template <class Kind>
__global__ void allocate_kernel(Kind from, void** out, unsigned threads) {
  if (self() >= threads) return;
  out[self()] = from.allocate();
  sign(out[self()], from.item_bytes());
}

__global__ void allocate_sizes_kernel(lease_set from, unsigned sizes, void** out, unsigned threads) {
  if (self() >= threads) return;
  const std::size_t bytes = std::size_t{16} << self() % sizes;
  out[self()] = from.allocate(bytes);
  sign(out[self()], bytes);
}

template <class Kind>
__global__ void free_kernel(Kind to, void** in, unsigned step, unsigned threads, unsigned* freed) {
  if (self() >= threads || self() % step != 0) return;
  if (to.deallocate(in[self()])) atomicAdd(freed, 1U);
}

__global__ void check_kernel(void** in, unsigned item_bytes, unsigned threads, unsigned* wrong) {
  if (self() >= threads || in[self()] == nullptr) return;
  const auto* const words = static_cast<const unsigned*>(in[self()]);
  if (words[0] != self() || words[item_bytes / sizeof(unsigned) - 1] != self()) atomicAdd(wrong, 1U);
}

template <class Kind>
cudaError_t allocate_of(const Kind& from, void** out, unsigned threads, cudaStream_t stream) {
  allocate_kernel<<<blocks(threads), block, 0, stream>>>(from, out, threads);
  return cudaPeekAtLastError();
}

template <class Kind>
cudaError_t free_of(const Kind& to, void** in, unsigned step, unsigned threads, unsigned* freed, cudaStream_t stream) {
  free_kernel<<<blocks(threads), block, 0, stream>>>(to, in, step, threads, freed);
  return cudaPeekAtLastError();
}

}  // namespace

cudaError_t allocate_items(const orderly::cuda::lease& from, void** out, unsigned threads, cudaStream_t stream) {
  return allocate_of(from, out, threads, stream);
}

cudaError_t allocate_items(const orderly::cuda::ring& from, void** out, unsigned threads, cudaStream_t stream) {
  return allocate_of(from, out, threads, stream);
}

cudaError_t allocate_sizes(const lease_set& from, unsigned sizes, void** out, unsigned threads, cudaStream_t stream) {
  allocate_sizes_kernel<<<blocks(threads), block, 0, stream>>>(from, sizes, out, threads);
  return cudaPeekAtLastError();
}

cudaError_t free_items(const orderly::cuda::lease& to, void** in, unsigned step, unsigned threads, unsigned* freed,
                       cudaStream_t stream) {
  return free_of(to, in, step, threads, freed, stream);
}

cudaError_t free_items(const orderly::cuda::ring& to, void** in, unsigned step, unsigned threads, unsigned* freed,
                       cudaStream_t stream) {
  return free_of(to, in, step, threads, freed, stream);
}

cudaError_t free_items(const lease_set& to, void** in, unsigned step, unsigned threads, unsigned* freed,
                       cudaStream_t stream) {
  return free_of(to, in, step, threads, freed, stream);
}

cudaError_t check_items(void** in, unsigned item_bytes, unsigned threads, unsigned* wrong, cudaStream_t stream) {
  check_kernel<<<blocks(threads), block, 0, stream>>>(in, item_bytes, threads, wrong);
  return cudaPeekAtLastError();
}

}  // namespace orderly::test
