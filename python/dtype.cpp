#include "dtype.hpp"

#include <array>
#include <cstring>
#include <string>
#include <string_view>

#include "errors.hpp"

namespace orderly::python {

namespace nb = nanobind;

namespace {

using code = nb::dlpack::dtype_code;

constexpr nb::dlpack::dtype dlpack_of(code of, unsigned bits) {
  return {static_cast<std::uint8_t>(of), static_cast<std::uint8_t>(bits), 1};
}

constexpr std::array types{
    element_type{"bool", "|b1", "?", dlpack_of(code::Bool, 8)},
    element_type{"uint8", "|u1", "B", dlpack_of(code::UInt, 8)},
    element_type{"uint16", "<u2", "H", dlpack_of(code::UInt, 16)},
    element_type{"uint32", "<u4", "I", dlpack_of(code::UInt, 32)},
    element_type{"uint64", "<u8", "Q", dlpack_of(code::UInt, 64)},
    element_type{"int8", "|i1", "b", dlpack_of(code::Int, 8)},
    element_type{"int16", "<i2", "h", dlpack_of(code::Int, 16)},
    element_type{"int32", "<i4", "i", dlpack_of(code::Int, 32)},
    element_type{"int64", "<i8", "q", dlpack_of(code::Int, 64)},
    element_type{"float16", "<f2", "e", dlpack_of(code::Float, 16)},
    element_type{"bfloat16", nullptr, nullptr, dlpack_of(code::Bfloat, 16)},
    element_type{"float32", "<f4", "f", dlpack_of(code::Float, 32)},
    element_type{"float64", "<f8", "d", dlpack_of(code::Float, 64)},
    element_type{"complex64", "<c8", "Zf", dlpack_of(code::Complex, 64)},
    element_type{"complex128", "<c16", "Zd", dlpack_of(code::Complex, 128)},
};

const element_type* find(std::string_view name) {
  for (const element_type& type : types) {
    if (name == type.name) return &type;
    if (type.array_interface != nullptr && (name == type.array_interface || name == type.array_interface + 1))
      return &type;
  }
  return nullptr;
}

std::string text_of(nb::handle object) { return nb::cast<std::string>(nb::str(object)); }

/// A name of any kind. Null: it names no type.
const element_type* read(nb::handle named) {
  if (PyUnicode_Check(named.ptr())) return find(nb::cast<std::string_view>(named));
  if (PyType_Check(named.ptr())) {
    const auto* const type = reinterpret_cast<PyTypeObject*>(named.ptr());
    if (type == &PyBool_Type) return find("bool");
    if (type == &PyLong_Type) return find("int64");
    if (type == &PyFloat_Type) return find("float64");
    if (type == &PyComplex_Type) return find("complex128");
    const std::string name = nb::cast<std::string>(named.attr("__name__"));  // NumPy's scalar types
    return find(name == "bool_" ? "bool" : name);
  }
  // A type of NumPy's or CuPy's has its code; big-endian ones have none that is known here.
  if (const nb::object interface = nb::getattr(named, "str", nb::none()); PyUnicode_Check(interface.ptr()))
    return find(nb::cast<std::string_view>(interface));
  const std::string text = text_of(named);
  constexpr std::string_view torch = "torch.";
  return text.starts_with(torch) ? find(std::string_view(text).substr(torch.size())) : nullptr;
}

/// From what was given to the type; names are few. For ever: an object may outlive the module.
PyObject* known = nullptr;

}  // namespace

const element_type& element_type_of(nb::handle named) {
  if (known == nullptr) known = PyDict_New();
  PyObject* const number = PyDict_GetItemWithError(known, named.ptr());
  if (number != nullptr) return types[static_cast<std::size_t>(PyLong_AsLong(number))];
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  const element_type* const type = read(named);
  if (type == nullptr)
    raise(PyExc_TypeError,
          "dtype %s is none that orderly knows: bool, uint8 to uint64, int8 to int64, float16, bfloat16, "
          "float32, float64, complex64, complex128, or NumPy's and PyTorch's names for them, in native byte order",
          nb::cast<std::string>(nb::repr(named)).c_str());
  const nb::int_ index(type - types.data());
  constexpr Py_ssize_t most_names = 256;  // of objects made anew each time there is no end
  if (PyDict_Size(known) < most_names && PyDict_SetItem(known, named.ptr(), index.ptr()) != 0) throw nb::python_error();
  return *type;
}

}  // namespace orderly::python
