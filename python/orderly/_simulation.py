"""``orderly.torch.simulate``: the log of what a model allocates, made without the memory."""

import contextlib
import copy
import dataclasses
import functools
import os
import pathlib
import tempfile
import weakref

import torch
from torch.utils._pytree import tree_flatten, tree_map

from . import _core
from ._recorder import recording

try:
    from torch._subclasses import fake_tensor
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._mode_utils import no_dispatch
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:
    FakeTensorMode = None
    TorchDispatchMode = object

_FIRST_ADDRESS = 1 << 57  # no address of a program: what else is freed meanwhile is no row of the log
_GRANULE = 256
_MOST_FOR_REAL = 256 << 20  # bytes of arguments up to which an operator that knows no fake tensors is done for real


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What ``simulate`` has found. Sizes in bytes, as the program asks for them."""

    path: str
    """The log."""
    device: str
    """The device whose allocations it has."""
    parameters: int
    """Of the model's parameters and buffers there."""
    peak: int
    """The most that is live there at once: parameters, inputs, activations, gradients, the optimizer's state."""
    allocations: int
    """Their number."""
    peaks: dict
    """The same peak for each device on which there is anything."""


def _storage(tensor):
    return tensor.untyped_storage() if hasattr(tensor, 'untyped_storage') else tensor._storage()


