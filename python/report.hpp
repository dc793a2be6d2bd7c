/// \file
/// The report of a pool's memory as an object of Python.
#pragma once

#include <nanobind/nanobind.h>

namespace orderly::python {

void bind_report(nanobind::module_& m);

}  // namespace orderly::python
