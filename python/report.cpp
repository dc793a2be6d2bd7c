#include "report.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <nanobind/stl/string.h>

#include "errors.hpp"
#include "orderly/report.hpp"

namespace orderly::python {

namespace nb = nanobind;

namespace {

using remedy = memory_report::remedy;

const char* name_of(remedy what) noexcept {
  switch (what) {
    case remedy::raise_capacity:
      return "raise_capacity";
    case remedy::raise_limit:
      return "raise_limit";
    case remedy::more_memory:
      return "more_memory";
    case remedy::synchronize:
      return "synchronize";
    case remedy::let_wait:
      return "let_wait";
    case remedy::end_graphs:
      return "end_graphs";
    case remedy::reclaim:
      return "reclaim";
    case remedy::relocate:
      return "relocate";
    case remedy::elsewhere:
      return "elsewhere";
    case remedy::resume_thread:
      return "resume_thread";
    case remedy::ask_for_less:
      return "ask_for_less";
  }
  return "unknown";
}

nb::object text(const char* from) {
  return nb::steal(PyUnicode_DecodeUTF8(from, static_cast<Py_ssize_t>(std::strlen(from)), "replace"));
}

nb::dict dict_of(const memory_report::lane& of) {
  nb::dict d;
  d["stream"] = reinterpret_cast<std::uintptr_t>(of.stream);
  d["released"] = of.released;
  d["cached"] = of.cached;
  d["held"] = of.held;
  return d;
}

nb::list lanes_of(const memory_report& of) {
  nb::list all;
  for (std::size_t i = 0; i < of.lane_count; ++i) all.append(dict_of(of.lanes[i]));
  return all;
}

nb::dict tried_of(const memory_report& of) {
  const memory_report::attempts& tried = of.tried;
  nb::dict d;
  d["by_limit"] = tried.by_limit;
  d["by_source"] = tried.by_source;
  d["by_order"] = tried.by_order;
  d["passes"] = tried.passes;
  d["shared_pass"] = tried.shared_pass;
  d["stopped_pass"] = tried.stopped_pass;
  d["stopped_thread"] = tried.stopped_thread;
  d["reclaimed"] = tried.reclaimed;
  d["released"] = tried.released;
  d["waited"] = tried.waited;
  d["handler_calls"] = tried.handler_calls;
  d["source_error"] = text(tried.source_error);
  return d;
}

nb::dict helps_of(const memory_report& of) {
  nb::dict all;
  for (std::size_t i = 0; i < of.help_count; ++i) {
    nb::dict d;
    d["bytes"] = of.helps[i].bytes;
    d["count"] = of.helps[i].count;
    all[name_of(of.helps[i].what)] = d;
  }
  return all;
}

nb::object tags_of(const memory_report& of) {
  if (!of.tags_accounted) return nb::none();
  nb::dict all;
  for (std::size_t i = 0; i < of.tag_count; ++i) {
    const memory_report::tag_figures& each = of.tags[i];
    nb::dict d;
    d["requested"] = each.requested;
    d["allocated"] = each.allocated;
    d["peak_requested"] = each.peak_requested;
    d["blocks"] = each.blocks;
    all[text(each.name)] = d;
  }
  return all;
}

/// An exception with its report crosses from one process to another as it is.
nb::bytes state_of(const memory_report& of) {
  static_assert(std::is_trivially_copyable_v<memory_report>);
  return nb::bytes(&of, sizeof of);
}

void set_state(memory_report* to, const nb::bytes& state) {
  if (state.size() != sizeof *to) raise(PyExc_ValueError, "a report of another version of orderly");
  new (to) memory_report;
  std::memcpy(static_cast<void*>(to), state.data(), sizeof *to);
}

}  // namespace

void bind_report(nb::module_& m) {
  using report = memory_report;
  nb::class_<report>(
      m, "MemoryReport",
      "Where a pool's memory is, what was tried for a request, and what would make room for it: by `report()` of a\n"
      "pool, and in `OutOfMemory.report`. As text, by str(), some lines for a person. Sizes in bytes, of one "
      "instant.\n\n"
      "committed = live + cached + scattered + idle, but for what is changing hands just then.")
      .def_ro("requested", &report::requested, "What was asked for; 0: none was refused.")
      .def_ro("needed", &report::needed, "What a block for it takes of the limit if nothing for it is committed.")
      .def_ro("capacity", &report::capacity, "Most memory that the pool may ever manage.")
      .def_ro("limit", &report::limit, "Most memory that it may have committed.")
      .def_ro("committed", &report::committed, "Memory that it holds.")
      .def_ro("live", &report::live, "Length of live blocks.")
      .def_ro("live_requested", &report::live_requested, "What was asked for of it.")
      .def_ro("live_blocks", &report::live_blocks, "Their number.")
      .def_ro("peak_requested", &report::peak_requested, "The most that was ever asked for at once.")
      .def_ro("cached", &report::cached, "Freed, and kept for a thread, a stream or a graph.")
      .def_ro("scattered", &report::scattered, "Free, in pieces that serve small requests alone.")
      .def_ro("idle", &report::idle, "Free, and of use for every request.")
      .def_ro("chunk", &report::chunk, "Unit of committed memory; 0: it was there from the start, in one piece.")
      .def_ro("largest_now", &report::largest_now, "The largest request that fits into what is free, as it lies.")
      .def_ro("largest_grown", &report::largest_grown,
              "The largest that is served if memory is committed to the limit.")
      .def_ro("fragmentation", &report::fragmentation, "100 * scattered / committed.")
      .def_ro("graphs", &report::graphs, "Freed, and captured graphs' until they are gone.")
      .def_prop_ro(
          "lanes", lanes_of, nb::for_getter(nb::sig("def lanes(self) -> list[dict[str, int]]")),
          "Those that keep most, the first of them first: `stream`, its handle, 0 for the only one or the\n"
          "default stream; `released`, if it was; bytes `cached`, and `held`: freed in it and not everybody's.")
      .def_ro("more_lanes", &report::more_lanes, "Number of lanes that keep something, too.")
      .def_prop_ro(
          "rest", [](const report& self) { return dict_of(self.rest); },
          nb::for_getter(nb::sig("def rest(self) -> dict[str, int]")), "What those keep together.")
      .def_prop_ro("tried", tried_of, nb::for_getter(nb::sig("def tried(self) -> dict[str, typing.Any]")),
                   "What was tried before the request was refused: `by_limit`, `by_source`, `by_order` kept it from\n"
                   "more; number of `passes`; `shared_pass`, `stopped_pass`, `stopped_thread`; bytes `reclaimed` from\n"
                   "caches and `released`; `waited` for streams; number of `handler_calls`; `source_error`, as text.")
      .def_prop_ro("helps", helps_of, nb::for_getter(nb::sig("def helps(self) -> dict[str, dict[str, int]]")),
                   "What would help, by name, with `bytes` and `count`: `raise_capacity` or `raise_limit` to bytes,\n"
                   "`more_memory`, `synchronize`, `let_wait`, `end_graphs`, `reclaim`, `relocate` (count: chunks),\n"
                   "`elsewhere`, `resume_thread`, `ask_for_less` (at most bytes).")
      .def_prop_ro(
          "tags", tags_of, nb::for_getter(nb::sig("def tags(self) -> dict[str, dict[str, int]] | None")),
          "What tags hold, those with most first: `requested`, `allocated`, `peak_requested` and `blocks`, their\n"
          "number. None: the pool keeps no account of them.")
      .def("__str__", &report::message)
      .def("__repr__",
           [](const report& self) {
             return nb::str("<orderly.MemoryReport: {} bytes live, {} committed, limit {}>")
                 .format(self.live, self.committed, self.limit);
           })
      .def("__getstate__", state_of)
      .def("__setstate__", set_state);
}

}  // namespace orderly::python
