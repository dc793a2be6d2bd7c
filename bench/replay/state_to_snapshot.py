#!/usr/bin/env python3
"""Converts the state document of orderly-replay (state.schema.json) into a PyTorch memory snapshot.

The first history of the first trace becomes device 0. Segments are ranges that are committed at the end of the trace;
what of them is not live is inactive, cached or not. A replay has no time, so time_us counts the events of the trace,
and PyTorch records no threads: as in snapshot_to_csv.py, each thread of the trace counts as a stream, in a free that
which frees. Segments belong to no stream; they say 0. There are no frames.

    state_to_snapshot.py SNAPSHOT < STATE.json
"""

import argparse
import json
import pickle
import sys

PROTOCOL = 4  # the highest that the memory_viz page reads


def rows(table):
    """Yields each row of a table of columns as a dictionary."""
    columns = [values for values in table.values() if isinstance(values, list)]
    names = [name for name, values in table.items() if isinstance(values, list)]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values))


def device_trace(events, history):
    """What happened, in order. An event unmaps and maps before it allocates; a free comes before both."""
    origin = history["origin"]
    trace = []

    def add(time, place, action, **entry):
        trace.append((time, place, {"action": action, "time_us": time, "frames": [], **entry}))

    for block in rows(history["blocks"]):
        entry = {"addr": origin + block["address"], "size": block["requested_bytes"]}
        add(block["from"], 4, "alloc", stream=block["thread"], **entry)
        if block["to"] < events:
            add(block["to"], 0, "free_requested", stream=block["freed_by"], **entry)
            add(block["to"], 1, "free_completed", stream=block["freed_by"], **entry)
    for segment in rows(history["committed"]):
        entry = {"addr": origin + segment["address"], "size": segment["bytes"], "stream": 0}
        add(segment["from"], 3, "segment_map", **entry)
        if segment["to"] < events:
            add(segment["to"], 2, "segment_unmap", **entry)
    for refusal in rows(history["refused"]):
        add(refusal["at"], 4, "oom", size=refusal["requested_bytes"], stream=refusal["thread"], device_free=0)
    trace.sort(key=lambda entry: entry[:2])
    return [entry for _time, _place, entry in trace]


def committed_at_end(events, history):
    """(address, end) of each range, adjacent ones joined."""
    joined = []
    for segment in sorted((row for row in rows(history["committed"]) if row["to"] == events),
                          key=lambda row: row["address"]):
        begin = history["origin"] + segment["address"]
        if joined and joined[-1][1] == begin:
            joined[-1][1] += segment["bytes"]
        else:
            joined.append([begin, begin + segment["bytes"]])
    return joined


def block_of(address, size, requested=0, state="inactive"):
    return {"address": address, "size": size, "requested_size": requested, "state": state, "frames": []}


def segments(events, history):
    live = sorted((history["origin"] + row["address"], row["bytes"], row["requested_bytes"])
                  for row in rows(history["blocks"]) if row["to"] == events)
    live.reverse()
    for begin, end in committed_at_end(events, history):
        blocks, free = [], begin
        while live and live[-1][0] < end:
            address, size, requested = live.pop()
            if free < address:
                blocks.append(block_of(free, address - free))
            blocks.append(block_of(address, size, requested, "active_allocated"))
            free = address + size
        if free < end:
            blocks.append(block_of(free, end - free))
        active = [block for block in blocks if block["state"] == "active_allocated"]
        allocated = sum(block["size"] for block in active)
        yield {
            "device": 0, "address": begin, "total_size": end - begin, "stream": 0, "segment_type": "large",
            "segment_pool_id": (0, 0), "is_expandable": True, "allocated_size": allocated, "active_size": allocated,
            "requested_size": sum(block["requested_size"] for block in active), "frames": [], "blocks": blocks,
        }


def snapshot_of(document):
    trace = document["traces"][0]
    history = trace["histories"][0]
    settings = {name: history[name] for name in ("allocator", "granule_bytes", "chunk_bytes", "capacity_bytes",
                                                 "limit_bytes")}
    return {
        "segments": list(segments(trace["events"], history)),
        "device_traces": [device_trace(trace["events"], history)],
        "allocator_settings": {**settings, "expandable_segments": True},
        "external_annotations": [],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", help="the file to write, .pickle or .pkl")
    path = parser.parse_args().snapshot
    snapshot = snapshot_of(json.load(sys.stdin))
    try:
        with open(path, "wb") as file:
            pickle.dump(snapshot, file, protocol=PROTOCOL)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
