"""Results of orderly-memory-bench, and what the replay tells of moved memory: tables and targets. For report.py."""

import collections
import math

import compare
import measured

KINDS = {
    'nothing': 'no further thread',
    'computing': 'a further thread computes, and leaves the pool alone',
    'defragment': 'pool::defragment()',
    'trim': 'pool::trim()',
    'reserve': 'pool::reserve() of 16 MiB more than there is, then pool::trim()',
    'relocation': 'every second of 2000 relocatable blocks is freed, the others moved together',
}
LIMIT_OPERATIONS = 10_000_000
MOVED_LIMIT = 1.10
Passes = collections.namedtuple('Passes', 'workload kind timed')
Limit = collections.namedtuple('Limit', 'threads')
Fragmented = collections.namedtuple('Fragmented', 'pattern blocks bytes')


def key_of(name):
    """As main.cpp of orderly-memory-bench names them; None: not such a name."""
    parts = name.split('/')
    values = dict(part.split(':', 1) for part in parts if ':' in part)
    if parts[0] == 'passes' and len(parts) > 2 and parts[2] in KINDS:
        return Passes(parts[1], parts[2], 'latency' in parts)
    if parts[0] == 'at-limit' and values.get('threads', '').isdigit():
        return Limit(int(values['threads']))
    if parts[0] == 'fragmented' and len(parts) > 3 and parts[3].isdigit():
        return Fragmented(parts[1], parts[2], int(parts[3]))
    return None


class Results(measured.Repetitions):
    def __init__(self, path=None):
        super().__init__(path, key_of, 'orderly-memory-bench')


def rounded_up(value, digits):
    return f'{math.ceil(round(value * 10**digits, 6)) / 10**digits:.{digits}f}'


def at_most(row, against, limit, reached, shown):
    verdict = 'not measured' if reached is None else 'met' if reached <= limit else 'missed'
    return {'row': row, 'against': against, 'reached': '' if reached is None else shown, 'ratio': reached,
            'verdict': verdict}


def check_passes(results, workload, kind):
    """Throughput and tail beside passes, against both without a further thread."""
    row = f'memory: {workload} on 2 threads beside {kind}'
    lines = []
    for timed, field, what in ((False, 'items_per_second', 'throughput'), (True, 'p999', 'p99.9 of a call')):
        own, alone = (results.median(Passes(workload, name, timed), field) for name in (kind, 'nothing'))
        failed = results.failed(Passes(workload, kind, timed))
        ratio = own / alone if own and alone else None
        if timed:
            line = at_most(f'{row}: {what}', 'without', 3, math.inf if failed else ratio,
                           'refused' if failed else '' if ratio is None else rounded_up(ratio, 2) + 'x')
            line['target'] = 'at most 3x'
            if failed:
                line['ratio'] = None
        else:
            line = compare.outcome(f'{row}: {what}', 'without', 0.7, 0 if failed else ratio,
                                   'refused' if failed else '')
        lines.append(line)
    return lines


def check_limit(results, threads):
    key = Limit(threads)
    requests, refused = (results.median(key, field) for field in ('requests', 'refused'))
    enough = requests is not None and requests >= LIMIT_OPERATIONS
    line = at_most(f'memory: allocations at the limit, {threads} thread' + ('s' if threads > 1 else ''),
                   'live bytes and the request fit', 0, refused if enough else None,
                   '' if not enough else f'{refused:.0f} of {requests / 1e6:.0f} million')
    return {**line, 'target': 'none refused'}


def check_fragmented(results, pattern, blocks):
    keys = [key for key in results.keys(Fragmented) if (key.pattern, key.blocks) == (pattern, blocks)]
    served = [results.median(key, 'served') for key in keys]
    known = bool(served) and None not in served
    what = 'every second chunk is freed' if pattern == 'chunks' else 'every second block is freed, and the rest moved'
    line = compare.outcome(f'memory: full of small blocks, {what}', 'the largest power of two that is free', 1,
                           sum(served) / len(served) if known else None,
                           f'{sum(served):.0f} of {len(served)} sizes' if known else '')
    return {**line, 'target': 'served'}


def moved(row):
    """Seconds of CUDA's driver for what was moved: given back, and as much committed anew. None: not measured."""
    moves = row.get('moved')
    if not moves or not moves['committed_bytes']:
        return None
    return moves['decommit_seconds'] + moves['commit_seconds'] * moves['decommitted_bytes'] / moves['committed_bytes']


def check_moved(replay, trace, allocator=compare.OWN):
    row = replay.rows.get((trace, allocator), {})
    name = f'{trace}: chunks moved at {MOVED_LIMIT:.2f} of peak live, chunks of 2 MiB'
    failed = replay.failed(trace, allocator)
    seconds = moved(row)
    share = seconds / row['recorded_seconds'] if seconds is not None and row.get('recorded_seconds') else None
    line = at_most(name, "recorded time, by CUDA's driver on an H200", 0.02, math.inf if failed else share,
                   'refused' if failed else '' if share is None else f'{rounded_up(100 * share, 2)} %')
    return {**line, 'target': 'at most 2 %', 'ratio': share}


def check_targets(results, moves, traces):
    lines = [check_moved(moves, trace) for trace in traces]
    for workload in ('pair', 'slots1000'):
        for kind in list(KINDS)[2:]:
            lines += check_passes(results, workload, kind)
    lines += [check_limit(results, threads) for threads in (1, 2)]
    return lines + [check_fragmented(results, *case) for case in (('chunks', 'plain'), ('blocks', 'relocatable'))]


