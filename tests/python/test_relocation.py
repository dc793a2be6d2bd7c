"""Blocks that a pool may move."""

import ctypes
import gc
import random
import threading
import weakref

import numpy
import pytest

import orderly

MIB = 1 << 20


def fill(blocks, block, value, **where):
    with blocks.pin(block, **where) as pinned:
        ctypes.memset(pinned.address, value, pinned.nbytes)


def holds(blocks, block, value, **where):
    with blocks.pin(block, **where) as pinned:
        return ctypes.string_at(pinned.address, pinned.nbytes) == bytes([value]) * pinned.nbytes


def scattered(pool, **where):
    """A full pool of which every other block is free."""
    blocks = orderly.RelocatableBlocks(pool)
    handles = []
    with pytest.raises(orderly.OutOfMemory):
        while True:
            handles.append(blocks.allocate(1000, **where))
    for number, handle in enumerate(handles):
        fill(blocks, handle, number % 251, **where)
    for handle in handles[::2]:
        blocks.free(handle, **where)
    return blocks, {handle: number % 251 for number, handle in enumerate(handles) if number % 2}


def test_moving_makes_room():
    pool = orderly.MemoryPool('cpu', 1 << 30, limit=8 * MIB)
    blocks, values = scattered(pool)
    with pytest.raises(orderly.OutOfMemory) as refused:
        pool.allocate(3 * MIB)
    assert refused.value.report.helps['relocate']['count'] >= 48
    blocks.begin(bytes=MIB)
    steps = []
    while moves := blocks.step():
        assert sum(move['bytes'] for move in moves) <= MIB
        steps.append(moves)
    done = blocks.end()
    assert done['moves'] == sum(map(len, steps)) > 1000 and len(steps) >= 2
    assert done['bytes'] == 1000 * done['moves'] and done['skipped'] == 0
    assert done['planned'] == done['chunks'] >= 48
    for move in steps[0]:
        assert move['from'] != move['to'] and move['bytes'] == 1000
    where = {move['block']: move['to'] for moves in steps for move in moves}
    for handle, value in values.items():
        assert holds(blocks, handle, value)
        with blocks.pin(handle) as pinned:
            assert pinned.address == where.get(handle, pinned.address) and pinned.block == handle
    pool.free(pool.allocate(3 * MIB))
    blocks.close()
    assert pool.stats()['requested'] == 0


def test_a_step_has_bounds():
    pool = orderly.BuddyAllocator(1 << 30, limit=4 * MIB)
    blocks, values = scattered(pool)
    blocks.begin(moves=3)
    assert [len(blocks.step()) for _ in range(4)] == [3] * 4
    assert blocks.end()['moves'] == 12
    assert blocks.step() == []  # no run is under way
    blocks.begin(5000)
    assert len(blocks.step()) == 5
    assert all(holds(blocks, handle, value) for handle, value in values.items())


def test_what_is_pinned_stays_as_long_as_anything_uses_it():
    pool = orderly.MemoryPool('cpu', 1 << 30, limit=4 * MIB)
    blocks, values = scattered(pool)
    arrays = {handle: numpy.asarray(blocks.pin(handle)) for handle in values}
    assert all((array == values[handle]).all() and array.size == 1000 for handle, array in arrays.items())
    addresses = {handle: array.ctypes.data for handle, array in arrays.items()}
    blocks.begin()
    assert blocks.step() == [] and blocks.end()['planned'] == 0
    handle = next(iter(arrays))
    view = arrays[handle][10:20]
    arrays.clear()
    with pytest.raises(orderly.BadFree) as refused:
        blocks.free(handle)
    assert refused.value.code == 'pinned' and 'release its PinnedBlock' in str(refused.value)
    blocks.begin()
    moved = {move['block'] for moves in iter(blocks.step, []) for move in moves}
    assert len(moved) > 100 and handle not in moved
    view[:] = 7
    assert view.ctypes.data == addresses[handle] + 10
    del view
    gc.collect()
    blocks.free(handle)
    assert blocks.size(handle) == 0
    with pytest.raises(orderly.BadFree) as refused:
        blocks.free(handle)
    assert refused.value.code == 'stale_handle' and hex(handle) in str(refused.value)
    with pytest.raises(orderly.BadFree, match='it was freed') as refused:
        blocks.pin(handle)
    assert refused.value.code == 'stale_handle'


