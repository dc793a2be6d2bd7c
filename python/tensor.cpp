#include "tensor.hpp"

#include <algorithm>
#include <cstdint>
#include <new>
#include <optional>
#include <span>
#include <string>

#include <nanobind/stl/optional.h>

#include "errors.hpp"
#include "streams.hpp"

namespace orderly::python {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

/// A sequence's items, or the object itself if it is a number.
class lengths {
 public:
  explicit lengths(nb::handle shape) {
    if (PyTuple_Check(shape.ptr())) {
      items_ = nb::borrow(shape);
    } else if (PyIndex_Check(shape.ptr())) {
      number_ = shape;
    } else {
      items_ = nb::steal(PySequence_Tuple(shape.ptr()));
      if (!items_.is_valid()) throw nb::python_error();
    }
  }
  [[nodiscard]] std::size_t count() const {
    return items_.is_valid() ? static_cast<std::size_t>(PyTuple_GET_SIZE(items_.ptr())) : 1;
  }
  [[nodiscard]] Py_ssize_t at(std::size_t i) const {
    PyObject* const item =
        items_.is_valid() ? PyTuple_GET_ITEM(items_.ptr(), static_cast<Py_ssize_t>(i)) : number_.ptr();
    const Py_ssize_t length = PyNumber_AsSsize_t(item, PyExc_ValueError);
    if (length >= 0) return length;
    if (PyErr_Occurred() != nullptr) throw nb::python_error();
    raise(PyExc_ValueError, "shape: a dimension of %zd", length);
  }

 private:
  nb::object items_;
  nb::handle number_;
};

/// Another user of a tensor's memory, which keeps the tensor.
class use {
 public:
  explicit use(nb::object of) : of_(std::move(of)), tensor_(nb::inst_ptr<tensor>(of_)) { ++tensor_->exports; }
  use(const use&) = delete;
  use& operator=(const use&) = delete;
  ~use() { --tensor_->exports; }

 private:
  nb::object of_;
  tensor* tensor_;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
  tensor* const of = nb::inst_ptr<tensor>(self);
  view->obj = nullptr;
  const char* refused = nullptr;
  if (!of->is_live())
    refused = "the tensor was freed";
  else if (!of->pool().where().is_host())
    refused = "the tensor lies on a device; the buffer protocol is for host memory";
  else if (of->type().format == nullptr)
    refused = "the buffer protocol has no bfloat16";
  if (refused != nullptr) {
    PyErr_SetString(PyExc_BufferError, refused);
    return -1;
  }
  tensor::dimensions& shape =
      const_cast<tensor::dimensions&>(of->shape());  // the protocol's own type, not written through
  view->buf = of->address();
  view->len = static_cast<Py_ssize_t>(of->bytes());
  view->itemsize = static_cast<Py_ssize_t>(of->type().bytes());
  view->readonly = 0;
  view->ndim = static_cast<int>(shape.count());
  view->format = (flags & PyBUF_FORMAT) != 0 ? const_cast<char*>(of->type().format) : nullptr;
  view->shape = (flags & PyBUF_ND) != 0 ? shape.lengths() : nullptr;
  view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? shape.strides() : nullptr;
  if ((flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS && shape.count() > 1) {
    PyErr_SetString(PyExc_BufferError, "the tensor is in row-major order");
    return -1;
  }
  view->suboffsets = nullptr;
  view->internal = nullptr;
  ++of->exports;
  Py_INCREF(self);
  view->obj = self;
  return 0;
}

void release_buffer(PyObject* self, Py_buffer*) noexcept { --nb::inst_ptr<tensor>(self)->exports; }

nb::tuple tuple_of(const Py_ssize_t* numbers, std::size_t count) {
  nb::object tuple = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(count)));
  for (std::size_t i = 0; i < count; ++i)
    PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromSsize_t(numbers[i]));
  return nb::borrow<nb::tuple>(tuple);
}

