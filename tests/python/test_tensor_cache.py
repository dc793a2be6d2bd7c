"""TensorCache: hits, who keeps what, and the same safety as a pool's tensors."""

import gc
import threading
import weakref

import numpy
import pytest

import orderly

MIB = 1 << 20


@pytest.fixture(params=[False, True], ids=['plain', 'streams'])
def pool(request):
    device = orderly.SoftwareDevice() if request.param else None
    made = orderly.MemoryPool(capacity=64 * MIB, streams=device, wait_before_refusing=True)
    made_stream = {'stream': orderly.SoftwareStream(device)} if request.param else {}
    yield made, made_stream
    gc.collect()
    assert made.stats()['requested'] == 0, 'a block is lost'


def test_a_freed_tensor_is_its_likes_again(pool):
    pool, stream = pool
    cache = orderly.TensorCache(pool, limit=32 * MIB)
    assert isinstance(cache, orderly.MemoryPool) and cache.device == 'cpu'
    first = cache.empty((3, 4), 'float64', **stream)
    address = first.ptr
    numpy.asarray(first)[...] = 7
    assert numpy.from_dlpack(first).sum() == 84
    cache.free_tensor(first)
    again = cache.empty((3, 4), 'float64', **stream)
    assert again.ptr == address and again.shape == (3, 4)
    with pytest.raises(orderly.BadFree) as refused:
        cache.free_tensor(first)
    assert refused.value.code == 'double_free' and again.is_live
    del again
    other = cache.empty((4, 3), 'int64', **stream)  # another layout, as many bytes
    assert other.ptr == address
    del other
    stats = cache.stats()
    assert (stats['hits'], stats['misses'], stats['compatible']) == (2, 1, 1)
    assert (stats['kept'], stats['kept_tensors'], stats['live_tensors']) == (96, 1, 0)
    assert stats['requested'] == 96 and pool.stats()['requested'] == 96
    assert cache.trim() == 96
    assert cache.stats()['kept'] == 0 and pool.stats()['requested'] == 0


def test_what_is_kept_is_the_pools_before_it_refuses(pool):
    pool, stream = pool
    cache = orderly.TensorCache(pool, limit=64 * MIB)
    tensors = [cache.empty(MIB, 'uint8', **stream) for _ in range(60)]
    del tensors
    assert cache.stats()['kept_tensors'] == 60
    if stream:
        assert pool.synchronize()
    large = pool.empty(40 * MIB, 'uint8', **stream)
    assert cache.stats()['kept_tensors'] < 60
    del large
    del cache


def test_the_limit_and_raw_blocks(pool):
    pool, stream = pool
    cache = orderly.TensorCache(pool, limit=4 * MIB)
    tensors = [cache.empty(MIB, 'uint8', **stream) for _ in range(8)]
    assert cache.stats()['cache_limit'] == 4 * MIB
    del tensors
    assert cache.stats()['kept'] <= 4 * MIB
    address = cache.allocate(1000, **stream)
    assert pool.owns(address)
    cache.free(address, 1000, **stream)
    assert cache.empty(0, **stream).nbytes == 0
    assert cache.empty(10).shape == (10,)  # of no stream
    assert cache.synchronize() and cache.snapshot()['blocks']
    cache.defragment()


def test_tensors_outlive_cache_and_pool_in_any_order():
    for order in range(4):
        pool = orderly.MemoryPool(capacity=8 * MIB)
        cache = orderly.TensorCache(pool)
        tensor, kept = cache.empty(1000, 'uint8'), cache.empty(2000, 'uint8')
        view = memoryview(tensor)
        view[:] = b'x' * 1000
        del kept
        objects = [pool, cache, tensor, view]
        del pool, cache, tensor, view
        for turn in range(4):
            objects.pop((order + turn) % len(objects))
            gc.collect()


def test_a_cache_over_a_closed_pool_and_a_pool_with_tensors():
    pool = orderly.BuddyAllocator(8 * MIB)
    cache = orderly.TensorCache(pool)
    tensor = cache.empty(100)
    with pytest.raises(RuntimeError, match='1 tensors'):
        cache.close()
    del tensor
    cache.close()
    with pytest.raises(ValueError):
        cache.empty(100)
    with pytest.raises(ValueError, match='closed'):
        orderly.TensorCache(pool)
    with pytest.raises(TypeError):
        orderly.TensorCache(None)
    with pytest.raises(ValueError):
        orderly.TensorCache(orderly.MemoryPool(capacity=MIB), alignment=3)
    other = orderly.MemoryPool(capacity=MIB)
    with pytest.raises(orderly.BadFree) as refused:
        other.free_tensor(orderly.TensorCache(orderly.MemoryPool(capacity=MIB)).empty(3))
    assert refused.value.code == 'wrong_pool'


def test_a_cycle_through_a_handler_and_a_cache_is_collected():
    class Program:
        def __init__(self):
            pool = orderly.MemoryPool(capacity=MIB, on_out_of_memory=self.handle)
            self.cache = orderly.TensorCache(pool)

        def handle(self, _):
            return False

    program = Program()
    gone = weakref.ref(program)
    del program
    gc.collect()
    assert gone() is None


def test_threads():
    pool = orderly.MemoryPool(capacity=256 * MIB)
    cache = orderly.TensorCache(pool)
    shared = []

    def work(seed):
        for step in range(500):
            tensor = cache.empty((100, 1 + (seed + step) % 7), 'float32')
            array = numpy.asarray(tensor)
            array[...] = seed
            assert (array == seed).all()
            shared.append(tensor)
            if len(shared) > 30:
                shared.pop(0)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.clear()
    gc.collect()
    stats = cache.stats()
    assert stats['hits'] + stats['misses'] == 2000
    assert stats['live_tensors'] == 0 and stats['bad_frees'] == 0
    cache.trim()
    assert pool.stats()['requested'] == 0


def test_a_recorded_tensor_waits_for_the_other_stream():
    device = orderly.SoftwareDevice()
    pool = orderly.MemoryPool(capacity=8 * MIB, streams=device)
    cache = orderly.TensorCache(pool)
    one, two = orderly.SoftwareStream(device), orderly.SoftwareStream(device)
    gate, order = threading.Event(), []
    tensor = cache.empty(8 * MIB, 'uint8', stream=one)
    cache.record_stream(tensor, two)
    two.enqueue(lambda: (gate.wait(60), order.append('two')))
    del tensor
    again = cache.empty(8 * MIB, 'uint8', stream=one)
    one.enqueue(lambda: order.append('one'))
    gate.set()
    one.synchronize()
    assert order == ['two', 'one'] and again.is_live
