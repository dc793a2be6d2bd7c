"""Many threads that allocate, free and exit at once; who waits for whom."""

import gc
import queue
import random
import sys
import threading
import time

import pytest

import orderly

MIB = 1 << 20


@pytest.fixture(autouse=True)
def often():
    """Threads take turns often, so that they meet everywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def run_all(targets):
    """Runs them at once; what one raises, this does."""
    failures = []

    def guarded(target):
        try:
            target()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def pools():
    return [orderly.MemoryPool(capacity=256 * MIB),
            orderly.MemoryPool(capacity=256 * MIB, streams=orderly.SoftwareDevice())]


@pytest.mark.parametrize('pool', pools(), ids=['plain', 'streams'])
def test_no_block_is_lost_when_threads_allocate_free_and_exit_at_once(pool):
    handed_on = queue.SimpleQueue()

    def work(seed):
        chance = random.Random(seed)
        mine = []
        for _ in range(300):
            mine.append(pool.empty(chance.choice((10, 1000, 70_000, MIB)), 'uint8'))
            memoryview(mine[-1])[0] = seed
            if chance.random() < 0.3:
                handed_on.put((seed, mine.pop()))
            if chance.random() < 0.3 and not handed_on.empty():
                try:
                    owner, tensor = handed_on.get_nowait()
                    assert memoryview(tensor)[0] == owner
                except queue.Empty:
                    pass
            while len(mine) > 8:
                tensor = mine.pop(chance.randrange(len(mine)))
                assert memoryview(tensor)[0] == seed
                if chance.random() < 0.5:
                    pool.free_tensor(tensor)

    for start in range(0, 24, 8):
        run_all([lambda seed=seed: work(seed) for seed in range(start, start + 8)])
    while not handed_on.empty():
        handed_on.get()
    gc.collect()
    stats = pool.stats()
    assert (stats['requested'], stats['bad_frees']) == (0, 0)
    assert stats['allocations'] == stats['frees'] == 24 * 300


def test_of_all_threads_that_free_a_tensor_one_succeeds():
    pool = orderly.MemoryPool(capacity=256 * MIB)
    tensors = [pool.empty(100) for _ in range(500)]
    freed, refused = [], []

    def work():
        for tensor in tensors:
            try:
                pool.free_tensor(tensor)
                freed.append(tensor)
            except orderly.BadFree as error:
                refused.append(error.code)

    run_all([work] * 4)
    assert len(freed) == len(set(map(id, freed))) == 500
    assert refused == ['double_free'] * 1500
    assert pool.stats()['allocations'] == pool.stats()['frees'] == 500


def test_of_all_threads_that_free_an_address_one_succeeds():
    pool = orderly.BuddyAllocator(256 * MIB)
    for size in (1000, 2 * MIB):
        addresses = [pool.allocate(size) for _ in range(60)]
        outcomes = []

        def work():
            for address in addresses:
                try:
                    pool.free(address, size)
                    outcomes.append('freed')
                except orderly.BadFree as error:
                    outcomes.append(error.code)

        run_all([work] * 4)
        # Two that free at the same instant may both be told that they did; the block is freed once all the same.
        assert set(outcomes) <= {'freed', 'double_free'}
        assert pool.stats()['requested'] == 0


def test_the_interpreter_goes_on_while_a_call_waits():
    device = orderly.SoftwareDevice()
    pool = orderly.MemoryPool(capacity=64 * MIB, streams=device)
    for wait in (lambda: pool.synchronize(), lambda: pool.stream_synchronize(stream), lambda: stream.synchronize(),
                 lambda: pool.free_tensor(tensor) or pool.close()):
        stream, gate = orderly.SoftwareStream(device), threading.Event()
        tensor = pool.empty(1000, stream=stream)
        stream.enqueue(lambda: gate.wait(60))
        other = None
        if wait.__code__.co_names[0] != 'free_tensor':
            other = pool.empty(1000, stream=stream)
            del other
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.05)
        assert waiting.is_alive()
        gate.set()
        waiting.join(60)
        assert not waiting.is_alive()
        if wait.__code__.co_names[-1] != 'close':
            del tensor


def test_a_handler_may_wait_for_another_thread():
    """So the thread that asks has given up the GIL, and no lock of the pool is held."""
    held = []

    def handler(size):
        if not held:
            return False
        helper = threading.Thread(target=lambda: pool.free(held.pop()))
        helper.start()
        helper.join(60)
        return not helper.is_alive()

    pool = orderly.BuddyAllocator(8 * MIB, on_out_of_memory=handler)
    held += [pool.allocate(MIB) for _ in range(8)]
    run_all([lambda: pool.free(pool.allocate(MIB), MIB)] * 4)
    assert not held or pool.stats()['failed'] == 0


def test_a_pool_is_not_closed_under_a_thread_that_is_inside():
    inside, gate = threading.Event(), threading.Event()

    def handler(size):
        inside.set()
        gate.wait(60)
        return False

    pool = orderly.BuddyAllocator(MIB, on_out_of_memory=handler)
    block = pool.allocate(MIB)

    def work():
        with pytest.raises(orderly.OutOfMemory):
            pool.allocate(1)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError, match='another thread'):
        pool.close()
    pool.free(block)
    gate.set()
    thread.join()
    pool.close()


def test_pools_and_threads_end_in_any_order():
    def work(seed):
        chance = random.Random(seed)
        for _ in range(20):
            pool = orderly.MemoryPool(capacity=8 * MIB)
            tensors = [pool.empty(chance.randrange(1, 50_000)) for _ in range(5)]
            mine = threading.Thread(target=lambda pool=pool: [pool.empty(1000) for _ in range(10)])
            mine.start()
            if chance.random() < 0.5:
                mine.join()
            del pool
            tensors.clear()

    run_all([lambda seed=seed: work(seed) for seed in range(4)])
