"""Tags, and the report of a pool's memory."""

import concurrent.futures
import copy
import gc
import pickle
import threading

import pytest

import orderly

MIB = 1 << 20


def pools(**settings):
    return [orderly.BuddyAllocator(64 * MIB, **settings), orderly.MemoryPool('cpu', 64 * MIB, **settings),
            orderly.MemoryPool('cpu', 64 * MIB, streams=orderly.SoftwareDevice(), **settings)]


IDS = ['buddy', 'memory', 'streams']


@pytest.mark.parametrize('pool', pools(account_tags=True), ids=IDS)
def test_blocks_bear_the_tag_of_their_scope_until_they_are_freed(pool):
    weights = orderly.tag('weights')
    with weights:
        first = pool.allocate(1000)
        with orderly.tag('activations'):
            second = pool.allocate(3000)
        third = pool.allocate(10)
    bare = pool.allocate(7)
    tags = pool.tags()
    assert list(tags) == ['activations', 'weights', 'untagged']
    assert {name: (each['requested'], each['allocations'], each['frees']) for name, each in tags.items()} == {
        'activations': (3000, 1, 0), 'weights': (1010, 2, 0), 'untagged': (7, 1, 0)}
    assert sum(each['allocated'] for each in tags.values()) == pool.stats()['allocated']
    with orderly.tag('elsewhere'):
        pool.free(first)
        pool.free(second)
    tags = pool.tags()
    assert (tags['weights']['requested'], tags['weights']['frees'], tags['weights']['peak_requested']) == (10, 1, 1010)
    assert tags['activations']['requested'] == 0 and 'elsewhere' not in tags
    snapshot = pool.snapshot()
    live = {block['address']: block['tag'] for block in snapshot['blocks'] if block['state'] == 'live'}
    assert live == {third: 'weights', bare: 'untagged'}
    assert snapshot['tags'] == tags
    assert all('tag' not in block for block in snapshot['blocks'] if block['state'] != 'live')


def test_without_an_account_nothing_is_said():
    pool = orderly.MemoryPool('cpu', MIB)
    with orderly.tag('weights'):
        tensor = pool.empty(1000)
    assert pool.tags() == {} and 'tags' not in pool.snapshot()
    assert all('tag' not in block for block in pool.snapshot()['blocks'])
    assert pool.report().tags is None and 'not accounted' in str(pool.report())
    del tensor


def test_tensors_and_those_of_a_cache():
    pool = orderly.MemoryPool('cpu', 64 * MIB, account_tags=True)
    cache = orderly.TensorCache(pool)
    with orderly.tag('first'):
        plain, kept = pool.empty(1000, 'uint8'), cache.empty(2000, 'uint8')
    assert pool.tags()['first']['requested'] >= 3000
    del plain, kept
    with orderly.tag('second'):
        again = cache.empty(2000, 'uint8')
    assert 'second' not in pool.tags() and pool.tags()['first']['requested'] >= 2000  # it keeps its first tag
    assert cache.tags() == pool.tags()
    del again


def test_a_scope_is_of_its_thread():
    begun, end = threading.Event(), threading.Event()
    seen = []
    shared = orderly.tag('shared')

    def work():
        seen.append(orderly.current_tag())
        with shared:
            with orderly.tag('inner'):
                begun.set()
                end.wait()
                seen.append(orderly.current_tag())
            seen.append(orderly.current_tag())
        seen.append(orderly.current_tag())

    with shared:
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        assert orderly.current_tag() == 'shared'
    assert orderly.current_tag() == 'untagged'
    with shared, shared:
        end.set()
        thread.join()
        assert orderly.current_tag() == 'shared'
    assert orderly.current_tag() == 'untagged'
    assert seen == ['untagged', 'inner', 'shared', 'untagged']


def test_a_scope_ends_with_an_exception_and_only_where_it_began():
    tag = orderly.tag('scope')
    with pytest.raises(KeyError), tag:
        raise KeyError
    assert orderly.current_tag() == 'untagged'
    with pytest.raises(RuntimeError, match="'scope': this thread has not begun it"):
        tag.__exit__(None, None, None)
    tag.__enter__()
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        with pytest.raises(RuntimeError, match='has not begun it'):
            other.submit(tag.__exit__, None, None, None).result()
    assert orderly.current_tag() == 'scope'
    tag.__exit__(None, None, None)
    assert orderly.current_tag() == 'untagged'


def test_names():
    assert orderly.tag('weights').name == 'weights' and repr(orderly.tag('größe')) == "<orderly.tag 'größe'>"
    assert orderly.tag('').name == 'untagged'
    assert orderly.tag('x' * 300).name == 'x' * 255
    assert orderly.tag('x' + 'ä' * 200).name == 'x' + 'ä' * 127
    assert orderly.tag('ä' * 200).name == 'ä' * 127 + '\ufffd'  # 255 bytes, which end within a character
    with pytest.raises(ValueError, match='zero'):
        orderly.tag('a\0b')
    for wrong in (3, None, b'x'):
        with pytest.raises(TypeError):
            orderly.tag(wrong)
    with orderly.tag('größe') as entered:
        assert orderly.current_tag() == 'größe' == entered.name


def check_sums(report):
    assert report.committed == report.live + report.cached + report.scattered + report.idle
    assert report.live_requested <= report.live <= report.committed <= report.limit <= report.capacity


