"""The plug-ins for GPUs where there is none: against stand-ins for CuPy, Numba and PyTorch, which behave as those do at
the places that the plug-ins use. A pool in host memory takes the place of the device's.

test_cuda.py runs them with the libraries themselves, on a machine that has a GPU.
"""

import contextlib
import ctypes
import gc
import importlib
import sys
import types
import weakref

import pytest

import orderly

MIB = 1 << 20


def module(name, **members):
    made = types.ModuleType(name)
    vars(made).update(members)
    return made


@pytest.fixture
def host_pool(monkeypatch):
    """What the plug-ins make in place of a device's pool."""
    device = orderly.SoftwareDevice()
    made, in_host_memory = {}, orderly.MemoryPool

    class Pool:
        """A pool in host memory that takes the numbers of streams for streams."""

        def __init__(self, name, **options):
            self.name, self.options = name, options
            self.inner = in_host_memory(capacity=64 * MIB, streams=device)
            self.streams = {}
            made[name] = self

        def of(self, stream):
            return self.streams.setdefault(stream, orderly.SoftwareStream(device))

        def allocate(self, size, stream=0):
            return self.inner.allocate(size, stream=self.of(stream))

        def free(self, address, size, stream=0):
            self.inner.free(address, size, stream=self.of(stream))

        def record_stream(self, address, stream):
            self.inner.record_stream(address, self.of(stream))

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(orderly, 'MemoryPool', Pool)
    return made


def plug_in(monkeypatch, name, **standins):
    for each, made in standins.items():
        monkeypatch.setitem(sys.modules, each.replace('__', '.'), made)
    # Both are put back as they were, or go: what is imported here works with the stand-ins.
    monkeypatch.setattr(orderly, name, None, raising=False)
    monkeypatch.setitem(sys.modules, f'orderly.{name}', None)
    del sys.modules[f'orderly.{name}']
    return importlib.import_module(f'orderly.{name}')


class Memory:
    def __init__(self, ptr, size, owner, device_id):
        if ptr == 0:
            assert device_id >= 0  # CuPy cannot find out otherwise
        self.ptr, self.size, self._owner, self.device_id = ptr, size, owner, device_id


class Pointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset


def cupy_standin():
    state = {'allocator': None, 'stream': 0, 'device': 0}

    @contextlib.contextmanager
    def using_allocator(function):
        last, state['allocator'] = state['allocator'], function
        yield
        state['allocator'] = last

    cuda = module('cupy.cuda', MemoryPointer=Pointer, UnownedMemory=Memory, using_allocator=using_allocator,
                  set_allocator=lambda function: state.update(allocator=function),
                  get_current_stream=lambda: state['stream'],
                  runtime=types.SimpleNamespace(getDevice=lambda: state['device']))
    default = types.SimpleNamespace(malloc='its own')
    return module('cupy', cuda=cuda, get_default_memory_pool=lambda: default), state


def array(state, size):
    return types.SimpleNamespace(data=state['allocator'](size))


def test_cupy(monkeypatch, host_pool):
    cupy, state = cupy_standin()
    plugin = plug_in(monkeypatch, 'cupy', cupy=cupy, cupy__cuda=cupy.cuda)
    plugin.enable()
    state['stream'] = 17
    one = array(state, 1000)
    state['device'] = 1
    two = array(state, 2000)
    assert set(host_pool) == {'cuda:0', 'cuda:1'}
    assert host_pool['cuda:0'].owns(one.data.ptr) and host_pool['cuda:1'].owns(two.data.ptr)
    assert set(host_pool['cuda:0'].streams) == {17}
    state['stream'] = 18  # an array is freed in the stream that it was allocated in
    assert host_pool['cuda:1'].owns(array(state, 500).data.ptr)
    assert set(host_pool['cuda:1'].streams) == {17, 18}
    address = one.data.ptr
    plugin.record_stream(two, 19)
    del one
    gc.collect()
    assert host_pool['cuda:0'].stats()['requested'] == 0
    state.update(stream=17, device=0)
    again = array(state, 1000)
    assert again.data.ptr == address and host_pool['cuda:0'].stats()['events_recorded'] == 0
    assert array(state, 0).data.ptr == 0
    plugin.disable()
    assert state['allocator'] == 'its own'
    with pytest.raises(ValueError, match='of no pool'):
        plugin.record_stream(types.SimpleNamespace(data=Pointer(Memory(4096, 1, None, 0), 0)), 3)
    with plugin.mem_pool():
        assert host_pool['cuda:0'].owns(array(state, 10).data.ptr)
    assert state['allocator'] == 'its own'


def test_cupy_memory_is_freed_once_also_if_an_allocation_fails(monkeypatch, host_pool):
    cupy, state = cupy_standin()
    plugin = plug_in(monkeypatch, 'cupy', cupy=cupy, cupy__cuda=cupy.cuda)
    plugin.enable()
    with pytest.raises(orderly.OutOfMemory):
        array(state, 1 << 40)
    kept = [array(state, 1000) for _ in range(10)]
    del kept
    gc.collect()
    stats = host_pool['cuda:0'].stats()
    assert stats['allocations'] == stats['frees'] == 10 and stats['bad_frees'] == 0


