"""NumPy's arrays from a pool of orderly.

::

    import orderly.numpy
    orderly.numpy.enable()              # arrays that this thread makes from now on
    with orderly.numpy.mem_pool():      # or only those that are made in here
        numpy.empty(1_000_000)

NumPy keeps its handler of memory in the context (contextvars): a thread that starts later begins with NumPy's own, and
calls ``enable()`` itself; a task of asyncio inherits that of who made it. Arrays may be dropped anywhere, at any time:
each goes back to where it came from. Every array starts at a multiple of the pool's granule, 256 bytes. ``numpy.zeros``
writes its zeros, which NumPy's own handler leaves to the system for large arrays. NumPy 1.22 or newer.
"""

import contextlib

from . import MemoryPool, _core

__all__ = ['disable', 'enable', 'is_enabled', 'mem_pool', 'pool']

_handlers = {}  # capsules by the identity of their pool, which they keep
_default = None


def _handler(pool):
    global _default
    if pool is None:
        _default = _default or MemoryPool('cpu')
        pool = _default
    if id(pool) not in _handlers:
        _handlers[id(pool)] = pool, _core._numpy_pool_handler(pool)
    return _handlers[id(pool)]


def enable(pool=None):
    """Arrays of this context come from the pool from now on. Returns the pool.

    pool: a MemoryPool in host memory without streams, or a BuddyAllocator; by default one as large as the machine's
    memory, the same each time. It serves for ever, since its arrays may live as long as the process. Raises TypeError,
    ValueError, ImportError (NumPy is too old).
    """
    pool, handler = _handler(pool)
    _core._numpy_set_handler(handler)
    return pool


def disable():
    """Arrays of this context come from NumPy's own memory from now on."""
    _core._numpy_set_handler(None)


def pool():
    """The pool that serves in this context; None: none does."""
    current = _core._numpy_get_handler()
    return next((pool for pool, handler in _handlers.values() if handler is current), None)


def is_enabled():
    """True if a pool serves in this context."""
    return pool() is not None


@contextlib.contextmanager
def mem_pool(pool=None):
    """Arrays that this context makes in the ``with`` block come from the pool, which is its value."""
    pool, handler = _handler(pool)
    last = _core._numpy_set_handler(handler)
    try:
        yield pool
    finally:
        _core._numpy_set_handler(last)
