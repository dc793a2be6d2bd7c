"""CuPy's memory from a pool of orderly.

::

    import orderly.cupy
    orderly.cupy.enable()             # from here on, every array on the current device
    with orderly.cupy.mem_pool():     # or only what this thread makes in here
        cupy.empty(1_000_000)

Memory is in the order of CuPy's current stream, as CuPy's own pool has it: an array is allocated in the stream that is
current then and freed in the same one, so a pool keeps the streams that it has served; ``release_stream`` lets one go.
Work of another stream on an array is for the program to order, or told by ``record_stream``. orderly must have been
built with CUDA.
"""

import contextlib
import threading
import weakref

import cupy

from . import MemoryPool

__all__ = ['allocator', 'disable', 'enable', 'mem_pool', 'pool', 'record_stream', 'release_stream']

_lock = threading.Lock()
_pools = {}  # by device
_serving = weakref.WeakValueDictionary()  # all that have served, by identity


class _Block:
    """What CuPy holds of a block; frees it when CuPy lets go."""

    __slots__ = ('pool', 'ptr', 'size', 'stream')

    def __init__(self, pool, size, stream):
        self.pool, self.size, self.stream = pool, size, stream
        self.ptr = None
        self.ptr = pool.allocate(size, stream=stream)

    def __del__(self):
        if self.ptr is not None:
            self.pool.free(self.ptr, self.size, stream=self.stream)


def pool(device=None):
    """The pool of a device, the current one by default; made at its first use with all of the device's memory."""
    if device is None:
        device = cupy.cuda.runtime.getDevice()
    with _lock:
        if device not in _pools:
            _pools[device] = MemoryPool(f'cuda:{device}')
        return _pools[device]


def allocator(pool_of_device):
    """A function for cupy.cuda.set_allocator: ``pool_of_device(number)`` names the pool of a device."""

    def allocate(size):
        device = cupy.cuda.runtime.getDevice()
        if size == 0:
            return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(0, 0, None, device), 0)  # which asks for the device
        of = pool_of_device(device)
        _serving[id(of)] = of
        block = _Block(of, size, cupy.cuda.get_current_stream())
        return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(block.ptr, size, block, device), 0)

    return allocate


def _function(given):
    return allocator(pool if given is None else lambda device: given)


def enable(pool=None):
    """CuPy takes its memory from the pool in the whole process. pool: a MemoryPool of the only device that is used; by
    default each device has one of its own, with all of its memory. Arrays that are alive stay where they are."""
    cupy.cuda.set_allocator(_function(pool))


def disable():
    """CuPy takes its memory from its own pool again."""
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


@contextlib.contextmanager
def mem_pool(pool=None):
    """What this thread allocates in the ``with`` block comes from the pool."""
    with cupy.cuda.using_allocator(_function(pool)):
        yield pool


def record_stream(array, stream):
    """Work in `stream`, one of CuPy's, uses the array too: freed, it stays out of use until that is done as well.
    Raises ValueError if the array's memory is of no pool."""
    address = array.data.mem.ptr
    for each in list(_serving.values()):
        if each.owns(address):
            return each.record_stream(address, stream)
    raise ValueError("the array's memory is of no pool of orderly")


def release_stream(stream):
    """No array will be made in the stream any more: the pools forget it, and no longer keep it."""
    for each in list(_serving.values()):
        each.release_stream(stream)
