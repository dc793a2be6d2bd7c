#!/usr/bin/env python3
"""PyTorch with orderly as its allocator, on a device.

  torch_test.py LIBRARY                runs all, each group in a process of its own; exit status 77: no PyTorch, no device
  torch_test.py LIBRARY GROUP [LOSSES] runs one group in this process
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
import traceback

SKIPPED = 77
CAPACITY = 2 << 30


def is_orderly(library, tensor):
    """True if the tensor's memory lies in a pool of orderly's."""
    size = ctypes.c_size_t()
    find = library.orderly_torch_base_alloc
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]
    find(tensor.data_ptr(), ctypes.byref(size))
    return size.value != 0


def make_allocator(torch, path, alloc='orderly_torch_alloc'):
    library = ctypes.CDLL(path)
    memory = torch.cuda.memory.CUDAPluggableAllocator(path, alloc, 'orderly_torch_free')
    for setter, name in (('set_init_fn', 'init'), ('set_reset_fn', 'reset'),
                         ('set_memory_fraction_fn', 'memory_fraction'), ('set_base_alloc_fn', 'base_alloc'),
                         ('set_record_stream_fn', 'record_stream')):
        address = ctypes.cast(getattr(library, 'orderly_torch_' + name), ctypes.c_void_p).value
        getattr(memory.allocator(), setter)(address)
    return library, memory


def expect_out_of_memory(torch, allocate):
    """Returns the error's text. The program goes on afterwards."""
    try:
        allocate()
    except RuntimeError as error:
        text = str(error)
    else:
        raise AssertionError('an allocation beyond the capacity was not refused')
    gc.collect()
    assert torch.ones(1000, device='cuda').sum().item() == 1000
    return text


