"""Pools of a GPU's memory, and the plug-ins with the libraries themselves. Without a device, or in a build without
CUDA, nothing here runs."""

import gc
import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy
import pytest

import orderly

MIB = 1 << 20
if not orderly.has_cuda:
    pytest.skip('orderly was built without CUDA', allow_module_level=True)
try:
    orderly.MemoryPool('cuda:0', limit=64 * MIB)
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

cupy = pytest.importorskip('cupy')
torch = pytest.importorskip('torch')
if not torch.cuda.is_available():
    pytest.skip('this PyTorch has no CUDA', allow_module_level=True)


def run(program, **environment):
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(program)], capture_output=True, text=True, check=False,
                          timeout=300, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def device_view(tensor):
    return torch.as_tensor(tensor, device='cuda:0')


@pytest.fixture
def pool():
    made = orderly.MemoryPool('cuda:0', limit=512 * MIB)
    yield made
    gc.collect()
    torch.cuda.synchronize()
    stats = made.stats()
    assert stats['requested'] == 0 and stats['allocations'] == stats['frees']


@pytest.mark.parametrize('kind', ['virtual', 'device', 'managed', 'pinned'])
def test_kinds_of_memory(kind):
    pool = orderly.MemoryPool('cuda:0', capacity=64 * MIB, kind=kind)
    tensor = pool.empty((256, 1024), 'float32')
    taken = torch.from_numpy(numpy.asarray(tensor)) if kind == 'pinned' else device_view(tensor)
    assert taken.data_ptr() == tensor.ptr
    taken.fill_(3)
    assert float(taken.cuda().sum()) == 3 * 256 * 1024
    if kind == 'virtual':
        assert pool.stats()['committed'] < 64 * MIB
    del taken, tensor
    gc.collect()
    pool.trim()
    assert pool.stats()['requested'] == 0


def test_raw_blocks_and_bad_frees(pool):
    address = pool.allocate(3 * MIB)
    assert pool.owns(address) and pool.block_size(address) >= 3 * MIB
    for wrong, code in ((address + 4096, 'interior_pointer'), (4096, 'foreign_pointer')):
        with pytest.raises(orderly.BadFree) as refused:
            pool.free(wrong)
        assert refused.value.code == code
    pool.free(address)
    with pytest.raises(orderly.BadFree) as refused:
        pool.free(address)
    assert refused.value.code == 'double_free'
    with pytest.raises(orderly.OutOfMemory):
        pool.allocate(1 << 40)


@pytest.mark.parametrize('name', ['bool', 'uint8', 'int16', 'int64', 'float16', 'bfloat16', 'float64', 'complex64'])
def test_pytorch_takes_and_gives_a_tensor(pool, name):
    taken = torch.from_dlpack(pool.empty((2, 3), getattr(torch, name)))
    taken.fill_(1)
    assert (taken.dtype, tuple(taken.shape), str(taken.device)) == (getattr(torch, name), (2, 3), 'cuda:0')
    assert pool.owns(taken.data_ptr()) and bool((taken == 1).all())


def test_cupy_takes_a_tensor_both_ways(pool):
    tensor = pool.empty((3, 4), 'float32')
    for taken in (cupy.from_dlpack(tensor), cupy.asarray(tensor)):
        taken[...] = 2
        assert taken.data.ptr == tensor.ptr and float(taken.sum()) == 24
    interface = tensor.__cuda_array_interface__
    assert interface['shape'] == (3, 4) and interface['data'] == (tensor.ptr, False)
    with pytest.raises(AttributeError):
        tensor.__array_interface__
    with pytest.raises(BufferError):
        memoryview(tensor)


def test_streams_take_over_in_order():
    """What each stream wrote is what it reads, although the only block changes hands while the last owner's kernels are
    still to run."""
    torch.zeros(100, dtype=torch.uint8, device='cuda')[:: 10].clone().fill_(1)  # a kernel's first launch may wait
    pool = orderly.MemoryPool('cuda:0', limit=256 * MIB)
    streams = [torch.cuda.Stream() for _ in range(2)]
    out = []
    for turn in range(6):
        stream = streams[turn % 2]
        tensor = pool.empty(256 * MIB, 'uint8', stream=stream)
        with torch.cuda.stream(stream):
            view = torch.from_dlpack(tensor) if turn % 3 else device_view(tensor)
            torch.cuda._sleep(20_000_000)
            view.fill_(turn)
            out.append((turn, view[:: 1 << 20].clone()))
        del view
        pool.free_tensor(tensor)  # in its stream, behind what was enqueued there
    torch.cuda.synchronize()
    assert all(bool((seen == turn).all()) for turn, seen in out)
    assert pool.stats()['waits'] >= 1


