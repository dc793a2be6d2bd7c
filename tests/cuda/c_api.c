/* A C11 program that uses every function of orderly/orderly_cuda.h, and those of orderly/orderly.h on a pool of device
 * memory. Runs on a device, and against the stand-in of software_cuda.cpp. Exit status 0: all of them did what they
 * promise; 77: there is no device. */
#include <cuda_runtime_api.h>
#include <orderly/orderly_cuda.h>

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)

static int failures = 0;

#define CHECK(condition) check((condition), #condition, __LINE__)

static void check(int holds, const char *condition, int line) {
  if (holds) return;
  ++failures;
  fprintf(stderr, "c_api.c:%d: %s (%s)\n", line, condition, orderly_last_error());
}

static void use_streams(orderly_pool *pool, cudaStream_t first, cudaStream_t second) {
  unsigned char *block = orderly_allocate_async(pool, 1000, first);
  CHECK(block != NULL);
  CHECK((uintptr_t)block % 256 == 0);
  CHECK(orderly_block_size(pool, block) == 1024);
  CHECK(orderly_owns(pool, block + 999) == 1);
  CHECK(cudaMemsetAsync(block, 1, 1000, first) == cudaSuccess);

  CHECK(orderly_deallocate_async(pool, block + 256, 0, first) == ORDERLY_ERROR_INTERIOR_POINTER);
  CHECK(orderly_deallocate_async(pool, block + 1, 0, first) == ORDERLY_ERROR_MISALIGNED_POINTER);
  CHECK(orderly_deallocate_async(pool, block, 5000, first) == ORDERLY_ERROR_SIZE_MISMATCH);
  CHECK(orderly_deallocate_async(pool, &block, 0, first) == ORDERLY_ERROR_FOREIGN_POINTER);
  CHECK(strlen(orderly_last_error()) > 0);

  CHECK(orderly_deallocate_async(pool, block, 1000, first) == ORDERLY_OK);
  CHECK(orderly_deallocate_async(pool, block, 1000, first) == ORDERLY_ERROR_DOUBLE_FREE);
  CHECK(orderly_deallocate_async(pool, NULL, 7, first) == ORDERLY_OK);
  CHECK(orderly_allocate_async(pool, 1000, first) == (void *)block);
  CHECK(orderly_record_stream(pool, block, second) == ORDERLY_OK);
  CHECK(orderly_record_stream(pool, block + 1, second) != ORDERLY_OK);
  CHECK(orderly_deallocate_async(pool, block, 0, first) == ORDERLY_OK);
  CHECK(orderly_record_stream(pool, block, second) == ORDERLY_ERROR_DOUBLE_FREE);

  CHECK(orderly_allocate_async(pool, SIZE_MAX, first) == NULL);
  CHECK(orderly_stream_synchronize(pool, first) == ORDERLY_OK);
  CHECK(orderly_synchronize(pool) == ORDERLY_OK);
  CHECK(orderly_release_stream(pool, second) == ORDERLY_OK);
}

static void use_default_stream(orderly_pool *pool) {
  void *block = orderly_allocate(pool, 100 * KIB);
  CHECK(block != NULL);
  CHECK(orderly_deallocate(pool, block, 100 * KIB) == ORDERLY_OK);
  CHECK(orderly_deallocate(pool, block, 100 * KIB) == ORDERLY_ERROR_DOUBLE_FREE);
  CHECK(orderly_allocate_async(pool, 100 * KIB, NULL) == block); /* the same stream by another name */
  CHECK(orderly_deallocate(pool, block, 0) == ORDERLY_OK);

  void *aligned = orderly_allocate_aligned(pool, 100, 4 * KIB);
  CHECK(aligned != NULL);
  CHECK((uintptr_t)aligned % (4 * KIB) == 0);
  CHECK(orderly_allocate_aligned(pool, 100, 3) == NULL);
  CHECK(orderly_deallocate(pool, aligned, 100) == ORDERLY_OK);
}

static void use_counters(orderly_pool *pool) {
  orderly_stats stats;
  CHECK(orderly_synchronize(pool) == ORDERLY_OK);
  CHECK(orderly_defragment(pool) == ORDERLY_OK);
  CHECK(orderly_trim(pool, 0) == ORDERLY_OK);
  CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
  CHECK(stats.requested == 0);
  CHECK(stats.allocated == 0);
  CHECK(stats.cached == 0);
  CHECK(stats.capacity == 8 * MIB);
  CHECK(stats.allocations == 5);
  CHECK(stats.frees == 5);
  CHECK(stats.failed >= 1);
  CHECK(stats.bad_frees == 6);
}

int main(void) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    printf("skipped: no CUDA device\n");
    return 77;
  }
  const orderly_options settings = {.capacity = 8 * MIB};
  const orderly_options wrong = {.capacity = 8 * MIB, .granule = 3};
  orderly_pool *pool = NULL, *other = NULL;
  CHECK(orderly_pool_create_cuda(devices, &settings, &other) == ORDERLY_ERROR_SOURCE_FAILED);
  CHECK(other == NULL);
  CHECK(orderly_pool_create_cuda(0, &wrong, &other) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(other == NULL);
  if (orderly_pool_create_cuda(0, &settings, &pool) != ORDERLY_OK) {
    fprintf(stderr, "no pool: %s\n", orderly_last_error());
    return 1;
  }
  cudaStream_t first, second;
  CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking) == cudaSuccess);
  use_streams(pool, first, second);
  use_default_stream(pool);
  use_counters(pool);

  CHECK(orderly_pool_create_host(NULL, &other) == ORDERLY_OK);
  CHECK(orderly_allocate_async(other, 1, first) == NULL);
  CHECK(orderly_synchronize(other) == ORDERLY_ERROR_INVALID_ARGUMENT);
  orderly_pool_destroy(other);

  void *block = orderly_allocate_async(pool, 10, first);
  CHECK(cudaStreamSynchronize(first) == cudaSuccess);
  CHECK(orderly_release_stream(pool, first) == ORDERLY_OK);
  orderly_pool_destroy(pool);
  CHECK(orderly_deallocate_async(pool, block, 10, first) == ORDERLY_ERROR_POOL_GONE);
  CHECK(orderly_allocate_async(pool, 10, first) == NULL);
  orderly_pool_destroy(pool);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
  return failures == 0 ? 0 : 1;
}
