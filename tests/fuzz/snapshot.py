"""Snapshots with mistakes: snapshot_to_csv.py converts each or refuses it in a line, whatever the bytes.

usage: snapshot.py CONVERTER [COUNT]
ORDERLY_TEST_SEED=SEED repeats a run.
"""

import contextlib
import importlib.util
import io
import json
import os
import pickle
import random
import re
import sys
import tempfile

ROW = re.compile(r"-?\d+,-?\d+\.\d{6},(allocate|free|allocate failure),-?0x[0-9a-f]+,\d+,-?\d+")
ACTIONS = ["alloc", "free_requested", "free_completed", "oom", "segment_alloc", "snapshot", "", 7, None]
NUMBERS = [0, 1, -1, 512, 2**48, 2**64 - 1, 2**64, 10**400, -2**70, 1.5, float("nan"), float("inf"),
           True, None, "9", [], {}]


def load(path):
    spec = importlib.util.spec_from_file_location("converter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def snapshot(rng):
    """Mostly as PyTorch writes it; now and then a value is of any kind."""
    def number(usual):
        return rng.choice(NUMBERS) if rng.random() < 0.02 else usual

    def event():
        made = {"action": rng.choice(ACTIONS[:5]) if rng.random() < 0.97 else rng.choice(ACTIONS),
                "addr": number(rng.randrange(16) * 512), "size": number(rng.randrange(4096)),
                "stream": number(rng.randrange(3)), "time_us": number(rng.randrange(10**9))}
        if rng.random() < 0.02:
            made.pop(rng.choice(sorted(made)))
        return number(made)

    devices = [number([event() for _ in range(rng.randrange(12))]) for _ in range(rng.randrange(1, 4))]
    return number({"segments": [], "device_traces": number(devices)})


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at:at + rng.randrange(1, 20)]
        elif kind == 2:
            data[at:at] = data[rng.randrange(len(data) + 1):][:rng.randrange(20)]
        else:
            data = data[:at]
    return bytes(data)


def convert(converter, path):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["snapshot_to_csv.py", path]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = converter.main()
    return status, out.getvalue().splitlines(), err.getvalue()


def main():
    converter = load(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    given = os.environ.get("ORDERLY_TEST_SEED")
    seed = int(given, 0) if given else random.SystemRandom().randrange(2**32)
    print(f"random numbers: ORDERLY_TEST_SEED={seed}", file=sys.stderr)
    rng = random.Random(seed)
    refused = 0
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for number in range(count):
            ending = rng.choice(["json", "pickle"])
            whole = snapshot(rng)
            data = json.dumps(whole).encode() if ending == "json" else pickle.dumps(whole, rng.randrange(6))
            if rng.random() < 0.7:
                data = mutate(rng, data)
            path = os.path.join(folder, "snapshot." + ending)
            with open(path, "wb") as file:
                file.write(data)
            status, rows, messages = convert(converter, path)
            where = f"input {number}: {data!r}"
            if status == 0:
                assert rows[0] == "Thread,Time,Action,Pointer,Size,Stream", where
                bad = [row for row in rows[1:] if not ROW.fullmatch(row)]
                assert not bad, f"{where}: {bad[0]}"
            else:
                refused += 1
                assert status == 2, where
                assert messages.startswith(path), f"{where}: {messages}"
                assert len(messages) < 1000 and messages.count("\n") <= 2, f"{where}: {messages}"
    assert 0 < refused < count
    print(f"{count} snapshots, {refused} refused")


if __name__ == "__main__":
    main()
