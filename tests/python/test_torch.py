"""PyTorch on the CPU, with a pool below it."""

import gc
import subprocess
import sys
import textwrap
import threading

import numpy
import pytest

torch = pytest.importorskip('torch')

import orderly  # noqa: E402
import orderly.torch  # noqa: E402

MIB = 1 << 20


@pytest.fixture(scope='module', autouse=True)
def built():
    try:
        orderly.torch.build()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture
def pool():
    made = orderly.MemoryPool(capacity=512 * MIB)
    yield made
    orderly.torch.disable()
    gc.collect()


def run(program):
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(program)], capture_output=True, text=True, check=False,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_in(pool, tensor):
    return pool.owns(tensor.data_ptr())


@pytest.mark.parametrize('name', ['bool', 'uint8', 'int8', 'int16', 'int32', 'int64', 'float16', 'bfloat16', 'float32',
                                  'float64', 'complex64', 'complex128'])
@pytest.mark.parametrize('shape', [(), (3,), (2, 3, 4)])
def test_pytorch_takes_a_tensor(name, shape):
    pool = orderly.MemoryPool(capacity=64 * MIB)
    tensor = pool.empty(shape, getattr(torch, name))
    if name == 'bool' and torch.__version__.startswith('1.'):
        pytest.skip('its DLPack has no bool')
    taken = torch.from_dlpack(tensor)
    assert (taken.dtype, tuple(taken.shape), taken.data_ptr()) == (getattr(torch, name), shape, tensor.ptr)
    taken.fill_(1)
    assert (taken == 1).all()
    del tensor
    gc.collect()
    assert pool.stats()['requested'] > 0
    del taken
    gc.collect()
    assert pool.stats()['requested'] == 0


def test_a_tensor_takes_part_in_autograd():
    pool = orderly.MemoryPool(capacity=64 * MIB)
    weight = torch.from_dlpack(pool.empty((4, 4))).fill_(2).requires_grad_()
    (weight * weight).sum().backward()
    assert (weight.grad == 4).all()


def test_every_tensor_comes_from_the_pool_until_it_is_disabled(pool):
    before = torch.ones(1000)
    assert orderly.torch.enable(pool) is pool
    assert orderly.torch.is_enabled() and orderly.torch.pool() is pool
    tensor = torch.ones(1000)
    assert is_in(pool, tensor) and not is_in(pool, before)
    assert is_in(pool, before + 1) and is_in(pool, torch.empty(3 * MIB))
    orderly.torch.disable()
    assert not orderly.torch.is_enabled()
    after = torch.ones(1000)
    assert not is_in(pool, after)
    assert (tensor + before + after == 3).all()
    del tensor, before
    gc.collect()
    assert pool.stats()['requested'] == 0
    assert pool.stats()['bad_frees'] == 0


def test_blocks_go_back_to_where_they_came_from_whatever_serves_then(pool):
    other = orderly.MemoryPool(capacity=64 * MIB)
    kept = []
    for each in (pool, None, other, pool, None, other):
        orderly.torch.enable(each) if each else orderly.torch.disable()
        kept.append(torch.full((1000,), float(len(kept))))
    orderly.torch.disable()
    assert [tensor[0].item() for tensor in kept] == list(range(6))
    kept.reverse()
    while kept:
        kept.pop()
    assert pool.stats()['allocations'] == pool.stats()['frees'] > 0
    assert other.stats()['allocations'] == other.stats()['frees'] > 0
    assert pool.stats()['bad_frees'] == other.stats()['bad_frees'] == 0


def test_a_scope_is_its_threads_alone(pool):
    inside, gate, seen = threading.Event(), threading.Event(), []

    def elsewhere():
        inside.wait(60)
        seen.append(is_in(pool, torch.ones(1000)))
        gate.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    other = orderly.MemoryPool(capacity=64 * MIB)
    with orderly.torch.mem_pool(pool) as given:
        assert given is pool
        inside.set()
        gate.wait(60)
        tensor = torch.ones(1000)
        with orderly.torch.mem_pool(other):
            assert is_in(other, torch.ones(1000))
        assert is_in(pool, torch.ones(1000))
    thread.join()
    assert seen == [False]
    assert is_in(pool, tensor) and not is_in(pool, torch.ones(1000))
    with pytest.raises(KeyError), orderly.torch.mem_pool(pool):
        raise KeyError
    assert not is_in(pool, torch.ones(1000))


