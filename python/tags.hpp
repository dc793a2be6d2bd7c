/// \file
/// Tags as scopes of Python: `with orderly.tag('weights'):`.
#pragma once

#include <nanobind/nanobind.h>

#include "orderly/tag.hpp"

namespace orderly::python {

void bind_tags(nanobind::module_& m);

/// A tag's name as Python has it. A name that was cut within a character ends with a replacement.
[[nodiscard]] nanobind::object name_of(tag of);

}  // namespace orderly::python
