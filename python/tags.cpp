#include "tags.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <nanobind/stl/string.h>

#include "errors.hpp"

namespace orderly::python {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

/// What Python holds. One object may be entered by several threads at once, and several times by each: what was the
/// thread's tag before is kept for each entry. Guarded by the GIL.
struct tag_object {
  struct entry {
    std::thread::id thread;
    tag before;
  };
  tag of;
  std::vector<entry> entries;
};

tag make(const std::string& name) {
  if (name.find('\0') != std::string::npos) raise(PyExc_ValueError, "name: it contains a zero");
  return tag(name);
}

void enter(tag_object& self) {
  self.entries.push_back({std::this_thread::get_id(), tag::current()});  // may throw, so it comes first
  tag::exchange(self.of);
}

void leave(tag_object& self) {
  const auto mine = std::find_if(self.entries.rbegin(), self.entries.rend(),
                                 [](const auto& each) { return each.thread == std::this_thread::get_id(); });
  if (mine == self.entries.rend())
    raise(PyExc_RuntimeError, "tag '%s': this thread has not begun it; a scope ends on the thread that began it",
          self.of.name());
  tag::exchange(mine->before);
  self.entries.erase(std::next(mine).base());
}

}  // namespace

nb::object name_of(tag of) {
  const char* const name = of.name();
  return nb::steal(PyUnicode_DecodeUTF8(name, static_cast<Py_ssize_t>(std::strlen(name)), "replace"));
}

void bind_tags(nb::module_& m) {
  nb::class_<tag_object>(
      m, "tag",
      "What memory is for: a scope in which the blocks that this thread allocates bear a name, until they are freed,\n"
      "wherever that is::\n\n"
      "    pool = orderly.MemoryPool(account_tags=True)\n"
      "    with orderly.tag('weights'):\n"
      "        weights = pool.empty((1024, 1024))\n"
      "    pool.tags()['weights']['requested']  # 4194304\n\n"
      "Scopes nest, and end on the thread that began them; a thread that starts inside of one is not in it. A scope\n"
      "that a generator or a coroutine leaves open when it yields stays the thread's meanwhile. One object may serve\n"
      "any number of threads and scopes. A program has a fixed set of names: each is kept for ever, and past 65,534 "
      "new\n"
      "ones are \"other\". Of a name the first 255 bytes count; empty is \"untagged\".")
      .def(
          "__init__",
          [](tag_object* self, const std::string& name) {
            new (self) tag_object{make(name), {}};
          },
          "name"_a, "Raises ValueError for a name with a zero in it.")
      .def_prop_ro(
          "name", [](const tag_object& self) { return name_of(self.of); },
          nb::for_getter(nb::sig("def name(self) -> str")), "As the process has registered it.")
      .def(
          "__enter__",
          [](nb::handle self) {
            enter(nb::cast<tag_object&>(self));
            return nb::borrow(self);
          },
          nb::sig("def __enter__(self) -> tag"))
      .def(
          "__exit__", [](tag_object& self, nb::args) { leave(self); },
          nb::sig("def __exit__(self, *error: typing.Any) -> None"),
          "Raises RuntimeError if this thread has not entered it.")
      .def("__repr__", [](const tag_object& self) { return nb::str("<orderly.tag {!r}>").format(name_of(self.of)); });
  m.def(
      "current_tag", [] { return name_of(tag::current()); }, nb::sig("def current_tag() -> str"),
      "Name of this thread's tag; \"untagged\" outside of every scope.");
}

}  // namespace orderly::python
