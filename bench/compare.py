#!/usr/bin/env python3
"""Compares allocators in the results of orderly-bench and checks orderly's throughput against its targets.

The input are files that `orderly-bench --benchmark_out=FILE --benchmark_out_format=json` wrote. Repetitions of one
benchmark, in whichever file, count together; every figure is the median of them. Of a file that holds aggregates only,
the median counts as one repetition.
"""

import argparse
import collections
import json
import math
import statistics
import sys

WORKLOADS = ('pair', 'hot16', 'batch64', 'slots1000', 'handoff')
OWN = 'orderly'
ANY = ()  # as the opponents of a target: every other allocator of the row

# Most of two coalescing lock-free allocators at 16 threads, in million pairs per second, each workload as here. Taken
# on 16 cores of a machine with an NVIDIA H200, where the others were built from source.
LOCK_FREE_AT_16 = {'pair': ('LLFree', 116), 'batch64': ('LLFree', 110), 'slots1000': ('NBBS', 48),
                   'handoff': ('LLFree', 26)}

Key = collections.namedtuple('Key', 'workload variant allocator threads')
Target = collections.namedtuple('Target', 'workload opponents at_least')

TARGETS = [
    *(Target(workload, ('best-fit',), 10) for workload in WORKLOADS),
    *(Target(workload, ('buddy-mutex',), 5) for workload in WORKLOADS),
    Target('pair', ('mimalloc',), 1.0),
    Target('hot16', ('mimalloc',), 0.7),
    Target('batch64', ('mimalloc',), 1.5),
    Target('batch64', ('tcmalloc',), 0.5),
    *(Target('slots1000', (peer,), 3) for peer in ('tcmalloc', 'mimalloc', 'jemalloc', 'tbb')),
    Target('handoff', ('mimalloc', 'jemalloc', 'tbb'), 1.5),
    Target('handoff', ('tcmalloc',), 0.7),
    *(Target(workload, ANY, 1.0) for workload in WORKLOADS),
]


class BadInput(Exception):
    pass


def key_of(name):
    """WORKLOAD/ALLOCATOR/[full:N/]...threads:N, with Google Benchmark's own parts between; None: not such a name."""
    workload, _, rest = name.partition('/')
    allocator, *parts = rest.split('/')
    values = dict(part.split(':', 1) for part in parts if ':' in part)
    if not allocator or not values.get('threads', '').isdigit():
        return None
    return Key(workload, f'full:{values["full"]}' if 'full' in values else '', allocator, int(values['threads']))


class Results:
    """Pairs per second of every repetition, by Key; None for one that failed."""

    def __init__(self):
        self.repetitions = collections.defaultdict(list)
        self.distortions = set()
        self.touched = set()

    def read(self, path):
        try:
            with open(path, encoding='utf-8') as file:
                document = json.load(file)
            self.distortions |= {document['context'].get('distorted_by', 'nothing')} - {'nothing'}
            self.touched.add(document['context'].get('blocks_touched', 'no'))
            repeated = set()
            for entry in document['benchmarks']:
                key = key_of(entry['name'])
                if key and entry.get('run_type', 'iteration') == 'iteration':
                    repeated.add(key)
                    failed = entry.get('error_occurred', False)
                    self.repetitions[key].append(None if failed else float(entry['items_per_second']))
            for entry in document['benchmarks']:  # a file that reports aggregates only
                key = key_of(entry.get('run_name', ''))
                if key and key not in repeated and entry.get('aggregate_name') == 'median':
                    failed = entry.get('error_occurred', False)
                    self.repetitions[key].append(None if failed else float(entry['items_per_second']))
        except OSError as error:
            raise BadInput(f'{path}: {error.strerror}') from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f'{path}: not a JSON file of Google Benchmark: {error!r}') from error

    def failed(self, key):
        return None in self.repetitions.get(key, [])

    def median(self, key):
        """Pairs per second; None: not measured, or a repetition failed."""
        if key not in self.repetitions or self.failed(key):
            return None
        return statistics.median(self.repetitions[key])

    def values_of(self, field):
        return {getattr(key, field) for key in self.repetitions}


def in_order(found, first):
    """The known ones in their order, then the others by name."""
    return [name for name in first if name in found] + sorted(set(found) - set(first))


def ratio(value):
    """Rounded down, so that what reads as reached is reached."""
    digits = 1 if value >= 10 else 2
    return f'{math.floor(value * 10**digits) / 10**digits:.{digits}f}x'