def test_release():
    blocks = orderly.RelocatableBlocks(orderly.MemoryPool('cpu', MIB))
    handle = blocks.allocate(100)
    assert blocks.size(handle) == 100
    with blocks.pin(handle) as pinned:
        view = memoryview(pinned)
        assert (view.nbytes, view.readonly, view.format, pinned.nbytes) == (100, False, 'B', 100)
        with pytest.raises(BufferError, match='in use by 1 other'):
            pinned.release()
        assert pinned.is_pinned
        other = blocks.pin(handle)
        assert other.address == pinned.address
        view.release()
    assert not pinned.is_pinned
    pinned.release()
    with pytest.raises(ValueError, match='not pinned any more'):
        pinned.address
    with pytest.raises(BufferError, match='not pinned any more'):
        memoryview(pinned)
    with pytest.raises(AttributeError if other.is_pinned else ValueError):
        other.__cuda_array_interface__
    with pytest.raises(orderly.BadFree):
        blocks.free(handle)
    del other
    blocks.free(handle)


def test_whatever_goes_first():
    pool = orderly.BuddyAllocator(MIB)
    blocks = orderly.RelocatableBlocks(pool)
    gone = weakref.ref(blocks)
    view = memoryview(blocks.pin(blocks.allocate(1000)))
    blocks.allocate(1000)
    with pytest.raises(BufferError, match='1 blocks are pinned'):
        blocks.close()
    with pytest.raises(RuntimeError, match='RelocatableBlocks of the pool are alive'):
        pool.close()
    del blocks
    assert gone() is None
    with pytest.raises(RuntimeError, match='RelocatableBlocks of the pool are alive'):
        pool.close()
    view[:] = b'x' * 1000
    assert pool.stats()['requested'] == 2000
    del view
    assert pool.stats()['requested'] == 0
    pool.close()
    blocks = orderly.RelocatableBlocks(orderly.BuddyAllocator(MIB))  # keeps the memory
    fill(blocks, blocks.allocate(1000), 3)
    blocks.close()
    blocks.close()
    for call in (lambda: blocks.allocate(1), lambda: blocks.pin(1), lambda: blocks.free(1), lambda: blocks.size(1),
                 blocks.begin, blocks.step, blocks.end):
        with pytest.raises(ValueError, match='closed'):
            call()


def test_what_is_wrong_is_said():
    with pytest.raises(TypeError, match='give a MemoryPool'):
        orderly.RelocatableBlocks(3)
    pool = orderly.BuddyAllocator(MIB)
    blocks, others = orderly.RelocatableBlocks(pool), orderly.RelocatableBlocks(pool)
    handle = blocks.allocate(10)
    for wrong in (0, 1, handle + 1, 2**64 - 1):
        for call in (blocks.free, blocks.pin):
            with pytest.raises(orderly.BadFree) as refused:
                call(wrong)
            assert refused.value.code == 'stale_handle'
        assert blocks.size(wrong) == 0
    with pytest.raises(TypeError):
        blocks.pin(-1)
    with pytest.raises(ValueError, match='no CUDA streams'):
        blocks.allocate(1, stream=5)
    with pytest.raises(orderly.OutOfMemory):
        blocks.allocate(2 * MIB)
    with pytest.raises(orderly.BadFree):
        others.free(handle)
    del blocks, others, call
    refused = None
    gc.collect()
    pool.close()
    with pytest.raises(ValueError, match='closed'):
        orderly.RelocatableBlocks(pool)
    with pytest.raises(TypeError):
        orderly.PinnedBlock()


