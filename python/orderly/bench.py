"""What an allocation costs from Python, and what a pool does for a program in PyTorch.

    python -m orderly.bench                    empty and drop: orderly, NumPy, PyTorch, 1 and 4 threads; and
                                               a call that allocates nothing: what taking turns costs Python
    python -m orderly.bench --device cuda:0    the same on a GPU, with CuPy in NumPy's place
    python -m orderly.bench --model            a convolutional network served by threads, with the pool and without

Everything is measured in one run, turn by turn; a figure is the median of the turns.
"""

import argparse
import importlib
import json
import os
import queue
import random
import resource
import statistics
import subprocess
import sys
import threading
import time

from . import MemoryPool, TensorCache

SHAPE = (1024, 1024)  # of bytes: 1 MiB
BATCH = 1000


def _makers(device):
    """Name and a function that allocates a tensor and drops it, n times."""
    pool = MemoryPool(device, limit=1 << 30)
    cache = TensorCache(pool)

    def loop(empty, dtype):
        def run(count):
            for _ in range(count):
                empty(SHAPE, dtype)
        return run

    makers = [('orderly', loop(pool.empty, 'uint8')), ('orderly, cache', loop(cache.empty, 'uint8'))]
    library = 'numpy' if device == 'cpu' else 'cupy'
    try:
        makers.append((library, loop(importlib.import_module(library).empty, 'uint8')))
    except ImportError:
        pass
    try:
        import torch

        def run(count):
            for _ in range(count):
                torch.empty(SHAPE, dtype=torch.uint8, device=device)
        if device == 'cpu' or torch.cuda.is_available():
            makers.append(('torch', run))
    except ImportError:
        pass

    def nothing(shape, dtype):
        pass

    return makers + [('no allocation', loop(nothing, 'uint8'))]  # what Python itself takes, and its threads


def _rate(run, threads, seconds):
    """Allocations a second of all threads together, once each has begun."""
    done, end, gate = [0] * threads, [], threading.Barrier(threads + 1)

    def work(number):
        run(BATCH)
        gate.wait()
        while time.perf_counter() < end[0]:
            run(BATCH)
            done[number] += BATCH

    started = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    while gate.n_waiting < threads:
        time.sleep(0.001)
        if not all(thread.is_alive() for thread in started):  # its exception has been shown
            gate.abort()
            raise RuntimeError('a thread could not allocate')
    start = time.perf_counter()
    end.append(start + seconds)
    gate.wait()
    for thread in started:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def measure(threads=(1, 4), turns=9, seconds=0.2, device='cpu'):
    """Million allocations a second, by name and number of threads, medians of the turns; and as `ratio` that of the
    last number of threads to that of the first, the median of the turns' own."""
    rates = {}
    makers = _makers(device)
    for _ in range(turns):
        for name, run in makers:
            for number in threads:
                rates.setdefault(name, {}).setdefault(number, []).append(_rate(run, number, seconds))
    return {name: {**{number: statistics.median(all_of) / 1e6 for number, all_of in each.items()},
                   'ratio': statistics.median(last / first for first, last in zip(each[threads[0]], each[threads[-1]]))}
            for name, each in rates.items()}


def _serve(with_pool, threads, requests):
    """The program that is measured; prints what it took."""
    import torch

    if with_pool:
        import orderly.torch
        orderly.torch.enable(device='cpu')
    torch.set_num_threads(1)
    torch.manual_seed(7)
    layers = torch.nn
    model = layers.Sequential(
        layers.Conv2d(3, 32, 3, padding=1), layers.ReLU(), layers.Conv2d(32, 32, 3, padding=1), layers.ReLU(),
        layers.MaxPool2d(2), layers.Conv2d(32, 64, 3, padding=1), layers.ReLU(), layers.AdaptiveAvgPool2d(4),
        layers.Flatten(), layers.Linear(1024, 100)).eval()
    chance, waiting = random.Random(1), queue.SimpleQueue()
    for _ in range(requests):
        waiting.put((chance.randrange(1, 9), chance.choice((96, 128, 160, 192))))

    def work():
        with torch.inference_mode():
            while True:
                try:
                    images, edge = waiting.get_nowait()
                except queue.Empty:
                    return
                model(torch.full((images, 3, edge, edge), 0.5)).softmax(1)

    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({'seconds': seconds, 'page faults': after.ru_minflt - before.ru_minflt,
                      'processor seconds': after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                      'peak MiB': after.ru_maxrss / 1024}))


def compare_model(turns=3, threads=3, requests=60):
    """Figures of the program with PyTorch's allocator and with the pool: medians of the turns."""
    taken = {}
    for _ in range(turns):
        for name in ('default', 'orderly'):
            command = [sys.executable, '-m', 'orderly.bench', '--serve', name, '--threads', str(threads), '--requests',
                       str(requests)]
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  env=dict(os.environ, OMP_NUM_THREADS='1'))
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            for figure, value in json.loads(done.stdout.splitlines()[-1]).items():
                taken.setdefault(name, {}).setdefault(figure, []).append(value)
    return {name: {figure: statistics.median(values) for figure, values in figures.items()}
            for name, figures in taken.items()}


def _table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print('  '.join(cell.ljust(width) if column == 0 else cell.rjust(width)
                        for column, (cell, width) in enumerate(zip(row, widths))))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m orderly.bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', action='store_true', help='a program in PyTorch, with the pool and without')
    parser.add_argument('--device', default='cpu', help='where to allocate: cpu, or cuda:N')
    parser.add_argument('--turns', type=int, help='how often each is measured')
    parser.add_argument('--threads', type=int, default=3, help='of the program in PyTorch')
    parser.add_argument('--requests', type=int, default=60, help='to the program in PyTorch')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--serve', choices=('default', 'orderly'), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        return _serve(given.serve == 'orderly', given.threads, given.requests)
    if given.model:
        figures = compare_model(given.turns or 3, given.threads, given.requests)
        if given.json:
            return print(json.dumps(figures))
        names = list(figures['default'])
        return _table([['', *names]] + [[name, *(f'{each[figure]:,.{2 if figure.endswith("seconds") else 0}f}'
                                                 for figure in names)] for name, each in figures.items()])
    rates = measure(turns=given.turns or 9, device=given.device)
    if given.json:
        return print(json.dumps(rates))
    print('1 MiB, empty and drop: million a second, all threads together')
    return _table([['', '1 thread', '4 threads', '4 to 1']] + [
        [name, *(f'{each[figure]:.2f}' for figure in (1, 4, 'ratio'))] for name, each in rates.items()])


if __name__ == '__main__':
    main()