def markdown(header, rows, left=1):
    """A Markdown table, aligned to be read as it is; the first `left` columns hold text, the others figures."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def line_of(cells):
        aligned = [cell.ljust(width) if column < left else cell.rjust(width)
                   for column, (cell, width) in enumerate(zip(cells, widths))]
        return '| ' + ' | '.join(aligned) + ' |'

    rule = '|'.join('-' * (width + 2) if column < left else '-' * (width + 1) + ':'
                    for column, width in enumerate(widths))
    return '\n'.join([line_of(header), f'|{rule}|', *map(line_of, rows)]) + '\n'


def throughput_cell(results, key):
    if results.failed(key):
        return 'refused'
    value = results.median(key)
    if value is None:
        return ''
    own = results.median(key._replace(allocator=OWN))
    figure = f'{value / 1e6:.4g}' if value < 1e9 else f'{value / 1e6:.0f}'
    return figure if key.allocator == OWN or not own else f'{figure} ({ratio(own / value)})'


def throughput_tables(results):
    """A table for each thread count, empty arena and filled; a line for each allocator, a column for each workload."""
    workloads = in_order(results.values_of('workload'), WORKLOADS)
    allocators = in_order(results.values_of('allocator'), (OWN,))
    touched = {'yes': 'written to', 'no': 'not touched'}
    text = ('Million allocate+free pairs per second, all threads together; in brackets orderly relative to the peer.\n'
            f'Blocks are {" or ".join(touched.get(answer, answer) for answer in sorted(results.touched))}.\n')
    for variant in sorted(results.values_of('variant')):
        for threads in sorted({key.threads for key in results.repetitions if key.variant == variant}):
            rows = []
            for allocator in allocators:
                cells = [throughput_cell(results, Key(workload, variant, allocator, threads)) for workload in workloads]
                if any(cells):
                    rows.append([allocator, *cells])
            title = f'{threads} thread' + ('s' if threads != 1 else '')
            if variant:
                title += f', {variant.removeprefix("full:")} % of the arena live before'
            text += f'\n{title}\n\n' + markdown(['allocator', *workloads], rows)
    return text


def outcome(row, against, at_least, reached, note=''):
    """A line of the table of targets. `reached` None: not measured; 0: the run failed."""
    verdict = 'not measured' if reached is None else 'met' if reached >= at_least else 'missed'
    return {'row': row, 'against': against, 'target': f'at least {at_least:g}x',
            'reached': '' if reached is None else note or ratio(reached), 'ratio': reached, 'verdict': verdict}


def best_of(results, key, allocators):
    measured = {name: results.median(key._replace(allocator=name)) for name in allocators}
    measured = {name: value for name, value in measured.items() if value is not None}
    return max(measured.items(), key=lambda item: item[1], default=(None, None))


def check_opponents(results, target, threads=2):
    own_key = Key(target.workload, '', OWN, threads)
    others = target.opponents or sorted(results.values_of('allocator') - {OWN})
    best, value = best_of(results, own_key, others)
    if len(target.opponents) == 1:
        against = target.opponents[0]
    else:
        against = f'best of {", ".join(target.opponents)}' if target.opponents else 'best peer'
        against += f': {best}' if best else ''
    missing = [name for name in target.opponents if results.median(own_key._replace(allocator=name)) is None]
    if missing and best:
        against += f' (without {", ".join(missing)})'
    if results.failed(own_key):
        return outcome(target.workload, against, target.at_least, 0, 'refused')
    own = results.median(own_key)
    return outcome(target.workload, against, target.at_least, own / value if own and value else None)


def check_scaling(results, workload, variant, threads, at_least):
    one, many = (Key(workload, variant, OWN, count) for count in (1, threads))
    row = workload + (f', {variant.removeprefix("full:")} % full' if variant else '')
    against = f'itself, 1 to {threads} threads'
    if results.failed(one) or results.failed(many):
        return outcome(row, against, at_least, 0, 'refused')
    few, all_ = results.median(one), results.median(many)
    return outcome(row, against, at_least, all_ / few if few and all_ else None)


def check_lock_free(results, workload):
    name, millions = LOCK_FREE_AT_16[workload]
    own = results.median(Key(workload, '', OWN, 16))
    return outcome(workload, f'{name} on 16 cores: {millions} M/s', 1.5, own / millions / 1e6 if own else None)


def check_targets(results):
    alone = [workload for workload in WORKLOADS if workload != 'handoff']
    lines = [check_opponents(results, target) for target in TARGETS]
    lines += [check_scaling(results, workload, '', 2, 1.8) for workload in alone]
    if 16 in results.values_of('threads'):
        lines += [check_scaling(results, workload, variant, 16, 12)
                  for variant in ('', 'full:80') for workload in alone]
        lines += [check_lock_free(results, workload) for workload in LOCK_FREE_AT_16]
    return lines


def targets_table(lines):
    met = sum(line['verdict'] == 'met' for line in lines)
    missed = sum(line['verdict'] == 'missed' for line in lines)
    fields = ('row', 'against', 'target', 'reached', 'verdict')
    return (markdown(['', *fields[1:]], [[line[field] for field in fields] for line in lines], len(fields))
            + f'\n{met} met, {missed} missed, {len(lines) - met - missed} not measured\n')


def warnings(results):
    return ''.join(f'*** The figures mean nothing: {reason}. ***\n\n' for reason in sorted(results.distortions))


def as_json(results):
    throughput = [{**key._asdict(), 'median_pairs_per_second': results.median(key), 'repetitions': repetitions}
                  for key, repetitions in sorted(results.repetitions.items())]
    return {'throughput': throughput, 'targets': check_targets(results)}


def load(paths):
    results = Results()
    for path in paths:
        results.read(path)
    if not results.repetitions:
        raise BadInput(f'{", ".join(paths)}: no benchmark named WORKLOAD/ALLOCATOR/threads:N')
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', metavar='FILE')
    parser.add_argument('--json', metavar='FILE', help='write medians, repetitions and targets as JSON')
    arguments = parser.parse_args()
    try:
        results = load(arguments.files)
    except BadInput as error:
        print(f'compare.py: {error}', file=sys.stderr)
        return 2
    print(warnings(results) + throughput_tables(results))
    print('Targets, at 2 threads where nothing else is said\n')
    print(targets_table(check_targets(results)))
    if arguments.json:
        with open(arguments.json, 'w', encoding='utf-8') as file:
            json.dump(as_json(results), file, indent=2)
            file.write('\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
