"""The command line of orderly-replay.   usage: cli.py ORDERLY_REPLAY FOLDER_OF_TRACES"""

import gzip
import json
import lzma
import os
import pickle
import pty
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as xml
from pathlib import Path

PROGRAM = ""
TRACES = Path()

HEADER = "Thread,Time,Action,Pointer,Size,Stream\n"
TINY = HEADER + """1,0.1,allocate,0x100,300000,0
2,0.2,allocate,0x200,100000,0
2,0.3,free,0x100,300000,0
1,0.4,allocate,0x100,50000,0
1,0.5,free,0x200,100000,0
"""
TINY_PEAK = 400000
TINY_TOTAL = 450000

NUMBERS = ("operations", "failures", "bad_frees", "ns_per_operation", "p50_ns", "p99_ns", "p999_ns", "max_ns",
           "peak_live_bytes")
NUMBERS_OR_NULL = ("peak_committed_bytes", "smallest_limit_bytes", "records", "waits")

# Events and peak of live bytes of the recorded traces.
RECORDED = {
    "train_gpt.csv.xz": (42166, 718167480),
    "serve_vision.csv.xz": (225600, 201758244),
    "h200_train_gpt2.csv.xz": (68913, 13594206920),
    "h200_serve_llama.csv.xz": (182813, 2678040272),
}


