"""Results of orderly-growth-bench: tables and targets. For report.py."""

import collections

import compare
import measured

STEPS = {
    'grow': 'nothing is held; blocks of that size are taken',
    'shrink': 'they are freed, and all memory given back to the device',
    'remap': 'they are freed, and one block of 1 GiB is taken where no more may be held',
    'split': 'one block of 1 GiB is freed, and blocks of that size are taken, likewise',
}
CALLS = ('create', 'map', 'set_access', 'release', 'unmap')
Key = collections.namedtuple('Key', 'step allocator piece')


def key_of(name):
    """STEP/ALLOCATOR/MIB/...; None: not such a name."""
    parts = name.split('/')
    if len(parts) < 3 or parts[0] not in STEPS or not parts[2].isdigit():
        return None
    return Key(parts[0], parts[1], int(parts[2]))


class Results(measured.Repetitions):
    def __init__(self, path=None):
        super().__init__(path, key_of, 'orderly-growth-bench')


def time_table(results):
    allocators = sorted({key.allocator for key in results.repetitions},
                        key=lambda name: ('orderly', 'driver').index(name) if name in ('orderly', 'driver') else 2)
    rows = []
    for step in STEPS:
        for piece in sorted({key.piece for key in results.keys(step=step)}):
            cells = []
            for allocator in allocators:
                value = results.median(Key(step, allocator, piece), 'real_time')
                cells.append('' if value is None else f'{value / 1000:.2f}')
            calls = results.median(Key(step, 'orderly', piece), 'calls')
            held = results.median(Key(step, 'cudaMallocAsync', piece), 'held')
            rows.append([step, str(piece), *cells, '' if calls is None else f'{calls:.0f}',
                         '' if held is None else f'{held:.0f}'])
    return compare.markdown(['', 'blocks of MiB', *(f'{name}, ms' for name in allocators), "orderly's calls",
                             'cudaMallocAsync held, MiB'], rows, 1)


def call_table(results):
    rows = []
    for key in sorted(results.keys(allocator='driver')):
        values = [results.median(key, f'{call}_us') for call in CALLS]
        if key.step in ('grow', 'shrink') and None not in values:
            rows.append([key.step, str(key.piece), str(1024 // key.piece),
                         *('' if value == 0 else f'{value * key.piece / 1024:.1f}' for value in values)])
    return compare.markdown(['', 'pieces of MiB', 'pieces', *(f'{call}, us each' for call in CALLS)], rows, 1)


def sections(results):
    if not results.repetitions:
        return []
    lines = ['1 GiB of a device, taken, given back, and had in other sizes, milliseconds. `driver` makes no calls but '
             "those of CUDA's driver that as many pieces take, and is what a pool on its virtual memory cannot pass.\n"]
    lines += [f'* `{name}`: {text}' for name, text in STEPS.items()]
    return ['## Growth of device memory\n', '\n'.join(lines) + f'\n\n{time_table(results)}',
            f"Where the time goes: calls of the driver.\n\n{call_table(results)}"]


def check_targets(results):
    """A quarter above the driver's own calls counts as as fast as these allow."""
    lines = []
    for step in STEPS:
        for piece in sorted({key.piece for key in results.keys(step=step)}):
            own, least = (results.median(Key(step, name, piece), 'real_time') for name in ('orderly', 'driver'))
            ratio = own / least if own and least else None
            verdict = 'not measured' if ratio is None else 'met' if ratio <= 1.25 else 'missed'
            lines.append({'row': f'growth: {step} 1 GiB, blocks of {piece} MiB', 'against': "the driver's calls alone",
                          'target': 'at most 1.25x', 'reached': '' if ratio is None else f'{ratio:.2f}x', 'ratio': ratio,
                          'verdict': verdict})
    return lines


def as_json(results):
    fields = ('real_time', 'calls', 'held', *(f'{call}_us' for call in CALLS))
    return [{**key._asdict(), **{field: value for field in fields
                                 if (value := results.median(key, field)) is not None}} for key in sorted(results.keys())]
