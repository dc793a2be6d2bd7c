"""Memory pools for programs in which many threads allocate and free large buffers.

``MemoryPool`` makes tensors, which NumPy, PyTorch and CuPy take as they lie, on the host or a GPU, in stream order.
``BuddyAllocator`` hands out raw blocks of host memory by address. ``record`` writes a program's allocations to a log,
``orderly.torch.simulate`` those of a model that no machine at hand can hold;
``orderly.torch``, ``orderly.cupy``, ``orderly.numba`` and ``orderly.numpy`` put a pool below those libraries.
``with tag(name):`` says what memory is for; ``RelocatableBlocks`` is memory that a pool may move.

Every free is checked: a wrong one raises ``BadFree``, which says what was found there, and changes nothing.
"""

from ._core import (
    BuddyAllocator, MemoryPool, MemoryReport, PinnedBlock, RelocatableBlocks, SoftwareDevice, SoftwareStream, Tensor,
    TensorCache, __version__, current_tag, has_cuda, tag)
from ._errors import BadFree, OutOfMemory
from ._recorder import record

__all__ = [
    'BadFree', 'BuddyAllocator', 'MemoryPool', 'MemoryReport', 'OutOfMemory', 'PinnedBlock', 'RelocatableBlocks',
    'SoftwareDevice', 'SoftwareStream', 'Tensor', 'TensorCache', '__version__', 'current_tag', 'has_cuda', 'record',
    'tag',
]
