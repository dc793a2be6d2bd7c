/* A C11 program that uses every function of orderly/orderly.h. Exit status 0: all of them did what they promise. */
#include <orderly/orderly.h>

#include <stddef.h>
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

static size_t handler_calls = 0;
static char reported[ORDERLY_REPORT_BYTES];

static int report_refusal(size_t bytes, void *context) {
  CHECK(bytes == 3 * MIB);
  ++handler_calls;
  orderly_report(*(orderly_pool **)context, 0, reported, sizeof reported);
  return 0;
}

/* A later version's, and that of a program which was compiled with a later header. */
struct later_settings {
  orderly_settings known;
  int unknown;
};

static void use_settings(void) {
  orderly_pool *pool = NULL;
  struct later_settings later;
  memset(&later, 0, sizeof later);
  orderly_settings *const settings = &later.known;
  const size_t sizes[] = {0, 1, sizeof(size_t) - 1, 4097, SIZE_MAX};
  for (size_t index = 0; index < sizeof sizes / sizeof sizes[0]; ++index) {
    settings->size = sizes[index];
    pool = (orderly_pool *)&later;
    CHECK(orderly_pool_create_host_with(settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
    CHECK(pool == NULL);
    CHECK(strstr(orderly_last_error(), "sizeof(orderly_settings)") != NULL);
  }
  settings->size = sizeof later;
  later.unknown = 1;
  CHECK(orderly_pool_create_host_with(settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(orderly_last_error(), "later version") != NULL);
  later.unknown = 0;
  settings->granule = 3;
  CHECK(orderly_pool_create_host_with(settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
  settings->granule = 512;
  settings->limit = MIB;
  settings->release_threshold = 2 * MIB;
  CHECK(orderly_pool_create_host_with(settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(orderly_pool_create_host_with(settings, NULL) == ORDERLY_ERROR_INVALID_ARGUMENT);
  settings->release_threshold = 128 * KIB;
  settings->soft_limit = 64 * KIB;
  CHECK(orderly_pool_create_host_with(settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
  settings->soft_limit = 512 * KIB;
  settings->slack = 1000;
  CHECK(orderly_pool_create_host_with(settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
  settings->slack = -1;
  settings->reserve = 256 * KIB;
  CHECK(orderly_pool_create_host_with(settings, &pool) == ORDERLY_OK);

  /* What was asked for is there: committed at once, and kept to the threshold. */
  orderly_stats stats;
  CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
  CHECK(stats.committed == 256 * KIB);
  void *block = orderly_allocate(pool, 1);
  CHECK(orderly_block_size(pool, block) == 512);
  CHECK(orderly_deallocate(pool, block, 1) == ORDERLY_OK);
  size_t committed = 1;
  CHECK(orderly_reserve(pool, 512 * KIB, &committed) == ORDERLY_OK);
  CHECK(committed == 512 * KIB);
  CHECK(orderly_reserve(pool, 2 * MIB, NULL) == ORDERLY_OK);
  CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
  CHECK(stats.committed == MIB);
  CHECK(orderly_pool_tags(pool, NULL, 0) == 0);
  CHECK(strstr(orderly_last_error(), "account_tags") != NULL);
  orderly_pool_destroy(pool);
  CHECK(orderly_reserve(pool, 1, &committed) == ORDERLY_ERROR_POOL_GONE);
  CHECK(committed == 0);

  /* An older program knows the first members alone; what lies behind them is not read. */
  memset(&later, 255, sizeof later);
  settings->size = offsetof(orderly_settings, limit);
  settings->capacity = 4 * MIB;
  settings->granule = settings->chunk = 0;
  CHECK(orderly_pool_create_host_with(settings, &pool) == ORDERLY_OK);
  CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
  CHECK(stats.capacity == 4 * MIB);
  orderly_pool_destroy(pool);
  CHECK(orderly_pool_create_host_with(NULL, &pool) == ORDERLY_OK);
  orderly_pool_destroy(pool);
}

static void use_tags_and_reports(void) {
  orderly_pool *pool = NULL;
  orderly_settings settings = {.size = sizeof settings, .capacity = 64 * MIB, .limit = 4 * MIB, .account_tags = 1};
  settings.on_out_of_memory = report_refusal;
  settings.context = &pool;
  CHECK(orderly_pool_create_host_with(&settings, &pool) == ORDERLY_OK);
  const orderly_tag weights = orderly_tag_named("weights");
  CHECK(weights > 1);
  CHECK(orderly_tag_named("weights") == weights);
  CHECK(strcmp(orderly_tag_name(weights), "weights") == 0);
  CHECK(orderly_tag_named(NULL) == 0);
  CHECK(orderly_tag_named("") == 0);
  CHECK(strcmp(orderly_tag_name(0), "untagged") == 0);
  CHECK(strcmp(orderly_tag_name(UINT16_MAX), "untagged") == 0);
  CHECK(orderly_tag_set(UINT16_MAX) == 0);
  CHECK(orderly_tag_set(weights) == 0);
  void *block = orderly_allocate(pool, 2 * MIB);
  CHECK(orderly_tag_set(0) == weights);
  void *small = orderly_allocate(pool, 1000);

  orderly_tag_stats tags[3];
  CHECK(orderly_pool_tags(pool, tags, 3) == 2);
  CHECK(tags[0].tag == weights);
  CHECK(strcmp(tags[0].name, "weights") == 0);
  CHECK(tags[0].requested == 2 * MIB);
  CHECK(tags[0].allocated == 2 * MIB);
  CHECK(tags[0].peak_requested == 2 * MIB);
  CHECK(tags[0].allocations == 1);
  CHECK(tags[0].frees == 0);
  CHECK(tags[1].tag == 0);
  CHECK(tags[1].requested == 1000);
  memset(tags, 0, sizeof tags);
  CHECK(orderly_pool_tags(pool, tags, 1) == 2);
  CHECK(tags[0].tag == weights);
  CHECK(tags[1].name == NULL);
  CHECK(orderly_pool_tags(pool, NULL, 100) == 2);

  CHECK(orderly_allocate(pool, 3 * MIB) == NULL);
  CHECK(handler_calls == 1);
  CHECK(strstr(reported, "out of memory: 3145728 bytes") != NULL);
  CHECK(strstr(reported, "1 pass") != NULL);
  CHECK(strstr(reported, "the handler was called 1 time") != NULL);
  CHECK(strstr(reported, "weights: 2.0 MiB requested in 1 block") != NULL);
  const size_t length = orderly_report(pool, 3 * MIB, reported, sizeof reported);
  CHECK(length == strlen(reported));
  CHECK(length < ORDERLY_REPORT_BYTES);
  CHECK(strstr(reported, "tried") == NULL);
  CHECK(strstr(reported, "a limit of at least") != NULL);
  char part[10];
  CHECK(orderly_report(pool, 3 * MIB, part, sizeof part) == length);
  CHECK(strcmp(part, "orderly: ") == 0);
  CHECK(orderly_report(pool, 3 * MIB, NULL, 100) == length);
  CHECK(orderly_report(pool, 3 * MIB, part, 0) == length);
  CHECK(orderly_deallocate(pool, block, 2 * MIB) == ORDERLY_OK);
  CHECK(orderly_deallocate(pool, small, 1000) == ORDERLY_OK);
  CHECK(orderly_pool_tags(pool, tags, 3) == 2);
  CHECK(tags[0].requested == 0);
  orderly_pool_destroy(pool);
  CHECK(orderly_pool_tags(pool, tags, 3) == 0);
  CHECK(strcmp(orderly_last_error(), orderly_strerror(ORDERLY_ERROR_POOL_GONE)) == 0);
  CHECK(orderly_report(pool, 0, part, sizeof part) == 0);
  CHECK(part[0] == '\0');
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
  use_settings();
  use_tags_and_reports();

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
