"""The exceptions of orderly."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._core import MemoryReport


class OutOfMemory(MemoryError):
    """The pool's limit is reached and nothing could be reclaimed, or the system refused.

    The message tells the bytes asked for, committed, and allowed.
    """

    requested: int = 0
    """Bytes asked for."""
    report: 'MemoryReport | None' = None
    """A MemoryReport: where the memory is, what was tried, and what would make room."""


class BadFree(ValueError):
    """A free was refused, and has changed nothing. The message tells what the pool found there and what to do.

    Addresses and sizes are integers, sizes in bytes; 0 where there is none.
    """

    code: str = 'none'
    """``double_free``, ``interior_pointer``, ``foreign_pointer``, ``misaligned_pointer``, ``size_mismatch``,
    ``wrong_pool``, ``pool_gone``, ``stale_handle``, ``pinned`` or ``invalid_argument``: the codes of C and C++."""
    pointer: int = 0
    """The address as given."""
    bytes: int = 0
    """The size as given; 0: unknown."""
    block: int = 0
    """Start of the block that the address falls in."""
    block_bytes: int = 0
    """Length of that block."""
    block_requested: int = 0
    """Bytes requested for it, if it is live."""
    state: str = 'none'
    """``none``, ``free``, ``cached``, ``live``, ``owned`` or ``split``: what the pool knew of the block."""
    generation: int = 0
    """Of the handle as given; 0: freed by address."""
    block_generation: int = 0
    """Of the last handle that was given for the block, one more if that has ended."""
