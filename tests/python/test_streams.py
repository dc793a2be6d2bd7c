"""Software streams and pools in their order."""

import gc
import sys
import threading
import time
import weakref

import pytest

import orderly

MIB = 1 << 20


def test_work_runs_in_order_and_behind_what_was_enqueued_before():
    for schedule in ('workers', 'eager', 'lazy', 'random'):
        stream, ran = orderly.SoftwareStream(orderly.SoftwareDevice(schedule, seed=7)), []
        for number in range(100):
            stream.enqueue(lambda number=number: ran.append(number))
        assert stream.synchronize()
        assert ran == list(range(100))
    with pytest.raises(ValueError, match='schedule'):
        orderly.SoftwareDevice('soon')


def test_what_work_raises_goes_to_the_hook_and_the_stream_goes_on(monkeypatch):
    raised, ran = [], []
    monkeypatch.setattr(sys, 'unraisablehook', lambda report: raised.append(report.exc_type))
    stream = orderly.SoftwareStream(orderly.SoftwareDevice())
    stream.enqueue(lambda: 1 / 0)
    stream.enqueue(lambda: ran.append(1))
    stream.synchronize()
    assert (raised, ran) == ([ZeroDivisionError], [1])


def test_what_is_freed_in_a_stream_serves_it_at_once_and_others_behind_its_work():
    device = orderly.SoftwareDevice()
    pool = orderly.MemoryPool(capacity=8 * MIB, streams=device)
    one, two = orderly.SoftwareStream(device), orderly.SoftwareStream(device)
    gate, order = threading.Event(), []
    tensor = pool.empty(8 * MIB, 'uint8', stream=one)
    address = tensor.ptr
    one.enqueue(lambda: (gate.wait(60), order.append('one')))
    del tensor
    again = pool.empty(8 * MIB, 'uint8', stream=one)
    assert again.ptr == address and pool.stats()['events_recorded'] == 0
    del again
    other = pool.empty(8 * MIB, 'uint8', stream=two)  # behind what is in the first stream
    two.enqueue(lambda: order.append('two'))
    assert pool.stats()['waits'] == 1
    gate.set()
    two.synchronize()
    assert order == ['one', 'two']
    assert other.stream == two.handle and other.ptr == address


def test_a_tensor_of_no_stream_is_usable_at_once():
    device = orderly.SoftwareDevice()
    pool = orderly.MemoryPool(capacity=8 * MIB, streams=device)
    stream, done = orderly.SoftwareStream(device), []
    tensor = pool.empty(8 * MIB, 'uint8', stream=stream)
    stream.enqueue(lambda: (time.sleep(0.1), done.append(True)))
    del tensor
    settled = pool.empty(8 * MIB, 'uint8')
    assert done and settled.stream is None


def test_a_recorded_tensor_waits_for_the_other_stream():
    device = orderly.SoftwareDevice()
    pool = orderly.MemoryPool(capacity=8 * MIB, streams=device)
    one, two = orderly.SoftwareStream(device), orderly.SoftwareStream(device)
    gate, order = threading.Event(), []
    tensor = pool.empty(8 * MIB, 'uint8', stream=one)
    pool.record_stream(tensor, two)
    two.enqueue(lambda: (gate.wait(60), order.append('two')))
    del tensor
    again = pool.empty(8 * MIB, 'uint8', stream=one)
    one.enqueue(lambda: order.append('one'))
    gate.set()
    one.synchronize()
    assert order == ['two', 'one']
    with pytest.raises(orderly.BadFree):
        pool.record_stream(again.ptr + 4096, two)
    with pytest.raises(orderly.BadFree) as refused:
        pool.record_stream(orderly.MemoryPool(capacity=MIB).empty(3), two)
    assert refused.value.code == 'wrong_pool'


