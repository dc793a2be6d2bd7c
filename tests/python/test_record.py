"""Logs of a program's allocations."""

import csv
import gc
import gzip
import lzma
import re
import threading

import numpy
import pytest

import orderly
import orderly._recorder

FIELDS = ['Thread', 'Time', 'Action', 'Pointer', 'Size', 'Stream']


def rows_of(path):
    """The log's rows, each checked against what may stand there."""
    text = {'.gz': gzip.open, '.xz': lzma.open}.get(path.suffix, open)(path, 'rt').read()
    reader = csv.DictReader(text.splitlines())
    assert reader.fieldnames == FIELDS
    live, rows = {}, []
    for row in reader:
        assert re.fullmatch(r'\d+', row['Thread']) and re.fullmatch(r'\d\d:\d\d:\d\d\.\d{6}', row['Time'])
        assert re.fullmatch(r'0x[0-9a-f]+', row['Pointer'])
        if row['Action'] == 'allocate':
            assert row['Pointer'] not in live
            live[row['Pointer']] = row['Size']
        elif row['Action'] == 'free':
            assert live.pop(row['Pointer']) == row['Size']
        else:
            assert row['Action'] == 'allocate failure'
        rows.append(row)
    return rows, live


def sizes(rows, action):
    return [int(row['Size']) for row in rows if row['Action'] == action]


@pytest.mark.parametrize('name', ['log.csv', 'log.csv.gz', 'log.csv.xz'])
def test_numpy(tmp_path, name):
    before = numpy.ones(1234, 'uint8')
    with orderly.record(tmp_path / name, torch=False):
        array = numpy.ones(10_001, 'uint8')
        array = numpy.zeros(20_001, 'uint8')
        array.resize(30_001, refcheck=False)
        del before
        kept = numpy.ones(40_001, 'uint8')
    after = numpy.ones(50_001, 'uint8')
    rows, live = rows_of(tmp_path / name)
    large = [(row['Action'], int(row['Size'])) for row in rows if int(row['Size']) > 10_000]
    assert large == [('allocate', 10_001), ('allocate', 20_001), ('free', 10_001), ('free', 20_001),
                     ('allocate', 30_001), ('allocate', 40_001)]
    assert {'30001', '40001'} <= set(live.values())
    assert 1234 not in sizes(rows, 'free') and 50_001 not in sizes(rows, 'allocate')
    assert kept.sum() == 40_001 and after.sum() == 50_001


def test_zst(tmp_path):
    zstandard = pytest.importorskip('zstandard')
    path = tmp_path / 'log.csv.zst'
    with orderly.record(path, torch=False):
        numpy.ones(10_001, 'uint8')
    text = zstandard.open(path, 'rt').read()
    assert text.startswith(','.join(FIELDS)) and ',allocate,' in text and ',10001,' in text


def test_zst_without_a_compressor_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'zstandard', None)
    monkeypatch.setitem(__import__('sys').modules, 'compression', None)
    with pytest.raises(ImportError, match='pip install zstandard'), orderly.record(tmp_path / 'log.csv.zst'):
        pass
    with orderly.record(tmp_path / 'log.csv', torch=False):  # and nothing goes on
        pass


def test_one_recording_at_a_time_and_it_ends_with_an_exception(tmp_path):
    with pytest.raises(KeyError), orderly.record(tmp_path / 'one.csv', torch=False):
        numpy.ones(10_001, 'uint8')
        with pytest.raises(RuntimeError, match='runs already'), orderly.record(tmp_path / 'two.csv'):
            pass
        raise KeyError
    assert 10_001 in sizes(rows_of(tmp_path / 'one.csv')[0], 'free')
    assert not (tmp_path / 'two.csv').exists()
    with pytest.raises(OSError), orderly.record(tmp_path / 'no' / 'folder.csv'):
        pass
    with orderly.record(tmp_path / 'three.csv', torch=False):
        pass
    assert rows_of(tmp_path / 'three.csv')[0] == []


def test_over_a_pool(tmp_path):
    import orderly.numpy

    pool = orderly.MemoryPool(capacity=64 << 20)
    with orderly.numpy.mem_pool(pool):
        with orderly.record(tmp_path / 'log.csv', torch=False):
            array = numpy.ones(10_001, 'uint8')
            assert pool.owns(array.ctypes.data)
        assert pool.owns(numpy.ones(100).ctypes.data)
    assert f'{array.ctypes.data:#x}' in rows_of(tmp_path / 'log.csv')[1]
    del array
    gc.collect()
    assert pool.stats()['requested'] == 0


def torch_or_skip():
    torch = pytest.importorskip('torch')
    import orderly.torch

    try:
        orderly.torch.build()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    return torch


def test_pytorch_with_threads_and_a_pool(tmp_path):
    torch = torch_or_skip()
    pool = orderly.MemoryPool(capacity=256 << 20)
    with orderly.torch.mem_pool(pool):
        before = torch.ones(1234, dtype=torch.uint8)

    def work():
        for size in range(1, 100):
            torch.ones(10_000 + size, dtype=torch.uint8)

    with orderly.record(tmp_path / 'log.csv'):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with orderly.torch.mem_pool(pool):
            kept = torch.ones(50_001, dtype=torch.uint8)
            with pytest.raises(RuntimeError):
                torch.empty(1 << 30, dtype=torch.uint8)
        torch.ones(60_001, dtype=torch.uint8)
        before = None
        array = numpy.ones(70_001, 'uint8')
    rows, live = rows_of(tmp_path / 'log.csv')
    by_thread = {}
    for row in rows:
        if row['Action'] == 'allocate' and 10_000 < int(row['Size']) < 10_100:
            by_thread.setdefault(row['Thread'], []).append(int(row['Size']))
    assert list(by_thread.values()) == [[10_000 + size for size in range(1, 100)]] * 4
    assert '50001' in live.values() and f'{kept.data_ptr():#x}' in live
    assert sizes(rows, 'allocate failure') == [1 << 30]
    assert 60_001 in sizes(rows, 'free') and 1234 not in sizes(rows, 'free')
    assert 70_001 in sizes(rows, 'allocate')
    assert before is None and array.sum() == 70_001


def test_pytorchs_own_record_of_a_device_becomes_rows():
    trace = [
        {'action': 'free_requested', 'addr': 4096, 'size': 512, 'stream': 0, 'time_us': 5},  # from before
        {'action': 'segment_alloc', 'addr': 8192, 'size': 2 << 20, 'stream': 0},
        {'action': 'alloc', 'addr': 8192, 'size': 1000, 'stream': 17, 'time_us': 3_661_000_007},
        {'action': 'free_requested', 'addr': 8192, 'size': 1000, 'stream': 17, 'time_us': 3_661_000_008},
        {'action': 'free_completed', 'addr': 8192, 'size': 1000, 'stream': 17},
        {'action': 'oom', 'device_free': 1, 'size': 9999, 'stream': 0},
        {'action': 'snapshot', 'addr': 0, 'size': 0, 'stream': 0},
    ]
    assert list(orderly._recorder._cuda_rows({'device_traces': [trace]})) == [
        '0,01:01:01.000007,allocate,0x2000,1000,0x11\n',
        '0,01:01:01.000008,free,0x2000,1000,0x11\n',
        '0,00:00:00.000000,allocate failure,0x0,9999,0x0\n',
    ]
