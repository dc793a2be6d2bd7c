"""Results of orderly-kernel-bench: tables and targets. For report.py."""

import collections

import compare
import measured

WHAT = {
    'malloc': "the device's malloc and free",
    'lease': 'a block lent to the kernels, one atomic addition a warp',
    'ring': 'scattered blocks lent to the kernels',
}
STEPS = {
    'alloc': 'the kernel that allocates',
    'free': 'the kernel that frees',
    'round': 'hand-out or turn, both kernels, return and its fold on the host; of malloc the two kernels',
    'refill': 'the same, every block given back to the pool and taken from it anew',
}
Key = collections.namedtuple('Key', 'scheme step state bytes')


def key_of(name):
    """SCHEME/STEP/cold|warm/BYTES/...; None: not such a name."""
    parts = name.split('/')
    if len(parts) < 4 or parts[0] not in WHAT or not parts[3].isdigit():
        return None
    return Key(*parts[:3], int(parts[3]))


class Results(measured.Repetitions):
    """One that gave a wrong block has failed."""

    def __init__(self, path=None):
        super().__init__(path, key_of, 'orderly-kernel-bench',
                         lambda entry: entry.get('error_occurred', False) or entry.get('wrong', 0))

    def sizes(self):
        return sorted({key.bytes for key in self.repetitions})


def section(results):
    rows = []
    for scheme, step, state in dict.fromkeys(key[:3] for key in results.repetitions):
        cells = []
        for size in results.sizes():
            key = Key(scheme, step, state, size)
            time = results.median(key, 'real_time')
            cell = '' if time is None else f'{time:.3g}'
            times = results.median(key, 'times_malloc')
            if times:
                cell += f' ({times:.3g}x)'
            threads = results.median(key, 'threads')
            if threads and threads < 1 << 20:
                cell += f' of {threads / 1024:.0f} Ki'
            cells.append(cell)
        rows.append([scheme, step, state, *cells])
    lines = ['One allocation and one free for each of 1,048,576 threads, or of as many as the cell says. Microseconds; in '
             "brackets how many times the device's malloc takes for as many. Cold: the first launch, a lease or ring "
             'that was just made.\n']
    lines += [f'* `{name}`: {text}' for name, text in {**WHAT, **STEPS}.items()]
    return '\n'.join(lines) + '\n\n' + compare.markdown(
        ['', '', '', *(f'{size} B' for size in results.sizes())], rows, 3)


def check_targets(results):
    lines = []
    for scheme in ('lease', 'ring'):
        for state in ('cold', 'warm'):
            known = [results.median(Key(scheme, 'round', state, size), 'times_malloc') for size in results.sizes()]
            least = min(known) if known and None not in known else None
            lines.append(compare.outcome(f'kernels: {scheme}, {state}, 16 B to 4 KiB, the least of all sizes',
                                         "the device's malloc", 1000, least))
        known = [results.median(Key(scheme, 'alloc', 'warm', size), 'items_per_second') for size in results.sizes()]
        least = min(known) / 1e9 if known and None not in known else None
        line = compare.outcome(f'kernels: {scheme}, warm, billion allocations a second', 'the least of all sizes', 20,
                               least, '' if least is None else f'{least:.1f}')
        lines.append({**line, 'target': 'at least 20'})
    return lines


def as_json(results):
    fields = ('real_time', 'items_per_second', 'times_malloc', 'threads', 'wrong')
    return [{**key._asdict(), **{field: results.median(key, field) for field in fields}} for key in results.repetitions]
