"""Tensors: shapes, types, protocols, who frees them and when."""

import copy
import gc
import pickle
import struct
import weakref

import numpy
import pytest

import orderly

MIB = 1 << 20
TYPES = ['bool', 'uint8', 'uint16', 'uint32', 'uint64', 'int8', 'int16', 'int32', 'int64', 'float16', 'float32',
         'float64', 'complex64', 'complex128']


@pytest.fixture
def pool():
    made = orderly.MemoryPool(capacity=64 * MIB)
    yield made
    gc.collect()
    assert made.stats()['requested'] == 0, 'a block is lost'


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('shape', [(), (3,), (2, 3), (2, 0, 5), (1, 1, 1), (2, 3, 4, 5), (2, 1, 3, 1, 2, 1)])
def test_numpy_takes_a_tensor_by_every_protocol(pool, dtype, shape):
    tensor = pool.empty(shape, dtype)
    expected = numpy.zeros(shape, dtype)
    assert (tensor.shape, tensor.nbytes) == (shape, expected.nbytes)
    assert tensor.ptr % 256 == 0
    if expected.size:
        assert tensor.strides == expected.strides
    arrays = [numpy.frombuffer(tensor, dtype).reshape(shape) if expected.size else numpy.asarray(tensor),
              numpy.asarray(memoryview(tensor))]
    if dtype != 'bool' or numpy.lib.NumpyVersion(numpy.__version__) >= '1.25.0':  # before, its DLPack had no bool
        arrays.append(numpy.from_dlpack(tensor))
    interface = type('Interface', (), {'__array_interface__': tensor.__array_interface__})()
    arrays.append(numpy.asarray(interface))
    arrays[0][...] = numpy.arange(expected.size).reshape(shape).astype(dtype)
    for array in arrays:
        assert (array.dtype, array.shape) == (expected.dtype, shape)
        assert array.ctypes.data == tensor.ptr or not expected.size
        assert (array == arrays[0]).all()


@pytest.mark.parametrize('name, expected', [
    ('f4', 'float32'), ('<f4', 'float32'), (numpy.float32, 'float32'), (numpy.dtype('int16'), 'int16'),
    (float, 'float64'), (int, 'int64'), (bool, 'bool'), (complex, 'complex128'), (numpy.bool_, 'bool'),
    ('bfloat16', 'bfloat16'),
])
def test_a_type_has_many_names(pool, name, expected):
    for _ in range(2):
        assert pool.empty(3, name).dtype == expected


def test_what_is_no_type_is_refused(pool):
    for wrong in ('float31', '>f4', numpy.dtype('>i4'), numpy.dtype('datetime64[s]'), object, str, 3, None, ''):
        with pytest.raises(TypeError, match='none that orderly knows'):
            pool.empty(3, wrong)
    with pytest.raises(TypeError):
        pool.empty(3, [])
    for _ in range(1000):  # names are remembered, but not without end
        with pytest.raises(TypeError):
            pool.empty(3, object())


def test_shapes(pool):
    class Index:
        def __index__(self):
            return 4

    assert pool.empty(5).shape == (5,)
    assert pool.empty([2, Index()]).shape == (2, 4)
    assert pool.empty(Index()).shape == (4,)
    assert pool.empty(numpy.int64(3)).shape == (3,)
    assert pool.empty(number for number in (2, 3)).shape == (2, 3)
    assert pool.empty(range(3)).shape == (0, 1, 2)
    for wrong in (-1, (2, -3)):
        with pytest.raises(ValueError, match='dimension'):
            pool.empty(wrong)
    for wrong in (1.5, (2, 'x'), None, [[1]]):
        with pytest.raises(TypeError):
            pool.empty(wrong)
    for wrong in ((2**40, 2**40), (2**62, 2), 2**63 - 1, 2**64):
        with pytest.raises(ValueError):
            pool.empty(wrong)
    with pytest.raises(orderly.OutOfMemory):
        pool.empty(2**40)
    assert pool.empty((2**40, 2**40, 0)).nbytes == 0


def test_a_list_that_changes_while_it_is_read_is_read_as_it_was(pool):
    class Clears:
        def __index__(self):
            shape.clear()
            gc.collect()
            return 2

    shape = [Clears(), 3, 4]
    assert pool.empty(shape).shape == (2, 3, 4)


def test_the_device_must_be_the_pools(pool):
    assert pool.empty(3, device='cpu').device == 'cpu'
    with pytest.raises(ValueError, match='the pool is on cpu'):
        pool.empty(3, device='cuda:0')
    with pytest.raises(ValueError, match='serves no'):
        pool.empty(3, stream=17)
    with pytest.raises(TypeError, match='no stream'):
        pool.empty(3, stream='s')


