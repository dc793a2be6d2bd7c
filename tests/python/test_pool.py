"""Raw blocks: BuddyAllocator and MemoryPool by address; figures, handlers, closing."""

import ast
import copy
import ctypes
import gc
import pathlib
import pickle
import sys
import weakref

import pytest

import orderly

MIB = 1 << 20


def pools():
    return [orderly.BuddyAllocator(64 * MIB), orderly.MemoryPool('cpu', 64 * MIB),
            orderly.MemoryPool('cpu', 64 * MIB, streams=orderly.SoftwareDevice())]


@pytest.mark.parametrize('pool', pools(), ids=['buddy', 'memory', 'streams'])
def test_blocks_are_usable_over_their_whole_length_and_come_back(pool):
    sizes = [1, 255, 256, 257, 5000, MIB, MIB + 1, 3 * MIB]
    blocks = [(pool.allocate(size), size) for size in sizes]
    for number, (address, size) in enumerate(blocks):
        assert address % 256 == 0
        ctypes.memset(address, number + 1, size)
        assert pool.owns(address) and pool.owns(address + size - 1)
        assert pool.block_size(address) >= size
    for number, (address, size) in enumerate(blocks):
        assert ctypes.string_at(address, size) == bytes([number + 1]) * size
    assert pool.stats()['requested'] == sum(sizes)
    for address, size in blocks:
        pool.free(address, size)
        assert not pool.owns(address)
    assert pool.stats()['requested'] == 0
    assert pool.stats()['allocations'] == pool.stats()['frees'] == len(sizes)


@pytest.mark.parametrize('pool', pools(), ids=['buddy', 'memory', 'streams'])
def test_alignment(pool):
    for shift in range(17):
        address = pool.allocate(100, alignment=1 << shift)
        assert address % (1 << shift) == 0
        pool.free(address)
    with pytest.raises(ValueError, match='alignment 3 '):
        pool.allocate(100, 3)
    for wrong in (-1, 2**64, 'many', None, 1.5):
        with pytest.raises(TypeError):
            pool.allocate(wrong)
        with pytest.raises(TypeError):
            pool.free(wrong)


def test_a_handle_is_freed_once_also_after_reuse():
    pool = orderly.BuddyAllocator(64 * MIB)
    first = pool.allocate_checked(1000)
    pool.free_checked(*first, 1000)
    second = pool.allocate_checked(1000)
    assert second[0] == first[0]
    with pytest.raises(orderly.BadFree) as refused:
        pool.free_checked(*first, 1000)
    assert refused.value.code == 'stale_handle'
    assert refused.value.generation == first[1] != refused.value.block_generation
    assert (refused.value.block, refused.value.state) == (second[0], 'live')
    assert isinstance(refused.value, ValueError)
    pool.free_checked(*second)


def test_a_bad_free_tells_what_was_found():
    pool = orderly.BuddyAllocator(64 * MIB)
    address = pool.allocate(5000)
    with pytest.raises(orderly.BadFree, match=hex(address)) as refused:
        pool.free(address + 256, 300)
    error = refused.value
    assert (error.code, error.pointer, error.bytes) == ('interior_pointer', address + 256, 300)
    assert (error.block, error.block_requested, error.state) == (address, 5000, 'live')
    assert error.block_bytes >= 5000
    assert pool.stats()['bad_frees'] == 1
    pool.free(address)
    pool.free(0)


def test_out_of_memory_names_the_request():
    pool = orderly.BuddyAllocator(MIB)
    with pytest.raises(orderly.OutOfMemory, match='2097152 bytes requested') as refused:
        pool.allocate(2 * MIB)
    assert refused.value.requested == 2 * MIB
    assert isinstance(refused.value, MemoryError)
    assert pool.stats()['failed'] == 1
    with pytest.raises(ValueError, match='granule 3 '):
        orderly.BuddyAllocator(MIB, granule=3)
    with pytest.raises(TypeError, match='no function'):
        orderly.BuddyAllocator(MIB, on_bad_free='print')


