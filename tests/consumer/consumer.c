#include <orderly/orderly.h>

#include <stdio.h>
#include <string.h>

static int check(int met, const char *what) {
  if (!met) fprintf(stderr, "not met: %s (%s)\n", what, orderly_last_error());
  return met;
}

int main(void) {
  const orderly_options options = {.capacity = (size_t)64 << 20};
  orderly_pool *pool = NULL;
  orderly_stats stats;
  if (!check(orderly_pool_create_host(&options, &pool) == ORDERLY_OK, "a pool")) return 1;

  char *block = orderly_allocate(pool, 5000);
  if (!check(block != NULL, "a block")) return 1;
  memset(block, 1, 5000);

  int met = check(orderly_owns(pool, block) == 1, "the pool owns its block");
  met &= check(orderly_pool_stats(pool, &stats) == ORDERLY_OK && stats.requested == 5000, "statistics");
  met &= check(orderly_deallocate(pool, block + 256, 0) == ORDERLY_ERROR_INTERIOR_POINTER, "an interior pointer");
  met &= check(orderly_deallocate(pool, block, 5000) == ORDERLY_OK, "a free");
  met &= check(orderly_deallocate(pool, block, 5000) == ORDERLY_ERROR_DOUBLE_FREE, "a double free is seen");
  orderly_pool_destroy(pool);
  return met ? 0 : 1;
}