nb::object array_interface(const tensor& self, bool of_cuda) {
  const place where = self.pool().where();
  if (of_cuda ? !where.is_cuda() : !where.is_host())
    raise(PyExc_AttributeError, "a tensor on %s has no __%sarray_interface__", where.name().c_str(),
          of_cuda ? "cuda_" : "");
  if (self.type().array_interface == nullptr)
    raise(PyExc_AttributeError, "%s has no array interface; use DLPack", self.type().name);
  nb::dict d;
  d["shape"] = tuple_of(self.shape().lengths(), self.shape().count());
  d["typestr"] = self.type().array_interface;
  d["data"] = nb::make_tuple(reinterpret_cast<std::uintptr_t>(self.address()), false);
  d["strides"] = nb::none();
  d["version"] = 3;
  if (of_cuda) {
    const auto stream = reinterpret_cast<std::uintptr_t>(self.stream());
    if (self.stream() == memory::settled)
      d["stream"] = nb::none();
    else
      d["stream"] = stream == 0 ? 1 : stream;  // 0 is not allowed there; 1 is the same stream
  }
  return d;
}

/// What a consumer says of its stream: that it will use the tensor there.
void join(tensor& self, nb::handle given) {
  const place where = self.pool().where();
  if (where.type == nb::device::cpu::value) {
    if (!given.is_none()) raise(PyExc_ValueError, "__dlpack__: a tensor in host memory has no stream to wait in");
    return;
  }
  if (!PyLong_Check(given.ptr()) && !given.is_none()) raise(PyExc_TypeError, "__dlpack__: stream is no integer");
  const std::int64_t number = given.is_none() ? 1 : nb::cast<std::int64_t>(given);
  if (number == -1) return;
  if (number == 0 || number < -1)
    raise(PyExc_ValueError, "__dlpack__: stream %lld; give 1, 2, a cudaStream_t or -1", static_cast<long long>(number));
  const stream_handle later = number == 1 ? nullptr : reinterpret_cast<stream_handle>(number);
  if (later == self.stream() || self.stream() == memory::settled || !self.pool().has_streams()) return;
  if (!self.pool().order(self.stream(), later) || self.record_stream(later) != error::none)
    raise(PyExc_BufferError,
          "__dlpack__: stream %lld cannot wait for the tensor's; does one of them capture, or is it no "
          "stream of %s?",
          static_cast<long long>(number), where.name().c_str());
}

nb::object dlpack(const nb::object& self, nb::handle stream, nb::handle max_version, nb::handle device,
                  nb::handle copy) {
  tensor& of = *nb::inst_ptr<tensor>(self);
  if (copy.is(Py_True)) raise(PyExc_BufferError, "__dlpack__: orderly copies nothing");
  join(of, stream);
  auto* const user = new use(self);
  const nb::capsule owner(user, [](void* held) noexcept { delete static_cast<use*>(held); });
  const Py_ssize_t* const shape = of.shape().lengths();
  std::array<std::size_t, 64> sizes;
  if (of.shape().count() > sizes.size()) raise(PyExc_BufferError, "__dlpack__: more than 64 dimensions");
  std::copy_n(shape, of.shape().count(), sizes.begin());
  const place where = of.pool().where();
  const nb::ndarray<nb::array_api> view(of.address(), of.shape().count(), sizes.data(), owner, nullptr,
                                        of.type().dlpack, where.type, where.id);
  nb::kwargs arguments = nb::borrow<nb::kwargs>(nb::dict());
  if (!max_version.is_none()) arguments["max_version"] = max_version;
  if (!device.is_none()) arguments["dl_device"] = device;
  return nb::cast(view).attr("__dlpack__")(**arguments);
}

nb::str repr(const tensor& self) {
  const nb::object shape = tuple_of(self.shape().lengths(), self.shape().count());
  return nb::str("orderly.Tensor(shape={}, dtype='{}', device='{}'{})")
      .format(shape, self.type().name, self.pool().where().name(), self.is_live() ? "" : ", freed");
}

}  // namespace

tensor::dimensions tensor::read_shape(nb::handle given) {
  const lengths all(given);
  dimensions shape(all.count());
  for (std::size_t i = 0; i < shape.count(); ++i) shape.lengths()[i] = all.at(i);
  return shape;
}

tensor_keeper::tensor_keeper(std::shared_ptr<memory> of, const tensor_options& settings) : of_(std::move(of)) {
  if (pool* const plain = of_->plain())
    cache_.emplace(*plain, settings);
  else if (stream_pool* const in_streams = of_->in_streams())
    cache_.emplace(*in_streams, settings);
  else
    raise(PyExc_ValueError, "the pool is closed");
}

tensor_keeper::~tensor_keeper() {
  without_gil([this] { cache_.reset(); });
}

