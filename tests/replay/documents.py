"""The documents that orderly-replay writes: --json and --state against their schemas, and --snapshot.

usage: documents.py ORDERLY_REPLAY RESULTS_SCHEMA STATE_SCHEMA FOLDER_OF_TRACES
"""

import copy
import json
import lzma
import pickle
import pickletools
import random
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

try:
    import jsonschema
except ImportError:
    jsonschema = None
try:
    from torch.cuda import _memory_viz as memory_viz
except ImportError:
    memory_viz = None

PROGRAM = ""
RESULTS_SCHEMA, STATE_SCHEMA = {}, {}
TRACES = Path()

HEADER = "Thread,Time,Action,Pointer,Size,Stream\n"
TINY = HEADER + """1,0.1,allocate,0x100,300000,0
2,0.2,allocate,0x200,100000,0
2,0.3,free,0x100,300000,0
1,0.4,allocate,0x100,50000,0
1,0.5,free,0x200,100000,0
"""

# What the unpickler of the memory_viz page knows; it takes protocols 2 to 4.
PAGE_READS = {
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPUT", "BINUNICODE", "DICT",
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "FRAME", "LIST", "LONG1", "LONG_BINGET", "LONG_BINPUT", "MARK",
    "MEMOIZE", "NEWFALSE", "NEWTRUE", "NONE", "PROTO", "SETITEM", "SETITEMS", "SHORT_BINUNICODE", "STOP", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3",
}

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
KNOWN = {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "minimum", "description",
         "title", "$schema", "$defs", "$ref"}


