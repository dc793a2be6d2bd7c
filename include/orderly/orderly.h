/* The C interface, usable from C11. Names and values are stable across releases.
 *
 * Thread safety: every function except orderly_pool_destroy may be called from any thread at any time. A handle whose
 * pool was destroyed is recognised: functions that return a code return ORDERLY_ERROR_POOL_GONE, others null.
 *
 * All functions serve pools of device memory as well, which orderly/orderly_cuda.h creates. In those, orderly_allocate
 * and orderly_deallocate mean the legacy default stream: the block is for work that enters that stream from now on, and
 * work that is in it may still use what is freed. Other streams' use is for the program to order; a block for another
 * stream is better had from orderly_allocate_async. */
#ifndef ORDERLY_H
#define ORDERLY_H

#include <stddef.h>
#include <stdint.h>

#include "orderly/export.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  ORDERLY_OK = 0,
  ORDERLY_ERROR_INVALID_ARGUMENT = 1,    /* an option or argument is out of range */
  ORDERLY_ERROR_OUT_OF_MEMORY = 2,       /* the limit is reached and nothing could be reclaimed */
  ORDERLY_ERROR_SOURCE_FAILED = 3,       /* the memory source refused to reserve or to commit */
  ORDERLY_ERROR_STREAM_FAILED = 4,       /* a stream cannot be waited for: its device failed, or it is no stream */
  ORDERLY_ERROR_DOUBLE_FREE = 10,        /* the block is free already */
  ORDERLY_ERROR_INTERIOR_POINTER = 11,   /* the pointer lies inside a live block, not at its start */
  ORDERLY_ERROR_FOREIGN_POINTER = 12,    /* no pool of this process serves the pointer */
  ORDERLY_ERROR_MISALIGNED_POINTER = 13, /* the pointer is not a multiple of the granule */
  ORDERLY_ERROR_SIZE_MISMATCH = 14,      /* the given size rounds to another class than the block's */
  ORDERLY_ERROR_WRONG_POOL = 15,         /* another pool of this process serves the pointer */
  ORDERLY_ERROR_POOL_GONE = 16,          /* the pool was destroyed */
  ORDERLY_ERROR_STALE_HANDLE = 17,       /* the handle was freed, and the block handed out again */
  ORDERLY_ERROR_PINNED = 18              /* the block is pinned where it is; C++ only */
};

typedef struct orderly_pool orderly_pool;

/* All in bytes; 0 = default. granule: smallest block, power of two (256). chunk: unit of physical memory, power of two
 * (64 KiB on the host). capacity: most memory ever managed (physical memory). limit: most memory committed (capacity). */
typedef struct {
  size_t capacity, granule, chunk, limit;
} orderly_options;

/* All options, for the functions that end in _with. Write
 *
 *   orderly_settings settings = {.size = sizeof settings, .limit = ...};
 *
 * A later version may add members at the end: `size` tells it which of them the program knows. It is refused if the program
 * sets one that this version does not know. Members are as in orderly/options.hpp, sizes in bytes; 0 = default. */
typedef struct {
  size_t size; /* sizeof(orderly_settings) */
  size_t capacity, granule, chunk, limit;
  size_t release_threshold; /* committed up to which the pool gives nothing back by itself */
  size_t soft_limit;        /* committed above which it gives back what lies idle before it commits more */
  size_t reserve;           /* committed at once, as by orderly_reserve */
  double slack;             /* free memory kept before it moves, as a fraction of the peak; below 0: none */
  int account_tags;         /* 1: account of tags is kept; see orderly_pool_tags */
  /* Called when an allocation would be refused; not 0: try again. Runs without a lock of the pool held, on the allocating
   * thread. Null: none. `context` is passed on. */
  int (*on_out_of_memory)(size_t bytes, void *context);
  void *context;
  /* Of pools in stream order, ignored by others; as in orderly/stream_pool.hpp. */
  int safe_mode, watch_captures, wait_before_refusing;
  size_t seal_bytes;
} orderly_settings;

/* Creates a pool of host memory. options may be null. Returns ORDERLY_OK, ORDERLY_ERROR_INVALID_ARGUMENT,
 * ORDERLY_ERROR_SOURCE_FAILED, or ORDERLY_ERROR_OUT_OF_MEMORY (1024 pools exist); on an error *pool is null. */
ORDERLY_API int orderly_pool_create_host(const orderly_options *options, orderly_pool **pool);

/* The same with all options; settings may be null. ORDERLY_ERROR_INVALID_ARGUMENT also for a wrong size. */
ORDERLY_API int orderly_pool_create_host_with(const orderly_settings *settings, orderly_pool **pool);

/* Releases the pool with all its blocks. No other thread may be inside a call on this pool, and no stream may have work
 * left that uses its memory. Null or a handle whose pool is gone is ignored. */
ORDERLY_API void orderly_pool_destroy(orderly_pool *pool);

/* A block of at least `bytes` bytes (0 counts as 1), aligned to the granule. Null: out of memory, or as
 * orderly_last_error tells. */
