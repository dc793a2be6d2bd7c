"""Results of orderly-stream-bench: tables and targets. For report.py."""

import collections
import math

import compare
import measured

OWN = compare.OWN
HOST = 'orderly-without-streams'
ALLOCATORS = (OWN, HOST, 'orderly-watching-captures', 'orderly-safe-mode', 'classic', 'cudaMallocAsync', 'cudaMallocAsync-primed', 'pytorch', 'no-allocation')
WORKLOADS = ('pair', 'batch', 'slots', 'handoff', 'cross', 'cross-busy')
WORLDS = {'software': 'Software streams', 'cuda': 'CUDA streams'}
LAYOUTS = {
    'own': 'a stream for each thread',
    'one': 'all threads in one stream',
    'four': 'each thread round the same four streams',
}
WHAT = {
    'pair': '512 B, allocated and freed',
    'batch': '64 blocks of 256 B to 64 KiB',
    'slots': '400 live blocks a thread, 256 B to 1 MiB, a random one replaced',
    'handoff': '64 blocks of 2 KiB, allocated by one thread and freed by another',
    'cross': 'turns with three quarters of the memory, in blocks of 64 KiB',
    'cross-busy': 'the same, and each turn leaves work of 20 us in its stream',
}

Key = collections.namedtuple('Key', 'world workload layout timed allocator threads')
Kernels = collections.namedtuple('Kernels', 'allocator streams kernels warm')


def key_of(name):
    """WORLD/WORKLOAD/ALLOCATOR[/streams:LAYOUT][/latency]/.../threads:N; None: not such a name."""
    world, _, rest = name.partition('/')
    workload, *parts = rest.split('/')
    if world not in WORLDS or len(parts) < 2:
        return None
    values = dict(part.split(':', 1) for part in parts[1:] if ':' in part)
    if workload == 'kernels':
        if not {'streams', 'kernels', 'warm'} <= values.keys():
            return None
        return Kernels(parts[0], int(values['streams']), int(values['kernels']), values['warm'] == '1')
    if not values.get('threads', '').isdigit():
        return None
    return Key(world, workload, values.get('streams', 'own'), 'latency' in parts, parts[0], int(values['threads']))


class Results(measured.Repetitions):
    def __init__(self, path=None):
        super().__init__(path, key_of, 'orderly-stream-bench')

    def median(self, key, field='items_per_second'):
        return super().median(key, field)

    def has(self, world):
        return bool(self.keys(world=world)) or (world == 'cuda' and bool(super().keys(Kernels)))

    def keys(self, **wanted):
        return super().keys(Key, **wanted)


def in_order(found):
    return compare.in_order(set(found), ALLOCATORS)


def figure(value):
    """A number with three digits that matter."""
    if value == 0:
        return '0'
    digits = 2 - math.floor(math.log10(abs(value)))
    return f'{round(value, digits):.{max(digits, 0)}f}' if abs(value) >= 1e-3 else f'{value:.1e}'


def throughput_tables(results, world):
    text = []
    for workload in WORKLOADS:
        for layout, described in LAYOUTS.items():
            keys = results.keys(world=world, workload=workload, layout=layout, timed=False)
            if not keys:
                continue
            counts = sorted({key.threads for key in keys})
            rows = []
            for allocator in in_order(key.allocator for key in keys):
                cells = []
                for threads in counts:
                    key = Key(world, workload, layout, False, allocator, threads)
                    value, own = results.median(key), results.median(key._replace(allocator=OWN))
                    cell = 'refused' if results.failed(key) else '' if value is None else figure(value / 1e6)
                    if value and own and allocator != OWN:
                        cell += f' ({compare.ratio(own / value)})'
                    cells.append(cell)
                rows.append([allocator, *cells])
            header = ['threads', *(str(count) for count in counts)]
            text.append(f'`{workload}`: {WHAT[workload]}; {described}\n\n' + compare.markdown(header, rows))
    return '\n'.join(text)


