/* A C11 program that uses every function of orderly/orderly.h. Exit status 0: all of them did what they promise. */
#include <orderly/orderly.h>

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
  fprintf(stderr, "c_api.c:%d: %s\n", line, condition);
}

static void use_blocks(orderly_pool *pool) {
  unsigned char *block = orderly_allocate(pool, 1000);
  CHECK(block != NULL);
  if (block == NULL) return;
  memset(block, 1, 1000);
  CHECK((uintptr_t)block % 256 == 0);
  CHECK(orderly_block_size(pool, block) == 1024);
  CHECK(orderly_owns(pool, block + 999) == 1);

  void *aligned = orderly_allocate_aligned(pool, 100, 64 * KIB);
  CHECK(aligned != NULL);
  CHECK((uintptr_t)aligned % (64 * KIB) == 0);
  CHECK(orderly_allocate_aligned(pool, 100, 3) == NULL);
  CHECK(orderly_allocate(pool, SIZE_MAX) == NULL);

  CHECK(orderly_deallocate(pool, block + 256, 0) == ORDERLY_ERROR_INTERIOR_POINTER);
  CHECK(orderly_deallocate(pool, block + 1, 0) == ORDERLY_ERROR_MISALIGNED_POINTER);
  CHECK(orderly_deallocate(pool, block, 5000) == ORDERLY_ERROR_SIZE_MISMATCH);
  CHECK(orderly_deallocate(pool, &block, 0) == ORDERLY_ERROR_FOREIGN_POINTER);
  CHECK(strlen(orderly_last_error()) > 0);
  CHECK(block[999] == 1);

  CHECK(orderly_deallocate(pool, NULL, 7) == ORDERLY_OK);
  CHECK(orderly_deallocate(pool, block, 1000) == ORDERLY_OK);
  CHECK(orderly_deallocate(pool, block, 1000) == ORDERLY_ERROR_DOUBLE_FREE);
  CHECK(orderly_deallocate(pool, aligned, 0) == ORDERLY_OK);
}

static void use_counters(orderly_pool *pool) {
  orderly_stats stats;
  CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
  CHECK(stats.requested == 0);
  CHECK(stats.allocated == 0);
  CHECK(stats.capacity == 4 * MIB);
  CHECK(stats.committed <= stats.peak_committed);
  CHECK(stats.peak_requested == 1100);
  CHECK(stats.allocations == 2);
  CHECK(stats.frees == 2);
  CHECK(stats.failed >= 1);
  CHECK(stats.bad_frees == 5);

  CHECK(orderly_defragment(pool) == ORDERLY_OK);
  CHECK(orderly_trim(pool, 0) == ORDERLY_OK);
  CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
  CHECK(stats.cached == 0);
  CHECK(stats.committed == 0);
  CHECK(stats.passes >= 2);
}

static void use_checked_blocks(orderly_pool *pool) {
  const orderly_checked_block first = orderly_allocate_checked(pool, 1000, 1);
  CHECK(first.address != NULL);
  CHECK(first.generation % 2 == 1);
  const orderly_checked_block copy = first;
  CHECK(orderly_deallocate_checked(pool, first, 5000) == ORDERLY_ERROR_SIZE_MISMATCH);
  CHECK(orderly_deallocate_checked(pool, first, 1000) == ORDERLY_OK);
  CHECK(orderly_deallocate_checked(pool, copy, 1000) == ORDERLY_ERROR_DOUBLE_FREE);

  const orderly_checked_block second = orderly_allocate_checked(pool, 900, 1);
  CHECK(second.address == first.address);
  CHECK(second.generation == first.generation + 2);
  CHECK(orderly_deallocate_checked(pool, copy, 1000) == ORDERLY_ERROR_STALE_HANDLE);
  CHECK(strstr(orderly_last_error(), "1 time since") != NULL);
  CHECK(orderly_owns(pool, second.address) == 1);
  CHECK(orderly_deallocate_checked(pool, second, 0) == ORDERLY_OK);

  const orderly_checked_block aligned = orderly_allocate_checked(pool, 10, 64 * KIB);
  CHECK((uintptr_t)aligned.address % (64 * KIB) == 0);
  CHECK(orderly_deallocate_checked(pool, aligned, 10) == ORDERLY_OK);
  CHECK(orderly_allocate_checked(pool, 10, 3).address == NULL);
  CHECK(strstr(orderly_last_error(), "3") != NULL);
  CHECK(orderly_allocate_checked(pool, SIZE_MAX, 1).address == NULL);
  const orderly_checked_block none = {NULL, 7};
  CHECK(orderly_deallocate_checked(pool, none, 10) == ORDERLY_OK);
}

static void use_errors(void) {
  static const int codes[] = {ORDERLY_OK,
                              ORDERLY_ERROR_INVALID_ARGUMENT,
                              ORDERLY_ERROR_OUT_OF_MEMORY,
                              ORDERLY_ERROR_SOURCE_FAILED,
                              ORDERLY_ERROR_STREAM_FAILED,
                              ORDERLY_ERROR_DOUBLE_FREE,
                              ORDERLY_ERROR_INTERIOR_POINTER,
                              ORDERLY_ERROR_FOREIGN_POINTER,
                              ORDERLY_ERROR_MISALIGNED_POINTER,
                              ORDERLY_ERROR_SIZE_MISMATCH,
                              ORDERLY_ERROR_WRONG_POOL,
                              ORDERLY_ERROR_POOL_GONE,
                              ORDERLY_ERROR_STALE_HANDLE};
  for (size_t index = 0; index < sizeof codes / sizeof codes[0]; ++index) {
    CHECK(strlen(orderly_strerror(codes[index])) > 0);
  }
  CHECK(orderly_strerror(-12345) != NULL);
}

int main(void) {
  const orderly_options settings = {.capacity = 4 * MIB, .limit = 2 * MIB};
  const orderly_options wrong = {.granule = 3};
  orderly_pool *pool = NULL, *other = NULL;
  CHECK(orderly_pool_create_host(&wrong, &other) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(other == NULL);
  if (orderly_pool_create_host(&settings, &pool) != ORDERLY_OK) {
    fprintf(stderr, "no pool: %s\n", orderly_last_error());
    return 1;
  }
  use_blocks(pool);
  use_counters(pool);
  use_checked_blocks(pool);
  use_errors();

  CHECK(orderly_pool_create_host(NULL, &other) == ORDERLY_OK);
  void *block = orderly_allocate(other, 10);
  CHECK(orderly_deallocate(pool, block, 10) == ORDERLY_ERROR_WRONG_POOL);
  orderly_pool_destroy(other);
  CHECK(orderly_deallocate(other, block, 10) == ORDERLY_ERROR_POOL_GONE);
  orderly_pool_destroy(pool);
  orderly_pool_destroy(pool);
  const orderly_checked_block gone = {&failures, 1};
  CHECK(orderly_deallocate_checked(pool, gone, 0) == ORDERLY_ERROR_POOL_GONE);
  CHECK(orderly_allocate_checked(pool, 1, 1).address == NULL);
  CHECK(orderly_allocate(pool, 1) == NULL);
  return failures == 0 ? 0 : 1;
}
