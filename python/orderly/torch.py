"""PyTorch's memory from a pool of orderly, in the whole process or in a part of the program.

::

    import orderly.torch
    orderly.torch.enable()                   # from here on, every tensor
    with orderly.torch.mem_pool():           # or only what is allocated in here
        model(batch)
    print(orderly.torch.memory_stats())
    orderly.torch.simulate(make_model, inputs, 'large.csv.xz')  # how much memory would it need?

On the CPU this goes through PyTorch's allocator hook, by a small library that is compiled against the installed PyTorch
the first time (a C++ compiler and PyTorch's headers are needed; the result is kept in the user's cache folder). On a
GPU it is PyTorch's pluggable allocator, for which orderly must have been built with CUDA.

Tensors may be freed at any time, also after ``disable()``: each goes back to where it came from.
"""

import contextlib
import ctypes
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import warnings

import torch

from . import MemoryPool, _core, has_cuda
from ._simulation import Simulation, simulate

__all__ = ['Simulation', 'build', 'disable', 'empty_cache', 'enable', 'is_enabled', 'max_memory_allocated', 'mem_pool',
           'memory_allocated', 'memory_reserved', 'memory_snapshot', 'memory_stats', 'pool',
           'set_per_process_memory_fraction', 'simulate']

_lock = threading.RLock()
_cpu_library = None
_cpu_hooks: dict = {}  # pools that have served, by identity, with what the library calls them by
_cpu_pool = None  # the one that serves everybody
_cpu_default = None
_cuda_library = None
_cuda_enabled = False


# ------------------------------------------------------------------------------------------------------------------ CPU

def _compile_command(output):
    from torch.utils import cpp_extension

    includes = [argument for path in cpp_extension.include_paths() for argument in ('-I', path)]
    libraries = [argument for path in cpp_extension.library_paths() for argument in ('-L', path, f'-Wl,-rpath,{path}')]
    abi = int(getattr(torch._C, '_GLIBCXX_USE_CXX11_ABI', True))
    source = str(pathlib.Path(__file__).with_name('_torch_cpu.cpp'))
    return [*os.environ.get('CXX', 'c++').split(), '-std=c++17', '-O2', '-DNDEBUG', '-fPIC', '-shared', '-w',
            f'-D_GLIBCXX_USE_CXX11_ABI={abi}', *includes, source, '-o', output, *libraries, '-lc10']