def numba_standin(by_ctypes):
    class MemoryPointer:
        def __init__(self, context, pointer, size, owner=None, finalizer=None):
            self.context, self.device_pointer, self.size = context, pointer, size
            self.finalizer = weakref.finalize(self, finalizer)

    class Manager:
        def __init__(self, context):
            self.context, self.was_reset = context, False

        def reset(self):
            self.was_reset = True

    class Ipc:
        def get_ipc_handle(self, memory):
            return 'handle', memory

    cuda = module('numba.cuda', GetIpcHandleMixin=Ipc, HostOnlyCUDAMemoryManager=Manager, MemoryPointer=MemoryPointer,
                  MemoryInfo=lambda free, total: (free, total), managers=[],
                  current_context=lambda: types.SimpleNamespace(device=types.SimpleNamespace(id=0)))
    cuda.set_memory_manager = cuda.managers.append
    driver = module('numba.cuda.cudadrv.driver', binding=types.SimpleNamespace(CUdeviceptr=lambda address: ('its', address)))
    if by_ctypes:
        driver.USE_NV_BINDING = False
    cudadrv = module('numba.cuda.cudadrv', driver=driver)
    return {'numba': module('numba', cuda=cuda), 'numba__cuda': cuda, 'numba__cuda__cudadrv': cudadrv,
            'numba__cuda__cudadrv__driver': driver}


class Context:
    def __init__(self, device):
        self.device = types.SimpleNamespace(id=device)


@pytest.mark.parametrize('by_ctypes', [True, False], ids=['ctypes', 'CUDA Python'])
def test_numba(monkeypatch, host_pool, by_ctypes):
    standins = numba_standin(by_ctypes)
    cuda = standins['numba__cuda']
    plugin = plug_in(monkeypatch, 'numba', **standins)
    plugin.enable()
    assert cuda.managers == [plugin.MemoryManager] == [plugin._numba_memory_manager]
    assert plugin.MemoryManager(context=None).interface_version == 1
    context = Context(1)
    manager = plugin.MemoryManager(context)
    manager.reset()  # may come first
    manager.initialize()
    manager.initialize()
    memory = manager.memalloc(1000)
    if by_ctypes:
        assert isinstance(memory.device_pointer, ctypes.c_uint64)
        address = memory.device_pointer.value
    else:
        which, address = memory.device_pointer
        assert which == 'its'
    assert host_pool['cuda:1'].owns(address) and memory.size == 1000
    free, total = manager.get_memory_info()
    assert 0 < free < total == 64 * MIB
    with pytest.raises(NotImplementedError, match='IPC'):
        manager.get_ipc_handle(memory)
    plugin.kind = 'device'
    assert manager.get_ipc_handle(memory) == ('handle', memory)
    with pytest.raises(orderly.OutOfMemory):
        manager.memalloc(1 << 40)
    del memory
    gc.collect()
    assert host_pool['cuda:1'].stats()['requested'] == 0
    manager.reset()
    assert manager.was_reset and host_pool['cuda:1'].stats()['committed'] == 0
    assert plugin.pool() is host_pool['cuda:0'] and host_pool['cuda:0'].options == {'kind': 'device'}


def test_numba_itself_takes_the_plug_in_where_it_is_installed():
    cuda = pytest.importorskip('numba.cuda')
    plugin = importlib.import_module('orderly.numba')
    assert issubclass(plugin.MemoryManager, cuda.BaseCUDAMemoryManager)
    assert not plugin.MemoryManager.__abstractmethods__
    plugin.MemoryManager(context=None)


def test_pytorchs_pluggable_allocator(monkeypatch):
    torch = pytest.importorskip('torch')
    plugin = importlib.import_module('orderly.torch')
    set_to, changed = {}, []

    class Inner:
        def __getattr__(self, name):
            assert name.startswith('set_') and name.endswith('_fn')
            return lambda address: set_to.update({name: address})

    class Allocator:
        def __init__(self, path, allocate, free):
            self.names = path, allocate, free
            self.inner = Inner()

        def allocator(self):
            return self.inner

    class Library:
        def __init__(self):
            self.functions = {}

        def __getattr__(self, name):
            if name == 'orderly_torch_memory_stats':
                return lambda device, stats: 1
            return ctypes.CFUNCTYPE(None)(lambda: None)

    @contextlib.contextmanager
    def use_mem_pool(pool):
        changed.append(pool)
        yield

    monkeypatch.setattr(plugin, '_cuda_library', Library())
    monkeypatch.setattr(torch.cuda.memory, 'CUDAPluggableAllocator', Allocator, raising=False)
    monkeypatch.setattr(torch.cuda.memory, 'change_current_allocator', changed.append, raising=False)
    monkeypatch.setattr(torch.cuda, 'MemPool', lambda allocator: ('pool', allocator), raising=False)
    monkeypatch.setattr(torch.cuda, 'use_mem_pool', use_mem_pool, raising=False)
    monkeypatch.setattr(plugin, '_cuda_enabled', False)
    with pytest.raises(ValueError, match='a pool of its own'):
        plugin.enable(orderly.MemoryPool(capacity=MIB), device='cuda')
    plugin.enable(device='cuda')
    assert changed[0].names[1:] == ('orderly_torch_alloc', 'orderly_torch_free')
    names = 'record_stream', 'reset', 'memory_fraction', 'base_alloc', 'init'
    assert set(set_to) == {f'set_{name}_fn' for name in names}
    assert all(isinstance(address, int) and address for address in set_to.values())
    assert plugin.is_enabled('cuda')
    with pytest.raises(RuntimeError, match='until the process ends'):
        plugin.disable()
    with plugin.mem_pool(device='cuda') as pool:
        assert pool[0] == 'pool' and changed[1] is pool
    assert plugin.memory_stats('cuda:0')['reserved_bytes.all.current'] == 0
