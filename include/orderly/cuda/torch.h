/* What the library orderly_torch exports: the functions that PyTorch's pluggable allocator takes by name or by address.
 * It links neither PyTorch nor, at run time, orderly's other libraries: one file to load.
 *
 *   path = "liborderly_torch.so"
 *   memory = torch.cuda.memory.CUDAPluggableAllocator(path, "orderly_torch_alloc", "orderly_torch_free")
 *   address = lambda name: ctypes.cast(getattr(ctypes.CDLL(path), name), ctypes.c_void_p).value
 *   memory.allocator().set_record_stream_fn(address("orderly_torch_record_stream"))
 *   memory.allocator().set_reset_fn(address("orderly_torch_reset"))
 *   memory.allocator().set_memory_fraction_fn(address("orderly_torch_memory_fraction"))
 *   memory.allocator().set_base_alloc_fn(address("orderly_torch_base_alloc"))
 *   torch.cuda.memory.change_current_allocator(memory)      # before PyTorch uses the device
 *
 * Without set_record_stream_fn PyTorch ignores Tensor.record_stream, with any pluggable allocator: then a tensor that
 * several streams use must be kept until all of them are done. The others may be left out.
 *
 * Pools: one for each device, made at its first allocation and there until the process ends. Streams: PyTorch takes its
 * streams from a set that it never destroys, so the pool needs no event at a free; a program that destroys streams of
 * its own (ExternalStream) sets ORDERLY_TORCH_SAFE_MODE. PyTorch frees a tensor in the stream that it was allocated in.
 *
 * Environment, read at the first allocation:
 *   ORDERLY_TORCH_CAPACITY   bytes of a pool: a number, or one with K, M, G or T behind it (powers of 1024). Without it
 *                            15/16 of what is free on the device then. Set it where others need the device's memory,
 *                            and always in MemPool mode: there PyTorch's own allocator needs the rest.
 *   ORDERLY_TORCH_SAFE_MODE  1: streams may be destroyed at any time; one event is recorded for each free. 0: not.
 *   ORDERLY_CUDA_REGIONS     1: compute-sanitizer is told of every block, and each free waits for the device: for looking
 *                            for errors (make_cuda_device_source in orderly/cuda.hpp).
 *
 * Thread safety: every function from any thread at any time. Progress: as orderly::stream_pool; finding the pool takes
 * no lock once it is there.
 *
 * CUDA graphs: each call asks whether its stream captures; what a capture allocates stays with its graph until
 * that is destroyed. Several graphs do not share memory (the argument `pool` of torch.cuda.graph has no effect).
 *
 * PyTorch asks its own allocator alone for statistics and snapshots; orderly_torch_memory_stats() is in their place. */
#ifndef ORDERLY_CUDA_TORCH_H
#define ORDERLY_CUDA_TORCH_H

#include <stddef.h>

#include "orderly/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A block for work that enters the stream from now on; `stream` is a cudaStream_t. Size 0: null, as PyTorch's own
 * allocator has it.
 *
 * Throws: PyTorch does not look for null here, and would hand it to a kernel; a C++ exception passes through it and is
 * a RuntimeError in Python. What it says begins with "CUDA out of memory." when the memory is used up, which is what
 * programs look for that catch RuntimeError; torch.OutOfMemoryError cannot be thrown without PyTorch's headers. All
 * else is another exception of std: no such device, an environment variable that is not understood, a stream that is
 * none. */
ORDERLY_API void *orderly_torch_alloc(size_t size, int device, void *stream);

/* The same for torch.cuda.MemPool, which does look for null, and then frees what it can, and reports the error itself.
 * Never throws. */
ORDERLY_API void *orderly_torch_try_alloc(size_t size, int device, void *stream);

/* Work that is in the stream now may still use the block. Null is ignored. A bad free changes nothing, is counted, and
 * is one line on stderr. */
ORDERLY_API void orderly_torch_free(void *ptr, size_t size, int device, void *stream);

/* For set_record_stream_fn: the block is in use in the stream too, until what is in it at the block's free is done. */
ORDERLY_API void orderly_torch_record_stream(void *ptr, void *stream);

/* For set_reset_fn, torch.cuda.empty_cache: waits for work that uses freed memory, and merges all that is free. The
 * device gets nothing back: a pool's memory is one piece. */
ORDERLY_API void orderly_torch_reset(void);

/* For set_memory_fraction_fn, torch.cuda.set_per_process_memory_fraction: a pool has at most that part of the device's
 * memory. Takes effect when the pool is made; one that is there keeps its size, and a line on stderr says so. */
ORDERLY_API void orderly_torch_memory_fraction(double fraction, int device);

/* For set_base_alloc_fn: start and length of the device's allocation that the pointer lies in, which is what CUDA
 * shares between processes. *size may be null. A pointer of no pool is returned as it is, with length 0. */
ORDERLY_API void *orderly_torch_base_alloc(void *ptr, size_t *size);

/* Figures of a device's pool: see orderly::stream_statistics. Sizes in bytes. Returns 0; 1: the device has no pool yet, and
 * all figures are 0. */
typedef struct {
  size_t requested, allocated, cached, committed, peak_requested, peak_committed, capacity, held;
  unsigned long long allocations, frees, failed, bad_frees, passes;
} orderly_torch_stats;
ORDERLY_API int orderly_torch_memory_stats(int device, orderly_torch_stats *stats);

/* For set_init_fn: reads the environment, and says on stderr what in it is not understood. */
ORDERLY_API void orderly_torch_init(int device_count);

#ifdef __cplusplus
}
#endif

#endif
