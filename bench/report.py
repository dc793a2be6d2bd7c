#!/usr/bin/env python3
"""Writes the report of bench/run: tables, targets, picture.

FOLDER holds what orderly-bench, orderly-stream-bench and orderly-replay wrote; a file that is missing leaves its
figures out, and the report says so:

  throughput.json        orderly-bench
  replay.json, .png      orderly-replay on the recorded traces, default settings, recorded order
  replay-contended.json  two copies of each trace at once, one thread each, running freely
  limit-64KiB.json       --find-limit --chunk 64KiB
  limit-2MiB.json        --find-limit --chunk 2MiB
  moves.json             --pieces --chunk 2MiB --limit-over-live 1.10
  memory.json            orderly-memory-bench
  minimalloc.json        --find-limit --unit KiB on the MiniMalloc problems
  streams.json           orderly-stream-bench
  kernels.json           orderly-kernel-bench
  growth.json            orderly-growth-bench
  streams-replay.json    the recorded traces with a software stream for each thread, chunks of 2 MiB, --find-limit
  streams-replay-free.json, -random.json
                         the same with threads running freely; with streams that keep up with the host (--schedule
                         random)
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import platform
import re
import shutil
import sys

import compare
import growth
import kernels
import memory
import streams

OWN = compare.OWN
TRACES = ('train_gpt', 'serve_vision', 'h200_train_gpt2', 'h200_serve_llama')
HOST_TRACES = TRACES[:2]
PROBLEMS = tuple(f'minimalloc-{letter}' for letter in 'ABCDEF')

# Reserved memory over peak live memory of PyTorch 2.11's own allocator, when the trace was recorded.
PYTORCH_RESERVED = {'h200_train_gpt2': 1.44, 'h200_serve_llama': 2.31}


STREAM_TRACE = 'h200_serve_llama'
STREAM_REPLAYS = (
    ('recorded order', ''),
    ('threads running freely', '-free'),
    ('streams that keep up, recorded order', '-random'),
)


class Replay:
    """The results of one call of orderly-replay, by trace and allocator."""

    def __init__(self, path):
        self.rows = {}
        if not path.exists():
            return
        try:
            for row in json.loads(path.read_text(encoding='utf-8'))['results']:
                self.rows[row['trace'], row['allocator']] = row
        except (ValueError, KeyError, TypeError) as error:
            raise compare.BadInput(f'{path}: not a JSON file of orderly-replay: {error!r}') from error

    def allocators(self):
        return list(dict.fromkeys(allocator for _, allocator in self.rows))

    def traces(self):
        return list(dict.fromkeys(trace for trace, _ in self.rows))

    def failed(self, trace, allocator):
        """Not served as recorded: an allocation or a free was refused, or the replay ended early."""
        row = self.rows.get((trace, allocator))
        return row is not None and bool('error' in row or row['failures'] or row['refused_frees'])

    def value(self, trace, allocator, field):
        row = self.rows.get((trace, allocator), {})
        return None if self.failed(trace, allocator) else row.get(field)

    def over_live(self, trace, allocator, field):
        """Bytes over the peak of live bytes. None: not known."""
        held, live = (self.value(trace, allocator, name) for name in (field, 'peak_live_bytes'))
        return held / live if held and live else None


def rounded_up(value, digits):
    """Rounded up, so that what reads as reached is reached."""
    return f'{math.ceil(round(value * 10**digits, 6)) / 10**digits:.{digits}f}'


def at_most(row, against, limit, reached, failed=False, note=''):
    verdict = 'missed' if failed else 'not measured' if reached is None else 'met' if reached <= limit else 'missed'
    shown = 'refused' if failed else '' if reached is None else rounded_up(reached, 3) + note
    return {'row': row, 'against': against, 'target': f'at most {limit:.2f}', 'reached': shown, 'ratio': reached,
            'verdict': verdict}


def check_smallest_limit(limits, trace, chunks, peer='best-fit'):
    own, other = (limits.value(trace, name, 'smallest_limit_bytes') for name in (OWN, peer))
    own_ratio, other_ratio = (limits.over_live(trace, name, 'smallest_limit_bytes') for name in (OWN, peer))
    reached = own / other if own and other else None
    note = f' ({rounded_up(own_ratio, 3)} to {rounded_up(other_ratio, 3)} of live)' if reached else ''
    return at_most(f'{trace}: smallest limit, chunks of {chunks}', f"{peer}'s smallest", 1.00, reached,
                   unserved(limits, trace), note)


def unserved(limits, trace):
    """True if no limit was found with which orderly serves the trace."""
    return limits.failed(trace, OWN) or ((trace, OWN) in limits.rows
                                         and limits.value(trace, OWN, 'smallest_limit_bytes') is None)


def check_limit_over_live(limits, trace, what, limit, against):
    reached = limits.over_live(trace, OWN, 'smallest_limit_bytes')
    return at_most(f'{trace}: smallest limit, {what}', against, limit, reached, unserved(limits, trace))


def check_default(replay, trace):
    reached = replay.over_live(trace, OWN, 'peak_committed_bytes')
    return at_most(f'{trace}: peak committed, default settings', 'peak live', 1.30, reached,
                   replay.failed(trace, OWN))


def check_tail(contended, trace):
    own, other = (contended.value(trace, name, 'p999_ns') for name in (OWN, 'best-fit'))
    if contended.failed(trace, OWN):
        return compare.outcome(f'{trace}: p99.9 of allocate', 'best-fit', 5, 0, 'refused')
    line = compare.outcome(f'{trace}: p99.9 of allocate', 'best-fit', 5, other / own if own and other else None)
    line['target'] = 'at least 5x lower'
    return line


def check_problem(problems, name):
    other = problems.over_live(name, 'best-fit', 'smallest_limit_bytes')
    against = 'peak live' + (f'; best fit needs {rounded_up(other, 2)}' if other else '')
    return check_limit_over_live(problems, name, 'sizes in KiB', 1.05, against)


def check_streams(replay, setting):
    """Peak committed of a trace of six streams."""
    reached = replay.over_live(STREAM_TRACE, 'orderly-streams', 'peak_committed_bytes')
    return at_most(f'{STREAM_TRACE} on 6 threads and streams: peak committed, {setting}',
                   f'peak live; PyTorch reserved {PYTORCH_RESERVED[STREAM_TRACE]:.2f}', 1.15, reached,
                   replay.failed(STREAM_TRACE, 'orderly-streams'))


class Results:
    def __init__(self, folder):
        self.folder = folder
        self.throughput = compare.Results()
        if (folder / 'throughput.json').exists():
            self.throughput = compare.load([folder / 'throughput.json'])
        self.replay = Replay(folder / 'replay.json')
        self.contended = Replay(folder / 'replay-contended.json')
        self.fine = Replay(folder / 'limit-64KiB.json')
        self.coarse = Replay(folder / 'limit-2MiB.json')
        self.problems = Replay(folder / 'minimalloc.json')
        self.moves = Replay(folder / 'moves.json')
        self.memory = memory.Results(folder / 'memory.json')
        self.streams = streams.Results(folder / 'streams.json')
        self.kernels = kernels.Results(folder / 'kernels.json')
        self.growth = growth.Results(folder / 'growth.json')
        self.stream_replays = {title: Replay(folder / f'streams-replay{name}.json') for title, name in STREAM_REPLAYS}

    def has_memory(self):
        return bool(self.memory.repetitions) or any(r.rows for r in (self.fine, self.coarse, self.problems, self.moves))

    def context(self):
        """Of the device, if one was seen."""
        return self.streams.context if 'device' in self.streams.context else self.growth.context

    def part(self):
        """What the results are of, where it is not everything: 'streams', 'memory' or 'growth'."""
        if self.throughput.repetitions or self.replay.rows or self.contended.rows:
            return ''
        if self.has_memory():
            return '' if self.streams.repetitions else 'memory'
        return 'streams' if self.streams.repetitions else 'growth' if self.growth.repetitions else ''

    def targets(self):
        if self.part() == 'growth':
            return growth.check_targets(self.growth)
        if self.part() == 'streams':
            return self.stream_targets()
        if self.part() == 'memory':
            return self.memory_targets()
        lines = self.memory_targets()
        lines += [check_default(self.replay, trace) for trace in TRACES]
        lines += [check_tail(self.contended, trace) for trace in TRACES]
        return lines + compare.check_targets(self.throughput) + self.stream_targets()

    def memory_targets(self):
        lines = [check_smallest_limit(self.fine, trace, '64 KiB') for trace in TRACES]
        lines += [check_limit_over_live(self.coarse, trace, 'chunks of 2 MiB', 1.05,
                                        f'peak live; PyTorch reserved {reserved:.2f}')
                  for trace, reserved in PYTORCH_RESERVED.items()]
        lines += [check_smallest_limit(self.coarse, trace, '2 MiB', peer)
                  for trace in HOST_TRACES for peer in ('pytorch-like', 'best-fit')]
        lines += [check_problem(self.problems, name) for name in PROBLEMS]
        lines += memory.check_targets(self.memory, self.moves, PYTORCH_RESERVED)
        return lines + growth.check_targets(self.growth)

    def stream_targets(self):
        return (streams.check_targets(self.streams) + kernels.check_targets(self.kernels)
                + [check_streams(replay, setting) for setting, replay in self.stream_replays.items()])


def replay_table(replay, cell):
    rows = []
    for allocator in replay.allocators():
        cells = ['refused' if replay.failed(trace, allocator) else cell(trace, allocator) for trace in replay.traces()]
        if any(cells):
            rows.append([allocator, *cells])
    return compare.markdown(['allocator', *replay.traces()], rows)


def nanoseconds(replay, field):
    def cell(trace, allocator):
        value = replay.value(trace, allocator, field)
        return '' if value is None else f'{value:.0f}'
    return cell


def over_live(replay, field):
    def cell(trace, allocator):
        value = replay.over_live(trace, allocator, field)
        return '' if value is None else rounded_up(value, 3)
    return cell


def replay_tables(results):
    parts = []

    def add(title, replay, cell):
        if replay.rows:
            parts.append(f'{title}\n\n{replay_table(replay, cell)}')

    replay, contended = results.replay, results.contended
    add('Recorded order, one call at a time: ns per call', replay, nanoseconds(replay, 'ns_per_operation'))
    add('Two copies at once, a thread each: ns per call', contended, nanoseconds(contended, 'ns_per_operation'))
    add('Two copies at once: p99.9 of allocate, ns', contended, nanoseconds(contended, 'p999_ns'))
    add('Peak committed over peak live, default settings', replay, over_live(replay, 'peak_committed_bytes'))
    for title, limits in (('chunks of 64 KiB', results.fine), ('chunks of 2 MiB', results.coarse),
                          ('MiniMalloc problems, sizes in KiB', results.problems)):
        add(f'Smallest limit over peak live, {title}', limits, over_live(limits, 'smallest_limit_bytes'))
    return '\n'.join(parts)


def stream_replay_table(replay):
    rows = []
    for (trace, allocator), row in replay.rows.items():
        cells = []
        for field in ('peak_committed_bytes', 'smallest_limit_bytes'):
            value = replay.over_live(trace, allocator, field)
            cells.append('' if value is None else rounded_up(value, 3))
        for field in ('ns_per_operation', 'p50_ns', 'p99_ns', 'p999_ns', 'max_ns'):
            value = replay.value(trace, allocator, field)
            cells.append('' if value is None else f'{value:.0f}')
        cells += [str(row.get(field) if row.get(field) is not None else '') for field in ('records', 'waits')]
        if replay.failed(trace, allocator):
            cells[:2] = ['refused', cells[1]]
        rows.append([trace, str(row.get('threads', '')), allocator, *cells])
    header = ['trace', 'streams', 'allocator', 'committed/live', 'limit/live', 'ns/call', 'p50', 'p99', 'p99.9', 'max',
              'records', 'waits']
    return compare.markdown(header, rows, 3)


def stream_sections(results):
    sections = []
    for world, title in streams.WORLDS.items():
        if results.streams.has(world):
            sections += [f'## {title}\n', streams.world_section(results.streams, world)]
    if results.kernels.repetitions:
        sections += ['## Allocations inside kernels\n', kernels.section(results.kernels)]
    shown = [(title, replay) for title, replay in results.stream_replays.items() if replay.rows]
    if shown:
        sections.append('## Recorded PyTorch traces on software streams\n')
        sections.append('A stream for each thread; every allocation is followed by work in its stream that writes to '
                        'the block. Chunks of 2 MiB; of a flat buffer only the smallest is told. Percentiles of '
                        'allocate, in ns.\n')
        sections += [f'{title[0].upper()}{title[1:]}\n\n{stream_replay_table(replay)}' for title, replay in shown]
    return sections


def not_run(results):
    """What the report has no figures of."""
    missing = []
    if not results.has_memory():
        missing.append('smallest limits, and memory that moves')
    if not results.throughput.repetitions:
        missing.append('contended workloads of the pool without streams')
    if not results.replay.rows:
        missing.append('recorded traces without streams')
    if not results.streams.has('software'):
        missing.append('software streams')
    if not any(replay.rows for replay in results.stream_replays.values()):
        missing.append('recorded traces on software streams')
    if not results.streams.has('cuda'):
        missing.append('CUDA streams, their peers and kernels: no device, or built without CUDA')
    elif not results.streams.keys(world='cuda', allocator='pytorch'):
        missing.append("PyTorch's caching allocator: not found when the benchmarks were built")
    if not results.kernels.repetitions:
        missing.append('allocations inside kernels: no device, or built without nvcc')
    if not results.growth.repetitions:
        missing.append('growth of device memory: no device, or built without CUDA')
    return missing


def machine():
    """The processor's model and the number of cores that may be used."""
    model = platform.machine()
    for line in pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
        if line.startswith('model name'):
            model = re.sub(r'\((R|TM)\)', '', line.split(':', 1)[1])
            break
    cores = len(os.sched_getaffinity(0))
    return f'{" ".join(model.split())}, {cores} core' + ('s' if cores > 1 else '')


