"""Numba's device memory from a pool of orderly: an External Memory Management plug-in.

Either ``NUMBA_CUDA_MEMORY_MANAGER=orderly.numba`` in the environment, or, before Numba uses a device::

    import orderly.numba
    orderly.numba.enable()

Numba names no stream when it allocates or frees: the pool takes it for the legacy default stream, which waits for the
work of other streams and these for it, except for streams made as non-blocking. orderly must have been built with CUDA.
"""

import ctypes
import threading
import weakref

from numba import cuda
from numba.cuda import GetIpcHandleMixin, HostOnlyCUDAMemoryManager, MemoryInfo, MemoryPointer
from numba.cuda.cudadrv import driver

from . import MemoryPool

__all__ = ['MemoryManager', 'enable', 'kind', 'pool']

kind = 'virtual'
"""Of memory, as MemoryPool has it. 'device', set before the first allocation, is what other processes can be given
(IPC)."""

_lock = threading.Lock()
_pools = {}  # by device


def pool(device=None):
    """The pool of a device, the current one by default; made at its first use with all of the device's memory."""
    if device is None:
        device = cuda.current_context().device.id
    with _lock:
        if device not in _pools:
            _pools[device] = MemoryPool(f'cuda:{device}', kind=kind)
        return _pools[device]


def _device_pointer(address):
    """As the binding that Numba uses has it: CUDA Python's, which newer releases always use, or one of ctypes."""
    if getattr(driver, 'USE_NV_BINDING', True):
        return driver.binding.CUdeviceptr(address)
    return ctypes.c_uint64(address)


class MemoryManager(GetIpcHandleMixin, HostOnlyCUDAMemoryManager):
    """Numba makes one for each context."""

    def initialize(self):
        """Numba calls it many times. The pool is made at the first allocation."""

    def memalloc(self, size):
        """A block, freed when the pointer is gone. Raises orderly.OutOfMemory."""
        of = pool(self.context.device.id)
        address = of.allocate(size)

        def finalizer():
            of.free(address, size)

        return MemoryPointer(weakref.proxy(self.context), _device_pointer(address), size, finalizer=finalizer)

    def get_memory_info(self):
        """Free and total bytes, of the pool."""
        stats = pool(self.context.device.id).stats()
        return MemoryInfo(free=stats['limit'] - stats['allocated'], total=stats['limit'])

    def get_ipc_handle(self, memory):
        """For memory in one piece alone: virtual memory has no such handles."""
        if kind != 'device':
            raise NotImplementedError("orderly.numba: memory that grows cannot be shared by CUDA's IPC handles; set "
                                      "orderly.numba.kind = 'device' before the first allocation")
        return super().get_ipc_handle(memory)

    def reset(self):
        """Gives free memory back. It may come before initialize(). Blocks go when their pointers do."""
        super().reset()
        with _lock:
            made = _pools.get(self.context.device.id)
        if made is not None:
            made.synchronize()
            made.trim()

    @property
    def interface_version(self):
        """Of Numba's interface."""
        return 1


def enable():
    """Numba takes device memory from the pool from now on; to be called before it uses a device."""
    cuda.set_memory_manager(MemoryManager)


_numba_memory_manager = MemoryManager  # the name by which Numba finds it
