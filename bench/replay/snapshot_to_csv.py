#!/usr/bin/env python3
"""Converts a PyTorch memory snapshot into the CSV that orderly-replay reads.

A snapshot is what torch.cuda.memory._dump_snapshot writes (a pickle), or the same structure as JSON. Its
device_traces must have been recorded with torch.cuda.memory._record_memory_history. Each block is freed where the
program freed it (free_requested). PyTorch does not record threads: each stream counts as one.

    snapshot_to_csv.py SNAPSHOT > TRACE.csv
"""

import argparse
import json
import pickle
import signal
import sys


class BadSnapshot(Exception):
    pass


class PlainUnpickler(pickle.Unpickler):
    """Builds numbers, strings and containers only: a pickle that names any class or function is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"the global {module}.{name} is not allowed")


def load(path):
    with open(path, "rb") as file:
        if path.endswith(".json"):
            return json.load(file)
        return PlainUnpickler(file).load()


def member(record, name, kind, where):
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadSnapshot(f"{where}: expected {name}, a value of type {kind.__name__}, found {value!r:.60}")
    return value


def size_of(event, where):
    size = member(event, "size", int, where)
    if size < 0:
        raise BadSnapshot(f"{where}: expected a size that is not negative, found {size}")
    return size


def busiest_device(snapshot, path):
    traces = member(snapshot, "device_traces", list, path)
    for number, events in enumerate(traces):
        if not isinstance(events, list):
            raise BadSnapshot(f"{path}: device_traces[{number}]: expected a list, found {events!r:.60}")
    if not any(traces):
        raise BadSnapshot(f"{path}: expected recorded events in device_traces, found none")
    device = max(range(len(traces)), key=lambda number: len(traces[number]))
    if sum(map(bool, traces)) > 1:
        print(f"{path}: several devices were recorded, reading device {device}, which has the most events",
              file=sys.stderr)
    return device, traces[device]


def rows(device, events, path):
    """Yields (time, action, pointer, size, stream). A free is recorded twice, when the program asks for it and when
    the streams that use the block have passed; one of the two may lie outside of the recorded history."""
    requested = set()
    start = None
    for number, event in enumerate(events):
        where = f"{path}: device_traces[{device}][{number}]"
        action = member(event, "action", str, where)
        if action not in ("alloc", "free_requested", "free_completed", "oom"):
            continue
        time = event.get("time_us", number)
        if not isinstance(time, int):
            raise BadSnapshot(f"{where}: expected time_us, a value of type int, found {time!r:.60}")
        start = time if start is None else start
        size = size_of(event, where)
        stream = member(event, "stream", int, where)
        if action == "oom":
            yield time - start, "allocate failure", 0, size, stream
            continue
        pointer = member(event, "addr", int, where)
        if action == "alloc":
            requested.discard(pointer)
            yield time - start, "allocate", pointer, size, stream
        elif action == "free_requested":
            requested.add(pointer)
            yield time - start, "free", pointer, size, stream
        elif pointer in requested:
            requested.remove(pointer)
        else:
            yield time - start, "free", pointer, size, stream


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", help="a .pickle, .pkl or .json file")
    path = parser.parse_args().snapshot
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that stops early ends the conversion
    try:
        device, events = busiest_device(load(path), path)
        print("Thread,Time,Action,Pointer,Size,Stream")
        for time, action, pointer, size, stream in rows(device, events, path):
            print(f"{stream},{time / 1e6:.6f},{action},{pointer:#x},{size},{stream}")
        sys.stdout.flush()
    except BadSnapshot as error:
        print(error, file=sys.stderr)
        return 2
    # Whatever the bytes hold, unpickling them may raise nearly anything.
    except Exception as error:
        print(f"{path}: expected a PyTorch memory snapshot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
