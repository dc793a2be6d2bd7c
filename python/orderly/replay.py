"""Replays recorded allocations on a pool: what memory it takes for them, and what a call costs.

    python -m orderly.replay LOG... [--find-limit] [--limit BYTES] [--chunk BYTES] [--slack FRACTION] [--json]

LOG: from orderly.record or orderly.torch.simulate, or in RMM's columns; .csv, also compressed (.gz, .xz, .zst). The
calls are made on one thread, in their recorded order, in host memory that nobody touches, so that it may be more than
the machine has. For other allocators, threads, streams and pictures there is orderly-replay, which ./bench/run builds;
it reads the same files.
"""

import argparse
import array
import csv
import io
import json
import os
import pathlib
import sys

from . import _core

_FREE = 2**64 - 1


def _open(path):
    name = str(path)
    if name.endswith('.gz'):
        import gzip
        return gzip.open(path, 'rt')
    if name.endswith('.xz'):
        import lzma
        return lzma.open(path, 'rt')
    if name.endswith('.zst'):
        try:
            from compression import zstd
            return zstd.open(path, 'rt')
        except ImportError:
            pass
        try:
            import zstandard
        except ImportError:
            sys.exit(f'{name}: reading .zst needs the package zstandard (pip install zstandard) or Python 3.14')
        return io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(open(path, 'rb')))
    return open(path)


def read(path):
    """A log as calls: the bytes for _core._replay, the number of slots, the highest sum of live bytes, the number of
    threads.

    Raises ValueError for what is no log, with the line."""
    calls, live, free_slots = array.array('Q'), {}, []
    slots = now = peak = 0
    threads = set()
    with _open(path) as file:
        rows = csv.reader(line for line in file if not line.startswith('#'))
        header = [name.strip() for name in next(rows, [])]
        try:
            thread, action, pointer, size = (header.index(name) for name in ('Thread', 'Action', 'Pointer', 'Size'))
        except ValueError:
            raise ValueError(f'{path}: the first line has not the columns Thread, Action, Pointer, Size') from None
        for number, row in enumerate(rows, 2):
            try:
                what, address, length = row[action], row[pointer], int(row[size])
            except (IndexError, ValueError):
                raise ValueError(f'{path}:{number}: not a row of a log: {",".join(row)}') from None
            if what == 'allocate':
                slot = free_slots.pop() if free_slots else slots
                slots = max(slots, slot + 1)
                live[address] = slot, length
                calls.extend((slot, length))
                threads.add(row[thread])
                now += length
                peak = max(peak, now)
            elif what == 'free' and address in live:  # others are from before the recording
                slot, length = live.pop(address)
                free_slots.append(slot)
                calls.extend((slot, _FREE))
                now -= length
    return calls.tobytes(), slots, peak, len(threads)


def _addresses(path, peak):
    """Options of a pool that has room for twice the peak, on whatever machine: none of it is touched. Above some 480
    GiB a capacity wants a larger granule, and above 1.5 TiB more addresses than a process has."""
    machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    most = 3 << 39
    if peak > most:
        raise ValueError(f'{path}: {peak} bytes are live at once, and a pool can have at most {most}')
    if 2 * peak <= machine:
        return {}
    capacity, granule = min(2 * peak, most), 256
    while capacity > granule << 30:  # 256 GiB for 256 bytes, and so on
        granule *= 2
    return {'capacity': capacity, 'granule': granule}


def _least_limit(trace, slots, peak, options):
    """The smallest limit, in 1/200 of the peak of live bytes, with which no call is refused; None: not below four
    peaks."""
    def serves(steps):
        return _core._replay(trace, slots, limit=max(peak * steps // 200, 1 << 16), **options)['refused'] == 0

    low, high = 199, 800
    if not serves(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if serves(middle) else (middle, high)
    return high / 200


def replay(path, *, limit=0, chunk=0, slack=0.2, repeat=3, find_limit=False):
    """What a log comes to, as a dictionary: number of calls and threads, peak of live bytes and of committed ones,
    their ratio, nanoseconds a call (the best of `repeat`), refused allocations, and the least limit if it is asked for.
    Raises ValueError."""
    trace, slots, peak, threads = read(path)
    options = {'chunk': chunk, 'slack': slack, **_addresses(path, peak)}
    runs = [_core._replay(trace, slots, limit=limit, **options) for _ in range(repeat)]
    calls = max(runs[0]['calls'], 1)
    found = {'log': str(path), 'calls': runs[0]['calls'], 'threads': threads, 'peak_live': peak,
             'peak_committed': runs[0]['peak_committed'],
             'committed_over_live': runs[0]['peak_committed'] / max(peak, 1),
             'ns_a_call': min(run['seconds'] for run in runs) / calls * 1e9, 'refused': runs[0]['refused']}
    if find_limit:
        found['least_limit_over_live'] = _least_limit(trace, slots, peak, options)
    return found


def _bytes(text):
    """A number, or one with K, M or G."""
    units = {'K': 10, 'M': 20, 'G': 30}
    unit = units.get(text[-1:].upper())
    return int(text[:-1]) << unit if unit else int(text)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m orderly.replay', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('logs', nargs='+', type=pathlib.Path, metavar='LOG')
    parser.add_argument('--find-limit', action='store_true', help='the smallest limit with which nothing is refused')
    parser.add_argument('--limit', type=_bytes, default=0, help='most bytes committed; also as 512M')
    parser.add_argument('--chunk', type=_bytes, default=0, help='unit of committed memory; 2M is what GPUs have')
    parser.add_argument('--slack', type=float, default=0.2, help='free memory that the pool keeps, of the peak (0.2)')
    parser.add_argument('--json', action='store_true', help='print JSON')
    given = parser.parse_args(arguments)
    try:
        found = [replay(path, limit=given.limit, chunk=given.chunk, slack=given.slack, find_limit=given.find_limit)
                 for path in given.logs]
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    if given.json:
        return print(json.dumps(found))
    for each in found:
        print(f"{each['log']}: {each['calls']:,} calls of {each['threads']} threads")
        print(f"  peak of live bytes   {each['peak_live'] / 2**20:12,.2f} MiB")
        print(f"  peak committed       {each['peak_committed'] / 2**20:12,.2f} MiB, "
              f"{each['committed_over_live']:.3f} of that")
        if given.find_limit:
            least = each['least_limit_over_live']
            print('  least limit          ' +
                  (f'{least:12.3f} of the live bytes' if least else '   more than 4 times the live bytes'))
        print(f"  a call               {each['ns_a_call']:12.1f} ns" +
              (f"; {each['refused']:,} allocations refused" if each['refused'] else ''))
    return None


if __name__ == '__main__':
    main()
