#include <orderly/cuda.hpp>
#include <orderly/stream_pool.hpp>

#include <cstddef>
#include <cstdio>
#include <utility>

int main() {
  auto source = orderly::make_cuda_device_source(0, std::size_t{64} << 20);
  auto driver = orderly::make_cuda_stream_driver(0);
  if (source == nullptr || driver == nullptr) {
    std::puts("skipped: no CUDA device");
    return 77;
  }
  orderly::stream_pool pool(std::move(source), std::move(driver));
  void* const block = pool.allocate(5000, nullptr);
  pool.deallocate(block, 5000, nullptr);
  return pool.synchronize() && pool.stats().memory.requested == 0 ? 0 : 1;
}
