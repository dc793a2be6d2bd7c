/// \file
/// Relocatable blocks as Python has them: a pinned one is an object with the buffer protocol, and stays pinned as long as
/// anything uses its memory.
#pragma once

#include <nanobind/nanobind.h>

namespace orderly::python {

void bind_relocation(nanobind::module_& m);

}  // namespace orderly::python