def test_options_and_figures():
    pool = orderly.BuddyAllocator(8 * MIB, granule=512, chunk=128 << 10, limit=4 * MIB)
    assert (pool.granule, pool.chunk, pool.capacity, pool.limit) == (512, 128 << 10, 8 * MIB, 4 * MIB)
    assert pool.device == 'cpu'
    assert pool.rounded(1) == 512 and pool.rounded(9 * MIB) == 0
    assert pool.reserve(MIB) >= MIB and pool.stats()['committed'] >= MIB
    assert pool.trim() >= MIB and pool.stats()['committed'] == 0
    address = pool.allocate(1000)
    pool.free(address)
    assert pool.stats()['cached'] > 0
    assert pool.defragment() > 0
    assert pool.stats()['cached'] == 0
    assert all(isinstance(value, int) for value in pool.stats().values())


def test_a_snapshot_shows_the_live_blocks_and_no_others():
    pool = orderly.BuddyAllocator(8 * MIB)
    wanted = {pool.allocate(size): size for size in (1, 1000, 70000, MIB)}
    snapshot = pool.snapshot()
    live = {block['address']: block['requested'] for block in snapshot['blocks'] if block['state'] == 'live'}
    assert live == wanted
    assert snapshot['stats']['requested'] == sum(wanted.values())
    assert snapshot['device'] == 'cpu'
    addresses = [block['address'] for block in snapshot['blocks']]
    assert addresses == sorted(addresses)


def test_a_buffer_serves_and_is_held_until_the_pool_goes():
    memory = bytearray(MIB + 4096)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % 4096
    pool = orderly.BuddyAllocator(buffer=memoryview(memory)[start:start + MIB])
    address = pool.allocate(100)
    ctypes.memset(address, 7, 100)
    assert memory.count(7) == 100
    with pytest.raises(BufferError):
        memory.extend(b'x')
    pool.close()
    memory.extend(b'x')
    with pytest.raises(BufferError):
        orderly.BuddyAllocator(buffer=b'not writable')
    del pool


def test_closed_is_closed():
    pool = orderly.BuddyAllocator(MIB)
    address = pool.allocate(100)
    pool.close()
    pool.close()
    with pytest.raises(orderly.BadFree) as refused:
        pool.free(address, 100)
    assert refused.value.code == 'pool_gone'
    for call in (pool.stats, pool.snapshot, pool.trim, pool.defragment, lambda: pool.reserve(1),
                 lambda: pool.allocate(1)):
        with pytest.raises(ValueError, match='closed'):
            call()
    assert not pool.owns(address) and pool.block_size(address) == 0 and pool.capacity == 0


