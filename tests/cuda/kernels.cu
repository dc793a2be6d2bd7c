#include <cuda/atomic>

#include "kernels.hpp"

namespace orderly::test {
namespace {

__global__ void gated_store(const unsigned* gate, unsigned* target, unsigned value) {
  const cuda::atomic_ref<const unsigned, cuda::thread_scope_system> open(*gate);
  constexpr unsigned nap = 1000;  // nanoseconds, at most twice that
  for (int naps = 0; naps < 10'000'000 && open.load(cuda::memory_order_acquire) == 0; ++naps) __nanosleep(nap);
  *target = value;
}

__global__ void copy(const unsigned* from, unsigned* to) { *to = *from; }

}  // namespace

cudaError_t write_behind_gate(cudaStream_t stream, const unsigned* gate, unsigned* target, unsigned value) {
  gated_store<<<1, 1, 0, stream>>>(gate, target, value);
  return cudaPeekAtLastError();
}

cudaError_t copy_word(cudaStream_t stream, const unsigned* from, unsigned* to) {
  copy<<<1, 1, 0, stream>>>(from, to);
  return cudaPeekAtLastError();
}

}  // namespace orderly::test
