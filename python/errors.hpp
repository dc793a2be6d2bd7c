/// \file
/// orderly's errors as Python's exceptions, which orderly/_errors.py defines.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "orderly/error.hpp"

namespace orderly::python {

/// Finds the exceptions, and has nanobind raise them for orderly's.
void bind_errors(nanobind::module_& m);

/// The exception for a refused free.
[[nodiscard]] nanobind::object exception_of(const bad_free& report);

/// Raises it.
[[noreturn]] void raise(const bad_free& report);
/// The same for a block that was not named by its address.
[[noreturn]] void raise_bad_free(error code, const char* message);
[[noreturn]] void raise(PyObject* type, const char* format, ...) __attribute__((format(printf, 2, 3)));

/// The name of a code as Python has it: "double_free".
[[nodiscard]] const char* name_of(error code) noexcept;
[[nodiscard]] const char* name_of(block_state state) noexcept;

}  // namespace orderly::python
