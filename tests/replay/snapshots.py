"""What snapshot_to_csv.py makes of PyTorch memory snapshots.   usage: snapshots.py CONVERTER"""

import json
import pickle
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CONVERTER = ""
HEADER = "Thread,Time,Action,Pointer,Size,Stream"


def event(action, addr, size=512, stream=0, time_us=1000):
    return {"action": action, "addr": addr, "size": size, "stream": stream, "time_us": time_us, "frames": []}


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


class Snapshots(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def convert_bytes(self, name, contents):
        path = Path(self.folder.name, name)
        path.write_bytes(contents)
        return subprocess.run([sys.executable, CONVERTER, path], capture_output=True, text=True)

    def convert(self, *devices, **others):
        snapshot = {"segments": [], "device_traces": list(devices), **others}
        as_pickle = self.convert_bytes("snapshot.pickle", pickle.dumps(snapshot))
        as_json = self.convert_bytes("snapshot.json", json.dumps(snapshot).encode())
        self.assertEqual(as_pickle.returncode, 0, as_pickle.stderr)
        self.assertEqual(as_pickle.stdout, as_json.stdout)
        lines = as_pickle.stdout.splitlines()
        self.assertEqual(lines[0], HEADER)
        return lines[1:]

    def refusal(self, name, contents):
        result = self.convert_bytes(name, contents)
        self.assertEqual(result.returncode, 2, result.stdout)
        self.assertNotIn("Traceback", result.stderr)
        self.assertIn(name, result.stderr)
        return result.stderr

    def test_a_block_is_freed_where_the_program_frees_it(self):
        lines = self.convert([
            event("segment_alloc", 0, 2 << 20),
            event("alloc", 0x1000, 512, stream=3, time_us=10),
            event("free_requested", 0x1000, 512, stream=3, time_us=2000010),
            event("alloc", 0x2000, 8, stream=3, time_us=2000020),
            event("free_completed", 0x1000, 512, stream=3, time_us=2000030),
            event("alloc", 0x1000, 256, stream=4, time_us=2000040),
        ])
        self.assertEqual(lines, [
            "3,0.000000,allocate,0x1000,512,3",
            "3,2.000000,free,0x1000,512,3",
            "3,2.000010,allocate,0x2000,8,3",
            "4,2.000030,allocate,0x1000,256,4",
        ])

    def test_history_that_begins_or_ends_within_a_free(self):
        lines = self.convert([
            event("free_completed", 0x1000),
            event("free_requested", 0x2000),
            event("free_completed", 0x2000),
            event("alloc", 0x1000),
            event("free_requested", 0x1000),
        ])
        self.assertEqual([line.split(",")[2:4] for line in lines],
                         [["free", "0x1000"], ["free", "0x2000"], ["allocate", "0x1000"], ["free", "0x1000"]])

    def test_out_of_memory_is_a_failed_allocation(self):
        lines = self.convert([event("alloc", 0x1000), {"action": "oom", "device_free": 1, "size": 99, "stream": 0}])
        self.assertEqual(lines[1].split(",")[2:5], ["allocate failure", "0x0", "99"])

    def test_the_busiest_device_is_read(self):
        lines = self.convert([event("alloc", 0x1000)], [], [event("alloc", 0x2000), event("alloc", 0x3000)])
        self.assertEqual([line.split(",")[3] for line in lines], ["0x2000", "0x3000"])

    def test_a_pickle_that_names_a_function_is_refused(self):
        text = self.refusal("evil.pickle", pickle.dumps({"device_traces": [Evil()]}))
        self.assertIn("the global builtins.print is not allowed", text)
        self.assertNotIn("executed\n", text)

    def test_files_that_are_no_snapshot(self):
        self.refusal("empty.pickle", b"")
        self.refusal("noise.pickle", bytes(range(256)))
        self.refusal("cut.pickle", pickle.dumps({"device_traces": [[event("alloc", 1)]]})[:-20])
        self.refusal("broken.json", b'{"device_traces": [')
        self.refusal("deep.json", b"[" * 100000)
        self.refusal("list.json", b"[]")
        self.refusal("none.json", b'{"device_traces": [[], []]}')
        self.refusal("number.json", b'{"device_traces": [7]}')

    def test_malformed_events(self):
        def text(**changed):
            snapshot = {"device_traces": [[{**event("alloc", 1), **changed}]]}
            return self.refusal("snapshot.json", json.dumps(snapshot).encode())

        place = "snapshot.json: device_traces[0][0]: expected "
        self.assertIn(place + "addr, a value of type int, found '0x1'", text(addr="0x1"))
        self.assertIn(place + "size, a value of type int, found None", text(size=None))
        self.assertIn(place + "size, a value of type int, found 1.5", text(size=1.5))
        self.assertIn(place + "a size that is not negative, found -1", text(size=-1))
        self.assertIn(place + "stream, a value of type int, found True", text(stream=True))
        self.assertIn(place + "time_us, a value of type int, found 'now'", text(time_us="now"))
        self.assertIn(place + "action, a value of type str, found 3", text(action=3))

    def test_a_missing_file(self):
        result = subprocess.run([sys.executable, CONVERTER, Path(self.folder.name, "absent.pickle")],
                                capture_output=True, text=True)
        self.assertEqual(result.returncode, 2)
        self.assertNotIn("Traceback", result.stderr)


if __name__ == "__main__":
    CONVERTER = sys.argv.pop(1)
    unittest.main()
