"""orderly.torch.simulate: the log of a model without its memory."""

import copy
import csv
import json
import subprocess
import sys
import textwrap
import threading

import pytest

torch = pytest.importorskip('torch')

import orderly  # noqa: E402
import orderly._simulation  # noqa: E402
import orderly.replay  # noqa: E402
import orderly.torch  # noqa: E402
import torch.utils.checkpoint  # noqa: E402
from test_record import rows_of, sizes  # noqa: E402

pytestmark = [pytest.mark.skipif(orderly._simulation.FakeTensorMode is None, reason='PyTorch has no fake tensors'),
              pytest.mark.filterwarnings('ignore')]
nn = torch.nn
simulate = orderly.torch.simulate


def stack():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x):
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.wide(self.second(x))


class Transformer(nn.Module):
    def __init__(self, width=64, layers=3, heads=4, words=1000):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.out = nn.Linear(width, words)

    def forward(self, x):
        return self.out(self.blocks(self.words(x)))


def images():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3),
                         nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))


MODELS = {'stack': (stack, torch.zeros(100, 64)), 'transformer': (Transformer, torch.zeros(8, 64, dtype=torch.long)),
          'images': (images, torch.zeros(16, 3, 64, 64))}


def loss(output):
    return output.square().mean()


@pytest.fixture(scope='module')
def recorder():
    try:
        orderly.torch.build()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])