def train(torch, steps=30):
    """Losses of a small model whose batches change their size."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024),
                                torch.nn.ReLU(), torch.nn.Linear(1024, 10)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(11)
    losses = []
    for step in range(steps):
        batch = 64 + 37 * (step % 7)
        inputs = torch.randn(batch, 256, generator=generator).cuda()
        labels = torch.randint(0, 10, (batch,), generator=generator).cuda()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ------------------------------------------------------------------------------------- orderly for the whole process


def case_tensors_are_in_the_pool(torch, library, _losses):
    assert torch.cuda.memory.get_allocator_backend() == 'pluggable'
    tensor = torch.tensor([1, 2]).cuda()
    assert is_orderly(library, tensor)
    assert tensor.sum().item() == 3
    address = tensor.data_ptr()
    del tensor
    gc.collect()
    assert torch.tensor([3, 4]).cuda().data_ptr() == address, 'the stream has its block again'


def case_other_streams(torch, library, _losses):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = torch.tensor([1, 2]).cuda()
    torch.cuda.current_stream().wait_stream(stream)
    assert is_orderly(library, tensor)
    assert tensor.sum().item() == 3


def case_empty_tensors(torch, _library, _losses):
    for _ in range(3):
        assert torch.Tensor().to('cuda').numel() == 0
        assert torch.empty(0, 5, device='cuda').sum().item() == 0


def case_training_as_with_the_default_allocator(torch, _library, losses):
    for own, other in zip(train(torch), losses, strict=True):
        assert abs(own - other) <= 1e-4 * abs(other), (own, other)


def case_a_recorded_stream_is_waited_for(torch, _library, _losses):
    length = 16 << 20
    side = torch.cuda.Stream()
    for round_ in range(5):
        source = torch.full((length,), float(round_), device='cuda')
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            copied = source.clone()
        source.record_stream(side)
        address = source.data_ptr()
        del source
        late = [torch.full((length,), -1.0, device='cuda') for _ in range(8)]  # would take the memory
        taken = address in [tensor.data_ptr() for tensor in late]
        assert side.query() or not taken, 'memory that another stream uses was handed out'
        torch.cuda.synchronize()
        assert copied.min().item() == copied.max().item() == round_
        del late, copied


def case_threads_with_streams_of_their_own(torch, _library, _losses):
    failures = []

    def work(seed):
        try:
            generator = torch.Generator().manual_seed(seed)
            stream = torch.cuda.Stream()
            kept = []
            with torch.cuda.stream(stream):
                for step in range(200):
                    length = int(torch.randint(1, 1 << 20, (1,), generator=generator))
                    value = float(seed * 1000 + step)
                    kept.append((torch.full((length,), value, device='cuda'), value))
                    if len(kept) > 16:
                        tensor, value = kept.pop(int(torch.randint(0, 16, (1,), generator=generator)))
                        assert tensor.min().item() == tensor.max().item() == value
                for tensor, value in kept:
                    assert tensor.min().item() == tensor.max().item() == value
        except Exception:  # of any kind: it would be lost with the thread
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def case_empty_cache(torch, _library, _losses):
    kept = torch.ones(1 << 20, device='cuda')
    for _ in range(100):
        torch.ones(1 << 20, device='cuda')
    torch.cuda.empty_cache()
    assert kept.sum().item() == 1 << 20


def case_memory_of_a_graph_stays_with_it(torch, _library, _losses):
    weight = torch.randn(512, 512, device='cuda')
    given = torch.zeros(64, 512, device='cuda')

    def net(x):
        for _ in range(4):
            x = torch.relu(x @ weight) * 0.1
        return x

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        net(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = net(given)
    for _ in range(5):
        # Whatever is free, filled with what would show in the graph's result, and notices what the graph writes.
        others = [torch.full((64, 512), float('nan'), device='cuda') for _ in range(200)]
        data = torch.randn(64, 512, device='cuda')
        given.copy_(data)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.allclose(result, net(data), rtol=1e-3, atol=1e-3)
        assert all(torch.isnan(other).all() for other in others)
        del others
    del result, graph
    torch.cuda.synchronize()


def case_out_of_memory_is_an_error_that_programs_know(torch, _library, _losses):
    for _ in range(3):
        text = expect_out_of_memory(torch, lambda: torch.empty(2 * CAPACITY, dtype=torch.uint8, device='cuda'))
        assert text.startswith('CUDA out of memory.'), text
    kept = []

    def fill():
        while True:
            kept.append(torch.empty(64 << 20, dtype=torch.uint8, device='cuda'))

    def fill_and_drop():
        try:
            fill()
        finally:
            count.append(len(kept))
            kept.clear()

    count = []
    assert expect_out_of_memory(torch, fill_and_drop).startswith('CUDA out of memory.')
    assert count[0] >= CAPACITY // (64 << 20) * 3 // 4, count


def case_out_of_memory_in_a_backward_pass(torch, _library, _losses):
    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(_context, x):
            return x * 2

        @staticmethod
        def backward(_context, gradient):
            torch.empty(2 * CAPACITY, dtype=torch.uint8, device='cuda')
            return gradient

    parameter = torch.ones(10, device='cuda', requires_grad=True)
    text = expect_out_of_memory(torch, lambda: Greedy.apply(parameter).sum().backward())
    assert 'CUDA out of memory.' in text, text


def case_a_second_device(torch, library, _losses):
    if torch.cuda.device_count() < 2:
        return
    tensor = torch.full((1000,), 5.0, device='cuda:1')
    assert is_orderly(library, tensor)
    assert tensor.to('cuda:0').sum().item() == 5000


def group_process(torch, path, losses):
    library, memory = make_allocator(torch, path)
    torch.cuda.memory.change_current_allocator(memory)
    for name, case in list(globals().items()):
        if not name.startswith('case_'):
            continue
        start = time.monotonic()
        case(torch, library, losses)
        torch.cuda.synchronize()
        print(f'  {name.removeprefix("case_").replace("_", " ")}: {time.monotonic() - start:.2f} s', flush=True)
    group_process.kept = torch.ones(1000, device='cuda')  # the process ends with live tensors


# ------------------------------------------------------------------------------------------------------- the others


def group_default(torch, _path, _losses):
    print(json.dumps(train(torch)))


def group_fraction(torch, path, _losses):
    library, memory = make_allocator(torch, path)
    torch.cuda.memory.change_current_allocator(memory)
    torch.cuda.set_per_process_memory_fraction(0.01)
    _free, total = torch.cuda.mem_get_info()
    text = expect_out_of_memory(
        torch, lambda: torch.empty(int(0.011 * total), dtype=torch.uint8, device='cuda'))
    assert text.startswith('CUDA out of memory.'), text
    assert is_orderly(library, torch.empty(int(0.004 * total), dtype=torch.uint8, device='cuda'))


def group_mempool(torch, path, _losses):
    if not hasattr(torch.cuda, 'MemPool'):
        print('  no torch.cuda.MemPool in this version')
        return
    library, memory = make_allocator(torch, path, alloc='orderly_torch_try_alloc')
    pool = torch.cuda.MemPool(memory.allocator())
    outside = torch.ones(1 << 20, device='cuda')
    assert not is_orderly(library, outside)
    with torch.cuda.use_mem_pool(pool):
        inside = torch.full((1 << 20,), 2.0, device='cuda')
        assert is_orderly(library, inside)
        text = expect_out_of_memory(torch, lambda: torch.empty(2 * CAPACITY, dtype=torch.uint8, device='cuda'))
        assert 'out of memory' in text, text
        try:
            torch.empty(2 * CAPACITY, dtype=torch.uint8, device='cuda')
        except torch.OutOfMemoryError:
            pass
        for _ in range(100):
            assert (inside @ outside).item() == 2 << 20
    assert (inside + outside).sum().item() == 3 << 20
    del inside, pool
    gc.collect()
    torch.cuda.empty_cache()
    assert outside.sum().item() == 1 << 20


def main():
    path = os.path.abspath(sys.argv[1])
    try:
        import torch
    except ImportError as error:
        print(f'skipped: no PyTorch ({error})')
        return SKIPPED
    if len(sys.argv) > 2:
        losses = json.loads(sys.argv[3]) if len(sys.argv) > 3 else None
        globals()['group_' + sys.argv[2]](torch, path, losses)
        return 0
    if not torch.cuda.is_available():
        print(f'skipped: PyTorch {torch.__version__} finds no CUDA device')
        return SKIPPED
    print(f'PyTorch {torch.__version__}, CUDA {torch.version.cuda}', flush=True)

    failed = 0
    losses = None
    for group in ('default', 'process', 'fraction', 'mempool'):
        environment = dict(os.environ, ORDERLY_TORCH_CAPACITY=str(CAPACITY))
        if group == 'fraction':
            del environment['ORDERLY_TORCH_CAPACITY']
        arguments = [sys.executable, __file__, path, group] + ([json.dumps(losses)] if group == 'process' else [])
        ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=280, check=False)
        if group == 'default' and ended.returncode == 0:
            losses = json.loads(ended.stdout)
        outcome = 'passed' if ended.returncode == 0 else f'FAILED, status {ended.returncode}'
        print(f'{group}: {outcome}')
        if group != 'default' or ended.returncode != 0:
            print(ended.stdout + ended.stderr, end='', flush=True)
        failed += ended.returncode != 0
    return 1 if failed else 0


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main())
