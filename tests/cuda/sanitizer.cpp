// For compute-sanitizer to find fault with, or not; sanitizer.py runs it. A pool whose source tells of its blocks, and by
// the argument:
//   clean     blocks used as they may be: freed with work on the way, handed out again, and inside of a graph
//   freed     a write to a block after its free
//   past_end  a write behind the last byte of a live block, inside of what its size is rounded to
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/kernels.hpp"
#include "orderly/cuda.hpp"
#include "orderly/stream_pool.hpp"

namespace {

constexpr int skipped = 77;

void must(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  std::printf("%s: %s\n", call, cudaGetErrorString(result));
  std::exit(2);
}
#define ORDERLY_MUST(call) must(call, #call)

unsigned* word_at(void* block, std::size_t offset) {
  return reinterpret_cast<unsigned*>(static_cast<std::byte*>(block) + offset);
}

void use_as_allowed(orderly::stream_pool& pool, cudaStream_t stream) {
  for (int round = 0; round < 20; ++round) {
    const std::size_t bytes = 1000 + 4 * static_cast<std::size_t>(round);
    void* const from = pool.allocate(bytes, stream);
    void* const to = pool.allocate(bytes, stream);
    ORDERLY_MUST(cudaMemsetAsync(from, 1, bytes, stream));
    ORDERLY_MUST(orderly::test::copy_word(stream, word_at(from, bytes - 4), word_at(to, bytes - 4)));
    pool.deallocate(from, bytes, stream);
    pool.deallocate(to, bytes, stream);
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t launched = nullptr;
  ORDERLY_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  void* const inside = pool.allocate(1000, stream);
  ORDERLY_MUST(cudaMemsetAsync(inside, 1, 1000, stream));
  ORDERLY_MUST(orderly::test::copy_word(stream, word_at(inside, 0), word_at(inside, 996)));
  pool.deallocate(inside, 1000, stream);
  ORDERLY_MUST(cudaStreamEndCapture(stream, &graph));
  ORDERLY_MUST(cudaGraphInstantiate(&launched, graph, 0));
  for (int round = 0; round < 3; ++round) ORDERLY_MUST(cudaGraphLaunch(launched, stream));
  ORDERLY_MUST(cudaStreamSynchronize(stream));
  ORDERLY_MUST(cudaGraphExecDestroy(launched));
  ORDERLY_MUST(cudaGraphDestroy(graph));
}

}  // namespace

int main(int count, char** arguments) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return skipped;
  const std::string what = count == 2 ? arguments[1] : "";
  cudaStream_t stream = nullptr;
  ORDERLY_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  {
    orderly::stream_pool pool(orderly::make_cuda_device_source(0, std::size_t{1} << 20, true),
                              orderly::make_cuda_stream_driver(0));
    void* const live = pool.allocate(1000, stream);
    ORDERLY_MUST(cudaMemsetAsync(live, 1, 1000, stream));
    if (what == "clean") {
      use_as_allowed(pool, stream);
    } else if (what == "freed") {
      void* const freed = pool.allocate(1000, stream);
      pool.deallocate(freed, 1000, stream);
      static_cast<void>(orderly::test::copy_word(stream, word_at(live, 0), word_at(freed, 0)));
    } else if (what == "past_end") {
      static_cast<void>(orderly::test::copy_word(stream, word_at(live, 0), word_at(live, 1000)));
    } else {
      std::puts("clean, freed or past_end");
      return 2;
    }
    static_cast<void>(cudaStreamSynchronize(stream));  // the tool may have ended the kernel
    pool.deallocate(live, 1000, stream);
  }
  static_cast<void>(cudaStreamDestroy(stream));
  std::puts("done");
  return 0;
}
