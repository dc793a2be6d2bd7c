"""``orderly.record``: a program's allocations as a log that orderly-replay reads."""

import contextlib
import sys
import threading

from . import _core

HEADER = b'Thread,Time,Action,Pointer,Size,Stream\n'
INTERVAL = 0.2  # seconds between writes: what is noted meanwhile is kept in memory
_running = threading.Lock()


def open_compressed(path):
    """A file to write to, compressed as its name says."""
    name = str(path)
    if name.endswith('.zst'):
        try:
            from compression import zstd
            return zstd.open(path, 'wb')
        except ImportError:
            pass
        try:
            import zstandard
        except ImportError:
            raise ImportError('orderly.record: a log that ends in .zst needs the package zstandard (pip install '
                              'zstandard) or Python 3.14; or name it .csv, .csv.gz or .csv.xz') from None
        return zstandard.open(path, 'wb')
    if name.endswith('.gz'):
        import gzip
        return gzip.open(path, 'wb')
    if name.endswith('.xz'):
        import lzma
        return lzma.open(path, 'wb')
    return open(path, 'wb')


def _cuda_rows(snapshot):
    """Rows of PyTorch's own record of its CUDA devices. It keeps no thread."""
    names = {'alloc': 'allocate', 'free_requested': 'free', 'oom': 'allocate failure'}
    live = set()
    for device, trace in enumerate(snapshot.get('device_traces', [])):
        for event in trace:
            action = names.get(event['action'])
            address = event.get('addr') or 0
            if action is None:
                continue
            if action == 'allocate':
                live.add((device, address))
            elif action == 'free':
                if (device, address) not in live:  # from before the recording
                    continue
                live.remove((device, address))
            else:
                address = 0
            micros = int(event.get('time_us', 0))
            seconds = micros // 1_000_000
            time = f'{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micros % 1_000_000:06}'
            yield f'{device},{time},{action},{address:#x},{event["size"]},{event.get("stream") or 0:#x}\n'


class _Cuda:
    """PyTorch's own record, which it keeps if it is asked."""

    def __init__(self, torch, entries):
        self.memory = torch.cuda.memory
        self.memory._record_memory_history(max_entries=entries)

    def rows(self):
        snapshot = self.memory._snapshot()
        self.memory._record_memory_history(enabled=None)
        return ''.join(_cuda_rows(snapshot)).encode()


@contextlib.contextmanager
def recording(path):
    """What is noted by the process's recorder goes to a log while the ``with`` block runs, whose value appends rows of
    another's to it. Raises RuntimeError: a recording runs already. ImportError: no compressor for ``.zst``."""
    if not _running.acquire(blocking=False):
        raise RuntimeError('orderly.record: a recording runs already in this process')
    with contextlib.ExitStack() as stack:
        stack.callback(_running.release)
        file = stack.enter_context(open_compressed(path))
        file.write(HEADER)
        writes = threading.Lock()
        done = threading.Event()

        def write(rows=None):
            with writes:
                file.write(_core._record_take() if rows is None else rows)

        def write_now_and_then():
            while not done.wait(INTERVAL):
                write()

        writer = threading.Thread(target=write_now_and_then, name='orderly.record', daemon=True)
        _core._record_start()
        stack.callback(write)
        stack.callback(_core._record_stop)
        writer.start()
        stack.callback(writer.join)
        stack.callback(done.set)
        yield write


@contextlib.contextmanager
def record(path, *, torch=None, numpy=None, cuda=None, entries=1_000_000):
    """Writes the allocations of PyTorch and NumPy to a log while the ``with`` block runs.

    path: by its end compressed: ``.csv``, ``.csv.gz``, ``.csv.xz``, ``.csv.zst``. torch, numpy: record PyTorch's
    tensors in host memory, of all threads; NumPy's arrays, of this thread (NumPy's handler belongs to a context); by
    default those of the two that the program has imported. cuda: PyTorch's tensors on GPUs, by PyTorch's own recorder,
    the last `entries` events; by default if the program uses them.

    The log has a row for each allocation and for each free of what was allocated meanwhile, in the order in which they
    happened, in the columns of RMM's logs: thread, time, action, address, size in bytes, stream::

        with orderly.record('serve.csv.zst'):
            serve(requests)
        # then: orderly-replay serve.csv.zst, or python -m orderly.replay serve.csv.zst

    One recording at a time in a process: another raises RuntimeError. So does PyTorch's CPU allocator where it cannot
    be recorded (orderly.torch.build). ImportError: no compressor for ``.zst``.
    """
    torch = 'torch' in sys.modules if torch is None else torch
    numpy = 'numpy' in sys.modules if numpy is None else numpy
    with contextlib.ExitStack() as stack:
        append = stack.enter_context(recording(path))
        on_gpu = None
        if torch:
            from . import torch as plugin
            import torch as pytorch
            plugin._cpu()
            if cuda or (cuda is None and pytorch.cuda.is_available() and pytorch.cuda.is_initialized()):
                on_gpu = _Cuda(pytorch, entries)
            plugin._record(*_core._recorder_hook())
            stack.callback(plugin._record, None, None)
        if numpy:
            last = _core._numpy_get_handler()
            _core._numpy_set_handler(_core._numpy_recording_handler(last))
            stack.callback(_core._numpy_set_handler, last)
        yield
        if on_gpu is not None:
            append(on_gpu.rows())