def test_a_pool_keeps_its_streams_until_they_are_released():
    device = orderly.SoftwareDevice()
    pool = orderly.MemoryPool(capacity=8 * MIB, streams=device)
    stream = orderly.SoftwareStream(device)
    tensor = pool.empty(1000, stream=stream)
    handle = stream.handle
    stream.enqueue(lambda: None)
    del stream
    gc.collect()
    assert tensor.stream == handle
    del tensor
    assert pool.synchronize()
    other = orderly.SoftwareStream(device)
    assert other.handle != handle
    pool.empty(1000, stream=other)
    assert pool.release_stream(other)


def test_streams_of_other_kinds_are_refused():
    pool = orderly.MemoryPool(capacity=8 * MIB, streams=orderly.SoftwareDevice())
    foreign = orderly.SoftwareStream(orderly.SoftwareDevice())
    plain = orderly.MemoryPool(capacity=8 * MIB)
    with pytest.raises(ValueError, match='serves no software streams'):
        plain.empty(3, stream=foreign)
    with pytest.raises(ValueError, match='no CUDA'):
        pool.empty(3, stream=12345)
    with pytest.raises(TypeError, match='give a SoftwareDevice'):
        orderly.MemoryPool(streams='software')
    with pytest.raises(ValueError, match='name it'):
        pool.allocate_checked(100)
    assert plain.synchronize() and plain.stream_synchronize(None) and plain.release_stream(None)


def test_a_device_and_its_streams_go_when_nothing_needs_them():
    device = orderly.SoftwareDevice()
    stream = orderly.SoftwareStream(device)
    pool = orderly.MemoryPool(capacity=8 * MIB, streams=device)
    tensor = pool.empty(3, stream=stream)
    gone = weakref.ref(stream)
    threads = threading.active_count()
    del device, stream, pool
    gc.collect()
    assert gone() is None
    del tensor
    assert threading.active_count() <= threads


def test_capture():
    device = orderly.SoftwareDevice()
    pool = orderly.MemoryPool(capacity=8 * MIB, streams=device)
    stream = orderly.SoftwareStream(device)
    with pytest.raises(ValueError, match='end_capture'):
        pool.end_capture(stream)
    pool.begin_capture(stream)
    with pytest.raises(ValueError, match='begin_capture'):
        pool.begin_capture(stream)
    with pytest.raises(ValueError):
        orderly.MemoryPool().begin_capture(None)


def test_a_block_is_divided():
    device = orderly.SoftwareDevice()
    pool = orderly.MemoryPool('cpu', 64 << 20, streams=device)
    stream = orderly.SoftwareStream(device)
    for where in (None, stream):
        block = pool.allocate(1 << 20, stream=where)
        for wrong, said in (((4097, [0]), 'not a power of two'), ((0, [0]), 'not a power of two'),
                            ((4096, [0, 256]), 'part 256; the block has 256'), ((4096, [-1]), 'part -1')):
            with pytest.raises(ValueError, match=said):
                pool.divide(block, *wrong, stream=where)
        for wrong in (3, ['0'], None):
            with pytest.raises(TypeError):
                pool.divide(block, 4096, wrong, stream=where)
        with pytest.raises(orderly.BadFree) as refused:
            pool.divide(block + 4096, 4096, [], stream=where)
        assert refused.value.code == 'interior_pointer' and pool.block_size(block) == 1 << 20
        parts = pool.divide(block, 4096, (255, 0, 40, 40), stream=where)
        assert parts == [block + 255 * 4096, block, block + 40 * 4096, block + 40 * 4096]
        assert pool.stats()['requested'] == 3 * 4096
        assert not pool.owns(block + 4096) and pool.block_size(parts[0]) == 4096
        for part in sorted(set(parts)):
            pool.free(part, 4096, stream=where)
        with pytest.raises(orderly.BadFree) as refused:
            pool.divide(block, 4096, [], stream=where)
        assert refused.value.code == 'double_free'
        assert pool.divide(pool.allocate(1 << 20, stream=where), 1 << 19, [], stream=where) == []
        assert pool.stats()['requested'] == 0
    plain = orderly.MemoryPool('cpu', 1 << 20)
    with pytest.raises(ValueError, match='has no streams'):
        plain.divide(plain.allocate(4096), 256, [1])