ORDERLY_API void *orderly_allocate(orderly_pool *pool, size_t bytes);

/* The same, aligned to `alignment`: a power of two, at most the chunk (device memory in one piece: at most its own
 * alignment). */
ORDERLY_API void *orderly_allocate_aligned(orderly_pool *pool, size_t bytes, size_t alignment);

/* Frees a block; bytes as requested, or 0: unknown. Null is ignored. Returns ORDERLY_OK or a code; a refused free
 * changes nothing. */
ORDERLY_API int orderly_deallocate(orderly_pool *pool, void *pointer, size_t bytes);

/* A block with a handle that knows which of the times that its block was handed out is meant: of any number of frees of
 * one handle exactly one succeeds, also when the block was handed out again. The others return
 * ORDERLY_ERROR_DOUBLE_FREE or ORDERLY_ERROR_STALE_HANDLE. More in orderly/checked.hpp, and how it mixes with the above. */
typedef struct {
  void *address; /* null: no block */
  uint64_t generation;
} orderly_checked_block;

/* As orderly_allocate_aligned; alignment 1: any. The address is null on an error. */
ORDERLY_API orderly_checked_block orderly_allocate_checked(orderly_pool *pool, size_t bytes, size_t alignment);

/* As orderly_deallocate. */
ORDERLY_API int orderly_deallocate_checked(orderly_pool *pool, orderly_checked_block block, size_t bytes);

/* Coalescing pass: caches are reclaimed, free buddies merged. */
ORDERLY_API int orderly_defragment(orderly_pool *pool);

/* Decommits free memory until at most keep_bytes are committed, or nothing more can be released. */
ORDERLY_API int orderly_trim(orderly_pool *pool, size_t keep_bytes);

/* Commits memory until at least bytes are committed, or the limit is reached, or the source refuses, and keeps it until
 * orderly_trim. *committed, which may be null, is what is committed then. */
ORDERLY_API int orderly_reserve(orderly_pool *pool, size_t bytes, size_t *committed);

/* Usable bytes of the live block that starts at pointer; 0 if none does. */
ORDERLY_API size_t orderly_block_size(const orderly_pool *pool, const void *pointer);

/* 1 if pointer lies in a live block of the pool, else 0. */
ORDERLY_API int orderly_owns(const orderly_pool *pool, const void *pointer);

/* See orderly::statistics in orderly/stats.hpp. */
typedef struct {
  size_t requested, allocated, cached, committed, peak_requested, peak_committed, capacity;
  unsigned long long allocations, frees, failed, bad_frees, passes;
} orderly_stats;

ORDERLY_API int orderly_pool_stats(const orderly_pool *pool, orderly_stats *stats);

/* Tags: what memory is for; see orderly/tag.hpp. A tag is the number of a name that the process has registered, for ever:
 * 0 is untagged, 1 other. Lock-free. */
typedef uint16_t orderly_tag;

/* The tag of that name, of which the first 255 bytes count. Null or empty: 0. Past 65,534 names, or without memory: 1. */
ORDERLY_API orderly_tag orderly_tag_named(const char *name);

/* Its name, which stays for ever; never null. A number that is no tag's: "untagged". */
ORDERLY_API const char *orderly_tag_name(orderly_tag tag);

/* The calling thread's allocations bear the tag from now on; a number that is no tag's counts as 0. Returns the tag before,
 * to be set again when that is over. */
ORDERLY_API orderly_tag orderly_tag_set(orderly_tag tag);

/* What blocks of one tag hold; see orderly::tag_statistics in orderly/stats.hpp. */
typedef struct {
  const char *name;
  size_t requested, allocated, peak_requested;
  unsigned long long allocations, frees;
  orderly_tag tag;
} orderly_tag_stats;

/* What each tag holds that was ever used in the pool, the one with most requested bytes first, into stats, as many as count
 * allows; stats may be null if it allows none. Returns how many there are. 0: none, or the pool is gone, or was not asked to
 * account tags, or there is no memory; orderly_last_error tells which of the last three. */
ORDERLY_API size_t orderly_pool_tags(const orderly_pool *pool, orderly_tag_stats *stats, size_t count);

/* A report of some lines: what is live, cached and free, what would make room for a request of that many bytes (0: none),
 * the ten largest tags. Into text, cut to bytes with a zero at its end. Returns the length of the whole, less than
 * ORDERLY_REPORT_BYTES; 0 if the pool is gone. Looks at each block, so it is not for every second. Inside
 * of an out-of-memory handler, with 0: of the request that it is called for, and of what was tried for it. */
enum { ORDERLY_REPORT_BYTES = 8192 };
ORDERLY_API size_t orderly_report(const orderly_pool *pool, size_t requested, char *text, size_t bytes);

/* One sentence about a code; never null. */
ORDERLY_API const char *orderly_strerror(int code);

/* The message of this thread's last refused free or failed call: values, block, state. Never null; valid until the
 * thread's next failing call. */
ORDERLY_API const char *orderly_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
