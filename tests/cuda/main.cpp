// The device tests' main: without a device there is nothing to test, and the exit status says so to Meson.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <cstdio>

int main(int count, char** arguments) {
  constexpr int skipped = 77;
  int devices = 0;
  const cudaError_t result = cudaGetDeviceCount(&devices);
  if (result != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device (%s)\n", cudaGetErrorString(result));
    return skipped;
  }
  return doctest::Context(count, arguments).run();
}