def call_table(results, world):
    """At the most threads that every workload has."""
    rows = []
    for workload in WORKLOADS:
        keys = results.keys(world=world, workload=workload, layout='own', timed=False)
        for allocator in in_order(key.allocator for key in keys):
            if allocator == HOST:
                continue
            most = max(key.threads for key in keys)
            key = Key(world, workload, 'own', False, allocator, most)
            cells = [results.median(key, field) for field in ('calls', 'records', 'waits')]
            if any(cell is not None for cell in cells):
                shown = ['' if cell is None else figure(cell * 64) for cell in cells]
                rows.append([workload, allocator, str(most), *shown])
    if not rows:
        return ''
    made = 'calls of CUDA' if world == 'cuda' else 'operations on streams and events'
    return (f'For 64 blocks, allocated and freed: {made}, and of these events recorded and waits put into streams\n\n'
            + compare.markdown(['', 'allocator', 'threads', 'calls', 'records', 'waits'], rows, 2))


def latency_table(results, world):
    keys = results.keys(world=world, layout='own', timed=True)
    rows = []
    for workload in WORKLOADS:
        for threads in sorted({key.threads for key in keys if key.workload == workload}):
            for allocator in in_order(key.allocator for key in keys if key.workload == workload):
                key = Key(world, workload, 'own', True, allocator, threads)
                cells = []
                for call in ('allocate', 'free'):
                    values = [results.median(key, f'{call}_{what}') for what in ('p50', 'p99', 'p999', 'max')]
                    cells += ['' if value is None else f'{value:.0f}' for value in values]
                if any(cells):
                    rows.append([workload, allocator, str(threads), *cells])
    if not rows:
        return ''
    header = ['', 'allocator', 'threads', 'allocate p50', 'p99', 'p99.9', 'max', 'free p50', 'p99', 'p99.9', 'max']
    return ('Nanoseconds of the calling thread for one call, every 13th call timed, the clock\'s own time taken off\n\n'
            + compare.markdown(header, rows, 2))


def microseconds(results, key):
    value = results.median(key, 'real_time')
    return None if value is None else value / 1e3  # Google Benchmark's unit here is the nanosecond


def kernel_table(results):
    keys = [key for key in results.repetitions if isinstance(key, Kernels)]
    shapes = sorted({(key.kernels, key.streams) for key in keys})
    text = []
    for warm in (False, True):
        rows = []
        for allocator in in_order(key.allocator for key in keys):
            cells = []
            for kernels, streams in shapes:
                key = Kernels(allocator, streams, kernels, warm)
                value = microseconds(results, key)
                alone = microseconds(results, key._replace(allocator='no-allocation'))
                cell = 'refused' if results.failed(key) else '' if value is None else figure(value)
                if value and alone and allocator != 'no-allocation':
                    cell += f' ({value / alone:.2f}x)'
                cells.append(cell)
            if any(cells):
                rows.append([allocator, *cells])
        if rows:
            state = 'warm: the same was done once before' if warm else 'fresh: nothing was allocated before'
            header = ['streams, kernels', *(f'{streams}, {kernels}' for kernels, streams in shapes)]
            text.append(f'Kernels with a temporary of 1 MiB each, {state}; microseconds, relative to no allocation\n\n'
                        + compare.markdown(header, rows))
    return '\n'.join(text)


def world_section(results, world):
    parts = ['Million allocate+free pairs per second, all threads together; in brackets orderly relative to the '
             'peer.\n', throughput_tables(results, world), call_table(results, world), latency_table(results, world)]
    if world == 'cuda':
        parts.append(kernel_table(results))
        parts.append('PyTorch frees a block to the stream of its allocation, whoever frees it; what cudaMallocAsync '
                     'and PyTorch do inside is not counted as calls.\n')
    return '\n'.join(part for part in parts if part)


# ------------------------------------------------------------------------------------------------------- targets


