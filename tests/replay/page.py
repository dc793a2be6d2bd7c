"""The page of orderly-replay --html in a browser; skipped where there is none.

usage: page.py ORDERLY_REPLAY FOLDER_OF_TRACES
"""

import base64
import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from browser import Browser, find_browser

PROGRAM = ""
TRACES = Path()
SKIPPED = 77

TINY = """Thread,Time,Action,Pointer,Size,Stream
7,0.1,allocate,0x100,300000,0
9,0.2,allocate,0x200,100000,0
9,0.3,free,0x100,300000,0
7,0.4,allocate,0x100,50000,0
7,0.5,free,0x200,100000,0
"""
# As in page.js.
CATEGORIES = ["#0072b2", "#e69f00", "#009e73"]
DATA = re.compile(r'(<script id="data"[^>]*>)([^<]*)(</script>)')


def document_of(page):
    return json.loads(gzip.decompress(base64.b64decode(DATA.search(page)[2])))


def with_document(page, document):
    packed = base64.b64encode(gzip.compress(json.dumps(document).encode())).decode()
    return DATA.sub(lambda match: match[1] + packed + match[3], page)


def rows_at(table, event):
    """The rows of a table after an event, as dictionaries."""
    names = list(table)
    return [row for row in (dict(zip(names, values)) for values in zip(*table.values()))
            if row["from"] <= event < row["to"]]


