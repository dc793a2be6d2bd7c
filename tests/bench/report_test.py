#!/usr/bin/env python3
"""bench/report.py, and what it reads results with, on results written by hand."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = HERE.parents[1] / 'bench' / 'report.py'
sys.path.insert(0, str(SCRIPT.parent))
sys.dont_write_bytecode = True

import report  # noqa: E402
import streams  # noqa: E402


def row(trace, allocator, **values):
    return {'trace': trace, 'allocator': allocator, 'failures': 0, 'refused_frees': 0, 'ns_per_operation': 50.0,
            'p999_ns': 1000.0, 'peak_live_bytes': 1000, 'peak_committed_bytes': None, 'smallest_limit_bytes': None,
            **values}


def entry(name, per_second=1e6, **values):
    return {'name': name, 'run_type': 'iteration', 'items_per_second': per_second, 'real_time': 1000.0, **values}


class Reports(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def write(self, name, *rows):
        (self.folder / name).write_text(json.dumps({'results': rows}), encoding='utf-8')

    def write_streams(self, *entries, **context):
        (self.folder / 'streams.json').write_text(json.dumps({'context': context, 'benchmarks': entries}),
                                                  encoding='utf-8')

    def verdict(self, row_start, against=''):
        found = [line for line in report.Results(self.folder).targets()
                 if line['row'].startswith(row_start) and line['against'].startswith(against)]
        self.assertEqual(len(found), 1, row_start)
        return found[0]['verdict'], found[0]['reached']

    def test_nothing_measured(self):
        verdicts = {line['verdict'] for line in report.Results(self.folder).targets()}
        self.assertEqual(verdicts, {'not measured'})

    def test_rounds_up(self):
        self.assertEqual(report.rounded_up(1.0501, 3), '1.051')
        self.assertEqual(report.rounded_up(1.05, 3), '1.050')
        self.assertEqual(report.rounded_up(1.0000001, 3), '1.001')

    def test_smallest_limit_is_compared_with_best_fit(self):
        self.write('limit-64KiB.json',
                   row('train_gpt', 'orderly', smallest_limit_bytes=1000),
                   row('train_gpt', 'best-fit', smallest_limit_bytes=1000),
                   row('serve_vision', 'orderly', smallest_limit_bytes=1001),
                   row('serve_vision', 'best-fit', smallest_limit_bytes=1000),
                   row('h200_train_gpt2', 'orderly'), row('h200_train_gpt2', 'best-fit', smallest_limit_bytes=1000),
                   row('h200_serve_llama', 'orderly', smallest_limit_bytes=1000))
        self.assertEqual(self.verdict('train_gpt: smallest limit, chunks of 64 KiB'),
                         ('met', '1.000 (1.000 to 1.000 of live)'))
        self.assertEqual(self.verdict('serve_vision: smallest limit, chunks of 64 KiB'),
                         ('missed', '1.001 (1.001 to 1.000 of live)'))
        self.assertEqual(self.verdict('h200_train_gpt2: smallest limit, chunks of 64 KiB'), ('missed', 'refused'))
        self.assertEqual(self.verdict('h200_serve_llama: smallest limit, chunks of 64 KiB'), ('not measured', ''))

    def test_limit_over_live(self):
        self.write('limit-2MiB.json', row('h200_train_gpt2', 'orderly', smallest_limit_bytes=1050),
                   row('h200_serve_llama', 'orderly', smallest_limit_bytes=1051),
                   row('train_gpt', 'orderly', smallest_limit_bytes=1200),
                   row('train_gpt', 'pytorch-like', smallest_limit_bytes=1201),
                   row('train_gpt', 'best-fit', smallest_limit_bytes=1150))
        self.assertEqual(self.verdict('h200_train_gpt2: smallest limit, chunks of 2 MiB'), ('met', '1.050'))
        self.assertEqual(self.verdict('h200_serve_llama: smallest limit, chunks of 2 MiB'), ('missed', '1.051'))
        self.assertEqual(self.verdict('train_gpt: smallest limit, chunks of 2 MiB', 'pytorch-like'),
                         ('met', '1.000 (1.200 to 1.201 of live)'))
        self.assertEqual(self.verdict('train_gpt: smallest limit, chunks of 2 MiB', 'best-fit'),
                         ('missed', '1.044 (1.200 to 1.150 of live)'))
        self.assertEqual(self.verdict('serve_vision: smallest limit, chunks of 2 MiB', 'best-fit'), ('not measured', ''))

    def test_moves_are_what_was_given_back_and_as_much_committed_anew(self):
        def moved(given_back):
            return {'commits': 2, 'decommits': 1, 'committed_bytes': 100 << 21, 'decommitted_bytes': given_back << 21,
                    'committed_pieces': 100, 'decommitted_pieces': given_back, 'driver_calls': 303,
                    'commit_seconds': 0.1, 'decommit_seconds': given_back * 1e-3}
        self.write('moves.json', row('h200_train_gpt2', 'orderly', operations=9, recorded_seconds=1.0, chunk=1 << 21, moved=moved(10)),
                   row('h200_serve_llama', 'orderly', operations=9, recorded_seconds=1.0, chunk=1 << 21, moved=moved(11)))
        self.assertEqual(self.verdict('h200_train_gpt2: chunks moved'), ('met', '2.00 %'))
        self.assertEqual(self.verdict('h200_serve_llama: chunks moved'), ('missed', '2.20 %'))
        self.assertIn('| h200_train_gpt2  |', report.report(report.Results(self.folder), '', [], ''))
        self.write('moves.json', row('h200_train_gpt2', 'orderly', operations=9, recorded_seconds=1.0, chunk=1 << 21, moved=None),
                   row('h200_serve_llama', 'orderly', failures=1, operations=9, recorded_seconds=1.0, chunk=1 << 21, moved=moved(1)))
        self.assertEqual(self.verdict('h200_train_gpt2: chunks moved'), ('not measured', ''))
        self.assertEqual(self.verdict('h200_serve_llama: chunks moved'), ('missed', 'refused'))

    def write_memory(self, *entries):
        (self.folder / 'memory.json').write_text(json.dumps({'context': {}, 'benchmarks': entries}), encoding='utf-8')

    def test_passes_are_compared_with_none(self):
        def entry(kind, millions, tail):
            name = f'passes/pair/{kind}{{}}/real_time/threads:2'
            return [{'name': name.format(''), 'items_per_second': millions * 1e6},
                    {'name': name.format('/latency'), 'p50': 1, 'p99': 2, 'p999': tail}]
        failing = {'name': 'passes/pair/relocation/real_time/threads:2', 'error_occurred': True}
        self.write_memory(*entry('nothing', 100, 50), *entry('computing', 90, 50), *entry('trim', 70, 150),
                          *entry('defragment', 69, 151), failing)
        self.assertEqual(self.verdict('memory: pair on 2 threads beside trim: throughput'), ('met', '0.70x'))
        self.assertEqual(self.verdict('memory: pair on 2 threads beside trim: p99.9'), ('met', '3.00x'))
        self.assertEqual(self.verdict('memory: pair on 2 threads beside defragment: throughput'), ('missed', '0.69x'))
        self.assertEqual(self.verdict('memory: pair on 2 threads beside defragment: p99.9'), ('missed', '3.02x'))
        self.assertEqual(self.verdict('memory: pair on 2 threads beside relocation: throughput'), ('missed', 'refused'))
        self.assertEqual(self.verdict('memory: pair on 2 threads beside reserve: throughput'), ('not measured', ''))

    def test_the_limit_and_fragmentation(self):
        def limit(threads, requests, refused):
            return {'name': f'at-limit/iterations:{requests}/repeats:1/real_time/threads:{threads}',
                    'requests': requests, 'refused': refused, 'passes': 1, 'real_time': 1}
        def fragmented(what, size, served):
            return {'name': f'fragmented/{what}/{size}/iterations:1', 'served': served, 'free': 1 << 20,
                    'asked': 1 << 20, 'real_time': 1}
        self.write_memory(limit(1, 10_000_000, 0), limit(2, 10_000_000, 1), fragmented('blocks/plain', 256, 0),
                          fragmented('chunks/plain', 256, 1), fragmented('chunks/plain', 4096, 0),
                          fragmented('blocks/relocatable', 256, 1))
        self.assertEqual(self.verdict('memory: allocations at the limit, 1 thread'), ('met', '0 of 10 million'))
        self.assertEqual(self.verdict('memory: allocations at the limit, 2 threads'), ('missed', '1 of 10 million'))
        self.assertEqual(self.verdict('memory: full of small blocks, every second chunk'), ('missed', '1 of 2 sizes'))
        self.assertEqual(self.verdict('memory: full of small blocks, every second block'), ('met', '1 of 1 sizes'))
        self.write_memory(limit(1, 1_000_000, 0))
        self.assertEqual(self.verdict('memory: allocations at the limit, 1 thread'), ('not measured', ''))
        self.assertEqual(report.Results(self.folder).part(), 'memory')
        self.assertIn('memory that moves', ' '.join(report.not_run(report.Results(pathlib.Path('/nowhere')))))

    def test_default_settings(self):
        self.write('replay.json', row('train_gpt', 'orderly', peak_committed_bytes=1300),
                   row('serve_vision', 'orderly', peak_committed_bytes=1301),
                   row('h200_train_gpt2', 'orderly', peak_committed_bytes=1100, failures=1),
                   row('h200_serve_llama', 'orderly', peak_committed_bytes=1100, refused_frees=1))
        self.assertEqual(self.verdict('train_gpt: peak'), ('met', '1.300'))
        self.assertEqual(self.verdict('serve_vision: peak'), ('missed', '1.301'))
        self.assertEqual(self.verdict('h200_train_gpt2: peak'), ('missed', 'refused'))
        self.assertEqual(self.verdict('h200_serve_llama: peak'), ('missed', 'refused'))

    def test_tails(self):
        self.write('replay-contended.json',
                   row('train_gpt', 'orderly', p999_ns=200.0), row('train_gpt', 'best-fit'),
                   row('serve_vision', 'orderly', p999_ns=201.0), row('serve_vision', 'best-fit'),
                   row('h200_train_gpt2', 'orderly', error='killed'), row('h200_train_gpt2', 'best-fit'),
                   row('h200_serve_llama', 'orderly'), row('h200_serve_llama', 'best-fit', failures=3))
        self.assertEqual(self.verdict('train_gpt: p99.9'), ('met', '5.00x'))
        self.assertEqual(self.verdict('serve_vision: p99.9'), ('missed', '4.97x'))
        self.assertEqual(self.verdict('h200_train_gpt2: p99.9'), ('missed', 'refused'))
        self.assertEqual(self.verdict('h200_serve_llama: p99.9'), ('not measured', ''))

    def test_problems_show_best_fit(self):
        self.write('minimalloc.json', row('minimalloc-A', 'orderly', smallest_limit_bytes=1051),
                   row('minimalloc-A', 'best-fit', smallest_limit_bytes=1752))
        line = next(line for line in report.Results(self.folder).targets() if line['row'].startswith('minimalloc-A'))
        self.assertEqual((line['verdict'], line['against']), ('missed', 'peak live; best fit needs 1.76'))

    def test_written_report_has_every_part(self):
        self.write('replay.json', row('train_gpt', 'orderly', peak_committed_bytes=1300), row('train_gpt', 'malloc'),
                   row('serve_vision', 'orderly', failures=1))
        (self.folder / 'replay.png').write_bytes(b'a picture')
        (self.folder / 'throughput.json').write_bytes((HERE / 'throughput.json').read_bytes())
        into = self.folder / 'into'
        done = subprocess.run([sys.executable, '-B', SCRIPT, self.folder, '--into', into, '--revision', 'v9'],
                              capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        document, text, picture = sorted(into.iterdir())
        self.assertEqual([path.suffix for path in (document, text, picture)], ['.json', '.md', '.png'])
        content = text.read_text(encoding='utf-8')
        self.assertIn(content, done.stdout)
        self.assertIn(f']({picture.name})', content)
        self.assertRegex(content, r'\| orderly +\| +1\.300 \| +refused \|')
        self.assertRegex(content, r'\| best-fit +\| +19 \(10\.0x\) \|')
        self.assertIn('orderly at v9', content)
        parsed = json.loads(document.read_text(encoding='utf-8'))
        self.assertEqual(len(parsed['targets']), 24 + 29 + 25 + 6 + 22)
        self.assertEqual(len(parsed['replay']), 3)

    def test_names_of_stream_benchmarks(self):
        key = streams.key_of('cuda/pair/orderly/streams:one/latency/real_time/threads:4')
        self.assertEqual(key, streams.Key('cuda', 'pair', 'one', True, 'orderly', 4))
        key = streams.key_of('software/cross-busy/classic/real_time/threads:2')
        self.assertEqual(key, streams.Key('software', 'cross-busy', 'own', False, 'classic', 2))
        key = streams.key_of('cuda/kernels/pytorch/streams:4/kernels:32/warm:1/iterations:30/manual_time')
        self.assertEqual(key, streams.Kernels('pytorch', 4, 32, True))
        for name in ('pair/orderly/threads:1', 'cuda/pair', 'cuda/pair/orderly', 'cuda/kernels/orderly/streams:4'):
            self.assertIsNone(streams.key_of(name))

    def test_stream_figures_are_medians_and_failures_count(self):
        name = 'software/pair/{}/real_time/threads:2'
        self.write_streams(entry(name.format('orderly'), 90e6), entry(name.format('orderly'), 100e6),
                           entry(name.format('orderly'), 150e6), entry(name.format('classic'), 10e6),
                           entry(name.format('orderly-without-streams'), 151e6))
        self.assertEqual(self.verdict('software: pair, 2 threads', 'classic'), ('met', '10.0x'))
        self.assertEqual(self.verdict('software: pair, 2 threads', 'time of'), ('missed', '1.51'))
        self.write_streams(entry(name.format('orderly'), 90e6), entry(name.format('classic'), 1e6),
                           {'name': name.format('orderly'), 'run_type': 'iteration', 'error_occurred': True})
        self.assertEqual(self.verdict('software: pair, 2 threads', 'classic'), ('missed', 'refused'))
        self.assertIn('| orderly | refused |', report.report(report.Results(self.folder), '', [], ''))

    def test_ratios_that_miss_never_read_as_met(self):
        name = 'software/pair/{}/real_time/threads:1'
        self.write_streams(entry(name.format('orderly'), 100e6), entry(name.format('orderly-without-streams'), 150.1e6))
        self.assertEqual(self.verdict('software: pair, 1 thread', 'time of'), ('missed', '1.51'))

    def test_stream_operations(self):
        self.write_streams(entry('cuda/pair/orderly/real_time/threads:1', calls=0.0),
                           entry('cuda/pair/orderly/real_time/threads:16', calls=1e-7),
                           entry('software/pair/orderly/real_time/threads:1', calls=0.0),
                           entry('cuda/cross-busy/orderly/real_time/threads:2', records=1 / 64, waits=1 / 63))
        self.assertEqual(self.verdict('cuda: pair, stream operations'), ('missed', '1.0e-07'))
        self.assertEqual(self.verdict('software: pair, stream operations'), ('met', '0'))
        self.assertEqual(self.verdict('cuda: cross-busy, records'), ('met', '1.00'))
        self.assertEqual(self.verdict('cuda: cross-busy, waits')[0], 'missed')

    def test_kernels_are_compared_by_time(self):
        name = 'cuda/kernels/{}/streams:4/kernels:4/warm:0/iterations:30/manual_time'
        self.write_streams(entry(name.format('orderly'), real_time=100e3),
                           entry(name.format('no-allocation'), real_time=80e3),
                           entry(name.format('cudaMallocAsync'), real_time=90e3))
        self.assertEqual(self.verdict('cuda: kernels', 'time of cudaMallocAsync;'), ('missed', '1.12'))
        self.assertRegex(streams.kernel_table(report.Results(self.folder).streams), r'orderly +\| +100 \(1\.25x\)')

    def test_traces_on_streams(self):
        self.write('streams-replay.json', row('h200_serve_llama', 'orderly-streams', peak_committed_bytes=1150))
        self.write('streams-replay-free.json', row('h200_serve_llama', 'orderly-streams', peak_committed_bytes=1151))
        start = 'h200_serve_llama on 6 threads and streams: peak committed, '
        self.assertEqual(self.verdict(start + 'recorded order', ''), ('met', '1.150'))
        self.assertEqual(self.verdict(start + 'threads running freely'), ('missed', '1.151'))
        self.assertEqual(self.verdict(start + 'streams that keep up'), ('not measured', ''))

    def test_allocations_inside_kernels(self):
        def kernel(name, **values):
            return {'name': f'{name}/iterations:1/manual_time', 'run_type': 'iteration', 'wrong': 0.0,
                    'threads': 1048576.0, **values}
        entries = [kernel('malloc/round/warm/16', real_time=3e5), kernel('malloc/round/warm/64', real_time=4e5)]
        for size, times, rate in ((16, 1000.0, 20e9), (64, 999.9, 19.9e9)):
            entries.append(kernel(f'lease/round/warm/{size}', real_time=300.0, times_malloc=times))
            entries.append(kernel(f'ring/round/warm/{size}', real_time=300.0, times_malloc=1000.0))
            entries.append(kernel(f'lease/alloc/warm/{size}', real_time=30.0, items_per_second=rate))
            entries.append(kernel(f'ring/alloc/warm/{size}', real_time=30.0, items_per_second=20e9, wrong=float(size == 64)))
        (self.folder / 'kernels.json').write_text(json.dumps({'context': {}, 'benchmarks': entries}))
        self.assertEqual(self.verdict('kernels: lease, warm, 16 B', "the device")[0], 'missed')
        self.assertEqual(self.verdict('kernels: ring, warm, 16 B', "the device")[0], 'met')
        self.assertEqual(self.verdict('kernels: ring, cold', "the device")[0], 'not measured')
        self.assertEqual(self.verdict('kernels: lease, warm, billion'), ('missed', '19.9'))
        self.assertEqual(self.verdict('kernels: ring, warm, billion')[0], 'not measured')  # a wrong result is none
        text = report.kernels.section(report.Results(self.folder).kernels)
        self.assertRegex(text, r'lease +\| round +\| warm +\| +300 \(1e\+03x\)')

    def test_growth_is_compared_with_the_drivers_calls(self):
        def times(step, allocator, *microseconds, **values):
            return [entry(f'{step}/{allocator}/64/iterations:1/manual_time', real_time=time, **values)
                    for time in microseconds]

        entries = [*times('grow', 'driver', 1000, 900, 5000, create_us=160.0, map_us=16.0, set_access_us=480.0,
                          release_us=0.0, unmap_us=800.0),
                   *times('grow', 'orderly', 1100, 9000, 1000, calls=112.0),
                   *times('split', 'driver', 1000), *times('split', 'orderly', 1300),
                   *times('grow', 'cudaMallocAsync', 2000)]
        (self.folder / 'growth.json').write_text(json.dumps({'context': {
            'device': 'NVIDIA X', 'cuda_runtime': '13.0', 'cuda_driver': '13.0'}, 'benchmarks': entries}))
        self.assertEqual(self.verdict('growth: grow 1 GiB, blocks of 64 MiB'), ('met', '1.10x'))
        self.assertEqual(self.verdict('growth: split'), ('missed', '1.30x'))
        text, stem = report.write(report.Results(self.folder), self.folder / 'out', 'abc', '1')
        self.assertTrue(stem.name.endswith('-growth-nvidia-x'), stem)
        lines = [line.split('|') for line in text.splitlines() if line.startswith('| grow ')]
        cells = [[cell.strip() for cell in line[1:-1]] for line in lines[:2]]
        self.assertEqual(cells[0], ['grow', '64', '1.10', '1.00', '2.00', '112', ''])
        self.assertEqual(cells[1], ['grow', '64', '16', '10.0', '1.0', '30.0', '', '50.0'])

    def test_report_of_streams_alone(self):
        self.write_streams(entry('cuda/pair/orderly/real_time/threads:1', calls=0.0), device='A Device', driver='580.1',
                           cuda_runtime='13.0', cuda_driver='13.1')
        text, stem = report.write(report.Results(self.folder), self.folder / 'into', 'v9', '0')
        self.assertRegex(stem.name, r'^\d{4}-\d\d-\d\d-streams-a-device$')
        for expected in ('A Device; driver 580.1; CUDA 13.0 (the driver serves 13.1)', '## CUDA streams', '## Not run',
                         '* software streams', "* PyTorch's caching allocator"):
            self.assertIn(expected, text)
        self.assertNotIn('minimalloc', text)
        self.assertNotIn('* CUDA streams', text)

    def test_bad_input_is_named(self):
        for name in ('replay.json', 'throughput.json', 'streams.json', 'streams-replay-free.json'):
            with self.subTest(name):
                (self.folder / name).write_text('{', encoding='utf-8')
                done = subprocess.run([sys.executable, '-B', SCRIPT, self.folder, '--into', self.folder / 'into'],
                                      capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 2)
                self.assertIn(name, done.stderr)
                self.assertNotIn('Traceback', done.stderr)
                (self.folder / name).unlink()


if __name__ == '__main__':
    unittest.main()
