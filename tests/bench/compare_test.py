#!/usr/bin/env python3
"""bench/compare.py on results written by hand, in throughput.json."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = HERE.parents[1] / 'bench' / 'compare.py'
sys.path.insert(0, str(SCRIPT.parent))
sys.dont_write_bytecode = True

import compare  # noqa: E402


class Names(unittest.TestCase):
    def test_parts_of_google_benchmark_are_dropped(self):
        self.assertEqual(compare.key_of('pair/orderly/real_time/threads:2'), ('pair', '', 'orderly', 2))
        self.assertEqual(compare.key_of('pair/orderly/min_time:0.100/real_time/threads:2'), ('pair', '', 'orderly', 2))

    def test_fill_is_kept(self):
        self.assertEqual(compare.key_of('batch64/tbb/full:80/threads:16'), ('batch64', 'full:80', 'tbb', 16))

    def test_other_names_are_none(self):
        for name in ('pair', 'pair/orderly', 'pair/orderly/threads:', 'pair/threads:2', ''):
            self.assertIsNone(compare.key_of(name), name)


class Ratios(unittest.TestCase):
    def test_rounds_down(self):
        self.assertEqual(compare.ratio(0.9999), '0.99x')
        self.assertEqual(compare.ratio(1.0), '1.00x')
        self.assertEqual(compare.ratio(9.999), '9.99x')
        self.assertEqual(compare.ratio(12.39), '12.3x')


class Canned(unittest.TestCase):
    def setUp(self):
        self.results = compare.load([HERE / 'throughput.json'])
        self.lines = compare.check_targets(self.results)

    def line(self, row, against):
        found = [line for line in self.lines if line['row'] == row and line['against'].startswith(against)]
        self.assertEqual(len(found), 1, f'{row}, {against}')
        return found[0]

    def verdict(self, row, against):
        line = self.line(row, against)
        return line['verdict'], line['reached']

    def test_median_of_repetitions_without_aggregates(self):
        self.assertEqual(self.results.median(compare.Key('pair', '', 'orderly', 2)), 1.9e8)

    def test_a_file_of_aggregates_counts_once(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'aggregates.json'
            path.write_text(json.dumps({'context': {}, 'benchmarks': [
                {'name': f'pair/orderly/threads:2_{which}', 'run_name': 'pair/orderly/threads:2', 'run_type': 'aggregate',
                 'aggregate_name': which, 'items_per_second': value}
                for which, value in (('mean', 1.0e8), ('median', 2.0e8), ('stddev', 1.0e6))]}))
            key = compare.Key('pair', '', 'orderly', 2)
            self.assertEqual(compare.load([path]).repetitions[key], [2.0e8])
            both = compare.load([HERE / 'throughput.json', path])
            self.assertEqual(len(both.repetitions[key]), 4)

    def test_repetitions_of_several_files_count_together(self):
        twice = compare.load([HERE / 'throughput.json'] * 2)
        self.assertEqual(len(twice.repetitions[compare.Key('pair', '', 'orderly', 2)]), 6)

    def test_exactly_reached_is_met(self):
        self.assertEqual(self.verdict('pair', 'best-fit'), ('met', '10.0x'))

    def test_just_below_is_missed(self):
        self.assertEqual(self.verdict('pair', 'buddy-mutex'), ('missed', '4.98x'))
        self.assertEqual(self.verdict('pair', 'mimalloc'), ('missed', '0.99x'))

    def test_best_of_several_says_which_and_what_is_missing(self):
        line = self.line('handoff', 'best of')
        self.assertEqual((line['verdict'], line['reached']), ('met', '1.50x'))
        self.assertTrue(line['against'].endswith(': tbb (without jemalloc)'), line['against'])

    def test_best_peer_includes_every_allocator(self):
        self.assertEqual(self.verdict('handoff', 'best peer: tcmalloc'), ('missed', '0.50x'))
        self.assertEqual(self.verdict('pair', 'best peer: mimalloc'), ('missed', '0.99x'))

    def test_own_failure_is_a_miss(self):
        self.assertEqual(self.verdict('hot16', 'best-fit'), ('missed', 'refused'))
        self.assertEqual(self.verdict('hot16', 'itself, 1 to 2'), ('missed', 'refused'))

    def test_scaling(self):
        self.assertEqual(self.verdict('pair', 'itself, 1 to 2'), ('met', '1.90x'))

    def test_absent_is_not_measured(self):
        self.assertEqual(self.verdict('slots1000', 'tcmalloc'), ('not measured', ''))
        self.assertEqual(self.verdict('handoff', 'buddy-mutex'), ('not measured', ''))

    def test_all_verdicts_are_counted(self):
        self.assertEqual(len(self.lines), 29)
        self.assertIn('3 met, 10 missed, 16 not measured', compare.targets_table(self.lines))

    def test_sixteen_threads_have_targets_of_their_own(self):
        for threads, millions in ((1, 10), (16, 120)):
            self.results.repetitions[compare.Key('pair', '', 'orderly', threads)] = [millions * 1e6]
        self.lines = compare.check_targets(self.results)
        self.assertEqual(self.verdict('pair', 'itself, 1 to 16'), ('met', '12.0x'))
        self.assertEqual(self.verdict('pair, 80 % full', 'itself, 1 to 16'), ('not measured', ''))
        self.assertEqual(self.verdict('pair', 'LLFree'), ('missed', '1.03x'))

    def test_tables(self):
        text = compare.throughput_tables(self.results)
        self.assertIn('\n1 thread\n', text)
        self.assertIn('\n2 threads\n', text)
        self.assertIn('\n2 threads, 80 % of the arena live before\n', text)
        self.assertRegex(text, r'\| best-fit +\| +19 \(10\.0x\) \|')
        self.assertRegex(text, r'\| mimalloc +\| +190\.5 \(0\.99x\) \| +refused \|')
        self.assertNotIn('something_else', text)


class CommandLine(unittest.TestCase):
    def run_script(self, *arguments):
        return subprocess.run([sys.executable, '-B', SCRIPT, *arguments], capture_output=True, text=True, check=False)

    def test_prints_and_writes_json(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / 'out.json'
            done = self.run_script(HERE / 'throughput.json', '--json', file)
            self.assertEqual((done.returncode, done.stderr), (0, ''))
            self.assertIn('3 met, 10 missed, 16 not measured', done.stdout)
            document = json.loads(file.read_text(encoding='utf-8'))
        self.assertEqual(len(document['targets']), 29)
        wanted = {'workload': 'pair', 'allocator': 'orderly', 'threads': 2, 'variant': ''}
        own = [entry for entry in document['throughput'] if wanted.items() <= entry.items()]
        self.assertEqual(own[0]['median_pairs_per_second'], 1.9e8)

    def test_distorted_figures_are_marked(self):
        document = json.loads((HERE / 'throughput.json').read_text(encoding='utf-8'))
        document['context']['distorted_by'] = 'a sanitizer is on'
        with tempfile.NamedTemporaryFile('w', suffix='.json') as file:
            json.dump(document, file)
            file.flush()
            self.assertIn('The figures mean nothing: a sanitizer is on', self.run_script(file.name).stdout)

    def test_bad_input_is_named(self):
        for content in ('', '[]', '{"context": {}, "benchmarks": []}', '{"context": {}, "benchmarks": [{"name": 1}]}',
                        '{"context": {}, "benchmarks": [{"name": "a/b/threads:1"}]}'):
            with self.subTest(content), tempfile.NamedTemporaryFile('w', suffix='.json') as file:
                file.write(content)
                file.flush()
                done = self.run_script(file.name)
                self.assertEqual(done.returncode, 2)
                self.assertIn(file.name, done.stderr)
                self.assertNotIn('Traceback', done.stderr)
        done = self.run_script(HERE / 'absent.json')
        self.assertEqual((done.returncode, 'absent.json' in done.stderr), (2, True))


if __name__ == '__main__':
    unittest.main()