def figures_at(history, event):
    blocks, cached, committed = (rows_at(history[name], event) for name in ("blocks", "cached", "committed"))
    total = {"requested": sum(row["requested_bytes"] for row in blocks),
             "allocated": sum(row["bytes"] for row in blocks), "cached": sum(row["bytes"] for row in cached),
             "committed": sum(row["bytes"] for row in committed), "blocks": len(blocks)}
    total["free"] = total["committed"] - total["allocated"] - total["cached"]
    total["chunks"] = total["committed"] // history["chunk_bytes"]
    return total


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.close)
        tiny = Path(cls.folder.name, "tiny.csv")
        tiny.write_text(TINY)
        cls.whole = cls.make("whole.html", "-a", "orderly,best-fit,orderly-streams", "-t", "2",
                             TRACES / "train_gpt.csv.xz", tiny)
        cls.small = cls.make("small.html", "-a", "orderly", "--limit", "448KiB", tiny)
        cls.flat = cls.make("flat.html", "-a", "best-fit", tiny, status=1)

    @classmethod
    def make(cls, name, *arguments, status=0):
        path = Path(cls.folder.name, name)
        result = subprocess.run([PROGRAM, "--repeat", "1", "--html", path, *map(str, arguments)], capture_output=True,
                                text=True)
        assert result.returncode == status, result.stdout + result.stderr
        return path

    def show(self, path):
        self.tab = self.browser.open(path.as_uri())
        self.addCleanup(self.check_quiet, self.tab, path)
        self.tab.evaluate("new Promise(done => { const wait = () => document.body?.dataset.event === undefined ? "
                          "setTimeout(wait, 20) : done(); wait(); })")

    def check_quiet(self, tab, path):
        """Nothing on the console, and nothing asked of the network."""
        self.assertEqual(tab.problems, [])
        self.assertEqual(tab.requests, [path.as_uri()])

    def settle(self):
        """Waits until what was asked for is drawn: that happens in the next frame."""
        self.tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def go_to(self, event):
        self.tab.evaluate(f"document.getElementById('event').value = {event};"
                          "document.getElementById('event').dispatchEvent(new Event('input'))")
        self.settle()

    def choose(self, menu, value):
        self.tab.evaluate(f"document.getElementById('{menu}').value = '{value}';"
                          f"document.getElementById('{menu}').dispatchEvent(new Event('change'))")
        self.settle()

    def text(self, name):
        return self.tab.evaluate(f"document.getElementById('{name}').innerText")

    def event(self):
        self.settle()
        return int(self.tab.evaluate("document.body.dataset.event"))

    def figures(self):
        return self.tab.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#figures dd')].map(figure => "
            "{ const [[key, value]] = Object.entries(figure.dataset); return [key, Number(value)]; }))")

    def pixel(self, canvas, x, y):
        red, green, blue, _ = self.tab.evaluate(
            "(() => { const copy = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});"
            f"copy.drawImage(document.getElementById('{canvas}'), -Math.floor({x} * devicePixelRatio),"
            f" -Math.floor({y} * devicePixelRatio)); return [...copy.getImageData(0, 0, 1, 1).data]; }})()")
        return f"#{red:02x}{green:02x}{blue:02x}"

    def place_of(self, history, address):
        """Where an address is drawn: the middle of its row. Addresses that were never committed are left out."""
        place, end = 0, None
        for begin, length in sorted(zip(history["committed"]["address"], history["committed"]["bytes"])):
            if end is None or begin > end:
                start = begin
            else:
                start = end
            end = max(end or 0, begin + length)
            if start <= address < end:
                place += address - start
                break
            place += max(0, end - start)
        row_bytes, width, row_height = self.tab.evaluate(
            "[page.map.rowBytes, page.map.canvas.clientWidth, page.map.canvas.clientHeight / page.map.rows]")
        return place % row_bytes / row_bytes * width, (place // row_bytes + 0.4) * row_height

    def point_at(self, history, address):
        x, y = self.place_of(history, address)
        left, top = self.tab.evaluate(
            "(() => { const map = document.getElementById('map'); map.scrollIntoView();"
            f"window.scrollBy(0, {y} - 300);"
            "const {left, top} = map.getBoundingClientRect(); return [left, top]; })()")
        self.tab.mouse("mouseMoved", left + x, top + y)
        self.settle()
        return x, y

    # What is shown is what the document says.

    def test_figures_at_any_event(self):
        self.show(self.whole)
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        for trace_number, trace in enumerate(document_of(self.whole.read_text())["traces"]):
            self.choose("trace", trace_number)
            self.assertEqual([history["allocator"] for history in trace["histories"]], ["orderly", "orderly-streams"])
            for pool_number, history in enumerate(trace["histories"]):
                self.choose("pool", pool_number)
                last = trace["events"] - 1
                for event in (0, last, *(chance.randrange(last + 1) for _ in range(10))):
                    with self.subTest(trace=trace["trace"], pool=history["allocator"], event=event):
                        self.go_to(event)
                        self.assertEqual(self.figures(), figures_at(history, event))
                        self.assertIn(f"{event:,} of {last:,}", self.text("event-number"))

    def test_the_slider_by_keys(self):
        self.show(self.whole)
        self.tab.evaluate("document.getElementById('event').focus()")
        last = document_of(self.whole.read_text())["traces"][0]["events"] - 1
        self.tab.press("Home")
        self.assertEqual(self.event(), 0)
        self.tab.press("ArrowRight")
        self.tab.press("ArrowRight")
        self.tab.press("ArrowLeft")
        self.assertEqual(self.event(), 1)
        self.tab.press("ArrowRight", shift=True)
        self.assertEqual(self.event(), 1 + round((last + 1) / 100))
        self.tab.press("End")
        self.assertEqual(self.event(), last)

    def test_the_chart_by_mouse(self):
        self.show(self.whole)
        left, top, width, height = self.tab.evaluate(
            "(() => { const {left, top} = page.chart.canvas.getBoundingClientRect();"
            "page.chart.measure(); const {area} = page.chart;"
            "return [left + area.left, top + area.top, area.width, area.height]; })()")
        events = document_of(self.whole.read_text())["traces"][0]["events"]
        self.tab.mouse("mousePressed", left + width / 4, top + height / 2, pressed=True)
        self.assertAlmostEqual(self.event(), events / 4, delta=events / 100)
        self.tab.mouse("mouseMoved", left + width / 2, top + height / 2, pressed=True)
        self.assertAlmostEqual(self.event(), events / 2, delta=events / 100)
        self.tab.mouse("mouseReleased", left + width / 2, top + height / 2)
        self.tab.mouse("mouseMoved", left + width / 5, top + height / 2)
        self.assertAlmostEqual(self.event(), events / 2, delta=events / 100)

    def test_the_first_event_shown_is_the_peak(self):
        self.show(self.whole)
        trace = document_of(self.whole.read_text())["traces"][0]
        self.assertEqual(self.figures()["requested"], max(trace["live_bytes"]))

    # Details

    def test_what_the_pointer_says(self):
        self.show(self.small)
        trace, = document_of(self.small.read_text())["traces"]
        history, = trace["histories"]
        origin = history["origin"]
        self.go_to(2)
        live, = rows_at(history["blocks"], 2)
        self.point_at(history, live["address"] + live["bytes"] / 3)
        for text in (self.text("tip"), self.text("details")):
            for part in (f"live block at {origin + live['address']:#x}", "requested 97.7 KiB (100,000 B)",
                         "thread 1, lane", "allocated at event 1", "freed at event 4 by thread 0"):
                self.assertIn(part, text)
        for cached in rows_at(history["cached"], 2)[:1]:
            self.point_at(history, cached["address"] + cached["bytes"] / 2)
            self.assertIn(f"cached block at {origin + cached['address']:#x}", self.text("tip"))
        self.tab.mouse("mouseMoved", 1, 1)
        self.assertTrue(self.tab.evaluate("document.getElementById('tip').hidden"))

    def test_every_state_is_found_under_the_pointer(self):
        self.show(self.whole)
        trace = document_of(self.whole.read_text())["traces"][0]
        history = trace["histories"][0]
        event = trace["events"] // 2
        self.go_to(event)
        states = {"live block": rows_at(history["blocks"], event), "cached block": rows_at(history["cached"], event)}
        for state, rows in states.items():
            largest = max(rows, key=lambda row: row["bytes"])
            self.point_at(history, largest["address"] + largest["bytes"] / 2)
            self.assertIn(f"{state} at {history['origin'] + largest['address']:#x}", self.text("tip"))
        taken = sorted((row["address"], row["address"] + row["bytes"]) for rows in states.values() for row in rows)
        held = [(row["address"], row["address"] + row["bytes"]) for row in rows_at(history["committed"], event)]
        gaps = [(end, begin) for (_, end), (begin, _) in zip(taken, taken[1:])
                if any(low <= end and begin <= high for low, high in held)]
        begin, end = max(gaps, key=lambda gap: gap[1] - gap[0])
        self.point_at(history, (begin + end) / 2)
        self.assertRegex(self.text("tip"), "^free, chunk at 0x")
        given_back = next(begin for begin in history["committed"]["address"]
                          if not any(low <= begin < high for low, high in held))
        self.point_at(history, given_back + 1)
        self.assertRegex(self.text("tip"), "^not committed, chunk at 0x")

    def test_from_block_to_block_by_keys(self):
        self.show(self.whole)
        history = document_of(self.whole.read_text())["traces"][0]["histories"][0]
        self.go_to(30000)
        addresses = sorted(row["address"] for row in rows_at(history["blocks"], 30000))
        self.tab.evaluate("document.getElementById('map').focus()")
        for key, expected in (("ArrowRight", 0), ("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1)):
            self.tab.press(key)
            self.settle()
            self.assertIn(f"live block at {history['origin'] + addresses[expected]:#x}", self.text("details"))
        self.assertEqual(self.event(), 30000)

    # Colours

    def test_blocks_have_the_colours_of_their_lanes(self):
        self.show(self.whole)
        trace = document_of(self.whole.read_text())["traces"][1]
        history = trace["histories"][0]
        self.choose("trace", 1)
        self.go_to(1)
        drawn = set()
        for row in rows_at(history["blocks"], 1):
            x, y = self.place_of(history, row["address"] + row["requested_bytes"] / 2)
            drawn.add(self.pixel("map", x, y))
            self.assertEqual(self.pixel("map", x, y), CATEGORIES[row["lane"]])
        self.assertEqual(len(drawn), 2)
        x, y = self.place_of(history, rows_at(history["blocks"], 1)[0]["address"] + 1000)
        self.choose("colour", "size")
        self.assertNotIn(self.pixel("map", x, y), CATEGORIES)
        self.assertIn("below 1 KiB", self.text("map-legend"))
        self.choose("colour", "thread")
        self.assertIn(self.pixel("map", x, y), CATEGORIES)
        self.assertIn("thread 1", self.text("map-legend"))

    def test_a_column_of_tags_is_one_more_colouring(self):
        page = self.small.read_text()
        document = document_of(page)
        history = document["traces"][0]["histories"][0]
        history["blocks"]["tag"] = [2] * len(history["blocks"]["from"])
        history["tags"] = ["weights", "gradients", "activations"]
        tagged = Path(self.folder.name, "tagged.html")
        tagged.write_text(with_document(page, document))
        self.show(self.small)
        self.assertNotIn("tag", self.tab.evaluate("[...document.getElementById('colour').options].map(o => o.value)"))
        self.show(tagged)
        self.choose("colour", "tag")
        self.go_to(1)
        block = rows_at(history["blocks"], 1)[0]
        x, y = self.point_at(history, block["address"] + 1000)
        self.assertEqual(self.pixel("map", x, y), CATEGORIES[2])
        self.assertIn("activations", self.text("tip"))
        self.assertIn("activations", self.text("map-legend"))

    def test_light_and_dark(self):
        self.show(self.small)
        seen = set()
        for scheme in ("light", "dark"):
            self.tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            self.settle()
            background = self.tab.evaluate("getComputedStyle(document.body).backgroundColor")
            seen.add((background, self.pixel("chart", 100, 200)))
        self.assertEqual(len({background for background, _ in seen}), 2)
        self.assertEqual(len({chart for _, chart in seen}), 2)

    # Odd ones

    def test_a_limit(self):
        self.show(self.small)
        self.assertIn("limit 448 KiB", self.text("chart-legend"))

    def test_without_a_pool_of_orderly(self):
        self.show(self.flat)
        self.assertTrue(self.tab.evaluate("document.getElementById('inside').hidden"))
        self.assertFalse(self.tab.evaluate("document.getElementById('no-inside').hidden"))
        self.assertIn("committed by best-fit", self.text("chart-legend"))

    def test_a_trace_without_events(self):
        empty = Path(self.folder.name, "empty.csv")
        empty.write_text(TINY.splitlines(keepends=True)[0])
        self.show(self.make("empty.html", "-a", "orderly", empty))
        self.assertEqual(self.figures()["committed"], 0)

    def test_damaged_data_is_said(self):
        broken = Path(self.folder.name, "broken.html")
        broken.write_text(DATA.sub(lambda match: match[1] + match[2][:400] + match[3], self.small.read_text()))
        tab = self.browser.open(broken.as_uri())
        text = tab.evaluate("new Promise(done => { const wait = () => {"
                            "const text = document.getElementById('status')?.innerText;"
                            "text?.startsWith('This page could') ? done(text) : setTimeout(wait, 20); }; wait(); })")
        self.assertIn("This page could not be shown", text)


if __name__ == "__main__":
    PROGRAM, TRACES = sys.argv.pop(1), Path(sys.argv.pop(1))
    if find_browser() is None:
        print("no Chromium is installed")
        sys.exit(SKIPPED)
    unittest.main()
