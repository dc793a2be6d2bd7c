#include "busy.hpp"

namespace {

__global__ void busy(long long* temporary, long long clocks) {
  if (threadIdx.x != 0) return;
  const long long begin = clock64();
  long long now = begin;
  while (now - begin < clocks) now = clock64();
  if (temporary != nullptr) *temporary = now;
}

}  // namespace

bool orderly::bench::launch_busy(void* stream, void* temporary, long long clocks) {
  busy<<<1, 32, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<long long*>(temporary), clocks);
  return cudaGetLastError() == cudaSuccess;
}