def rounded_up(value):
    """Two decimals, rounded up, so that what reads as reached is reached."""
    return f'{math.ceil(round(value * 100, 6)) / 100:.2f}'


def at_most(row, against, limit, reached, shown):
    verdict = 'not measured' if reached is None else 'met' if reached <= limit else 'missed'
    return {'row': row, 'against': against, 'target': f'at most {limit:g}', 'reached': '' if reached is None else shown,
            'ratio': reached, 'verdict': verdict}


def largest(values):
    known = [value for value in values if value is not None]
    return max(known) if known else None


def check_no_calls(results, world):
    keys = results.keys(world=world, workload='pair', layout='own', timed=False, allocator=OWN)
    reached = largest(results.median(key, 'calls') for key in keys)
    return at_most(f'{world}: pair, stream operations', 'any number of threads', 0, reached,
                   figure(reached) if reached is not None else '')


def check_handoff(results, world, workload, field):
    key = Key(world, workload, 'own', False, OWN, 2)
    each = results.median(key, field)
    reached = None if each is None else each * 64
    return at_most(f'{world}: {workload}, {field} for 64 blocks', '2 threads', 1, reached,
                   rounded_up(reached) if reached is not None else '')


def check_faster(results, world, workload, against, threads, at_least):
    key = Key(world, workload, 'own', False, OWN, threads)
    row = f'{world}: {workload}, {threads} thread' + ('s' if threads != 1 else '')
    if results.failed(key):
        return compare.outcome(row, against, at_least, 0, 'refused')
    own, other = results.median(key), results.median(key._replace(allocator=against))
    return compare.outcome(row, against, at_least, own / other if own and other else None)


def check_host_pool(results, world, threads):
    key = Key(world, 'pair', 'own', False, OWN, threads)
    own, other = results.median(key), results.median(key._replace(allocator=HOST))
    reached = other / own if own and other else None
    return at_most(f'{world}: pair, {threads} thread' + ('s' if threads != 1 else ''),
                   'time of the pool without streams', 1.5, reached, rounded_up(reached) if reached else '')


def check_scaling(results, world):
    one, many = (results.median(Key(world, 'pair', 'own', False, OWN, threads)) for threads in (1, 16))
    return compare.outcome(f'{world}: pair', 'itself, 1 to 16 threads', 12, many / one if one and many else None)


def check_kernels(results, against):
    own = microseconds(results, Kernels(OWN, 4, 4, False))
    other = microseconds(results, Kernels(against, 4, 4, False))
    reached = own / other if own and other else None
    return at_most('cuda: kernels in 4 streams, fresh', f'time of {against}; 5 % are noise', 1.05, reached,
                   rounded_up(reached) if reached else '')


def check_targets(results):
    lines = []
    for world in WORLDS:
        lines.append(check_no_calls(results, world))
        lines += [check_handoff(results, world, workload, field)
                  for workload in ('cross', 'cross-busy') for field in ('records', 'waits')]
        lines += [check_host_pool(results, world, threads) for threads in (1, 2)]
    lines.append(check_faster(results, 'software', 'pair', 'classic', 2, 10))
    lines += [check_faster(results, 'cuda', 'pair', against, threads, at_least)
              for against, at_one in (('cudaMallocAsync', 25), ('pytorch', 15))
              for threads, at_least in ((1, at_one), (16, 1000))]
    lines.append(check_scaling(results, 'cuda'))
    lines += [check_kernels(results, against) for against in ('cudaMallocAsync', 'cudaMallocAsync-primed')]
    return lines


def as_json(results):
    fields = ('items_per_second', 'real_time', 'calls', 'records', 'waits')
    rows = []
    for key, entries in results.repetitions.items():
        row = {**key._asdict(), 'repetitions': len(entries), 'failed': results.failed(key)}
        names = fields + tuple(name for name in (entries[0] or {}) if name.startswith(('allocate_', 'free_')))
        rows.append({**row, **{name: results.median(key, name) for name in names}})
    return rows