def test_what_another_stream_uses_stays_out_of_use_until_it_is_done(pool):
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    tensor = pool.empty(256 * MIB, 'uint8', stream=one)
    address = tensor.ptr
    view = device_view(tensor)
    with torch.cuda.stream(one):
        view.fill_(1)
    two.wait_stream(one)
    with torch.cuda.stream(two):
        torch.cuda._sleep(200_000_000)
        seen = view[:: 1 << 20].clone()
    pool.record_stream(tensor, two)
    del view
    pool.free_tensor(tensor)
    again = pool.empty(256 * MIB, 'uint8', stream=one)  # 512 MiB in all: the same block, or another one
    with torch.cuda.stream(one):
        device_view(again).fill_(9)
    torch.cuda.synchronize()
    assert bool((seen == 1).all())
    third = pool.empty(256 * MIB, 'uint8', stream=one)
    assert address in (again.ptr, third.ptr)
    assert pool.stream_synchronize(one) and pool.synchronize()


def test_streams_of_every_library_are_understood(pool):
    for stream in (None, 0, 1, 2, torch.cuda.Stream(), torch.cuda.current_stream(), cupy.cuda.Stream(non_blocking=True),
                   cupy.cuda.Stream.null, torch.cuda.Stream().cuda_stream):
        tensor = pool.empty(1000, stream=stream)
        pool.free_tensor(tensor)
    with pytest.raises(TypeError, match='no stream'):
        pool.empty(1000, stream='second')


def test_a_stream_lives_as_long_as_the_pool_knows_it():
    pool = orderly.MemoryPool('cuda:0', limit=64 * MIB)
    for _ in range(3):
        pool.free_tensor(pool.empty(1000, stream=cupy.cuda.Stream(non_blocking=True)))
    gc.collect()
    assert pool.synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    pool.free_tensor(pool.empty(1000, stream=stream))
    gone = weakref.ref(stream)
    del stream
    assert gone() is not None
    pool.release_stream(gone())
    assert gone() is None
    number = cupy.cuda.runtime.streamCreate()
    pool.free_tensor(pool.empty(1000, stream=number))
    cupy.cuda.runtime.streamDestroy(number)  # too early, and forgiven at the pool's end
    pool.close()


def test_a_cache_of_tensors(pool):
    cache = orderly.TensorCache(pool, limit=64 * MIB)
    stream = torch.cuda.Stream()
    addresses = set()
    for _ in range(50):
        tensor = cache.empty((1024, 1024), 'float32', stream=stream)
        addresses.add(tensor.ptr)
        cache.free_tensor(tensor)
    stats = cache.stats()
    assert len(addresses) == 1 and (stats['hits'], stats['misses']) == (49, 1)
    assert cache.trim() >= 4 * MIB and cache.stats()['kept'] == 0


def test_threads_with_streams_of_their_own(pool):
    wrong = []

    def work(number):
        try:
            stream = torch.cuda.Stream()
            for turn in range(100):
                tensor = pool.empty(1 << (10 + (turn + number) % 12), 'uint8', stream=stream)
                with torch.cuda.stream(stream):
                    view = device_view(tensor)
                    view.fill_(number)
                    good = (view == number).all()
                    del view
                    pool.free_tensor(tensor)
                    if turn % 10 == 0 and not bool(good):  # in this stream: the default one is not behind it
                        wrong.append((number, turn))
            stream.synchronize()
            pool.release_stream(stream)
        except Exception as error:  # reported by the test's own thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_passes_give_memory_back(pool):
    tensors = [pool.empty(20 * MIB, 'uint8') for _ in range(10)]
    assert pool.stats()['committed'] >= 200 * MIB
    free_before = torch.cuda.mem_get_info()[0]
    del tensors
    gc.collect()
    assert pool.synchronize()
    pool.defragment()
    pool.trim()
    assert pool.stats()['committed'] == 0
    assert torch.cuda.mem_get_info()[0] >= free_before + 190 * MIB


def test_the_interpreter_ends_with_tensors_and_pools_alive():
    assert run('''
        import orderly, torch
        pool = orderly.MemoryPool('cuda:0', limit=64 << 20)
        cache = orderly.TensorCache(pool)
        tensors = [pool.empty(1000), cache.empty((3, 3))]
        taken = torch.from_dlpack(pool.empty(1000))
        cycle = [pool.empty(10)]; cycle.append(cycle)
        print(float(taken.fill_(1).sum()))
    ''') == '1000.0\n'


# -------------------------------------------------------------------------------------------------------------- PyTorch

TRAINING = '''
    import torch, orderly.torch
    if {enable}:
        orderly.torch.enable(device='cuda')
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    side = torch.cuda.Stream()
    for step in range(20):
        batch = torch.arange(256 * (32 + step), device='cuda', dtype=torch.float32).view(-1, 256) / 1e4
        with torch.cuda.stream(side):
            side.wait_stream(torch.cuda.default_stream())
            doubled = batch * 2
            batch.record_stream(side)
        torch.cuda.default_stream().wait_stream(side)
        doubled.record_stream(torch.cuda.default_stream())
        loss = model(doubled).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(loss.item())
'''