class CommandLine(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def file(self, name, contents):
        path = self.folder / name
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        return path

    def run_program(self, *arguments, status=0):
        result = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result

    def results(self, *arguments, status=0):
        output = self.folder / "results.json"
        self.run_program(*arguments, "--json", output, status=status)
        return json.loads(output.read_text())["results"]

    def refusal(self, *arguments):
        result = self.run_program(*arguments, status=2)
        self.assertEqual(result.stdout, "")
        return result.stderr

    def allocators(self):
        lines = self.run_program("--list").stdout.splitlines()
        return {line.split()[0]: line.split()[1] for line in lines if "not available" not in line}

    # Arguments

    def test_help_names_every_option(self):
        text = self.run_program("--help").stdout
        for option in ("--allocator", "--order", "--threads", "--copies", "--repeat", "--chunk", "--limit",
                       "--capacity", "--find-limit", "--unit", "--touch", "--json", "--plot", "--list", "--schedule",
                       "--run-ahead", "--slack", "--limit-over-live", "--pieces", "--html", "--state", "--snapshot"):
            self.assertIn(option, text)

    def test_the_list_has_arenas_and_others(self):
        listed = self.allocators()
        self.assertEqual(listed["best-fit"], "arena")
        self.assertEqual(listed["malloc"], "general")
        self.assertEqual(listed["orderly-streams"], "arena,")

    def test_wrong_arguments(self):
        tiny = self.file("tiny.csv", TINY)
        for arguments in ([], ["--no-such-option", tiny], ["--allocator", "nobody", tiny], ["--allocator", "", tiny],
                          ["--order", "sideways", tiny], ["--threads", "0", tiny], ["--threads", "-1", tiny],
                          ["--threads", "99999999999999999999", tiny], ["--copies", "0", tiny],
                          ["--copies", "1000", "--threads", "1000", tiny], ["--repeat", "x", tiny],
                          ["--chunk", "3000", tiny], ["--chunk", "1KiB", tiny], ["--limit", "-5", tiny],
                          ["--limit", "0", tiny], ["--limit", "5XiB", tiny], ["--limit", "1.5GiB", tiny],
                          ["--limit", "99999999999999999999", tiny], ["--limit", "999999999TiB", tiny],
                          ["--unit", "KB", tiny], ["--plot", "a.gif", tiny], ["--limit"],
                          ["--schedule", "never", tiny], ["--limit-over-live", "0.5", tiny],
                          ["--limit-over-live", "1.1", "--limit", "1GiB", tiny], ["--run-ahead", "0", tiny], ["--slack", "-1", tiny],
                          ["--json", self.folder / "no" / "such.json", tiny],
                          ["--plot", self.folder / "no" / "such.png", tiny]):
            with self.subTest(arguments=arguments):
                self.assertNotEqual(self.refusal(*arguments), "")

    def test_an_unknown_allocator_is_answered_with_the_known_ones(self):
        text = self.refusal("--allocator", "malloc,nobody", self.file("tiny.csv", TINY))
        self.assertIn("nobody", text)
        self.assertIn("best-fit", text)

    # Input

    def test_a_malformed_line_is_named(self):
        path = self.file("bad.csv", HEADER + "1,0,allocate,0x1,8,0\n1,0,allocate,0x2,minus,0\n")
        self.assertEqual(self.refusal(self.file("tiny.csv", TINY), path),
                         f"orderly-replay: {path}:3: expected a size in bytes, found 'minus'\n")

    def test_files_that_cannot_be_read(self):
        truncated = lzma.compress(HEADER.encode() + b"1,0,allocate,0x1,8,0\n" * 5000)[:-30]
        for path in (self.folder / "absent.csv", self.folder, self.file("empty.csv", ""),
                     self.file("cut.csv.xz", truncated), self.file("cut.csv.gz", gzip.compress(TINY.encode())[:-12]),
                     self.file("noise.csv", bytes(range(256)) * 20), self.file("zero.pickle", b""),
                     self.file("evil.pkl", b"cos\nsystem\n(S'true'\ntR."), self.file("broken.json", "{")):
            with self.subTest(path=path.name):
                self.assertIn(path.name, self.refusal(path))

    def test_no_input_crashes(self):
        whole = TINY.encode()
        for cut in range(0, len(whole), 7):
            for damaged in (whole[:cut], whole[:cut] + b"\xff" + whole[cut + 1:], whole[:cut] + b",\n" + whole[cut:]):
                path = self.file("damaged.csv", damaged)
                result = subprocess.run([PROGRAM, "-a", "malloc", "--repeat", "1", path], capture_output=True)
                self.assertIn(result.returncode, (0, 2), damaged)

    def test_compressed_files_and_snapshots(self):
        events = [{"action": "alloc", "addr": 1 << 40, "size": 300000, "stream": 0, "time_us": 1},
                  {"action": "free_requested", "addr": 1 << 40, "size": 300000, "stream": 0, "time_us": 2}]
        snapshot = {"device_traces": [events]}
        for path, operations in ((self.file("a.csv.gz", gzip.compress(TINY.encode())), 5),
                                 (self.file("b.csv.xz", lzma.compress(TINY.encode())), 5),
                                 (self.file("c.pickle", pickle.dumps(snapshot)), 2),
                                 (self.file("d.json", json.dumps(snapshot)), 2)):
            with self.subTest(path=path.name):
                row, = self.results("-a", "best-fit", path)
                self.assertEqual((row["trace"], row["operations"]), (path.name[0], operations))

    def test_the_unit_scales_sizes(self):
        path = self.file("mini.csv", "id,lower,upper,size\na,0,2,3\nb,1,3,5\n")
        row, = self.results("-a", "best-fit", "--unit", "KiB", path)
        self.assertEqual(row["peak_live_bytes"], 8 * 1024)

    # Results

    def check_shape(self, row):
        for key in NUMBERS:
            self.assertIsInstance(row[key], (int, float), key)
            self.assertGreaterEqual(row[key], 0, key)
        for key in NUMBERS_OR_NULL:
            self.assertIsInstance(row[key], (int, type(None)), key)
        self.assertLessEqual(row["p50_ns"], row["p99_ns"])
        self.assertLessEqual(row["p99_ns"], row["p999_ns"])
        self.assertLessEqual(row["p999_ns"], row["max_ns"])

    def test_one_result_for_each_trace_and_allocator(self):
        first, second = self.file("first.csv", TINY), self.file("second.csv", TINY)
        rows = self.results("-a", "malloc,best-fit", first, second)
        self.assertEqual([(row["trace"], row["allocator"]) for row in rows],
                         [("first", "malloc"), ("first", "best-fit"), ("second", "malloc"), ("second", "best-fit")])
        for row in rows:
            self.check_shape(row)
            self.assertEqual((row["operations"], row["failures"], row["bad_frees"]), (5, 0, 0))
            self.assertEqual(row["peak_live_bytes"], TINY_PEAK)
            self.assertIsNone(row["smallest_limit_bytes"])
        self.assertIsNone(rows[0]["peak_committed_bytes"])
        self.assertGreaterEqual(rows[1]["peak_committed_bytes"], TINY_PEAK)

    def test_bad_frees_are_counted_and_reported(self):
        path = self.file("bad.csv", TINY + "1,0.6,free,0x300,8,0\n1,0.7,free,0x200,100000,0\n")
        row, = self.results("-a", "best-fit", path)
        self.assertEqual((row["bad_frees"], row["operations"]), (2, 5))
        self.assertIn("unknown pointers: 2", self.run_program("-a", "best-fit", path).stdout)

    def test_failures_within_a_limit(self):
        row, = self.results("-a", "best-fit", "--limit", "320KiB", self.file("tiny.csv", TINY))
        self.assertEqual((row["failures"], row["limit"]), (1, 320 * 1024))

    def test_a_limit_for_each_trace(self):
        rows = self.results("-a", "best-fit", "--limit-over-live", "1.5", "--copies", "2", "--order", "free",
                            self.file("tiny.csv", TINY), self.file("half.csv", TINY.replace("00000,0", "0000,0")))
        self.assertEqual([row["limit"] for row in rows], [2 * 600000, 2 * 90000])

    def test_pieces_of_memory(self):
        tiny = self.file("tiny.csv", TINY)
        pool, other = self.results("-a", "orderly,best-fit", "--pieces", "--chunk", "2MiB", tiny)
        self.assertEqual(pool["moved"]["committed_pieces"], pool["moved"]["commits"])
        self.assertEqual(pool["moved"]["committed_bytes"], pool["peak_committed_bytes"])
        self.assertEqual(pool["moved"]["driver_calls"], 4 * pool["moved"]["commits"])
        self.assertAlmostEqual(pool["moved"]["commit_seconds"], pool["moved"]["commits"] * 54.9e-6)
        self.assertEqual(pool["moved"]["decommit_seconds"], 0)
        self.assertAlmostEqual(pool["recorded_seconds"], 0.4)
        self.assertIsNone(other["moved"])
        self.assertIsNone(self.results("-a", "orderly", tiny)[0]["moved"])

    def test_the_smallest_limit(self):
        tiny = self.file("tiny.csv", TINY)
        for chunk in (4096, 65536):
            arena, other = self.results("-a", "best-fit,malloc", "--find-limit", "--chunk", chunk, tiny)
            expected = -(-TINY_PEAK // chunk) * chunk
            self.assertIn(arena["smallest_limit_bytes"], (expected, expected + chunk))
            self.assertIsNone(other["smallest_limit_bytes"])

    def test_what_cannot_be_measured(self):
        tiny = self.file("tiny.csv", TINY)
        row, = self.results("-a", "best-fit", "--find-limit", "--capacity", "256KiB", tiny, status=1)
        self.assertIsNone(row["smallest_limit_bytes"])
        self.assertGreater(row["failures"], 0)
        self.assertIn("arena", self.run_program("-a", "malloc", "--find-limit", tiny, status=1).stderr)
        huge = self.file("huge.csv", HEADER + f"1,0,allocate,0x1,{1 << 47},0\n")
        row, = self.results("-a", "malloc", "--touch", huge, status=1)
        self.assertIn("--touch", row["error"])
        for key in NUMBERS + NUMBERS_OR_NULL:
            self.assertIsNone(row[key])

    def test_free_order_and_copies(self):
        rows = self.results("-a", "best-fit,malloc", "--order", "free", "--copies", "3", "--threads", "2", "--touch",
                            self.file("tiny.csv", TINY))
        for row in rows:
            self.check_shape(row)
            self.assertEqual((row["operations"], row["threads"], row["order"]), (15, 2, "free"))
            # A thread may allocate all it ever does before the other frees anything.
            self.assertLessEqual(row["peak_live_bytes"], 3 * TINY_TOTAL)

    def test_streams(self):
        tiny = self.file("tiny.csv", TINY)
        names = [name for name in self.allocators() if name.endswith("-streams")]
        self.assertEqual(len(names), 4)
        for schedule in ("workers", "eager", "random"):
            rows = self.results("-a", ",".join(names), "--threads", "2", "--schedule", schedule, "--run-ahead", "1",
                                "--slack", "0.1", "--find-limit", tiny)
            for row in rows:
                with self.subTest(schedule=schedule, allocator=row["allocator"]):
                    self.check_shape(row)
                    self.assertEqual((row["operations"], row["failures"], row["bad_frees"]), (5, 0, 0))
                    self.assertGreaterEqual(row["smallest_limit_bytes"], TINY_PEAK)
                    self.assertIsNotNone(row["waits"])
        classic = next(row for row in rows if row["allocator"] == "classic-streams")
        self.assertEqual(classic["records"], 2)  # one for each free of the trace
        self.assertNotIn("orderly-streams", self.run_program(tiny).stdout)
        row, = self.results("-a", "best-fit", tiny)
        self.assertIsNone(row["records"])

    def test_the_table(self):
        text = self.run_program("-a", "best-fit", "--find-limit", self.file("tiny.csv", TINY)).stdout
        for word in ("tiny: 5 operations", "ns/op", "p99.9", "committed/live", "limit/live", "failures", "bad frees"):
            self.assertIn(word, text)

    def test_pictures(self):
        tiny = self.file("tiny.csv", TINY)
        png, svg = self.folder / "a.png", self.folder / "a.svg"
        self.run_program("-a", "best-fit", "--plot", png, tiny)
        self.run_program("-a", "best-fit,malloc", "--plot", svg, tiny)
        self.assertEqual(png.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        self.assertTrue(xml.parse(svg).getroot().tag.endswith("svg"))

    # The recorded traces

    def test_every_allocator_serves_a_recorded_trace(self):
        allocators = self.allocators()
        rows = self.results("-a", ",".join(allocators), "--repeat", "1", TRACES / "train_gpt.csv.xz")
        self.assertEqual([row["allocator"] for row in rows], list(allocators))
        for row in rows:
            with self.subTest(allocator=row["allocator"]):
                self.check_shape(row)
                self.assertEqual((row["failures"], row["bad_frees"]), (0, 0))

    def test_every_recorded_trace_is_whole(self):
        rows = self.results("-a", "best-fit", "--repeat", "1", *(TRACES / name for name in RECORDED))
        for row, (operations, peak) in zip(rows, RECORDED.values(), strict=True):
            self.assertEqual((row["operations"], row["peak_live_bytes"]), (operations, peak))
        problems = sorted(TRACES.glob("minimalloc-*.csv"))
        self.assertEqual(len(problems), 6)
        for row in self.results("-a", "best-fit", "--repeat", "1", *problems):
            self.assertLessEqual(row["peak_live_bytes"], 1 << 20)

    # The terminal

    def run_on_terminal(self, *arguments):
        """Standard output, and what the terminal was sent."""
        leader, follower = pty.openpty()
        with subprocess.Popen([PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=follower,
                              text=True) as program:
            os.close(follower)
            drawn = b""
            try:
                while piece := os.read(leader, 65536):
                    drawn += piece
            except OSError:  # the terminal's other end is closed
                pass
            output = program.stdout.read()
        os.close(leader)
        self.assertEqual(program.returncode, 0)
        return output, drawn

    def test_a_progress_bar_on_a_terminal_when_it_is_long(self):
        tiny = self.file("tiny.csv", TINY)
        self.assertEqual(self.run_on_terminal("-a", "best-fit", tiny)[1], b"")
        self.assertEqual(self.run_program("-a", "best-fit", tiny).stderr, "")
        elapsed, repetitions = 0, 100
        while elapsed < 2:
            repetitions *= 2
            start = time.monotonic()
            output, drawn = self.run_on_terminal("-a", "best-fit", "--repeat", min(repetitions, 1000),
                                                 *[TRACES / "train_gpt.csv.xz"] * (repetitions // 1000 + 1))
            elapsed = time.monotonic() - start
        self.assertIn(b"train_gpt, best-fit", drawn)
        self.assertTrue(drawn.endswith(b"\r\x1b[K"))
        self.assertNotIn("\x1b", output)


if __name__ == "__main__":
    PROGRAM, TRACES = sys.argv.pop(1), Path(sys.argv.pop(1))
    unittest.main()