def system():
    try:
        return platform.freedesktop_os_release()['PRETTY_NAME']
    except OSError:
        return platform.system()


def device_of(context):
    """The GPU that the benchmarks saw, its driver and the CUDA versions; empty: it saw none."""
    if 'device' not in context:
        return ''
    parts = [context['device'], f'driver {context.get("driver", "of an unknown version")}',
             f'CUDA {context["cuda_runtime"]} (the driver serves {context["cuda_driver"]})']
    if 'pytorch' in context:
        parts.append(f'PyTorch {context["pytorch"]}')
    return '; '.join(parts)


def slug(text):
    return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')


def warnings(results):
    """Both kinds of benchmarks say what makes their figures worthless."""
    kinds = (results.throughput, results.streams, results.memory)
    return ''.join(map(compare.warnings, kinds)).strip()


def report(results, title, notes, picture):
    sections = [f'# {title}\n', *(f'{note}\n' for note in notes), warnings(results)]
    if replays := replay_tables(results):
        sections += ['## Recorded PyTorch traces\n', replays]
    sections += memory.sections(results.memory, results.moves) + growth.sections(results.growth)
    if picture:
        sections.append(f'![Memory over time, and the address map]({picture})\n')
    if results.throughput.repetitions:
        sections += ['## Throughput\n', compare.throughput_tables(results.throughput)]
    sections += stream_sections(results)
    sections += ['## Targets\n', 'Throughput at 2 threads where nothing else is said.\n',
                 compare.targets_table(results.targets())]
    if missing := not_run(results):
        sections += ['## Not run\n', ''.join(f'* {what}\n' for what in missing)]
    return '\n'.join(section for section in sections if section)