orderly::tensor tensor_keeper::empty(const tensor_layout& layout, stream_handle stream) {
  if (stream == memory::settled) {
    if (const orderly::tensor kept = cache_->empty_at_hand(layout)) return kept;
    return of_->unlocked([&] { return cache_->empty(layout); });
  }
  if (const orderly::tensor kept = cache_->empty_at_hand(layout, stream)) return kept;
  return of_->unlocked([&] { return cache_->empty(layout, stream); });
}

error tensor_keeper::free(const orderly::tensor& of, bad_free* report) {
  if (cache_->free_at_hand(of)) return error::none;
  return of_->unlocked([&] { return cache_->try_free(of, report); });
}

error tensor_keeper::record_stream(const orderly::tensor& of, stream_handle stream) {
  return of_->unlocked([&] { return cache_->record_stream(of, stream); });
}

std::size_t tensor_keeper::trim(std::size_t keep_bytes) {
  return of_->unlocked([&] { return cache_->trim(keep_bytes); });
}

tensor::tensor(std::shared_ptr<memory> from, std::shared_ptr<tensor_keeper> keeper, dimensions&& shape,
               const element_type& type, stream_handle stream)
    : from_(std::move(from)), bytes_(type.bytes()), stream_(stream), type_(&type), shape_(std::move(shape)) {
  const Py_ssize_t* const each = shape_.lengths();
  bool overflows = false;
  for (std::size_t i = 0; i < shape_.count(); ++i)
    overflows = __builtin_mul_overflow(bytes_, static_cast<std::size_t>(each[i]), &bytes_) || overflows;
  if (std::find(each, each + shape_.count(), 0) != each + shape_.count())
    bytes_ = 0;
  else if (overflows || bytes_ > static_cast<std::size_t>(PY_SSIZE_T_MAX))
    raise(PyExc_ValueError, "shape: %zu dimensions of %s come to more bytes than there are addresses", shape_.count(),
          type.name);
  std::size_t stride = type.bytes();  // where a length is 0 it may wrap around, and nobody goes by it
  for (std::size_t i = shape_.count(); i-- > 0;) {
    shape_.strides()[i] = static_cast<Py_ssize_t>(stride);
    stride *= static_cast<std::size_t>(std::max<Py_ssize_t>(each[i], 1));
  }
  // Without bytes, or for no stream where there are streams, there is nothing that a cache could keep.
  if (keeper != nullptr && bytes_ != 0 && (stream != memory::settled || !from_->has_streams())) {
    const tensor_layout layout(std::span<const std::int64_t>(each, shape_.count()),
                               {type.dlpack.code, type.dlpack.bits, type.dlpack.lanes});
    const orderly::tensor made = keeper->empty(layout, stream);
    address_ = made.data;
    handle_ = made.handle;
    keeper_ = std::move(keeper);
  } else {
    address_ = from_->allocate(bytes_, 1, stream);
  }
  ++from_->tensors;
}

error tensor::give_back(bad_free* report) {
  if (keeper_ == nullptr) return from_->deallocate(address_, std::max<std::size_t>(bytes_, 1), stream_, report);
  orderly::tensor named;
  named.data = address_;
  named.handle = handle_;
  return keeper_->free(named, report);
}

error tensor::record_stream(stream_handle stream) {
  if (keeper_ == nullptr) return from_->record_stream(address(), stream);
  orderly::tensor named;
  named.data = address();
  named.handle = handle_;
  return from_->has_streams() ? keeper_->record_stream(named, stream) : error::none;
}

tensor::tensor(tensor&& other) noexcept
    : from_(std::move(other.from_)),
      keeper_(std::move(other.keeper_)),
      handle_(other.handle_),
      address_(std::exchange(other.address_, nullptr)),
      freed_(other.freed_),
      bytes_(other.bytes_),
      stream_(other.stream_),
      type_(other.type_),
      shape_(std::move(other.shape_)) {}

tensor::~tensor() {
  if (address_ == nullptr) return;
  --from_->tensors;
  bad_free report;
  if (give_back(&report) != error::none) from_->report(report);
}

void* tensor::address() const {
  if (address_ == nullptr) raise(PyExc_ValueError, "the tensor was freed");
  return address_;
}

void tensor::free(const memory& of) {
  bad_free report{.code = error::wrong_pool, .pointer = address_, .bytes = bytes_};
  if (address_ == nullptr) {
    // The pool does not know by now whose block that was.
    report.pointer = freed_;
    report.code = error::double_free;
    raise(report);
  }
  if (&of != from_.get()) raise(report);
  if (exports != 0)
    raise(PyExc_BufferError,
          "the tensor's memory is in use by %zu other objects, arrays made of it, say; drop these first", exports);
  const error code = give_back(&report);
  --from_->tensors;
  freed_ = std::exchange(address_, nullptr);
  if (code != error::none) raise(report);
}