def test_pytorch_computes_the_same_with_a_pool():
    deterministic = {'CUBLAS_WORKSPACE_CONFIG': ':4096:8'}
    without = run(TRAINING.format(enable=False), **deterministic)
    end = '''
    del model, optimizer, loss, batch, doubled
    stats = orderly.torch.memory_stats()
    assert stats['allocation.all.allocated'] > 100 and stats['reserved_bytes.all.peak'] > 0, stats
    assert stats['orderly.bad_frees'] == 0 and stats['num_ooms'] == 0, stats
    assert orderly.torch.is_enabled('cuda') and 0 <= orderly.torch.memory_allocated() < 256 << 20  # cuBLAS keeps some
    torch.cuda.synchronize()
    orderly.torch.empty_cache()
    '''
    assert run(TRAINING.format(enable=True) + end, **deterministic) == without


def test_pytorch_says_that_memory_is_used_up_and_goes_on():
    assert run('''
        import torch, orderly.torch
        orderly.torch.enable(device='cuda')
        kept = torch.ones(1000, device='cuda')
        try:
            torch.empty(1 << 30, device='cuda')
        except RuntimeError as error:
            print('refused')
        print(float((kept + torch.ones(1000, device='cuda')).sum()), orderly.torch.memory_stats()['num_ooms'])
    ''', ORDERLY_TORCH_CAPACITY='256M') == 'refused\n2000.0 1\n'


def test_pytorch_in_a_scope():
    assert run('''
        import torch, orderly.torch
        outside = torch.ones(1000, device='cuda')
        with orderly.torch.mem_pool() as pool:
            inside = torch.ones(1 << 22, device='cuda')
        print(orderly.torch.memory_stats('cuda')['allocation.all.allocated'] > 0, float(inside.sum() + outside.sum()))
        del inside
        torch.cuda.empty_cache()
    ''') == 'True 4195304.0\n'


def test_a_record_of_a_program_on_the_device(tmp_path):
    log = tmp_path / 'device.csv'
    with orderly.record(log, cuda=True):
        kept = [torch.empty(number * MIB, dtype=torch.uint8, device='cuda') for number in range(1, 6)]
        del kept
        torch.cuda.synchronize()
    rows = [line.split(',') for line in log.read_text().splitlines()[1:]]
    taken = [row for row in rows if row[2] == 'allocate']
    assert [int(row[4]) for row in taken][:5] == [number * MIB for number in range(1, 6)]
    assert sum(row[2] == 'free' for row in rows) >= 5


# ------------------------------------------------------------------------------------------------------ CuPy and Numba

def test_cupy_itself():
    import orderly.cupy

    with orderly.cupy.mem_pool():
        values = cupy.arange(100_000)
        assert orderly.cupy.pool().owns(values.data.ptr)
        assert int(values.sum()) == 4_999_950_000
    del values
    gc.collect()
    assert orderly.cupy.pool().stats()['requested'] == 0


def test_cupy_in_the_whole_process_with_streams_and_threads():
    assert run('''
        import threading, cupy, orderly.cupy
        orderly.cupy.enable()
        pool = orderly.cupy.pool()
        wrong = []

        def work(number):
            with cupy.cuda.Stream(non_blocking=True) as stream:
                for turn in range(50):
                    values = cupy.full(1000 << (turn % 8), number, dtype=cupy.int32)
                    if not pool.owns(values.data.ptr) or int((values + 1).sum()) != values.size * (number + 1):
                        wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        one, two = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
        with one:
            shared = cupy.ones(1 << 20, dtype=cupy.float32)
        two.wait_event(one.record())
        with two:
            total = shared.sum()
        orderly.cupy.record_stream(shared, two)
        del shared
        print(wrong, float(total), pool.stats()['bad_frees'])
        del total
        orderly.cupy.disable()
        print(pool.owns(cupy.ones(10).data.ptr))
    ''') == f'[] {float(1 << 20)} 0\nFalse\n'


NUMBA = '''
    import gc, cupy, numpy
    from numba import cuda
    import orderly.numba
    {enable}
    left = cuda.to_device(numpy.arange(10000.0))
    right = cuda.device_array_like(left)
    right.copy_to_device(numpy.ones(10000))
    out = cuda.device_array_like(left)
    cupy.add(cupy.asarray(left), cupy.asarray(right), out=cupy.asarray(out))  # a kernel, whether or not Numba compiles here
    cuda.synchronize()
    pool = orderly.numba.pool()
    print(float(out.copy_to_host().sum()), all(pool.owns(each.__cuda_array_interface__['data'][0]) for each in (left, out)))
    del left, right, out
    gc.collect()
    cuda.current_context().deallocations.clear()
    print(pool.stats()['requested'], cuda.current_context().get_memory_info().total == pool.stats()['limit'])
'''


@pytest.mark.skipif(importlib.util.find_spec('numba') is None, reason='no Numba')
@pytest.mark.parametrize('way', ['call', 'environment'])
def test_numba_itself(way):
    by_environment = {'NUMBA_CUDA_MEMORY_MANAGER': 'orderly.numba'} if way == 'environment' else {}
    enable = 'orderly.numba.enable()' if way == 'call' else ''
    shown = run(NUMBA.format(enable=enable), NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS='0', **by_environment)
    assert shown == '50005000.0 True\n0 True\n'
