#include <orderly/orderly_cuda.h>

#include <stdio.h>
#include <string.h>

static int check(int met, const char *what) {
  if (!met) fprintf(stderr, "not met: %s (%s)\n", what, orderly_last_error());
  return met;
}

int main(void) {
  const orderly_options options = {.capacity = (size_t)64 << 20};
  orderly_pool *pool = NULL;
  const int code = orderly_pool_create_cuda(0, &options, &pool);
  if (code == ORDERLY_ERROR_SOURCE_FAILED && strstr(orderly_last_error(), "no CUDA device") != NULL) {
    printf("skipped: %s\n", orderly_last_error());
    return 77;
  }
  if (!check(code == ORDERLY_OK, "a pool")) return 1;

  char *block = orderly_allocate_async(pool, 5000, NULL);
  int met = check(block != NULL, "a block");
  met &= check(orderly_deallocate_async(pool, block + 256, 0, NULL) == ORDERLY_ERROR_INTERIOR_POINTER,
               "an interior pointer");
  met &= check(orderly_deallocate_async(pool, block, 5000, NULL) == ORDERLY_OK, "a free");
  met &= check(orderly_synchronize(pool) == ORDERLY_OK, "all work is done");
  orderly_pool_destroy(pool);
  return met ? 0 : 1;
}
