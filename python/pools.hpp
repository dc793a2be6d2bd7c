/// \file
/// The pools as Python has them.
#pragma once

#include <nanobind/nanobind.h>

namespace orderly::python {

void bind_pools(nanobind::module_& m);

}  // namespace orderly::python
