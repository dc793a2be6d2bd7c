/// \file
/// NumPy's memory: a handler of its data allocations that serves from a pool, or notes what another one does.
#pragma once

#include <nanobind/nanobind.h>

namespace orderly::python {

void bind_numpy(nanobind::module_& m);

}  // namespace orderly::python
