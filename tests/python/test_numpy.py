"""NumPy's arrays from a pool."""

import asyncio
import gc
import subprocess
import sys
import threading

import numpy
import numpy.random  # NumPy 2.4 does so at the first use, and keeps an array then
import pytest

import orderly
import orderly.numpy

MIB = 1 << 20


@pytest.fixture
def pool():
    made = orderly.MemoryPool(capacity=256 * MIB)
    yield made
    orderly.numpy.disable()
    gc.collect()
    stats = made.stats()
    assert (stats['requested'], stats['bad_frees']) == (0, 0)


def is_in(pool, array):
    return pool.owns(array.ctypes.data)


def test_arrays_come_from_the_pool_until_it_is_disabled(pool):
    before = numpy.ones(1000)
    assert orderly.numpy.enable(pool) is pool
    assert orderly.numpy.is_enabled() and orderly.numpy.pool() is pool
    array = numpy.ones(1000)
    assert is_in(pool, array) and is_in(pool, before + array) and not is_in(pool, before)
    assert array.ctypes.data % 256 == 0
    orderly.numpy.disable()
    assert not orderly.numpy.is_enabled() and not is_in(pool, numpy.ones(1000))
    assert (before + array == 2).all()
    del array


def test_every_way_of_making_an_array(pool):
    with orderly.numpy.mem_pool(pool):
        for dtype in ('uint8', 'float64', 'complex128', 'O', 'U7', 'i4,f8'):
            for shape in ((), 0, 1, (3, 0), 1000, (300, 300)):
                zeros = numpy.zeros(shape, dtype)
                assert zeros.tobytes() == bytes(zeros.nbytes) or dtype == 'O'
                numpy.empty(shape, dtype)
        array = numpy.arange(1000)
        for size in (10, 2000, 1001, 1, 500_000, 3, 0, 7):
            array.resize(size, refcheck=False)
            assert (array[:1] == 0).all() and is_in(pool, array)
        text = numpy.fromiter((str(number) for number in range(3000)), dtype='U8')
        assert text[2999] == '2999'
        assert sorted(numpy.random.default_rng(1).permutation(10_000))[9999] == 9999
        stacked = numpy.concatenate([numpy.full((100, 100), number) for number in range(20)])
        assert stacked[1999, 0] == 19
    del array, text, stacked, zeros


def test_growing_keeps_what_is_there(pool):
    with orderly.numpy.mem_pool(pool):
        array = numpy.arange(10, dtype='int64')
        for size in (11, 40, 100, 5000, 300_000, 299_999, 10):
            array.resize(size, refcheck=False)
            assert (array[:10] == numpy.arange(10)).all()
            assert not array[10:].any() or size < 300_000
    del array


def test_arrays_outlive_the_scope_and_go_in_any_order(pool):
    other = orderly.MemoryPool(capacity=64 * MIB)
    kept = []
    for each in (pool, other, pool):
        with orderly.numpy.mem_pool(each):
            kept += [numpy.full(1000, len(kept)), numpy.full(3 * MIB, len(kept), 'uint8')]
    assert [array[0] for array in kept] == [0, 0, 2, 2, 4, 4]
    kept.reverse()
    while kept:
        kept.pop()
    assert other.stats()['allocations'] == other.stats()['frees'] > 0


def test_used_up_memory_is_a_memory_error():
    pool = orderly.MemoryPool(capacity=MIB)
    with orderly.numpy.mem_pool(pool):
        with pytest.raises(MemoryError):
            numpy.empty(2 * MIB, 'uint8')
        with pytest.raises(MemoryError):
            numpy.zeros(2 * MIB, 'uint8')
        array = numpy.arange(10, dtype='uint8')
        with pytest.raises(MemoryError):
            array.resize(2 * MIB, refcheck=False)
        assert (numpy.ones(100) == 1).all()
    with pytest.raises(RuntimeError, match='serves another library'):
        pool.close()


def test_a_handler_belongs_to_its_context(pool):
    seen = []

    def thread():
        seen.append(orderly.numpy.is_enabled())
        orderly.numpy.enable(pool)
        seen.append(is_in(pool, numpy.ones(100)))

    async def task():
        return is_in(pool, numpy.ones(100))

    with orderly.numpy.mem_pool(pool):
        started = threading.Thread(target=thread)
        started.start()
        started.join()
        assert seen == [False, True]
        assert asyncio.run(task())
    assert not asyncio.run(task())


def test_threads_free_what_others_made(pool):
    arrays = []

    def work(number):
        orderly.numpy.enable(pool)
        for _ in range(300):
            arrays.append(numpy.full(500, number))
            if len(arrays) > 20:
                array = arrays.pop(0)
                assert (array == array[0]).all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arrays.clear()


def test_at_exit():
    program = ('import orderly.numpy, numpy\norderly.numpy.enable()\narray = numpy.ones(10)\n'
               'cycle = [numpy.ones(10)]\ncycle.append(cycle)')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, '')


def test_what_is_no_pool_is_refused():
    with pytest.raises(TypeError):
        orderly.numpy.enable('pool')
    with pytest.raises(ValueError, match='without streams'):
        orderly.numpy.enable(orderly.MemoryPool(capacity=MIB, streams=orderly.SoftwareDevice()))
    assert not orderly.numpy.is_enabled()