def write(results, into, revision, load):
    date = datetime.date.today().isoformat()
    device = device_of(results.context())
    where = f'{device}; {machine()}' if device else machine()
    name = '-'.join(filter(None, [date, results.part(), slug(device.split(';')[0] if device else machine())]))
    into.mkdir(parents=True, exist_ok=True)
    picture = ''
    if (results.folder / 'replay.png').exists():
        picture = f'{name}.png'
        shutil.copyfile(results.folder / 'replay.png', into / picture)
    notes = [f'{system()}; orderly at {revision}. Load of the machine before the start: {load}.']
    if device:
        notes.insert(0, f'{where}.')
    title = results.context()['device'] if device else machine()
    text = report(results, f'orderly on {title}, {date}', notes, picture)
    (into / f'{name}.md').write_text(text, encoding='utf-8')
    document = {'date': date, 'machine': where, 'system': system(), 'revision': revision, 'load': load,
                'throughput': compare.as_json(results.throughput)['throughput'], 'targets': results.targets(),
                'streams': streams.as_json(results.streams), 'kernels': kernels.as_json(results.kernels),
                'memory': memory.as_json(results.memory), 'growth': growth.as_json(results.growth),
                'not_run': not_run(results)}
    document['stream_replays'] = {title: list(replay.rows.values())
                                  for title, replay in results.stream_replays.items()}
    for field in ('replay', 'contended', 'fine', 'coarse', 'problems', 'moves'):
        document[field] = list(getattr(results, field).rows.values())
    (into / f'{name}.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    return text, into / name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER')
    parser.add_argument('--into', type=pathlib.Path, required=True, metavar='FOLDER', help='where the report goes')
    parser.add_argument('--revision', default='an unknown revision', help='of the project, for the record')
    parser.add_argument('--load', default='unknown', help='load average before the start, for the record')
    arguments = parser.parse_args()
    try:
        text, stem = write(Results(arguments.folder), arguments.into, arguments.revision, arguments.load)
    except (compare.BadInput, OSError) as error:
        print(f'report.py: {error}', file=sys.stderr)
        return 2
    print(text)
    print(f'Written to {stem}.md and .json')
    return 0


if __name__ == '__main__':
    sys.exit(main())
