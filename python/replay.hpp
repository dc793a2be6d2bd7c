/// \file
/// Recorded calls, on a pool; see orderly/replay.py.
#pragma once

#include <nanobind/nanobind.h>

namespace orderly::python {

void bind_replay(nanobind::module_& m);

}  // namespace orderly::python
