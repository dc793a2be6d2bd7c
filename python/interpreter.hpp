/// \file
/// Python's interpreter lock, the GIL.
///
/// A call that may wait gives it up: another thread that has to make progress for this one may be waiting for it. A
/// call that serves from what its thread has at hand keeps it, since handing it over and back costs a hundred times as
/// much as the call, and takes turns with all other threads.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

#include <nanobind/nanobind.h>

namespace orderly::python {

/// Thrown through the pool when a handler in Python has raised: the exception itself stays with the thread.
struct handler_raised {};

/// Python before 3.14 ends a daemon thread that wants the GIL once the interpreter is gone, by unwinding its stack,
/// which would end the process at the first function that may not throw. It stops here instead, as 3.14 has it.
[[noreturn]] inline void stop_for_good() noexcept {
  for (;;) pause();
}

template <class Call>
auto ended_with_interpreter(const Call& call) {
  try {
    return call();
  } catch (const abi::__forced_unwind&) {
    stop_for_good();
  }
}

/// Calls without the GIL. Pre: it is held.
template <class Call>
auto without_gil(const Call& call) {
  using value = std::invoke_result_t<const Call&>;
  constexpr bool is_void = std::is_void_v<value>;
  std::conditional_t<is_void, bool, std::optional<value>> result{};
  std::exception_ptr raised;
  PyThreadState* const state = PyEval_SaveThread();
  try {
    if constexpr (is_void)
      call();
    else
      result.emplace(call());
  } catch (const abi::__forced_unwind&) {
    stop_for_good();
  } catch (...) {
    raised = std::current_exception();
  }
  ended_with_interpreter([state] { PyEval_RestoreThread(state); });
  if (raised != nullptr) {
    try {
      std::rethrow_exception(raised);
    } catch (const handler_raised&) {
      throw nanobind::python_error();
    }
  }
  if constexpr (!is_void) return *std::move(result);
}

/// The GIL for a thread that may have it or not, and need not be Python's. Pre: the interpreter is alive.
class gil_section {
 public:
  gil_section() : state_(ended_with_interpreter([] { return PyGILState_Ensure(); })) {}
  gil_section(const gil_section&) = delete;
  gil_section& operator=(const gil_section&) = delete;
  ~gil_section() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

/// False: it has ended, or is about to, and no object may be touched any more.
[[nodiscard]] inline bool interpreter_lives() noexcept {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsInitialized() != 0 && Py_IsFinalizing() == 0;
#else
  return Py_IsInitialized() != 0 && _Py_IsFinalizing() == 0;
#endif
}

}  // namespace orderly::python