def build():
    """Compiles the library for PyTorch's CPU allocator unless it is there already. Returns its path.

    It is kept in ``$ORDERLY_CACHE``, or ``orderly`` in ``$XDG_CACHE_HOME`` or ``~/.cache``, for the version of PyTorch.
    Raises RuntimeError, with what the compiler said.
    """
    source = pathlib.Path(__file__).with_name('_torch_cpu.cpp')
    version = torch.__version__, torch.__file__, getattr(torch.version, 'git_version', '')
    what = source.read_bytes() + repr(version).encode()
    home = os.environ.get('ORDERLY_CACHE') or pathlib.Path(
        os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'orderly'
    library = pathlib.Path(home) / f'torch_cpu-{hashlib.sha256(what).hexdigest()[:16]}.so'
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = os.path.join(folder, 'made.so')
        command = _compile_command(made)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RuntimeError(f'orderly.torch needs a C++ compiler, once, for PyTorch {torch.__version__}: {error}. '
                               'Install one, or name it in CXX') from error
        if done.returncode != 0:
            raise RuntimeError(f'orderly.torch cannot be compiled for PyTorch {torch.__version__}; are its headers '
                               f'installed?\n{" ".join(command)}\n{done.stderr}')
        os.replace(made, library)  # in one step: another process may be at it
    return library


def _cpu():
    """The library, with its allocator in place."""
    global _cpu_library
    with _lock:
        if _cpu_library is None:
            library = ctypes.CDLL(str(build()))
            library.orderly_torch_cpu_add.restype = ctypes.c_void_p
            library.orderly_torch_cpu_add.argtypes = [ctypes.c_void_p] * 3
            library.orderly_torch_cpu_use.restype = ctypes.c_void_p
            library.orderly_torch_cpu_use.argtypes = [ctypes.c_void_p, ctypes.c_int]
            library.orderly_torch_cpu_record.argtypes = [ctypes.c_void_p] * 2
            library.orderly_torch_cpu_record.restype = None
            if library.orderly_torch_cpu_install() != 0:
                raise RuntimeError("orderly.torch: PyTorch's CPU allocator cannot be replaced; another library has "
                                   'set one that hides how its memory is freed')
            _cpu_library = library
        return _cpu_library


def _cpu_hook(pool):
    """What the library calls a pool by."""
    library = _cpu()
    with _lock:
        if id(pool) not in _cpu_hooks:
            hook = library.orderly_torch_cpu_add(*_core._pool_hook(pool))
            if hook is None:
                raise RuntimeError('orderly.torch: PyTorch has been given 64 pools already; use one of them again')
            _cpu_hooks[id(pool)] = pool, hook  # the pool stays, so its identity is nobody else's
        return _cpu_hooks[id(pool)][1]


def _default_pool():
    global _cpu_default
    with _lock:
        if _cpu_default is None:
            _cpu_default = MemoryPool('cpu')
        return _cpu_default


# ----------------------------------------------------------------------------------------------------------------- CUDA

class _Statistics(ctypes.Structure):
    _fields_ = ([(name, ctypes.c_size_t) for name in ('requested', 'allocated', 'cached', 'committed', 'peak_requested',
                                                      'peak_committed', 'capacity', 'held')] +
                [(name, ctypes.c_ulonglong) for name in ('allocations', 'frees', 'failed', 'bad_frees', 'passes')])


def _cuda():
    global _cuda_library
    with _lock:
        if _cuda_library is None:
            if not has_cuda:
                raise RuntimeError('orderly.torch: this build of orderly has no CUDA; with the toolkit, pip install . '
                                   "--config-settings=setup-args=-Dcuda=enabled. For tensors in host memory: "
                                   "device='cpu'")
            _cuda_library = ctypes.CDLL(_core.__file__)
        return _cuda_library


def _cuda_allocator(allocate):
    """A pluggable allocator that has all that PyTorch asks of one."""
    library = _cuda()
    if not hasattr(torch.cuda.memory, 'CUDAPluggableAllocator'):
        raise RuntimeError(f'orderly.torch: PyTorch {torch.__version__} has no pluggable allocators; 2.0 has')
    allocator = torch.cuda.memory.CUDAPluggableAllocator(_core.__file__, allocate, 'orderly_torch_free')
    inner = allocator.allocator()
    for setter, function in (('set_record_stream_fn', 'orderly_torch_record_stream'),
                             ('set_reset_fn', 'orderly_torch_reset'),
                             ('set_memory_fraction_fn', 'orderly_torch_memory_fraction'),
                             ('set_base_alloc_fn', 'orderly_torch_base_alloc'), ('set_init_fn', 'orderly_torch_init')):
        if hasattr(inner, setter):  # PyTorch has got them one after the other
            getattr(inner, setter)(ctypes.cast(getattr(library, function), ctypes.c_void_p).value)
        elif setter == 'set_record_stream_fn':
            warnings.warn('This PyTorch ignores Tensor.record_stream with pluggable allocators: keep a tensor that '
                          'several streams use until all of them are done', stacklevel=3)
    return allocator


def _cuda_statistics(device):
    index = torch.cuda.current_device() if device is None or device == 'cuda' else torch.device(device).index or 0
    found = _Statistics()
    if _cuda().orderly_torch_memory_stats(ctypes.c_int(index), ctypes.byref(found)) != 0:
        return {name: 0 for name, _ in _Statistics._fields_}
    return {name: getattr(found, name) for name, _ in _Statistics._fields_}


def _kind(device, pool=None):
    """'cpu' or 'cuda'. Without a device it is the pool's kind: of orderly's pools those in host memory can be given."""
    if device is None and pool is not None:
        return 'cuda' if isinstance(pool, getattr(torch.cuda, 'MemPool', ())) else 'cpu'
    if device is None:
        return 'cuda' if _cuda_enabled or (_cpu_pool is None and has_cuda and torch.cuda.is_available()) else 'cpu'
    kind = str(device).partition(':')[0]
    if kind not in ('cpu', 'cuda'):
        raise ValueError(f"device {str(device)!r}: give 'cpu', 'cuda' or None")
    return kind


# --------------------------------------------------------------------------------------------------------------- public

def enable(pool=None, *, device=None):
    """Has PyTorch take its memory from a pool, in the whole process. Returns the pool; None on CUDA.

    pool: a MemoryPool in host memory; by default one as large as the machine's memory, the same each time. It serves
    for ever: its tensors may live as long as the process. device: 'cpu' or 'cuda'; by default 'cpu' with a pool, and
    without one 'cuda' where PyTorch and orderly both have it. On CUDA each device has a pool of its own, and this must
    be called before PyTorch uses the device; their sizes are set by ``ORDERLY_TORCH_CAPACITY`` (bytes, or as 20G) and
    ``set_per_process_memory_fraction``.

    Raises RuntimeError (no compiler, no CUDA, too late), ValueError.
    """
    global _cpu_pool, _cuda_enabled
    if _kind(device, pool) == 'cuda':
        if pool is not None:
            raise ValueError('pool: on CUDA each device has a pool of its own')
        allocator = _cuda_allocator('orderly_torch_alloc')
        torch.cuda.memory.change_current_allocator(allocator)
        _cuda_enabled = True
        return None
    pool = pool or _default_pool()
    with _lock:
        _cpu().orderly_torch_cpu_use(_cpu_hook(pool), 0)
        _cpu_pool = pool
    return pool


def disable():
    """PyTorch takes new memory in host memory from where it did before. What the pool has handed out stays valid.

    On CUDA PyTorch has no way back: raises RuntimeError if that is all that was enabled.
    """
    global _cpu_pool
    with _lock:
        if _cpu_pool is None and _cuda_enabled:
            raise RuntimeError('PyTorch keeps the allocator of its CUDA devices until the process ends')
        if _cpu_pool is not None:
            _cpu().orderly_torch_cpu_use(None, 0)
            _cpu_pool = None


def is_enabled(device=None):
    """True if PyTorch takes its memory from a pool, in the whole process."""
    return _cuda_enabled if _kind(device) == 'cuda' else _cpu_pool is not None


def pool():
    """The pool that serves PyTorch on the CPU in the whole process; None if none does."""
    return _cpu_pool


@contextlib.contextmanager
def mem_pool(pool=None, *, device=None):
    """What this thread allocates in the ``with`` block comes from the pool, which is its value.

    pool: as for enable(). Other threads go on as they were; those that PyTorch starts for the inside of an operator
    allocate nothing of note. On CUDA: a ``torch.cuda.MemPool``, by which PyTorch's own allocator takes whole segments
    from a pool. Blocks may be nested.
    """
    if _kind(device, pool) == 'cuda':
        if pool is None:
            allocator = _cuda_allocator('orderly_torch_try_alloc')
            if not hasattr(torch.cuda, 'MemPool'):
                raise RuntimeError(f'orderly.torch: PyTorch {torch.__version__} has no torch.cuda.MemPool; 2.5 has')
            pool = torch.cuda.MemPool(allocator.allocator())
        with torch.cuda.use_mem_pool(pool):
            yield pool
        return
    pool = pool or _default_pool()
    library, hook = _cpu(), _cpu_hook(pool)
    last = library.orderly_torch_cpu_use(hook, 1)
    try:
        yield pool
    finally:
        library.orderly_torch_cpu_use(last, 1)


def _pool_of(given):
    found = given or _cpu_pool or _cpu_default
    if found is None:
        raise RuntimeError('orderly.torch: no pool serves PyTorch; call enable() first')
    return found


def empty_cache(device=None, *, pool=None):
    """Gives free memory back to the system; on CUDA as torch.cuda.empty_cache()."""
    if _kind(device, pool) == 'cuda':
        torch.cuda.empty_cache()
    else:
        _pool_of(pool).trim()


def set_per_process_memory_fraction(fraction, device=None):
    """At most that part of the memory, before the first allocation: of a CUDA device, or of the machine for the default
    pool. Raises RuntimeError: it comes too late. ValueError."""
    global _cpu_default
    if not 0 < fraction <= 1:
        raise ValueError(f'fraction {fraction}: above 0, at most 1')
    if _kind(device) == 'cuda':
        torch.cuda.set_per_process_memory_fraction(fraction, device)
        return
    with _lock:
        if _cpu_default is not None:
            raise RuntimeError('the pool is there already; call this before enable(), or enable a pool with a limit')
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        _cpu_default = MemoryPool('cpu', limit=max(int(total * fraction), 1 << 20))


def memory_stats(device=None, *, pool=None):
    """Figures of the pool under the names of torch.cuda.memory_stats, in bytes and numbers.

    ``allocated_bytes`` and ``requested_bytes``: of live blocks, as they lie and as they were asked for;
    ``reserved_bytes``: what the pool holds of the system; ``allocation.all``: blocks; ``num_ooms``: refused
    allocations; ``orderly.bad_frees``: refused frees. Those without a counterpart in the pool are left out.
    """
    stats = _cuda_statistics(device) if _kind(device, pool) == 'cuda' else _pool_of(pool).stats()
    return {
        'allocated_bytes.all.current': stats['allocated'],
        'requested_bytes.all.current': stats['requested'],
        'requested_bytes.all.peak': stats['peak_requested'],
        'reserved_bytes.all.current': stats['committed'],
        'reserved_bytes.all.peak': stats['peak_committed'],
        'allocation.all.current': stats['allocations'] - stats['frees'],
        'allocation.all.allocated': stats['allocations'],
        'allocation.all.freed': stats['frees'],
        'num_ooms': stats['failed'],
        'orderly.cached_bytes': stats['cached'],
        'orderly.bad_frees': stats['bad_frees'],
        'orderly.passes': stats['passes'],
    }


def memory_allocated(device=None, *, pool=None):
    """Bytes asked for by live tensors."""
    return memory_stats(device, pool=pool)['requested_bytes.all.current']


def max_memory_allocated(device=None, *, pool=None):
    """The most that ever was."""
    return memory_stats(device, pool=pool)['requested_bytes.all.peak']


def memory_reserved(device=None, *, pool=None):
    """Bytes that the pool holds of the system."""
    return memory_stats(device, pool=pool)['reserved_bytes.all.current']


def memory_snapshot(*, pool=None):
    """Every block of the pool in host memory; see MemoryPool.snapshot()."""
    return _pool_of(pool).snapshot()


def _record(allocated, freed):
    """For orderly.record."""
    _cpu().orderly_torch_cpu_record(allocated, freed)


if sys.platform != 'linux':
    raise ImportError('orderly.torch runs on Linux')