void bind_tensor(nb::module_& m) {
  static PyType_Slot slots[] = {
      {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
      {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
      {0, nullptr},
  };
  nb::class_<tensor>(
      m, "Tensor", nb::type_slots(slots), nb::is_weak_referenceable(),
      "An array in row-major order over a block of a pool: made by `empty`, with undefined contents.\n\n"
      "NumPy, PyTorch, CuPy and others take it as it lies, by DLPack, the buffer protocol or the array interfaces;\n"
      "what they make of it keeps it. When nothing does, the block is free again, in the tensor's stream: work that\n"
      "is in the stream then may still use it. It may be dropped by any thread, in any order, at any time.")
      .def_prop_ro(
          "shape", [](const tensor& self) { return tuple_of(self.shape().lengths(), self.shape().count()); },
          nb::for_getter(nb::sig("def shape(self) -> tuple[int, ...]")), "Lengths of the dimensions, in elements.")
      .def_prop_ro(
          "strides", [](const tensor& self) { return tuple_of(self.shape().strides(), self.shape().count()); },
          nb::for_getter(nb::sig("def strides(self) -> tuple[int, ...]")), "Steps of the dimensions, in bytes.")
      .def_prop_ro(
          "dtype", [](const tensor& self) { return self.type().name; }, "Name of the elements' type.")
      .def_prop_ro("nbytes", &tensor::bytes, "Bytes of all elements.")
      .def_prop_ro(
          "device", [](const tensor& self) { return self.pool().where().name(); },
          "\"cpu\", or \"cuda:0\" and the like.")
      .def_prop_ro(
          "ptr", [](const tensor& self) { return reinterpret_cast<std::uintptr_t>(self.address()); },
          "Address. Raises ValueError if the tensor was freed.")
      .def_prop_ro(
          "stream",
          [](const tensor& self) -> std::optional<std::uintptr_t> {
            if (self.stream() == memory::settled) return std::nullopt;
            return reinterpret_cast<std::uintptr_t>(self.stream());
          },
          "Handle of the stream that it was allocated in; None: of no stream.")
      .def_prop_ro("is_live", &tensor::is_live, "False: it was freed by `free_tensor`.")
      .def_prop_ro(
          "__array_interface__", [](const tensor& self) { return array_interface(self, false); },
          nb::for_getter(nb::sig("def __array_interface__(self) -> dict[str, typing.Any]")),
          "For NumPy, of a tensor in host memory. Raises AttributeError, ValueError.")
      .def_prop_ro(
          "__cuda_array_interface__", [](const tensor& self) { return array_interface(self, true); },
          nb::for_getter(nb::sig("def __cuda_array_interface__(self) -> dict[str, typing.Any]")),
          "For CuPy, Numba and others, of a tensor on a device. Raises AttributeError, ValueError.")
      .def("__dlpack__", dlpack, nb::kw_only(), "stream"_a = nb::none(), "max_version"_a = nb::none(),
           "dl_device"_a = nb::none(), "copy"_a = nb::none(),
           "A DLPack capsule. stream: where the consumer will use it, as the array API has it; that stream then waits "
           "for\n"
           "the tensor's. -1: it does not. Raises BufferError.")
      .def(
          "__dlpack_device__",
          [](const tensor& self) { return nb::make_tuple(self.pool().where().type, self.pool().where().id); },
          nb::sig("def __dlpack_device__(self) -> tuple[int, int]"),
          "Kind and number of the device, as DLPack has them.")
      .def("__len__",
           [](const tensor& self) {
             if (self.shape().count() == 0) raise(PyExc_TypeError, "len() of a tensor without dimensions");
             return self.shape().lengths()[0];
           })
      .def("__repr__", repr)
      .def(
          "__reduce_ex__",
          [](const tensor&, nb::handle) {
            raise(PyExc_TypeError,
                  "an orderly.Tensor can be neither pickled nor copied: it is a block of a pool of this process; use "
                  "numpy.array(tensor) or torch.from_dlpack(tensor).clone()");
          },
          nb::sig("def __reduce_ex__(self, protocol: typing.SupportsIndex) -> str | tuple[typing.Any, ...]"),
          "Raises TypeError.");
}

}  // namespace orderly::python
