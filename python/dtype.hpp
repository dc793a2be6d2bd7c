/// \file
/// Types of elements: one table, and how Python's many names for them are read.
#pragma once

#include <cstddef>
#include <cstdint>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

namespace orderly::python {

struct element_type {
  const char* name;
  const char* array_interface;  ///< null: NumPy has none
  const char* format;           ///< of the buffer protocol; null: it has none
  nanobind::dlpack::dtype dlpack;

  [[nodiscard]] std::size_t bytes() const noexcept { return dlpack.bits / 8; }
};

/// What names a type: "float32" and the like, NumPy's types and their codes, PyTorch's and CuPy's types, Python's bool,
/// int, float and complex. Raises TypeError. Pre: the GIL is held.
[[nodiscard]] const element_type& element_type_of(nanobind::handle named);

}  // namespace orderly::python
