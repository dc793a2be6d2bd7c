/* As faults.cpp, through the C interface. */
#include <orderly/orderly.h>
#include <stdio.h>
#include <string.h>

static volatile char seen;

int main(int count, char **arguments) {
  const char *const program = count == 2 ? arguments[1] : "";
  const orderly_options options = {.capacity = (size_t)64 << 20};
  orderly_pool *pool;
  if (orderly_pool_create_host(&options, &pool) != ORDERLY_OK) return 3;
  char *const block = orderly_allocate(pool, 1001);
  memset(block, 1, 1001);
  if (strcmp(program, "c_one_past_the_end") == 0) seen = block[1001]; /* FAULT c_one_past_the_end */
  if (orderly_deallocate(pool, block, 1001) != ORDERLY_OK) return 3;
  if (strcmp(program, "c_use_after_free") == 0) seen = block[0]; /* FAULT c_use_after_free */
  char *const again = orderly_allocate(pool, 1001);
  memset(again, 1, 1001);
  orderly_pool_destroy(pool);
  if (strcmp(program, "c_right") == 0) return 0;
  fputs("usage: faults_c PROGRAM, one of:\n  c_one_past_the_end\n  c_use_after_free\n  c_right\n", stderr);
  return 3;
}