def test_a_tensor_is_freed_once_and_then_has_no_memory(pool):
    tensor = pool.empty(1000, 'uint8')
    address = tensor.ptr
    assert tensor.is_live
    pool.free_tensor(tensor)
    assert not tensor.is_live and 'freed' in repr(tensor)
    with pytest.raises(orderly.BadFree) as refused:
        pool.free_tensor(tensor)
    assert (refused.value.code, refused.value.pointer) == ('double_free', address)
    other = pool.empty(1000, 'uint8')
    assert other.ptr == address
    with pytest.raises(orderly.BadFree) as refused:  # also when somebody else has the block
        pool.free_tensor(tensor)
    assert refused.value.code == 'double_free'
    for use in (lambda: tensor.ptr, lambda: tensor.__array_interface__, tensor.__dlpack__):
        with pytest.raises(ValueError, match='freed'):
            use()
    with pytest.raises(BufferError, match='freed'):
        memoryview(tensor)


def test_only_the_pools_own_tensors_are_freed(pool):
    other = orderly.MemoryPool(capacity=MIB)
    tensor = other.empty(10)
    with pytest.raises(orderly.BadFree) as refused:
        pool.free_tensor(tensor)
    assert (refused.value.code, refused.value.pointer) == ('wrong_pool', tensor.ptr)
    array = numpy.empty(10)
    with pytest.raises(orderly.BadFree) as refused:
        pool.free_tensor(array)
    assert (refused.value.code, refused.value.pointer) == ('foreign_pointer', array.ctypes.data)
    mine = pool.empty(10)
    with pytest.raises(TypeError, match='made of a tensor'):
        pool.free_tensor(numpy.asarray(mine))
    for wrong in (None, 7, 'x', []):
        with pytest.raises(TypeError, match='no tensor'):
            pool.free_tensor(wrong)
    assert tensor.is_live and mine.is_live


def test_a_tensor_in_use_is_not_freed(pool):
    tensor = pool.empty(1000, 'uint8')
    uses = [memoryview(tensor), numpy.from_dlpack(tensor), numpy.frombuffer(tensor, 'uint8'), tensor.__dlpack__()]
    while uses:
        with pytest.raises(BufferError, match=f'by {len(uses)} other'):
            pool.free_tensor(tensor)
        uses.pop()
        gc.collect()
    pool.free_tensor(tensor)


def test_what_was_made_of_a_tensor_keeps_its_block(pool):
    for take in (numpy.asarray, numpy.from_dlpack, memoryview, lambda tensor: tensor.__dlpack__()):
        tensor = pool.empty(MIB, 'uint8')
        kept = take(tensor)
        del tensor
        gc.collect()
        assert pool.stats()['requested'] == MIB
        del kept
        gc.collect()
        assert pool.stats()['requested'] == 0


def test_cycles_are_collected(pool):
    class Node:
        pass

    for order in (0, 1):
        node = Node()
        node.tensor = pool.empty(MIB)
        node.array = numpy.asarray(node.tensor)
        node.self = node
        gone = weakref.ref(node.tensor)
        del node
        gc.collect()
        assert gone() is None
        assert pool.stats()['requested'] == 0


def test_buffer_requests(pool):
    view = memoryview(pool.empty((3, 4), 'int32'))
    assert (view.format, view.itemsize, view.shape, view.strides, view.readonly) == ('i', 4, (3, 4), (16, 4), False)
    assert view.c_contiguous and not view.f_contiguous
    view[1, 2] = 5
    assert struct.unpack('12i', view.tobytes())[6] == 5
    with pytest.raises(BufferError, match='bfloat16'):
        memoryview(pool.empty(3, 'bfloat16'))
    with pytest.raises(AttributeError, match='DLPack'):
        pool.empty(3, 'bfloat16').__array_interface__
    assert bytearray(pool.empty(3, 'uint8')) is not None


def test_dlpack_arguments(pool):
    tensor = pool.empty((2, 3))
    assert tensor.__dlpack_device__() == (1, 0)
    assert 'dltensor_versioned' in repr(tensor.__dlpack__(max_version=(1, 0)))
    assert 'dltensor_versioned' not in repr(tensor.__dlpack__())
    tensor.__dlpack__(dl_device=(1, 0), copy=False, stream=None)
    with pytest.raises(BufferError, match='copies nothing'):
        tensor.__dlpack__(copy=True)
    with pytest.raises(BufferError):
        tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match='no stream'):
        tensor.__dlpack__(stream=1)
    with pytest.raises(TypeError):
        tensor.__dlpack__(1)
    with pytest.raises(AttributeError):
        tensor.__cuda_array_interface__


def test_a_tensor_is_neither_pickled_nor_copied(pool):
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match='neither pickled nor copied'):
            call(pool.empty(3))
    assert (pickle.loads(pickle.dumps(numpy.array(pool.empty(3)))).shape) == (3,)


def test_length_and_text(pool):
    assert len(pool.empty((3, 4))) == 3
    with pytest.raises(TypeError):
        len(pool.empty(()))
    assert repr(pool.empty((3, 4), 'int8')) == "orderly.Tensor(shape=(3, 4), dtype='int8', device='cpu')"


def test_a_pool_with_tensors_is_not_closed(pool):
    tensor = pool.empty(3)
    with pytest.raises(RuntimeError, match='1 tensors'):
        pool.close()
    del tensor