def _tensors_in(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _tensors_of(module):
    """Its parameters, its buffers, and the tensors that it has as attributes."""
    for each in module.modules():
        for value in (*each._parameters.values(), *each._buffers.values(), *vars(each).values()):
            if isinstance(value, torch.Tensor):
                yield value


class _Block:
    """A storage that is live, and the tensors over it that have been seen: weak references by their identity."""

    __slots__ = ('storage', 'address', 'bytes', 'device', 'tensors')

    def __init__(self, storage, address, length, device):
        self.storage, self.address, self.bytes, self.device = StorageWeakRef(storage), address, length, device
        self.tensors = {}


class _Account:
    """The storages of fake tensors, from the first sight of each to its end, and their rows of the log.

    A storage's end is seen at the next look, settle(): its weak reference is the truth. That a tensor over it is gone
    is the hint to look there, and every so often all are looked at, since a storage can also lose a tensor that stays
    (``tensor.data = other``). Between two looks nothing is allocated, so the order of the rows is that of the calls.

    Where PyTorch swaps fake parameters (see _Forgetting), the hints would have it refuse. There each look is at all
    storages, and takes a time in proportion to their number.
    """

    def __init__(self, device):
        self.device = device
        self.has_hints = not hasattr(torch.utils, 'swap_tensors')
        self.live = {}  # by the storage's identity, which is nobody else's as long as there is a weak reference to it
        self.suspects = {}  # of these, those that have lost a tensor, in that order
        self.looks = 0
        self.bytes = {}
        self.peaks = {}
        self.allocations = 0
        self.next_address = _FIRST_ADDRESS

    def settle(self, everywhere=False):
        self.looks += 1
        if everywhere or not self.has_hints or self.looks * 8 >= len(self.live):
            self.suspects.update(dict.fromkeys(self.live))
            self.looks = 0
        for key in list(self.suspects):
            block = self.live[key]
            if block.storage.expired():
                del self.live[key], self.suspects[key]
                self._end(block)
            elif block.tensors:
                del self.suspects[key]

    def see(self, tensor):
        if tensor.layout is not torch.strided:
            return
        storage = _storage(tensor)
        key, length = storage._cdata, int(storage.nbytes())
        block = self.live.get(key)
        if (0 if block is None else block.bytes) != length:
            block = self._resize(key, block, storage, length, tensor.fake_device)
        if self.has_hints and block is not None and id(tensor) not in block.tensors:
            block.tensors[id(tensor)] = weakref.ref(tensor, functools.partial(self._lost, key, id(tensor)))

    def _lost(self, key, tensor, _):
        block = self.live.get(key)
        if block is not None:
            block.tensors.pop(tensor, None)
            self.suspects[key] = None

    def _resize(self, key, before, storage, length, device):
        """New memory is there before the old one goes. Returns what is there now."""
        now = self._begin(storage, length, device) if length != 0 else None
        if before is not None:
            self._end(self.live.pop(key))
            self.suspects.pop(key, None)
        if now is not None:
            self.live[key] = now
        return now

    def _begin(self, storage, length, device):
        block = _Block(storage, self.next_address, length, device)
        self.next_address += -(-length // _GRANULE) * _GRANULE
        self.bytes[device] = self.bytes.get(device, 0) + length
        self.peaks[device] = max(self.peaks.get(device, 0), self.bytes[device])
        if device == self.device:
            self.allocations += 1
            _core._record_allocated(block.address, length)
        return block

    def _end(self, block):
        self.bytes[block.device] -= block.bytes
        if block.device == self.device:
            _core._record_freed(block.address)


# The fused operators of torch.nn's attention without gradients, of which a PyTorch knows at most what they give for fake
# tensors. Here are their own steps, as far as each has new memory.

def _attention(query, key, value, width, heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask=None,
               need_weights=True, average_attn_weights=True, mask_type=None):
    batch, length, _ = query.shape
    parts = query.new_empty(batch, length, 3 * width)
    parts = query.new_empty(3, batch, heads, length, width // heads)
    weights = query.new_empty(batch, heads, length, key.shape[1])
    parts = query.new_empty(batch, length, width)
    given = None
    if need_weights:
        given = weights.new_empty(batch, length, key.shape[1]) if average_attn_weights else weights
    return parts.new_empty(batch, length, width), given


def _encoder_layer(source, width, heads, qkv_weight, qkv_bias, proj_weight, proj_bias, use_gelu, norm_first, eps,
                   norm_weight_1, norm_bias_1, norm_weight_2, norm_bias_2, ffn_weight_1, *others):
    attended, _ = _attention(source, source, source, width, heads, qkv_weight, qkv_bias, proj_weight, proj_bias,
                             need_weights=False)
    hidden = attended.new_empty(*source.shape[:-1], ffn_weight_1.shape[0])
    return hidden.new_empty(source.shape)


_STEPS = {'aten::_native_multi_head_attention': _attention, 'aten::_transformer_encoder_layer_fwd': _encoder_layer}


class _Tracker(TorchDispatchMode):
    """Sees each operator before the fake mode does it, and what came of it."""

    def __init__(self, mode, account):
        super().__init__()
        self.mode = mode
        self.account = account

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(getattr(func, '_schema', None), 'name', '')
        if name.startswith('prim::'):
            return func(*args, **kwargs)
        if name.startswith('profiler::'):  # which the fake mode of PyTorch 1.13 takes for an operator
            with no_dispatch():
                return func(*args, **kwargs)
        self.account.settle()
        if not name.startswith('aten::lift_fresh'):  # whose argument is real
            args, kwargs = tree_map(self._fake, args), tree_map(self._fake, kwargs)
        result = self._run(func, args, kwargs)
        for tensor in _tensors_in(result):
            if isinstance(tensor, FakeTensor):
                self.account.see(tensor)
        return result

    def _fake(self, value):
        """A real tensor that the model has from somewhere becomes a fake one, the same each time."""
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return value
        made = self.mode.from_tensor(value)
        self.account.see(made)
        return made

    def _run(self, func, args, kwargs):
        if getattr(getattr(func, '_schema', None), 'name', '') in _STEPS:
            with self:
                return _STEPS[func._schema.name](*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except fake_tensor.DynamicOutputShapeException as error:
            raise RuntimeError(f"orderly.torch.simulate: the shape of what {func} gives depends on its tensors' "
                               'values, which are not computed') from error
        except fake_tensor.DataDependentOutputException as error:
            raise RuntimeError(f'orderly.torch.simulate: the program looks at the value of a tensor ({func}), and '
                               'values are not computed') from error
        except (NotImplementedError, getattr(fake_tensor, 'UnsupportedOperatorException', NotImplementedError)):
            if not hasattr(func, '_schema'):  # no operator, but what takes functions: a conditional, say
                raise
            return self._run_unknown(func, args, kwargs)

    def _run_unknown(self, func, args, kwargs):
        """An operator that this PyTorch cannot do on fake tensors."""
        first = func._schema.arguments[0].alias_info if func._schema.arguments else None
        if first is not None and first.is_write and func._schema.name.endswith('_'):
            return args[0]  # in place: the memory stays what it was
        length = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in((args, kwargs)))
        if length > _MOST_FOR_REAL:
            raise RuntimeError(f'orderly.torch.simulate: PyTorch {torch.__version__} cannot do {func} on fake tensors, '
                               f'and with {length} bytes of arguments it is not done for real') from None
        return self._run_for_real(func, args, kwargs)

    @staticmethod
    def _run_for_real(func, args, kwargs):
        """On zeros; what comes of it is fake again. The fake mode's own way keeps memory that nobody has any more."""
        fakes = {}  # by the identity of the real one, with that one

        def real(value):
            if not isinstance(value, FakeTensor):
                return value
            made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.fake_device)
            made.zero_()
            fakes[id(made)] = made, value
            return made

        def fake(value):
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) in fakes:
                return fakes[id(value)][1]
            return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device)

        with no_dispatch():
            result = func(*tree_map(real, args), **tree_map(real, kwargs))
            storages = {_storage(made)._cdata for made, _ in fakes.values()}
            if any(_storage(tensor)._cdata in storages for tensor in _tensors_in(result) if id(tensor) not in fakes):
                raise RuntimeError(f'orderly.torch.simulate: PyTorch {torch.__version__} cannot do {func} on fake '
                                   'tensors, and what it gives lies in the memory of its arguments')
        return tree_map(fake, result)


