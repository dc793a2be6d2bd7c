#include "errors.hpp"

#include <cstdarg>
#include <cstdint>
#include <exception>

namespace orderly::python {

namespace nb = nanobind;

namespace {

// Held for ever: an object that outlives the module may still raise.
PyObject* bad_free_type = nullptr;
PyObject* out_of_memory_type = nullptr;

std::uintptr_t number(const void* pointer) noexcept { return reinterpret_cast<std::uintptr_t>(pointer); }

void raise_object(nb::handle type, const nb::object& exception) { PyErr_SetObject(type.ptr(), exception.ptr()); }

void translate(const std::exception_ptr& raised, void*) {
  try {
    std::rethrow_exception(raised);
  } catch (const bad_free_error& refused) {
    raise_object(bad_free_type, exception_of(refused.report()));
  } catch (const out_of_memory& refused) {
    nb::object exception = nb::borrow(out_of_memory_type)(refused.what());
    exception.attr("requested") = refused.requested();
    exception.attr("report") = nb::cast(refused.report());
    raise_object(out_of_memory_type, exception);
  }
}

}  // namespace

void bind_errors(nb::module_&) {
  const nb::module_ errors = nb::module_::import_("orderly._errors");
  bad_free_type = nb::object(errors.attr("BadFree")).release().ptr();
  out_of_memory_type = nb::object(errors.attr("OutOfMemory")).release().ptr();
  nb::register_exception_translator(translate, nullptr);
}

nb::object exception_of(const bad_free& report) {
  nb::object exception = nb::borrow(bad_free_type)(report.message());
  exception.attr("code") = name_of(report.code);
  exception.attr("pointer") = number(report.pointer);
  exception.attr("bytes") = report.bytes;
  exception.attr("block") = number(report.block);
  exception.attr("block_bytes") = report.block_bytes;
  exception.attr("block_requested") = report.block_requested;
  exception.attr("state") = name_of(report.state);
  exception.attr("generation") = report.generation;
  exception.attr("block_generation") = report.block_generation;
  return exception;
}

void raise(const bad_free& report) { throw bad_free_error(report); }

void raise_bad_free(error code, const char* message) {
  nb::object exception = nb::borrow(bad_free_type)(message);
  exception.attr("code") = name_of(code);
  raise_object(bad_free_type, exception);
  throw nb::python_error();
}

void raise(PyObject* type, const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  PyErr_FormatV(type, format, values);
  va_end(values);
  throw nb::python_error();
}

const char* name_of(error code) noexcept {
  switch (code) {
    case error::none:
      return "none";
    case error::invalid_argument:
      return "invalid_argument";
    case error::out_of_memory:
      return "out_of_memory";
    case error::source_failed:
      return "source_failed";
    case error::stream_failed:
      return "stream_failed";
    case error::double_free:
      return "double_free";
    case error::interior_pointer:
      return "interior_pointer";
    case error::foreign_pointer:
      return "foreign_pointer";
    case error::misaligned_pointer:
      return "misaligned_pointer";
    case error::size_mismatch:
      return "size_mismatch";
    case error::wrong_pool:
      return "wrong_pool";
    case error::pool_gone:
      return "pool_gone";
    case error::stale_handle:
      return "stale_handle";
    case error::pinned:
      return "pinned";
  }
  return "unknown";
}

const char* name_of(block_state state) noexcept {
  switch (state) {
    case block_state::none:
      return "none";
    case block_state::free:
      return "free";
    case block_state::cached:
      return "cached";
    case block_state::live:
      return "live";
    case block_state::owned:
      return "owned";
    case block_state::split:
      return "split";
  }
  return "unknown";
}

}  // namespace orderly::python