def test_the_out_of_memory_handler_is_asked_and_may_free():
    asked, spare = [], []

    def handler(size):
        asked.append(size)
        if not spare:
            return False
        pool.free(spare.pop())
        return True

    pool = orderly.BuddyAllocator(MIB, on_out_of_memory=handler)
    spare += [pool.allocate(MIB // 2), pool.allocate(MIB // 2)]
    pool.free(pool.allocate(MIB))
    assert asked == [MIB, MIB]
    pool.allocate(MIB)
    with pytest.raises(orderly.OutOfMemory):
        pool.allocate(1)
    assert asked[-1] == 1


def test_what_the_out_of_memory_handler_raises_leaves_the_allocation():
    class Mine(Exception):
        pass

    def handler(size):
        raise Mine(size)

    settings = {'capacity': MIB, 'on_out_of_memory': handler}
    for pool in (orderly.BuddyAllocator(**settings), orderly.MemoryPool(**settings),
                 orderly.MemoryPool(**settings, streams=orderly.SoftwareDevice('lazy'))):
        held = pool.allocate(MIB)
        for _ in range(3):
            with pytest.raises(Mine, match='70000'):
                pool.allocate(70000)
            if hasattr(pool, 'empty'):
                with pytest.raises(Mine, match='800'):
                    pool.empty((10, 10), 'float64')
        pool.free(held, MIB)
        pool.free(pool.allocate(1000), 1000)


def test_the_bad_free_handler_gets_those_of_the_garbage_collector(monkeypatch):
    reports, unraisable = [], []
    monkeypatch.setattr(sys, 'unraisablehook', unraisable.append)

    def handler(error):
        reports.append(error)
        raise RuntimeError('in the handler')

    pool = orderly.MemoryPool(capacity=MIB, on_bad_free=handler)
    tensor = pool.empty(1000, 'uint8')
    pool.free(tensor.ptr, 1000)
    try:
        raise KeyError('pending')
    except KeyError:
        del tensor
    assert [error.code for error in reports] == ['double_free']
    assert isinstance(reports[0], orderly.BadFree)
    assert str(unraisable[0].exc_value) == 'in the handler'
    assert pool.stats()['bad_frees'] == 1


def test_a_bad_free_of_the_garbage_collector_is_a_line_on_stderr(capfd):
    pool = orderly.MemoryPool(capacity=MIB)
    tensor = pool.empty(1000, 'uint8')
    pool.free(tensor.ptr)
    del tensor
    assert 'double free' in capfd.readouterr().err


@pytest.mark.parametrize('kind', [orderly.BuddyAllocator, orderly.MemoryPool])
def test_a_cycle_through_a_handler_is_collected(kind):
    class Program:
        def __init__(self):
            self.pool = kind(capacity=MIB, on_out_of_memory=self.handle, on_bad_free=self.handle)

        def handle(self, _):
            return False

    program = Program()
    gone = weakref.ref(program), weakref.ref(program.pool)
    del program
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_a_tensor_outlives_its_pool_and_the_pools_handlers():
    asked = []
    pool = orderly.MemoryPool(capacity=MIB, on_out_of_memory=lambda size: asked.append(size))
    tensor = pool.empty(1000, 'uint8')
    view = memoryview(tensor)
    view[:] = b'x' * 1000
    del pool, tensor
    gc.collect()
    assert bytes(view) == b'x' * 1000
    assert not asked


@pytest.mark.parametrize('pool', pools(), ids=['buddy', 'memory', 'streams'])
def test_a_pool_is_neither_pickled_nor_copied(pool):
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match='neither pickled nor copied'):
            call(pool)


@pytest.mark.filterwarnings('ignore:nanobind')
def test_nothing_is_made_without_its_own_function():
    with pytest.raises(TypeError):
        orderly.Tensor()
    unmade = orderly.BuddyAllocator.__new__(orderly.BuddyAllocator)
    with pytest.raises(TypeError):
        unmade.allocate(1)
    del unmade
    gc.collect()
    pool = orderly.BuddyAllocator(MIB)
    address = pool.allocate(1)
    with pytest.raises(Exception):
        pool.__init__(2 * MIB)
    pool.free(address)


@pytest.mark.skipif(orderly.has_cuda, reason='CUDA is there')
def test_without_cuda_a_device_is_refused_with_what_to_do():
    with pytest.raises(RuntimeError, match='Dcuda=enabled'):
        orderly.MemoryPool('cuda:0')


def test_devices_have_names():
    for wrong in ('tpu', 'cuda:x', 'cuda:-1', '', 7, 'cuda:99999'):
        with pytest.raises(ValueError, match="give 'cpu'"):
            orderly.MemoryPool(wrong)


def test_the_stubs_have_what_the_module_has():
    stubs = ast.parse((pathlib.Path(orderly.__file__).parent / '_core.pyi').read_text())
    found = {node.name: {member.name for member in ast.walk(node) if isinstance(member, ast.FunctionDef)}
             for node in stubs.body if isinstance(node, ast.ClassDef)}
    for name in dir(orderly._core):
        kind = getattr(orderly._core, name)
        if name.startswith('_') or not isinstance(kind, type):
            continue
        members = {member for member in vars(kind) if not member.startswith('_')}
        assert members <= found[name], name
    assert '__buffer__' in found['Tensor'] & found['PinnedBlock'] and '__buffer__' not in found['MemoryPool']
    functions = {node.name for node in stubs.body if isinstance(node, ast.FunctionDef)}
    assert functions == {'current_tag'}