def really(path, make, inputs, training, optimizer=None, steps=1):
    """The same program with the memory, under orderly.record: sizes of the allocations, and their peak."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with orderly.record(path, numpy=False):
            model, inputs, made = make().train(training), inputs.clone(), None
            with torch.set_grad_enabled(training):
                for _ in range(steps):
                    output = model(inputs)
                    if not training:
                        continue
                    loss(output).backward()
                    output = None
                    if optimizer is not None:
                        made = made or optimizer(model.parameters())
                        made.step()
                    model.zero_grad(set_to_none=True)
            del model, inputs, made, output
    finally:
        torch.set_num_threads(threads)
    return rows_of(path)[0], orderly.replay.read(path)[2]


@pytest.mark.parametrize('training', [False, True])
def test_a_stack_of_linear_layers_takes_exactly_what_it_takes(tmp_path, recorder, training):
    make, inputs = MODELS['stack']
    rows, peak = really(tmp_path / 'real.csv', make, inputs, training)
    found = simulate(make, inputs, tmp_path / 'log.csv', training=training, loss=loss if training else None)
    assert found.peak == peak == orderly.replay.read(tmp_path / 'log.csv')[2]
    mine, live = rows_of(tmp_path / 'log.csv')
    assert not live
    large = [[size for size in sizes(each, 'allocate') if size > 64] for each in (mine, rows)]  # not the scalars
    assert large[0] == large[1]
    assert found.parameters == sum(each.numel() * 4 for each in make().parameters())
    assert found.allocations == len(sizes(mine, 'allocate')) == len(sizes(mine, 'free'))
    assert (found.path, found.device, found.peaks) == (str(tmp_path / 'log.csv'), 'cpu', {'cpu': peak})


@pytest.mark.parametrize('name, training, optimizer, most', [
    ('stack', True, torch.optim.Adam, 1.001), ('transformer', False, None, 1.01), ('transformer', True, None, 1.01),
    ('transformer', True, torch.optim.Adam, 1.01), ('images', False, None, 1.5), ('images', True, None, 1.1),
    ('images', True, torch.optim.SGD, 1.1)])
def test_the_peak_is_that_of_the_program_within_a_factor(tmp_path, recorder, name, training, optimizer, most):
    make, inputs = MODELS[name]
    if optimizer is torch.optim.SGD:
        def optimizer(parameters):
            return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    _, peak = really(tmp_path / 'real.csv', make, inputs, training, optimizer, 1 if optimizer is None else 2)
    found = simulate(make, inputs, tmp_path / 'log.csv', training=training, optimizer=optimizer,
                     loss=loss if training else None)
    # Above by scalars only; below by what operators allocate inside, the columns of a convolution, say.
    assert peak / most <= found.peak <= peak * 1.001
    # PyTorch 1.13 keeps scalars, the optimizer's counts of steps, for a while.
    assert all(int(size) <= 8 for size in rows_of(tmp_path / 'log.csv')[1].values())


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64)) for _ in range(6))

    def forward(self, x):
        x = x * torch.ones(1, requires_grad=True)
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(layer, x)
        return x


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = stack()

    def forward(self, x):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            return self.layers(x).float()


@pytest.mark.parametrize('make, most', [(Checkpointed, 1.02), (Mixed, 1.1)])
def test_what_pytorch_does_with_the_memory_is_followed(tmp_path, recorder, make, most):
    inputs = torch.zeros(1000, 64)
    _, peak = really(tmp_path / 'real.csv', make, inputs, True)
    found = simulate(make, inputs, tmp_path / 'log.csv', training=True, loss=loss)
    assert peak / most <= found.peak <= peak * 1.001


def test_a_model_of_more_than_100_gb_in_this_machines_memory(tmp_path):
    program = textwrap.dedent('''
        import json, resource, sys
        import orderly.replay, orderly.torch, torch
        sys.path.insert(0, sys.argv[1])
        from test_simulation import Transformer
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        words = torch.empty(1, 2048, dtype=torch.long, device='meta')
        found = orderly.torch.simulate(lambda: Transformer(8192, 40, 64, 50257), words, sys.argv[2], training=True)
        replayed = orderly.replay.replay(sys.argv[2], find_limit=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        print(json.dumps([found.parameters, found.peak, replayed, grown]))
    ''')
    folder = str(__import__('pathlib').Path(__file__).parent)
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', program, folder, str(tmp_path / 'log.csv.xz')],
                          capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    parameters, peak, replayed, grown = json.loads(done.stdout)
    width, words = 8192, 50257
    assert parameters == 4 * (2 * words * width + words + 40 * (12 * width * width + 13 * width))  # 132 GB
    assert peak > 2 * parameters  # the gradients, too
    assert replayed['peak_live'] == peak and replayed['refused'] == 0
    assert peak <= replayed['peak_committed'] <= 1.25 * peak and replayed['least_limit_over_live'] <= 1.05
    assert grown < 512 << 20


def test_more_than_a_pool_can_have_is_said(tmp_path):
    found = simulate(nn.Linear(1 << 20, 1 << 19, device='meta'), torch.empty(1, 1 << 20, device='meta'),
                     tmp_path / 'log.csv')
    assert found.peak > 2 << 40
    with pytest.raises(ValueError, match='are live at once'):
        orderly.replay.replay(tmp_path / 'log.csv')


class Mine(Exception):
    pass


def test_what_the_model_raises_leaves_nothing_changed(tmp_path):
    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x):
            self.linear.weight.data.zero_()
            torch.manual_seed(3)
            raise Mine(self.norm(self.linear(x)).shape)

    model = Raising().eval()
    before, noise = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    path = tmp_path / 'log.csv'
    path.write_text('before')
    with pytest.raises(Mine, match='5, 8'):
        simulate(model, torch.zeros(5, 8), path, training=True)
    assert [path.name for path in tmp_path.iterdir()] == ['log.csv'] and path.read_text() == 'before'
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and model.linear.weight.grad is None
    assert type(model.linear.weight.data) is torch.Tensor
    assert torch.equal(torch.get_rng_state(), noise)
    assert torch.ones(3).sum().item() == 3 and torch.is_grad_enabled()
    found = simulate(nn.Linear(8, 8), torch.zeros(5, 8), path)  # the recorder is free
    assert found.peak == 4 * (64 + 8 + 40 + 40) and path.read_text() != 'before'


def test_the_model_and_what_it_knows_stay_as_they_are(tmp_path):
    outside = torch.ones(8)

    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm, self.mask = nn.Linear(8, 8), nn.BatchNorm1d(8), torch.ones(8)

        def forward(self, x):
            self.mask.add_(1)
            outside.mul_(2)
            return self.norm(self.linear(x)) * self.mask + outside

    model = Writing()
    before = copy.deepcopy(model.state_dict())
    simulate(model, torch.zeros(5, 8), tmp_path / 'log.csv', training=True, optimizer=torch.optim.Adam)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.mask, torch.ones(8)) and torch.equal(outside, torch.ones(8))
    assert model.linear.weight.grad is None and model.training


class Does(nn.Module):
    """A model of one function."""

    def __init__(self, what, parameter=8):
        super().__init__()
        self.what, self.weight = what, nn.Parameter(torch.zeros(parameter))

    def forward(self, *inputs, **named):
        return self.what(self, *inputs, **named)


def peak_of(tmp_path, what, *inputs, **settings):
    """Without the parameter."""
    return simulate(Does(what), inputs, tmp_path / 'log.csv', **settings).peak - 32


def test_memory_is_counted_once_and_until_it_goes(tmp_path):
    x = torch.zeros(1000)
    assert peak_of(tmp_path, lambda model, x: x.view(10, 100).t()[3:], x) == 4000
    assert peak_of(tmp_path, lambda model, x: (x + 1).add_(1), x) == 8000
    assert peak_of(tmp_path, lambda model, x: ((x + 1) + 1) + 1, x) == 12000
    assert peak_of(tmp_path, lambda model, x: torch.add(x, x, out=torch.empty(1000)), x) == 8000
    assert peak_of(tmp_path, lambda model, x: x[:1].clone(), x) == 4004
    assert peak_of(tmp_path, lambda model, x: x.to(torch.float64), x) == 12000
    assert peak_of(tmp_path, lambda model, x: torch.empty(0, 10), x) == 4000

    def resize(model, x):
        return torch.empty(100).resize_(1000).resize_(2000)

    assert peak_of(tmp_path, resize, x) == 4000 + 4000 + 8000  # two at a time
    assert sorted(size for size in sizes(rows_of(tmp_path / 'log.csv')[0], 'free')) == [32, 400, 4000, 4000, 8000]

    def swap(model, x):
        y = x + 1
        for _ in range(50):
            y.data = torch.empty(1000)  # the memory that it had goes, and the tensor stays
        return y

    assert peak_of(tmp_path, swap, x) == 4000 * 3

    def outlive(model, x):
        view = torch.empty(1000)[:10]
        return [torch.empty(1000) for _ in range(3)], view

    assert peak_of(tmp_path, outlive, x) == 4000 * 5


def test_shared_parameters_take_no_more_than_they_take(tmp_path):
    tied = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 100, bias=False))
    tied[1].weight = tied[0].weight
    found = simulate(tied, torch.zeros(3, dtype=torch.long), tmp_path / 'log.csv', training=True)
    assert found.parameters == 6400
    whole = torch.zeros(1000)
    parts = nn.ParameterList([nn.Parameter(whole[:400].view(20, 20)), nn.Parameter(whole[400:600])])
    for each in (parts, copy.deepcopy(parts)):
        model = nn.ModuleList([each])
        model.forward = lambda x: x
        assert simulate(model, torch.zeros(1), tmp_path / 'log.csv').parameters == (4000 if each is parts else 2400)


def test_inputs(tmp_path):
    def forward(model, x, y=None, scale=1):
        assert isinstance(y, (type(None), torch.Tensor)) and (x.shape, x.dtype) == ((2, 3), torch.float16)
        assert x.stride() == (1, 2)
        return x * scale

    x = torch.empty(3, 2, dtype=torch.float16, device='meta').t()
    assert simulate(Does(forward), x, tmp_path / 'log.csv').peak == 32 + 24
    assert simulate(Does(forward), (x, torch.zeros(10)), tmp_path / 'log.csv').peak == 32 + 24 + 40
    assert simulate(Does(forward), [x], tmp_path / 'log.csv').peak == 32 + 24
    assert simulate(Does(forward), {'x': x, 'scale': 2, 'y': None}, tmp_path / 'log.csv').peak == 32 + 24
    nested = simulate(Does(lambda model, x: x[0]['a'] + x[1]), ([{'a': torch.ones(5)}, 2],), tmp_path / 'log.csv')
    assert nested.peak == 32 + 40


def test_a_function_makes_the_model_and_it_may_be_in_any_state(tmp_path):
    half = simulate(lambda: nn.Linear(1000, 1000).half().eval(), torch.zeros(1, 1000, dtype=torch.float16),
                    tmp_path / 'log.csv', training=True)
    assert half.parameters == 2 * 1_001_000
    assert 2 * 2_002_000 < half.peak < 2.1 * 2_002_000

    class Modes(nn.Module):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            return x * torch.ones(1, requires_grad=True)

    modes = []
    simulate(Modes(), torch.zeros(1), tmp_path / 'log.csv')
    simulate(Modes(), torch.zeros(1), tmp_path / 'log.csv', training=True, steps=2)
    assert modes == [(False, False), (True, True), (True, True)]


def test_without_hints_the_log_is_the_same(tmp_path, monkeypatch):
    def log():
        model = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.ReLU(), nn.Dropout())))
        simulate(model, torch.zeros(5, 64), tmp_path / 'log.csv', training=True,
                 optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), steps=2)
        rows = []
        for action, *block in (row[2:5] for row in csv.reader((tmp_path / 'log.csv').open())):
            if action != 'free':
                rows.append((block, []))
            else:  # between two allocations in any order
                rows[-1][1].append(block)
        return [(block, sorted(freed)) for block, freed in rows]

    logs = []
    for swaps in (False, True):
        if swaps:
            monkeypatch.setattr(torch.utils, 'swap_tensors', None, raising=False)
        else:
            monkeypatch.delattr(torch.utils, 'swap_tensors', raising=False)
        logs.append(log())
    assert logs[0] == logs[1] and sum(len(freed) for _, freed in logs[0]) > 10


def test_an_optimizers_state_counts_from_the_first_step_on(tmp_path):
    def peak(**settings):
        return simulate(nn.Linear(100, 100, bias=False), torch.zeros(1, 100), tmp_path / 'log.csv', training=True,
                        **settings).peak

    plain, once, twice = peak(), peak(optimizer=torch.optim.Adam, steps=1), peak(optimizer=torch.optim.Adam)
    assert 80_000 < plain < 82_000
    assert 160_000 < once <= twice < 250_000  # with the two that a step needs for itself
    assert peak(optimizer=torch.optim.Adam, steps=3) == twice


library = []


def operators():
    """Operators that no PyTorch can do on fake tensors."""
    if not library:
        of = torch.library.Library('orderly_test', 'DEF')
        of.define('twice(Tensor x) -> Tensor')
        of.define('upper(Tensor(a) x) -> Tensor(a)')
        of.define('spoil_(Tensor(a!) x) -> Tensor(a!)')
        of.impl('twice', lambda x: torch.cat([x, x + 1]), 'CPU')
        of.impl('upper', lambda x: x[:1], 'CPU')
        of.impl('spoil_', lambda x: pytest.fail('done for real'), 'CPU')
        library.append(of)
    return torch.ops.orderly_test


def test_an_unknown_operator_is_done_for_real_if_it_is_small(tmp_path):
    ours = operators()
    assert peak_of(tmp_path, lambda model, x: ours.twice(x), torch.zeros(1000)) == 12000
    assert peak_of(tmp_path, lambda model, x: ours.spoil_(x), torch.zeros(1000)) == 4000
    assert peak_of(tmp_path, lambda model, x: ours.spoil_(x), torch.empty(1 << 40, device='meta')) == 4 << 40
    large = torch.empty(1 << 27, device='meta')
    with pytest.raises(RuntimeError, match='twice.*536870912 bytes'):
        peak_of(tmp_path, lambda model, x: ours.twice(x), large)
    with pytest.raises(RuntimeError, match='upper.*in the memory of its arguments'):
        peak_of(tmp_path, lambda model, x: ours.upper(x), torch.zeros(10))


@pytest.mark.parametrize('layers', [lambda: nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
                                    lambda: nn.MultiheadAttention(64, 4, batch_first=True)])
def test_attention_without_gradients_is_as_large_as_its_scores(tmp_path, layers):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers()

        def forward(self, x):
            if isinstance(self.layers, nn.MultiheadAttention):
                return self.layers(x, x, x, need_weights=True)
            return self.layers(x)

    scores = 4 * 4 * 8192 * 8192
    found = simulate(Model, torch.empty(1, 8192, 64, device='meta'), tmp_path / 'log.csv')
    assert scores < found.peak < 2.5 * scores
    assert not rows_of(tmp_path / 'log.csv')[1]


def test_what_depends_on_values_is_said(tmp_path):
    x = torch.zeros(10)
    for what in (lambda model, x: x.sum().item(), lambda model, x: x if (x > 0).all() else None):
        with pytest.raises(RuntimeError, match='looks at the value of a tensor'):
            peak_of(tmp_path, what, x)
    for what in (lambda model, x: x.nonzero(), lambda model, x: x[x > 0]):
        with pytest.raises(RuntimeError, match='depends on its tensors'):
            peak_of(tmp_path, what, x)
    assert peak_of(tmp_path, lambda model, x: x * torch.tensor([2.0]).item(), x) <= 80 + 4  # a constant has its value


def test_other_threads_are_not_concerned(tmp_path):
    seen = []

    def work():
        tensor = torch.ones(4321, dtype=torch.uint8)
        seen.append((type(tensor), tensor.sum().item()))

    def forward(model, x):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return x + 1

    assert peak_of(tmp_path, forward, torch.zeros(10)) == 80
    assert seen == [(torch.Tensor, 4321)]
    assert 4321 not in sizes(rows_of(tmp_path / 'log.csv')[0], 'allocate')


def test_devices(tmp_path):
    model, x = nn.Linear(100, 100, device='meta'), torch.empty(1, 100, device='meta')
    can = torch.cuda.is_available() or hasattr(torch._C, '_ensureCUDADeviceGuardSet')
    if not can:
        with pytest.raises(RuntimeError, match='only where there is a GPU'):
            simulate(model, x, tmp_path / 'log.csv', device='cuda')
    else:
        found = simulate(model, x, tmp_path / 'log.csv', device='cuda', training=True)
        assert (found.device, found.parameters) == ('cuda:0', 40_400)
        assert found.peak == simulate(model, x, tmp_path / 'log.csv', device='cpu', training=True).peak
    with pytest.raises(ValueError, match="device 'meta'"):
        simulate(model, x, tmp_path / 'log.csv', device='meta')
    with pytest.raises(RuntimeError):
        simulate(model, x, tmp_path / 'log.csv', device='no such')


def test_what_cannot_be_is_said(tmp_path, monkeypatch):
    x, path = torch.zeros(2, 8), tmp_path / 'log.csv'
    for wrong, error, said in (
            (lambda: simulate(3, x, path), TypeError, 'not a int'),
            (lambda: simulate(lambda: 3, x, path), TypeError, 'made a int'),
            (lambda: simulate(nn.Linear(8, 8), x, path, loss=loss), ValueError, 'loss: it is for training'),
            (lambda: simulate(nn.Linear(8, 8), x, path, optimizer=loss), ValueError, 'optimizer: it is for training'),
            (lambda: simulate(nn.Linear(8, 8), x, path, training=True, loss=3), TypeError, 'loss: a function'),
            (lambda: simulate(nn.Linear(8, 8), x, path, steps=0), ValueError, 'steps 0'),
            (lambda: simulate(Does(lambda model, x: None), x, path, training=True), ValueError, 'derive from'),
            (lambda: simulate(nn.LazyLinear(3), x, path), ValueError, 'lazy'),
            (lambda: simulate(torch.jit.script(nn.Linear(8, 8)), x, path), ValueError, 'scripted'),
            (lambda: simulate(nn.Linear(8, 8), x.to_sparse(), path), ValueError, 'sparse'),
            (lambda: simulate(nn.Linear(8, 8), x, tmp_path / 'no' / 'log.csv'), FileNotFoundError, 'no')):
        with pytest.raises(error, match=said):
            wrong()
    with orderly.record(tmp_path / 'real.csv', numpy=False, torch=False):
        with pytest.raises(RuntimeError, match='runs already'):
            simulate(nn.Linear(8, 8), x, path)
    monkeypatch.setattr(orderly._simulation, 'FakeTensorMode', None)
    with pytest.raises(RuntimeError, match='no fake tensors; 1.13 has'):
        simulate(nn.Linear(8, 8), x, path)
    assert not path.exists()