def test_used_up_memory_is_what_pytorch_says_and_the_program_goes_on():
    pool = orderly.MemoryPool(capacity=8 * MIB)
    with orderly.torch.mem_pool(pool):
        with pytest.raises(RuntimeError, match="can't allocate memory.*orderly"):
            torch.empty(64 * MIB)
        assert torch.ones(1000).sum() == 1000
    assert orderly.torch.memory_stats(pool=pool)['num_ooms'] == 1


def test_the_out_of_memory_handler_may_free_tensors():
    held = []
    pool = orderly.MemoryPool(capacity=8 * MIB, on_out_of_memory=lambda size: bool(held) and not held.clear())
    with orderly.torch.mem_pool(pool):
        held.append(torch.empty(6 * MIB, dtype=torch.uint8))
        assert is_in(pool, torch.empty(5 * MIB, dtype=torch.uint8))
    assert not held


def test_figures_are_those_of_the_pool_under_pytorchs_names(pool):
    orderly.torch.enable(pool)
    tensor = torch.empty(10_000, dtype=torch.uint8)
    stats = orderly.torch.memory_stats()
    assert stats['requested_bytes.all.current'] == orderly.torch.memory_allocated() == 10_000
    assert stats['allocated_bytes.all.current'] >= 10_000
    assert stats['allocation.all.current'] == 1
    assert orderly.torch.memory_reserved() >= 10_000 and orderly.torch.max_memory_allocated() >= 10_000
    assert any(block['address'] == tensor.data_ptr() for block in orderly.torch.memory_snapshot()['blocks'])
    del tensor
    orderly.torch.empty_cache()
    assert orderly.torch.memory_reserved() == 0
    with pytest.raises(RuntimeError, match='serves another library'):
        pool.close()


def test_a_model_computes_the_same_and_leaves_nothing(pool):
    def train():
        torch.manual_seed(7)
        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
        optimizer = torch.optim.Adam(model.parameters())
        losses = []
        for step in range(10):
            loss = model(torch.randn(8 + step, 64)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    expected = train()
    orderly.torch.enable(pool)
    assert train() == expected
    orderly.torch.disable()
    gc.collect()
    assert pool.stats()['allocations'] > 500
    assert pool.stats()['requested'] == 0


def test_numpy_and_pytorch_share_what_the_pool_gave(pool):
    orderly.torch.enable(pool)
    tensor = torch.zeros(1000)
    array = tensor.numpy()
    del tensor
    array[:] = 3
    assert torch.from_numpy(array).sum() == 3000 and isinstance(array, numpy.ndarray)


def test_threads(pool):
    orderly.torch.enable(pool)

    def work():
        for size in range(1, 200):
            tensor = torch.ones(size * 100)
            assert tensor.sum() == size * 100

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert pool.stats()['requested'] == 0


def test_the_whole_process_from_its_start_to_its_end():
    assert run('''
        import orderly.torch, torch
        orderly.torch.set_per_process_memory_fraction(0.5)
        pool = orderly.torch.enable(device='cpu')
        assert pool is orderly.torch.enable() and pool.capacity > 0
        tensor = torch.ones(1000)
        model = torch.nn.Linear(10, 10)
        cycle = [torch.ones(10)]; cycle.append(cycle)
        try:
            orderly.torch.set_per_process_memory_fraction(0.5)
        except RuntimeError as error:
            print('there already' in str(error))
    ''') == 'True\n'


def test_what_is_not_there_is_said():
    with pytest.raises(ValueError, match='give'):
        orderly.torch.enable(device='tpu')
    with pytest.raises(ValueError, match='without streams'):
        orderly.torch.enable(orderly.MemoryPool(capacity=MIB, streams=orderly.SoftwareDevice()))
    with pytest.raises(TypeError):
        orderly.torch.enable(3)
    with pytest.raises(ValueError, match='fraction'):
        orderly.torch.set_per_process_memory_fraction(2)
    if not orderly.has_cuda:
        with pytest.raises(RuntimeError, match='Dcuda=enabled'):
            orderly.torch.enable(device='cuda')
        with pytest.raises(RuntimeError, match='Dcuda=enabled'), orderly.torch.mem_pool(device='cuda'):
            pass


def test_without_a_compiler_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv('ORDERLY_CACHE', str(tmp_path))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(RuntimeError, match='needs a C\\+\\+ compiler'):
        orderly.torch.build()
    monkeypatch.setenv('CXX', 'false')
    with pytest.raises(RuntimeError, match='cannot be compiled'):
        orderly.torch.build()
    assert not list(tmp_path.iterdir())
