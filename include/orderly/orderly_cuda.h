/* The C interface to pools of device memory in stream order, usable from C11. Part of the library orderly_cuda. All
 * functions of orderly/orderly.h work on these pools too.
 *
 * Streams: no CUDA header is needed here. `stream` is a cudaStream_t as it stands; null and the handles 1 and 2 are the
 * default streams, as orderly/cuda.hpp tells. A pool knows a stream by its handle from the first use until
 * orderly_release_stream, which a program calls before it destroys the stream.
 *
 * Thread safety: as in orderly.h; another thread must not be inside a call for a stream while it is released. Progress:
 * orderly_allocate_async and orderly_deallocate_async in one stream are lock-free as long as caches serve, and make no
 * call of CUDA; moving memory between streams takes a mutex, and no thread waits for a device, but in the two functions
 * that say so.
 *
 * Errors: functions that return an int return ORDERLY_OK or a code, and orderly_last_error tells what was wrong.
 * ORDERLY_ERROR_INVALID_ARGUMENT: the pool is one of orderly_pool_create_host, which has no streams, or the handle
 * names no stream, or the pool has too many. ORDERLY_ERROR_POOL_GONE: the pool was destroyed. */
#ifndef ORDERLY_CUDA_H
#define ORDERLY_CUDA_H

#include <stddef.h>

#include "orderly/export.h"
#include "orderly/orderly.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Creates a pool of a device's memory, from one cudaMalloc. options may be null. capacity 0: 15/16 of the memory that
 * is free on the device now. limit: a lower capacity. chunk is ignored, as the memory is there from the start.
 *
 * ORDERLY_ERROR_SOURCE_FAILED: there is no such device, or it has not that much memory. ORDERLY_ERROR_INVALID_ARGUMENT:
 * an option is out of range. ORDERLY_ERROR_OUT_OF_MEMORY: 1024 pools exist. On an error *pool is null. */
ORDERLY_API int orderly_pool_create_cuda(int device, const orderly_options *options, orderly_pool **pool);

/* Kinds of device memory; see orderly/cuda.hpp. */
enum {
  ORDERLY_CUDA_DEVICE = 0,  /* one cudaMalloc, there from the start */
  ORDERLY_CUDA_VIRTUAL = 1, /* grows and shrinks with the pool; capacity 0: all of the device's memory */
  ORDERLY_CUDA_PINNED = 2,  /* page-locked host memory; the capacity must be given */
  ORDERLY_CUDA_MANAGED = 3  /* managed memory; the capacity must be given */
};

/* The same with all options and a kind of memory. A wrong size of settings, or a kind that is none of these:
 * ORDERLY_ERROR_INVALID_ARGUMENT. */
ORDERLY_API int orderly_pool_create_cuda_with(int device, int kind, const orderly_settings *settings,
                                              orderly_pool **pool);

/* A block of at least `bytes` bytes (0 counts as 1), aligned to the granule, for work that enters `stream` from now on.
 * Null: out of memory, or as orderly_last_error tells. */
ORDERLY_API void *orderly_allocate_async(orderly_pool *pool, size_t bytes, void *stream);

/* Frees a block: work that is in `stream` now may still use it. The stream may be another than the one that the block
 * was allocated for; that stream's use must then be ordered before by the program. bytes as requested, or 0: unknown.
 * Null is ignored. Codes as orderly_deallocate; a refused free changes nothing. */
ORDERLY_API int orderly_deallocate_async(orderly_pool *pool, void *pointer, size_t bytes, void *stream);

/* Work in `stream` uses the live block too: once freed, it stays out of use until the work that is in `stream` at that
 * time is done as well. Codes as orderly_deallocate. */
ORDERLY_API int orderly_record_stream(orderly_pool *pool, void *pointer, void *stream);

/* The stream will be destroyed: what was freed in it is sealed by an event, and its handle is forgotten. A stream that
 * the pool has not met is ignored. ORDERLY_ERROR_STREAM_FAILED: no event could be recorded, since the stream captures,
 * say; then what was freed in it stays out of use until orderly_synchronize. */
ORDERLY_API int orderly_release_stream(orderly_pool *pool, void *stream);

/* What is allocated in `stream` between the two stays with the graph that the stream captures meanwhile, until that graph
 * is gone with all that was made of it. Call the first before cudaStreamBeginCapture and the second before
 * cudaStreamEndCapture. See orderly::stream_pool::begin_capture. */
ORDERLY_API int orderly_begin_capture(orderly_pool *pool, void *stream);
ORDERLY_API int orderly_end_capture(orderly_pool *pool, void *stream);

/* Wait until all work is done that may use blocks freed so far: in every stream, or in one. Then they are everybody's.
 * ORDERLY_ERROR_STREAM_FAILED: the device has failed, a stream captures, or the handle names no stream. */
ORDERLY_API int orderly_synchronize(orderly_pool *pool);
ORDERLY_API int orderly_stream_synchronize(orderly_pool *pool, void *stream);

#ifdef __cplusplus
}
#endif

#endif