def _make_mode():
    settings = {'allow_fallback_kernels': False}
    try:
        return FakeTensorMode(**settings, throw_on_data_dependent_ops=True)
    except TypeError:  # since 2.0 it always does
        return FakeTensorMode(**settings)


class _Forgetting(TorchDispatchMode):
    """Has the fake mode forget which tensors it has made. It remembers them by weak reference, and where PyTorch swaps
    fake parameters for others, as Module.half() has it do since 2.3, it refuses tensors with weak references."""

    def __init__(self, mode):
        super().__init__()
        self.memo = getattr(getattr(mode.fake_tensor_converter, 'meta_converter', None), 'tensor_memo', None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(self.memo, weakref.WeakValueDictionary):
            self.memo.clear()
        return result


def _checked(device):
    """The device with its number. Raises RuntimeError where PyTorch would end the process."""
    device = torch.device(device)
    if device.type == 'meta':
        raise ValueError("device 'meta' is none whose memory could be short; leave `device` out, or name another")
    if device.type == 'cuda':
        if not (torch.cuda.is_available() or hasattr(torch._C, '_ensureCUDADeviceGuardSet')):
            raise RuntimeError(f'orderly.torch.simulate: PyTorch {torch.__version__} has fake tensors on {device} only '
                               "where there is a GPU. Take a newer PyTorch, or device='cpu': what tensors take is the "
                               'same, except where an operator has other steps there')
        return torch.device('cuda', device.index or 0)
    return device


class _Faker:
    """Fake tensors in place of others, which are real, on the device `meta`, or fake; overlapping as they do."""

    def __init__(self, device):
        self.device = None if device is None else _checked(device)
        self.storages = {}
        self.made = {}  # by the identity of the tensor, which `kept` keeps
        self.kept = []

    def __call__(self, tensor):
        if id(tensor) in self.made:
            return self.made[id(tensor)]
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ValueError(f'orderly.torch.simulate: a tensor of layout {tensor.layout}, dtype {tensor.dtype} cannot '
                             'be simulated')
        device = self.device or _checked('cpu' if tensor.device.type == 'meta' else tensor.device)
        storage = _storage(tensor)
        key = storage._cdata, tensor.dtype
        if key not in self.storages:
            count = int(storage.nbytes()) // tensor.element_size()
            self.storages[key] = torch.empty(count, dtype=tensor.dtype, device=device)
        made = self.storages[key].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        if isinstance(tensor, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
        elif tensor.requires_grad:
            made = made.detach().requires_grad_()
        self.made[id(tensor)] = made
        self.kept += [tensor]
        return made


def _module(model, faker):
    """The model with fake tensors: a copy, which shares no tensor with it."""
    module = model if isinstance(model, torch.nn.Module) else model()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f'model: a torch.nn.Module, or a function without arguments that makes one; it made a '
                        f'{type(module).__name__}')
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError('model: a scripted module keeps its tensors to itself; give the module that it was made of')
    for tensor in _tensors_of(module):
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError('model: it has parameters whose shapes come with the first input (lazy modules); give '
                             'them, or run it once')
        faker(tensor)
    return copy.deepcopy(module, dict(faker.made))


def _loss_of(output, loss):
    if loss is not None:
        return loss(output)
    sums = [tensor.sum() for tensor in _tensors_in(output) if tensor.requires_grad]
    if not sums:
        raise ValueError(f'loss: the model gives a {type(output).__name__}, in which there is no tensor to derive '
                         'from; give a function that makes one of it')
    return sum(sums[1:], sums[0])


def _run(module, inputs, training, loss, optimizer, steps):
    positional, named = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    if isinstance(positional, torch.Tensor):
        positional = (positional,)
    made = None
    with torch.set_grad_enabled(training):
        for step in range(steps):
            output = module(*positional, **named)
            if training:
                _loss_of(output, loss).backward()
                del output
                if optimizer is not None:
                    made = made or optimizer(module.parameters())
                    made.step()
                module.zero_grad(set_to_none=True)


def _simulate(model, inputs, device, training, loss, optimizer, steps):
    mode, faker = _make_mode(), _Faker(device)
    with mode, _Forgetting(mode):
        module = _module(model, faker).train(training)
        parameters = list(_tensors_of(module))
        inputs = tree_map(lambda leaf: faker(leaf) if isinstance(leaf, torch.Tensor) else leaf, inputs)
    seen = parameters + _tensors_in(inputs)
    account = _Account(seen[0].fake_device if seen else torch.device('cpu'))
    for tensor in parameters:
        account.see(tensor)
    of_parameters = account.bytes.get(account.device, 0)
    for tensor in _tensors_in(inputs):
        account.see(tensor)
    tensor = None
    del seen, parameters, faker
    with mode, _Tracker(mode, account):
        _run(module, inputs, training, loss, optimizer, steps)
    del module, inputs
    account.settle(everywhere=True)
    return account, of_parameters


def simulate(model, inputs, path, *, device=None, training=False, loss=None, optimizer=None, steps=None):
    """Writes the log of what a model allocates, without the memory for it: with fake tensors, which have everything
    but their bytes. Returns a Simulation. ``python -m orderly.replay`` and ``orderly-replay`` tell of the log how
    much memory a pool needs for it.

    model: a module, with real parameters or on the device ``meta``; or a function without arguments that makes one,
    which is called with fake tensors, so that the module may be of any size. It is copied, not changed. inputs: a
    tensor, a tuple of positional or a dictionary of named arguments; only the shapes, types and strides of tensors
    count, and those on ``meta`` do as well. path: as for ``orderly.record``; the log is there when all is done.
    device: where the model and the inputs are put; by default they stay, those on ``meta`` become the CPU's. The log
    is that of one device: this one, by default the first parameter's.

    training: forward and backward, in training mode; else forward alone, in evaluation mode without gradients. loss: a
    function from the model's output to what is derived from; by default the sum of all in it. optimizer: a function
    from parameters to an optimizer, ``torch.optim.Adam``, say. steps: how often all of it is done; by default once,
    and twice with an optimizer, whose state is there from the first step on. Gradients are dropped after each step.

    ::

        found = orderly.torch.simulate(lambda: Transformer(layers=96, width=12288),
                                       torch.empty(1, 2048, dtype=torch.long, device='meta'), 'large.csv.xz',
                                       training=True, optimizer=torch.optim.AdamW)
        # then: python -m orderly.replay --find-limit large.csv.xz

    The log has, in the columns of ``orderly.record``: the parameters and buffers, the inputs, and from there on each
    storage that an operator of PyTorch gives out, until the last tensor over it is gone. It has not: what operators
    allocate inside (workspaces of BLAS and cuDNN, reordered weights, partial sums); the CUDA context and what NCCL
    keeps; rounding by PyTorch's own allocator; sparse tensors; other threads; what an optimizer has at once where it
    takes whole lists of tensors, as PyTorch's do on GPUs by themselves (give it ``foreach=True``). Fused kernels are
    not fused (``torch.compile``, scripted modules), and where an operator has other steps on a GPU than on the CPU,
    those of `device` count. The times in the log are those of the simulation.

    An operator that the PyTorch in use cannot do on fake tensors is done for real, on zeros, if its arguments have at
    most 256 MiB. Raises RuntimeError for a larger one; where the program looks at the value of a tensor, or a shape
    depends on one; where a recording is running; where PyTorch has no fake tensors (1.13 has) or none on that device.
    TypeError, ValueError; what the model raises. Then there is no log, and nothing has changed; the state of PyTorch's
    random numbers never does.
    """
    if FakeTensorMode is None:
        raise RuntimeError(f'orderly.torch.simulate: PyTorch {torch.__version__} has no fake tensors; 1.13 has, and '
                           'what came after it')
    if not callable(model):
        raise TypeError(f'model: a torch.nn.Module, or a function that makes one, not a {type(model).__name__}')
    for name, given in (('loss', loss), ('optimizer', optimizer)):
        if given is not None and not training:
            raise ValueError(f'{name}: it is for training=True')
        if given is not None and not callable(given):
            raise TypeError(f'{name}: a function, not a {type(given).__name__}')
    steps = (1 if optimizer is None else 2) if steps is None else steps
    if steps < 1:
        raise ValueError(f'steps {steps}: at least 1')
    path = pathlib.Path(path)
    with contextlib.ExitStack() as stack:
        # Beside its place, so that it gets there in one step, and only when it is whole.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='.orderly-', dir=path.parent))
        written = os.path.join(folder, path.name)
        with recording(written), torch.random.fork_rng(devices=[]):
            account, parameters = _simulate(model, inputs, device, training, loss, optimizer, steps)
        os.replace(written, path)
    return Simulation(str(path), str(account.device), parameters, account.peaks.get(account.device, 0),
                      account.allocations, {str(each): peak for each, peak in account.peaks.items()})