def moved_table(replay):
    rows = []
    for (trace, allocator), row in replay.rows.items():
        moves = row.get('moved')
        if not moves:
            continue
        chunk = row['chunk']
        seconds = moved(row)
        pieces = moves['committed_pieces'] + moves['decommitted_pieces']
        share = f'{rounded_up(100 * seconds / row["recorded_seconds"], 2)} %' if row.get('recorded_seconds') else ''
        rows.append([trace, 'refused' if replay.failed(trace, allocator) else str(row['operations']),
                     f'{moves["committed_bytes"] // chunk}', f'{moves["decommitted_bytes"] // chunk}',
                     f'{pieces}', f'{moves["driver_calls"]}', f'{moves["driver_calls"] / pieces:.2f}' if pieces else '',
                     f'{1000 * (moves["commit_seconds"] + moves["decommit_seconds"]):.0f}',
                     f'{1000 * seconds:.0f}', share])
    header = ['trace', 'calls of the pool', 'chunks committed', 'given back', 'pieces', 'driver calls', 'a piece',
              'driver ms', 'of it moves', 'of recorded time']
    return compare.markdown(header, rows)


def passes_table(results):
    rows = []
    for workload in dict.fromkeys(key.workload for key in results.keys(Passes)):
        for kind in KINDS:
            plain, timed = Passes(workload, kind, False), Passes(workload, kind, True)
            if not results.repetitions.get(plain):
                continue
            figures = [results.median(plain, 'items_per_second'), results.median(timed, 'p50'),
                       results.median(timed, 'p99'), results.median(timed, 'p999')]
            cells = ['refused' if results.failed(plain) else '' if figures[0] is None else f'{figures[0] / 1e6:.4g}']
            cells += ['' if value is None else f'{value:.0f}' for value in figures[1:]]
            count, time = (results.median(plain, field) for field in ('passes', 'pass_us'))
            cells += [f'{count:.0f}', f'{time:.0f}'] if count else ['', '']
            rows.append([workload, kind, *cells])
    header = ['workload', 'beside', 'M pairs/s', 'p50', 'p99', 'p99.9', 'passes', 'us each']
    return compare.markdown(header, rows, 2)


def limit_table(results):
    rows = []
    for key in sorted(results.keys(Limit)):
        values = [results.median(key, field) for field in ('requests', 'refused', 'passes', 'real_time')]
        rows.append([str(key.threads), *('' if value is None else f'{value:.0f}' for value in values)])
    return compare.markdown(['threads', 'requests', 'refused', 'passes', 'ns a request'], rows)


def fragmented_table(results):
    rows = []
    for key in sorted(results.keys(Fragmented)):
        fields = ('free', 'asked', 'served', 'moves', 'copied', 'real_time')
        values = {field: results.median(key, field) for field in fields}
        mib = {field: '' if value is None else f'{value / 2**20:.1f}' for field, value in values.items()}
        rows.append([key.pattern, key.blocks, str(key.bytes), mib['free'], mib['asked'],
                     '' if values['served'] is None else 'yes' if values['served'] else 'no',
                     '' if values['moves'] is None else f'{values["moves"]:.0f}', mib['copied'],
                     '' if values['real_time'] is None else f'{values["real_time"] / 1e6:.1f}'])
    header = ['freed: every second', 'blocks', 'bytes', 'free MiB', 'asked MiB', 'served', 'moves', 'MiB copied', 'ms']
    return compare.markdown(header, rows, 2)


def sections(results, moves):
    parts = []
    if any(row.get('moved') for row in moves.rows.values()):
        parts.append(f'What the pool moves at a limit of {MOVED_LIMIT:.2f} of the peak of live bytes, chunks of 2 MiB, '
                     "in the pieces that the source for CUDA makes. Times are those of CUDA's driver for as many pieces "
                     'on an H200; moves are what was given back, and as much committed anew: the rest is growth. A hit '
                     f'calls nothing.\n\n{moved_table(moves)}')
    if results.keys(Passes):
        lines = ['Calls while a further thread runs passes, 2 threads. It rests nine times as long as it works. '
                 'Percentiles are of single calls, in ns.\n']
        lines += [f'* `{kind}`: {what}' for kind, what in KINDS.items()]
        parts.append('\n'.join(lines) + f'\n\n{passes_table(results)}')
    if results.keys(Limit):
        parts.append('Requests while all of the limit is live but what is asked for; sizes change, so that memory is '
                     f'moved for them.\n\n{limit_table(results)}')
    if results.keys(Fragmented):
        parts.append('96 MiB full of small blocks, of which every second is freed, or those in every second chunk; '
                     'then one request for the largest power of two that the free bytes make up. Where no chunk is free '
                     'as a whole it is served only once relocatable blocks have been moved together.\n\n'
                     f'{fragmented_table(results)}')
    return ['## Memory that moves\n', *parts] if parts else []


def as_json(results):
    fields = ('items_per_second', 'p50', 'p99', 'p999', 'max', 'passes', 'pass_us', 'requests', 'refused', 'free',
              'asked', 'served', 'moves', 'copied', 'real_time')
    return [{'kind': type(key).__name__, **key._asdict(),
             **{field: value for field in fields if (value := results.median(key, field)) is not None}}
            for key in results.repetitions]
