/// \file
/// The extension module orderly._core: pools, tensors and streams of orderly for Python.
#include <nanobind/nanobind.h>

#include "errors.hpp"
#include "hooks.hpp"
#include "numpy.hpp"
#include "pools.hpp"
#include "relocation.hpp"
#include "replay.hpp"
#include "report.hpp"
#include "streams.hpp"
#include "tags.hpp"
#include "tensor.hpp"

NB_MODULE(_core, m) {
  namespace nb = nanobind;
  nb::set_leak_warnings(false);  // a tensor that lives until the process ends is no mistake
  m.doc() = "Pools of memory, tensors in them, and streams.";
  m.attr("__version__") = ORDERLY_VERSION;
#ifdef ORDERLY_PYTHON_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  orderly::python::bind_errors(m);
  orderly::python::bind_tags(m);
  orderly::python::bind_report(m);
  orderly::python::bind_streams(m);
  orderly::python::bind_tensor(m);
  orderly::python::bind_pools(m);
  orderly::python::bind_relocation(m);
  orderly::python::bind_hooks(m);
  orderly::python::bind_numpy(m);
  orderly::python::bind_replay(m);
}