@pytest.mark.parametrize('pool', pools(limit=8 * MIB, account_tags=True), ids=IDS)
def test_a_report_says_where_the_memory_is_and_what_helps(pool):
    with orderly.tag('weights'):
        blocks = [pool.allocate(600_000) for _ in range(3)]
    small = []
    with orderly.tag('activations'), pytest.raises(orderly.OutOfMemory):
        while True:
            small.append(pool.allocate(1000))
    for address in small[::2]:
        pool.free(address)
    pool.synchronize() if hasattr(pool, 'synchronize') else None
    with pytest.raises(orderly.OutOfMemory, match='3145728 bytes requested') as refused:
        pool.allocate(3 * MIB)
    report = refused.value.report
    assert isinstance(report, orderly.MemoryReport)
    assert report.requested == refused.value.requested == 3 * MIB and report.needed >= 3 * MIB
    assert (report.limit, report.capacity, report.chunk) == (8 * MIB, 64 * MIB, 65536)
    check_sums(report)
    live = len(small) // 2 + 3
    assert report.live_blocks == live and report.live_requested == 1_800_000 + len(small) // 2 * 1000
    assert report.largest_now < 3 * MIB and report.largest_grown < 3 * MIB
    assert report.fragmentation == pytest.approx(100 * report.scattered / report.committed)
    assert report.fragmentation > 20
    assert report.tried['by_limit'] and report.tried['passes'] >= 1 and not report.tried['by_source']
    assert report.tried['source_error'] == '' and report.tried['handler_calls'] == 0
    assert report.helps['relocate']['count'] > 10 and report.helps['raise_limit']['bytes'] > 8 * MIB
    assert report.helps['ask_for_less']['bytes'] == report.largest_grown
    assert report.tags['weights'] == {'requested': 1_800_000, 'allocated': pytest.approx(1_800_000, rel=0.15),
                                      'peak_requested': 1_800_000, 'blocks': 3}
    assert report.tags['activations']['blocks'] == live - 3
    text = str(report)
    assert text.startswith('orderly: out of memory: 3145728 bytes (3.0 MiB) requested\n')
    assert 'would help:' in text and 'weights: 1.7 MiB requested in 3 blocks' in text
    assert repr(report).startswith('<orderly.MemoryReport: ') and f'limit {8 * MIB}' in repr(report)
    now = pool.report()
    assert (now.requested, now.live_blocks, now.tried['passes']) == (0, live, 0)
    assert str(now).startswith('orderly: memory\n')
    asked = pool.report(3 * MIB)
    assert asked.requested == 3 * MIB and asked.helps['raise_limit']['bytes'] > 8 * MIB
    assert 'raise_limit' not in now.helps
    for address in blocks + small[1::2]:
        pool.free(address)
    check_sums(pool.report())
    assert pool.report().live == 0


def test_lanes_tell_whose_freed_memory_it_is():
    device = orderly.SoftwareDevice('lazy')
    pool = orderly.MemoryPool('cpu', 64 * MIB, streams=device)
    stream = orderly.SoftwareStream(device)
    pool.free(pool.allocate(2 * MIB, stream=stream), 2 * MIB, stream=stream)
    report = pool.report()
    lane = next(lane for lane in report.lanes if lane['cached'] + lane['held'] >= 2 * MIB)
    assert lane['stream'] != 0 and lane['released'] is False
    assert (report.more_lanes, report.rest['held'], report.graphs) == (0, 0, 0)
    assert report.cached >= 2 * MIB
    pool.synchronize()


def test_the_report_inside_the_handler_is_of_the_request():
    reports = []

    def handler(size):
        reports.append(pool.report())
        return len(reports) < 2

    pool = orderly.BuddyAllocator(MIB, on_out_of_memory=handler)
    pool.allocate(MIB)
    with pytest.raises(orderly.OutOfMemory) as refused:
        pool.allocate(70_000)
    assert [report.requested for report in reports] == [70_000, 70_000]
    assert refused.value.report.tried['handler_calls'] == 2


def fails(_):
    orderly.BuddyAllocator(MIB).allocate(2 * MIB)


def test_a_report_crosses_processes_with_its_exception():
    with pytest.raises(orderly.OutOfMemory) as refused:
        fails(0)
    for copied in (pickle.loads(pickle.dumps(refused.value)), copy.deepcopy(refused.value)):
        assert isinstance(copied, orderly.OutOfMemory) and copied.args == refused.value.args
        assert copied.requested == 2 * MIB
        assert str(copied.report) == str(refused.value.report)
    with pytest.raises(ValueError, match='another version'):
        orderly.MemoryReport.__new__(orderly.MemoryReport).__setstate__(b'short')
    with pytest.raises(orderly.OutOfMemory, match='2097152') as refused:
        import multiprocessing
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as other:
            list(other.map(fails, [0]))
    assert refused.value.report.helps['raise_capacity']['bytes'] >= 2 * MIB


def test_a_closed_pool_has_no_report():
    pool = orderly.BuddyAllocator(MIB, account_tags=True)
    pool.close()
    for call in (pool.tags, pool.report):
        with pytest.raises(ValueError, match='closed'):
            call()
    with pytest.raises(TypeError):
        orderly.MemoryReport()
    gc.collect()