def test_the_handler_is_asked():
    class Mine(Exception):
        pass

    def handler(size):
        raise Mine(size)

    pool = orderly.MemoryPool('cpu', MIB, on_out_of_memory=handler)
    blocks = orderly.RelocatableBlocks(pool)
    held = blocks.allocate(MIB)
    with pytest.raises(Mine, match='70000'):
        blocks.allocate(70_000)
    blocks.free(held)


@pytest.mark.parametrize('schedule', ['workers', 'eager', 'lazy'])
def test_in_stream_order(schedule):
    device = orderly.SoftwareDevice(schedule)
    pool = orderly.MemoryPool('cpu', 1 << 30, limit=4 * MIB, streams=device)
    work, copies = orderly.SoftwareStream(device), orderly.SoftwareStream(device)
    blocks = orderly.RelocatableBlocks(pool)
    for call in (lambda: blocks.allocate(10), lambda: blocks.pin(1), blocks.step):
        with pytest.raises(ValueError, match='name one'):
            call()
    handles = []
    with pytest.raises(orderly.OutOfMemory):
        while True:
            handles.append(blocks.allocate(1000, stream=work))
    for number, handle in enumerate(handles):
        pinned = blocks.pin(handle, stream=work)
        work.enqueue(lambda address=pinned.address, value=number % 251: ctypes.memset(address, value, 1000))
        pinned.release()  # the work is in the stream, and need not be done
    for handle in handles[::2]:
        blocks.free(handle, stream=work)
    pool.synchronize()
    blocks.begin()
    moved = 0
    while moves := blocks.step(copies):
        moved += len(moves)
    assert moved > 100 and blocks.end()['moves'] == moved
    seen = {}

    def look(handle, address):
        seen[handle] = ctypes.string_at(address, 1000)

    for handle in handles[1::2]:
        with blocks.pin(handle, stream=work) as pinned:
            work.enqueue(lambda handle=handle, address=pinned.address: look(handle, address))
    pool.synchronize()
    assert seen == {handle: bytes([number % 251]) * 1000 for number, handle in enumerate(handles) if number % 2}
    with pytest.raises(ValueError, match='no CUDA streams'):
        blocks.step(5)
    blocks.close()
    assert pool.stats()['requested'] == 0


def test_the_end_of_a_set_waits_for_the_work_that_uses_it():
    device = orderly.SoftwareDevice('lazy')
    pool = orderly.MemoryPool('cpu', MIB, streams=device)
    stream, done = orderly.SoftwareStream(device), []
    blocks = orderly.RelocatableBlocks(pool)
    with blocks.pin(blocks.allocate(1000, stream=stream), stream=stream) as pinned:
        stream.enqueue(lambda address=pinned.address: done.append(ctypes.memset(address, 1, 1000)))
    assert not done
    blocks.close()
    assert done


def test_threads_use_blocks_while_they_move():
    pool = orderly.MemoryPool('cpu', 1 << 30, limit=16 * MIB)
    blocks = orderly.RelocatableBlocks(pool)
    failures, done = [], threading.Event()

    def work(seed):
        chance, mine = random.Random(seed), {}
        try:
            for _ in range(3000):
                if len(mine) < 300:
                    handle = blocks.allocate(chance.randrange(1, 5000))
                    mine[handle] = chance.randrange(256)
                    fill(blocks, handle, mine[handle])
                    continue
                handle = chance.choice(list(mine))
                assert holds(blocks, handle, mine[handle])
                if chance.random() < 0.7:
                    del mine[handle]
                    blocks.free(handle)
            for handle, value in mine.items():
                assert holds(blocks, handle, value)
        except BaseException as error:
            failures.append(error)

    def move():
        while not done.is_set():
            blocks.begin(bytes=200_000)
            while blocks.step():
                pass
            moved.append(blocks.end()['moves'])

    moved = []
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    mover = threading.Thread(target=move)
    for thread in (*workers, mover):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    mover.join()
    assert not failures and sum(moved) > 0
    blocks.close()
    assert pool.stats()['requested'] == 0
