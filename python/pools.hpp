/// \file
/// The pools as Python has them.
#pragma once

#include <memory>

#include <nanobind/nanobind.h>

#include "memory.hpp"

namespace orderly::python {

void bind_pools(nanobind::module_& m);

/// The memory of a pool of either class. Raises TypeError.
[[nodiscard]] std::shared_ptr<memory> memory_of(nanobind::handle pool);

}  // namespace orderly::python
