"""Sequences of calls, as hypothesis finds them, against a model that knows what is live."""

import gc

import numpy
import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

import orderly

MIB = 1 << 20
LIMIT = 4 * MIB
SIZES = strategies.one_of(strategies.integers(0, 3000), strategies.integers(0, 2 * MIB))


class Blocks(RuleBasedStateMachine):
    """Raw blocks by address and by handle."""

    def __init__(self):
        super().__init__()
        self.pool = orderly.BuddyAllocator(LIMIT)
        self.live, self.freed, self.refused = {}, {}, 0

    blocks = Bundle('blocks')

    @rule(target=blocks, size=SIZES, shift=strategies.integers(0, 16))
    def allocate(self, size, shift):
        try:
            address = self.pool.allocate(size, 1 << shift)
        except orderly.OutOfMemory:
            return None
        assert address % max(256, 1 << shift) == 0
        length = max(size, 1)
        for other, bytes_of_other in self.live.items():
            assert address + length <= other or other + bytes_of_other <= address
        self.live[address] = length
        self.freed.pop(address, None)
        return address

    @rule(address=consumes(blocks), exact=strategies.booleans())
    def free(self, address, exact):
        if address is None:
            return
        size = self.live.pop(address, None)
        if size is None:
            return
        self.pool.free(address, size if exact else 0)
        self.freed[address] = size

    @rule(address=blocks, offset=strategies.integers(-300, 300))
    def free_elsewhere(self, address, offset):
        if address is None or address + offset in self.live:
            return
        with pytest.raises(orderly.BadFree) as refused:
            self.pool.free(address + offset)
        inside = any(start < address + offset < start + size for start, size in self.live.items())
        if inside:
            assert refused.value.code == ('misaligned_pointer' if offset % 256 else 'interior_pointer')
        self.refused += 1

    @rule(keep=strategies.integers(0, LIMIT))
    def trim(self, keep):
        self.pool.trim(keep)

    @rule()
    def defragment(self):
        self.pool.defragment()

    @invariant()
    def the_books_are_right(self):
        stats = self.pool.stats()
        assert stats['requested'] == sum(self.live.values())
        assert stats['allocations'] - stats['frees'] == len(self.live)
        assert stats['allocated'] + stats['cached'] <= stats['committed'] <= LIMIT
        assert stats['bad_frees'] == self.refused
        for address, size in self.live.items():
            assert self.pool.block_size(address) >= size

    def teardown(self):
        for address, size in self.live.items():
            self.pool.free(address, size)
        assert self.pool.allocate(LIMIT)


class Tensors(RuleBasedStateMachine):
    """Tensors, arrays made of them, and frees by hand and by the garbage collector."""

    def __init__(self):
        super().__init__()
        self.pool = orderly.MemoryPool(capacity=LIMIT)
        self.tensors, self.arrays = [], []

    @rule(shape=strategies.lists(strategies.integers(0, 40), max_size=4),
          dtype=strategies.sampled_from(['uint8', 'float64']), value=strategies.integers(0, 255))
    def make(self, shape, dtype, value):
        try:
            tensor = self.pool.empty(shape, dtype)
        except orderly.OutOfMemory:
            return
        numpy.asarray(tensor)[...] = value
        self.tensors.append((tensor, value))

    @rule(number=strategies.integers(0, 100),
          take=strategies.sampled_from([numpy.asarray, numpy.from_dlpack, memoryview]))
    def view(self, number, take):
        if self.tensors:
            tensor, value = self.tensors[number % len(self.tensors)]
            self.arrays.append((take(tensor), value, tensor))

    @rule(number=strategies.integers(0, 100))
    def drop_tensor(self, number):
        if self.tensors:
            self.tensors.pop(number % len(self.tensors))

    @rule(number=strategies.integers(0, 100))
    def drop_array(self, number):
        if self.arrays:
            self.arrays.pop(number % len(self.arrays))

    @rule(number=strategies.integers(0, 100))
    def free(self, number):
        if not self.tensors:
            return
        tensor, _ = self.tensors[number % len(self.tensors)]
        uses = sum(other is tensor for _, _, other in self.arrays)
        if uses:
            with pytest.raises(BufferError, match=f'by {uses} other'):
                self.pool.free_tensor(tensor)
        else:
            self.pool.free_tensor(tensor)
            with pytest.raises(orderly.BadFree):
                self.pool.free_tensor(tensor)
            self.tensors = [each for each in self.tensors if each[0] is not tensor]

    @invariant()
    def nothing_is_lost_and_nothing_overwritten(self):
        live = {id(tensor): tensor for tensor, _ in self.tensors} | {id(tensor): tensor for _, _, tensor in self.arrays}
        assert self.pool.stats()['requested'] == sum(max(tensor.nbytes, 1) for tensor in live.values())
        for tensor, value in self.tensors:
            assert (numpy.asarray(tensor) == value).all()
        for array, value, _ in self.arrays:
            assert (numpy.asarray(array) == value).all()

    def teardown(self):
        self.tensors.clear()
        self.arrays.clear()
        gc.collect()
        assert self.pool.stats()['requested'] == 0


FEW = settings(max_examples=30, stateful_step_count=30, deadline=None, database=None,
               suppress_health_check=list(HealthCheck))
TestBlocks = Blocks.TestCase
TestBlocks.settings = FEW
TestTensors = Tensors.TestCase
TestTensors.settings = FEW