def breaches(value, schema, root, where="$"):
    """Yields what in `value` is not as the schema says. Knows the few keywords that the schemas use."""
    if unknown := set(schema) - KNOWN:
        raise NotImplementedError(f"keywords {unknown}")
    if "$ref" in schema:
        yield from breaches(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(isinstance(value, TYPES[kind]) and not isinstance(value, bool) for kind in kinds):
        yield f"{where}: {value!r:.40} is not of type {' or '.join(kinds)}"
        return
    if "const" in schema and value != schema["const"] or "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r:.40} is not allowed"
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        yield f"{where}: {value} is below {schema['minimum']}"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (f"{where}: {name} is missing" for name in schema.get("required", []) if name not in value)
        for name, member in value.items():
            if name in properties:
                yield from breaches(member, properties[name], root, f"{where}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{where}: {name} is not expected"
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            yield from breaches(item, schema["items"], root, f"{where}[{number}]")


def rows_at(table, event):
    names = list(table)
    return [row for row in (dict(zip(names, values)) for values in zip(*table.values(), strict=True))
            if row["from"] <= event < row["to"]]


def joined(ranges):
    """(begin, end) of ranges of which adjacent ones count as one; they may not overlap."""
    result = []
    for begin, end in sorted(ranges):
        if result and begin < result[-1][1]:
            raise AssertionError(f"{begin:#x} lies in two ranges")
        if result and begin == result[-1][1]:
            result[-1] = (result[-1][0], end)
        else:
            result.append((begin, end))
    return result


def spans(rows, origin=0):
    return [(origin + row["address"], origin + row["address"] + row["bytes"]) for row in rows]


class Documents(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.tiny = self.folder / "tiny.csv"
        self.tiny.write_text(TINY)

    def run_program(self, *arguments, status=0):
        result = subprocess.run([PROGRAM, "--repeat", "1", *map(str, arguments)], capture_output=True, text=True)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result

    def document(self, option, *arguments, status=0):
        path = self.folder / f"document{option}"
        self.run_program(option, path, *arguments, status=status)
        return json.loads(path.read_text())

    def check(self, document, schema):
        self.assertEqual(list(breaches(document, schema, schema)), [])
        if jsonschema is not None:
            jsonschema.validate(document, schema)

    def shuffled_trace(self):
        """Blocks of all sizes of three threads, which free each other's, with a seed that is printed."""
        seed = random.randrange(1 << 32)
        print(f"seed {seed}", file=sys.stderr)
        chance = random.Random(seed)
        lines, live = [], {}
        for number in range(1500):
            thread = chance.randrange(3)
            if live and chance.random() < (0.35 if number // 200 % 2 == 0 else 0.65):
                pointer = chance.choice(list(live))
                lines.append(f"{thread},0,free,{pointer:#x},{live.pop(pointer)},0\n")
            else:
                pointer = number + 1
                live[pointer] = int(2 ** chance.uniform(0, 21 if chance.random() < 0.1 else 15)) + 1
                lines.append(f"{thread},0,allocate,{pointer:#x},{live[pointer]},0\n")
        path = self.folder / "shuffled.csv"
        path.write_text(HEADER + "".join(lines))
        return path

    # Schemas

    def test_results_are_as_their_schema_says(self):
        tiny = self.tiny
        huge = self.folder / "huge.csv"
        huge.write_text(HEADER + f"1,0,allocate,0x1,{1 << 47},0\n")
        limited = ["--limit", "320KiB", "--chunk", "64KiB", "--order", "free"]
        for status, arguments in ((0, ["-a", "orderly,malloc,orderly-streams", "--find-limit", tiny]),
                                  (0, ["-a", "best-fit", *limited, tiny]),
                                  (0, ["-a", "orderly,malloc", "--pieces", tiny]),
                                  (1, ["-a", "malloc", "--touch", huge])):
            with self.subTest(arguments=arguments):
                self.check(self.document("--json", *arguments, status=status), RESULTS_SCHEMA)

    def test_states_are_as_their_schema_says(self):
        for status, arguments in ((0, ["-a", "orderly,malloc,orderly-streams", self.tiny, self.tiny]),
                                  (0, ["-a", "orderly", "--limit", "256KiB", self.tiny]),
                                  (1, ["-a", "best-fit", self.tiny])):
            with self.subTest(arguments=arguments):
                self.check(self.document("--state", *arguments, status=status), STATE_SCHEMA)

    def test_tags_of_the_trace_are_those_of_its_blocks(self):
        lines = TINY.splitlines()
        tags = ["Tag", "weights", "", "weights", "activations", "x"]
        tagged = self.folder / "tagged.csv"
        tagged.write_text("".join(f"{line},{tag}\n" for line, tag in zip(lines, tags, strict=True)))
        document = self.document("--state", "-a", "orderly", "--limit", "256KiB", tagged)
        self.check(document, STATE_SCHEMA)
        history, = document["traces"][0]["histories"]
        self.assertEqual(history["tags"], ["weights", "untagged", "activations"])
        self.assertEqual(history["blocks"]["tag"], [1, 2])  # the first was refused
        history, = self.document("--state", "-a", "orderly", self.tiny)["traces"][0]["histories"]
        self.assertNotIn("tags", history)
        self.assertNotIn("tag", history["blocks"])

    def test_schemas_refuse_what_is_wrong(self):
        state = self.document("--state", "-a", "orderly", self.tiny)

        def changed(change):
            document = copy.deepcopy(state)
            change(document["traces"][0]["histories"][0], document)
            return document

        def rename(history, _):
            history["block"] = history.pop("blocks")

        def negative(history, _):
            history["cached"]["address"][:1] = [-1]

        def text(history, _):
            history["blocks"]["from"][0] = "0"

        def version(_, document):
            document["version"] = 2

        self.assertTrue(state["traces"][0]["histories"][0]["cached"]["address"])
        for change in (rename, negative, text, version):
            with self.subTest(change=change.__name__):
                document = changed(change)
                self.assertNotEqual(list(breaches(document, STATE_SCHEMA, STATE_SCHEMA)), [])
                if jsonschema is not None:
                    with self.assertRaises(jsonschema.ValidationError):
                        jsonschema.validate(document, STATE_SCHEMA)

    # What a state says

    def check_instant(self, trace, history, event):
        tables = {name: rows_at(history[name], event) for name in ("blocks", "cached", "committed")}
        held = joined(spans(tables["committed"]))
        joined(spans(tables["blocks"]) + spans(tables["cached"]))  # none overlap
        for begin, end in spans(tables["blocks"]) + spans(tables["cached"]):
            self.assertTrue(any(low <= begin and end <= high for low, high in held), f"{begin} to {end}, event {event}")
        for begin, end in held:
            self.assertEqual((begin % history["chunk_bytes"], end % history["chunk_bytes"]), (0, 0))
        for row in tables["blocks"]:
            self.assertLessEqual(row["requested_bytes"], row["bytes"])
            self.assertLess(row["thread"], trace["threads"])
            self.assertLess(row["lane"], trace["lanes"])
        return {"requested_bytes": sum(row["requested_bytes"] for row in tables["blocks"]),
                "allocated_bytes": sum(row["bytes"] for row in tables["blocks"]),
                "cached_bytes": sum(row["bytes"] for row in tables["cached"]),
                "committed_bytes": sum(row["bytes"] for row in tables["committed"])}

    def check_state(self, document):
        for trace in document["traces"]:
            for history in trace["histories"]:
                counters = history["statistics"]
                interval = counters.pop("interval")
                step = max(1, len(counters["passes"]) // 40)
                for sample in (*range(0, len(counters["passes"]), step), len(counters["passes"]) - 1):
                    event = min((sample + 1) * interval, trace["events"]) - 1
                    for name, value in self.check_instant(trace, history, event).items():
                        self.assertEqual(value, counters[name][sample], f"{name} after event {event}")

    def test_tables_agree_with_each_other_and_with_the_counters(self):
        self.check_state(self.document("--state", "-a", "orderly,orderly-streams", "-t", "3", self.shuffled_trace()))

    def test_tables_of_a_recorded_trace(self):
        document = self.document("--state", "-a", "orderly", "-t", "4", TRACES / "train_gpt.csv.xz")
        trace, = document["traces"]
        self.assertEqual((trace["trace"], trace["events"]), ("train_gpt", 42166))
        self.assertEqual(max(trace["live_bytes"]), 718167480)
        self.check_state(document)

    def test_refused_allocations(self):
        document = self.document("--state", "-a", "orderly", "--limit", "256KiB", self.tiny)
        trace, = document["traces"]
        history, = trace["histories"]
        self.assertEqual(history["refused"], {"at": [0], "requested_bytes": [300000], "thread": [0]})
        self.assertEqual(history["blocks"]["requested_bytes"], [100000, 50000])
        self.assertEqual((trace["limit_bytes"], history["limit_bytes"]), (262144, 262144))
        self.assertEqual(trace["events"], 5)

    # Snapshots

    def snapshot(self, *arguments):
        path = self.folder / "snapshot.pickle"
        state = self.document("--state", "--snapshot", path, *arguments)
        return path, pickle.loads(path.read_bytes()), state["traces"][0]

    def calls(self, path):
        """The trace in a file as orderly-replay reads it: action, requested bytes, block and thread of each event."""
        trace, = self.document("--state", "-a", "orderly", path)["traces"]
        blocks = trace["histories"][0]["blocks"]
        calls = [None] * trace["events"]
        for number, (begin, end, size, thread, freed_by) in enumerate(
                zip(*(blocks[name] for name in ("from", "to", "requested_bytes", "thread", "freed_by")))):
            calls[begin] = ("allocate", size, number, thread)
            if end < trace["events"]:
                calls[end] = ("free", size, number, freed_by)
        return calls

    def logged_calls(self, path):
        """The same of a log in which every free is of a live pointer."""
        threads, blocks, calls, count = {}, {}, [], 0
        with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as log:
            for line in list(log)[1:]:
                thread, _, action, pointer, size, _ = line.split(",")
                if action == "allocate":
                    blocks[pointer] = count
                    count += 1
                calls.append((action, int(size), blocks[pointer], threads.setdefault(thread, len(threads))))
        return calls

    def test_a_snapshot_reads_as_the_trace_that_it_is_of(self):
        for path in (self.tiny, self.shuffled_trace(), TRACES / "train_gpt.csv.xz"):
            with self.subTest(trace=path.name):
                dump, _, _ = self.snapshot("-a", "orderly", path)
                self.assertEqual(self.calls(path), self.logged_calls(path))
                self.assertEqual(self.calls(dump), self.logged_calls(path))

    def test_the_page_of_pytorch_can_unpickle_it(self):
        path, snapshot, _ = self.snapshot("-a", "orderly", self.shuffled_trace())
        names = {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())}
        self.assertEqual(names - PAGE_READS, set())
        self.assertLessEqual(next(argument for _, argument, _ in pickletools.genops(path.read_bytes())), 4)
        self.assertEqual(set(snapshot), {"segments", "device_traces", "allocator_settings", "external_annotations"})
        for event in snapshot["device_traces"][0]:
            self.assertEqual(set(event) - {"device_free"}, {"action", "addr", "size", "stream", "time_us", "frames"})

    def test_segments_are_filled_by_their_blocks(self):
        _, snapshot, trace = self.snapshot("-a", "orderly", self.shuffled_trace())
        history = trace["histories"][0]
        live = {history["origin"] + row["address"]: row for row in rows_at(history["blocks"], trace["events"] - 1)
                if row["to"] == trace["events"]}
        for segment in snapshot["segments"]:
            at = segment["address"]
            for block in segment["blocks"]:
                self.assertEqual(block["address"], at)
                at += block["size"]
                if block["state"] == "active_allocated":
                    row = live.pop(block["address"])
                    self.assertEqual((block["size"], block["requested_size"]), (row["bytes"], row["requested_bytes"]))
                else:
                    self.assertEqual((block["state"], block["requested_size"]), ("inactive", 0))
            self.assertEqual(at, segment["address"] + segment["total_size"])
            active = [block for block in segment["blocks"] if block["state"] == "active_allocated"]
            self.assertEqual(segment["allocated_size"], sum(block["size"] for block in active))
        self.assertEqual(live, {})

    def test_events_lead_back_from_the_last_state_to_nothing(self):
        """As the page's view of the allocator's state does it: from the segments at the end backwards."""
        _, snapshot, trace = self.snapshot("-a", "orderly", TRACES / "train_gpt.csv.xz")
        history = trace["histories"][0]
        segments = joined((segment["address"], segment["address"] + segment["total_size"])
                          for segment in snapshot["segments"])
        blocks = {block["address"] for segment in snapshot["segments"] for block in segment["blocks"]
                  if block["state"] == "active_allocated"}
        events = snapshot["device_traces"][0]
        self.assertGreater(sum(event["action"] == "segment_unmap" for event in events), 0)
        before = trace["events"]
        for number in range(len(events) - 1, -1, -1):
            event = events[number]
            begin, end = event["addr"], event["addr"] + event["size"]
            if event["time_us"] < before - 1000:  # the last event of its time: all of that is still in effect
                before = event["time_us"]
                self.assertEqual(segments, joined(spans(rows_at(history["committed"], before), history["origin"])))
                self.assertEqual(blocks, {history["origin"] + row["address"]
                                          for row in rows_at(history["blocks"], before)})
            match event["action"]:
                case "alloc":
                    blocks.remove(begin)
                case "free_requested":
                    self.assertIn(begin, blocks)
                case "free_completed":
                    self.assertNotIn(begin, blocks)
                    blocks.add(begin)
                    self.assertTrue(any(low <= begin and end <= high for low, high in segments))
                case "segment_unmap":
                    segments = joined([*segments, (begin, end)])
                case "segment_map":
                    low, high = next((low, high) for low, high in segments if low <= begin and end <= high)
                    segments.remove((low, high))
                    segments = sorted([*segments, *((a, b) for a, b in ((low, begin), (end, high)) if a < b)])
        self.assertEqual((segments, blocks), ([], set()))

    def test_refused_allocations_in_a_snapshot(self):
        _, snapshot, _ = self.snapshot("-a", "orderly", "--limit", "256KiB", self.tiny)
        refused = [event for event in snapshot["device_traces"][0] if event["action"] == "oom"]
        self.assertEqual([(event["size"], event["stream"], event["time_us"]) for event in refused], [(300000, 0, 0)])

    @unittest.skipIf(memory_viz is None, "PyTorch is not installed")
    def test_pytorch_reads_it(self):
        _, snapshot, trace = self.snapshot("-a", "orderly", self.shuffled_trace())
        self.assertIn("total_reserved", memory_viz.segsum(snapshot))
        entries = len(snapshot["device_traces"][0])
        self.assertIn(f"{entries} entries", memory_viz.trace(snapshot))
        self.assertIn("Active Memory Timeline", memory_viz.trace_plot(snapshot))
        self.assertIn("Allocator State History", memory_viz.segment_plot(snapshot))

    def test_what_cannot_be_written(self):
        for arguments in (["--snapshot", self.folder / "a.json", self.tiny],
                          ["--snapshot", self.folder / "a.pickle", self.tiny, self.tiny],
                          ["--snapshot", self.folder / "no" / "a.pickle", self.tiny],
                          ["--state", self.folder / "no" / "a.json", self.tiny],
                          ["--html", self.folder / "no" / "a.html", self.tiny]):
            with self.subTest(arguments=arguments):
                self.assertNotEqual(self.run_program("-a", "orderly", *arguments, status=2).stderr, "")

    def test_where_there_is_nothing_inside_to_look_at(self):
        for option, name in (("--state", "a.json"), ("--html", "a.html"), ("--snapshot", "a.pickle")):
            allocators = "best-fit,orderly-flat-streams"
            result = self.run_program("-a", allocators, option, self.folder / name, self.tiny, status=1)
            self.assertIn("pool of orderly", result.stderr)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    RESULTS_SCHEMA, STATE_SCHEMA = (json.loads(Path(sys.argv.pop(1)).read_text()) for _ in range(2))
    TRACES = Path(sys.argv.pop(1))
    unittest.main()
