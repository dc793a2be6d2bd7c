"""python -m orderly.replay, python -m orderly.bench, and the examples."""

import json
import os
import pathlib
import subprocess
import sys

import numpy
import pytest

import orderly
import orderly.replay

ROOT = pathlib.Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / 'python/examples').glob('*.py'))
LOG = '''Thread,Time,Action,Pointer,Size,Stream
7,10:00:00.000001,allocate,0x10,1000,0x0
8,10:00:00.000002,allocate,0x20,3000000,0x0
7,10:00:00.000003,free,0x99,5,0x0
7,10:00:00.000004,free,0x10,1000,0x0
7,10:00:00.000005,allocate,0x10,500,0x0
7,10:00:00.000006,allocate failure,(nil),500,0x0
8,10:00:00.000007,free,0x20,3000000,0x0
'''


def run(*arguments, **environment):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False,
                          timeout=600, env=dict(os.environ, **environment))


def test_a_log_is_replayed(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text(LOG)
    found = orderly.replay.replay(path, find_limit=True)
    assert (found['calls'], found['threads'], found['peak_live'], found['refused']) == (5, 2, 3_001_000, 0)
    assert found['peak_live'] <= found['peak_committed'] <= 1.2 * found['peak_live']
    assert 1 <= found['least_limit_over_live'] <= 1.1
    assert orderly.replay.replay(path, limit=1 << 20)['refused'] == 1
    assert orderly.replay.replay(path, chunk=2 << 20)['peak_committed'] % (2 << 20) == 0


def test_what_is_no_log_is_refused(tmp_path):
    path = tmp_path / 'log.csv'
    for text, said in (('', 'columns'), ('a,b\n', 'columns'), (LOG + '7,1,allocate\n', 'log.csv:9'),
                       (LOG + '7,1,allocate,0x1,many,0\n', 'log.csv:9')):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            orderly.replay.replay(path)
        done = run('-m', 'orderly.replay', path)
        assert done.returncode == 1 and said in done.stderr and 'Traceback' not in done.stderr
    for arguments in ((b'123', 1), (b'\x05' + bytes(15), 5)):
        with pytest.raises(ValueError):
            orderly._core._replay(*arguments)


def test_two_commands_from_a_program_to_an_answer(tmp_path):
    path = tmp_path / 'mine.csv.xz'
    with orderly.record(path, torch=False):
        arrays = [numpy.ones(100_000 + number) for number in range(20)]
        del arrays
    done = run('-m', 'orderly.replay', '--find-limit', path)
    assert done.returncode == 0, done.stderr
    assert 'least limit' in done.stdout and ' ns' in done.stdout
    found, = json.loads(run('-m', 'orderly.replay', '--json', path).stdout)
    assert found['peak_live'] >= 20 * 800_000 and found['committed_over_live'] < 1.2


def test_the_recorded_traces_of_the_repository():
    paths = [path for path in sorted((ROOT / 'bench/traces').glob('train_gpt.csv.xz'))]
    for path in paths:
        found = orderly.replay.replay(path, repeat=1)
        assert found['refused'] == 0 and 1 <= found['committed_over_live'] < 1.3
    assert paths


def test_bench():
    rates = json.loads(run('-m', 'orderly.bench', '--turns', '1', '--json').stdout)
    assert rates['orderly']['1'] > 0 and rates['numpy']['4'] > 0
    # One turn, so its own ratio is the median; that of a call which allocates nothing is there to compare with.
    for name in ('no allocation', 'orderly', 'orderly, cache', 'numpy'):
        assert rates[name]['ratio'] == pytest.approx(rates[name]['4'] / rates[name]['1'])
    assert '4 threads' in run('-m', 'orderly.bench', '--turns', '1').stdout


def needs_torch():
    pytest.importorskip('torch')
    import orderly.torch

    try:
        orderly.torch.build()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])


def test_bench_of_a_model_has_fewer_page_faults_with_the_pool():
    needs_torch()
    done = run('-m', 'orderly.bench', '--model', '--turns', '1', '--requests', '20', '--json')
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures['orderly']['page faults'] < figures['default']['page faults']


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    if 'torch' in path.read_text():
        needs_torch()
    done = run(path)
    if done.returncode == 77:
        pytest.skip('it needs a GPU or a library that is not here')
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_examples_give_the_same_with_and_without_a_pool(tmp_path):
    needs_torch()
    server = ROOT / 'python/examples/inference_server.py'
    with_pool, without = (json.loads(run(server, '--requests', '10', *more).stdout) for more in ((), ('--default',)))
    assert with_pool['sum'] == without['sum'] and with_pool['answers'] == without['answers'] == 10
    assert with_pool['allocations'] > 100
    log = tmp_path / 'train.csv.gz'
    assert run(ROOT / 'python/examples/training.py', '--steps', '5', '--record', log).returncode == 0
    assert orderly.replay.replay(log)['calls'] > 100
