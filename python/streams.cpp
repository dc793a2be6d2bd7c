#include "streams.hpp"

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace orderly::python {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

/// Devices whose work may still need the interpreter. Guarded by the GIL.
std::vector<std::weak_ptr<software>>& devices() {
  static auto* const all = new std::vector<std::weak_ptr<software>>;  // for ever: devices go at any time
  return *all;
}
bool exiting = false;

/// A function of Python's as work of a stream. What it raises goes where exceptions of threads go.
class python_work {
 public:
  explicit python_work(nb::object work) : work_(std::move(work).release().ptr()) {}
  python_work(const python_work& other) : work_(other.work_) {
    const gil_section held;
    Py_INCREF(work_);
  }
  python_work(python_work&& other) noexcept : work_(std::exchange(other.work_, nullptr)) {}
  python_work& operator=(const python_work&) = delete;
  ~python_work() {
    if (work_ == nullptr || !interpreter_lives()) return;
    const gil_section held;
    Py_DECREF(work_);
  }

  void operator()() const {
    if (!interpreter_lives()) return;
    const gil_section held;
    PyObject* const result = PyObject_CallNoArgs(work_);
    if (result == nullptr) PyErr_WriteUnraisable(work_);
    Py_XDECREF(result);
  }

 private:
  PyObject* work_;
};

software_schedule schedule_of(const std::string& name) {
  if (name == "workers") return software_schedule::workers;
  if (name == "eager") return software_schedule::eager;
  if (name == "lazy") return software_schedule::lazy;
  if (name == "random") return software_schedule::random;
  raise(PyExc_ValueError, "schedule '%s': give 'workers', 'eager', 'lazy' or 'random'", name.c_str());
}

/// Before the interpreter goes: work that needs it runs now.
void finish_work() {
  exiting = true;
  for (const std::weak_ptr<software>& known : devices()) {
    const std::shared_ptr<software> on = known.lock();
    if (on != nullptr) without_gil([&] { static_cast<void>(on->device().driver()->synchronize_all()); });
  }
}

/// An attribute that is an integer, as PyTorch's `cuda_stream` and CuPy's `ptr`.
nb::object number_in(nb::handle given, const char* name) {
  nb::object value = nb::getattr(given, name, nb::none());
  return PyLong_Check(value.ptr()) ? value : nb::object();
}

}  // namespace

software::software(software_schedule schedule, std::uint64_t seed) : device_(std::in_place, schedule, seed) {}

software::~software() {
  if (PyGILState_Check() != 0)
    without_gil([this] { device_.reset(); });
  else
    device_.reset();
}

stream_handle stream_of(nb::handle given, memory& pool) {
  if (given.is_none()) return pool.where().is_cuda() && !pool.where().is_host() ? nullptr : memory::settled;
  const stream_object* object = nullptr;
  if (nb::try_cast(given, object)) {
    if (!pool.has_streams() || pool.where().is_cuda())
      raise(PyExc_ValueError, "stream: the pool serves no software streams; make it with streams=SoftwareDevice()");
    const stream_handle handle = object->of->stream.handle();
    pool.keep(handle, object->of);
    return handle;
  }
  nb::object number;
  if (PyLong_Check(given.ptr()))
    number = nb::borrow(given);
  else if (nb::hasattr(given, "__cuda_stream__"))
    number = nb::borrow(given.attr("__cuda_stream__")()[1]);
  else
    for (const char* const name : {"cuda_stream", "ptr", "handle"})
      if (!number.is_valid()) number = number_in(given, name);
  if (!number.is_valid())
    raise(PyExc_TypeError,
          "stream: %s is no stream; give None, a SoftwareStream, a cudaStream_t as an integer, or a "
          "stream of PyTorch, CuPy or CUDA Python",
          nb::cast<std::string>(nb::repr(given)).c_str());
  if (!pool.where().is_cuda()) raise(PyExc_ValueError, "stream: a pool of host memory serves no CUDA streams");
  const auto handle = reinterpret_cast<stream_handle>(nb::cast<std::uintptr_t>(number));
  if (!number.is(given)) pool.keep(handle, given);
  return handle;
}

void bind_streams(nb::module_& m) {
  nb::class_<device_object>(
      m, "SoftwareDevice",
      "Streams that run on CPU threads: for programs without a GPU, and for tests of those with one.\n\n"
      "Thread safety: everything here may be called from several threads at once. When the last pool, stream\n"
      "and device object of it is gone, all work is done, and that thread waits for it.")
      .def(
          "__init__",
          [](device_object* self, const std::string& schedule, std::uint64_t seed) {
            new (self) device_object{std::make_shared<software>(schedule_of(schedule), seed)};
            std::erase_if(devices(), [](const std::weak_ptr<software>& known) { return known.expired(); });
            devices().push_back(self->on);
          },
          "schedule"_a = "workers", "seed"_a = 0,
          "schedule: when work runs. 'workers': each stream has a thread. The others run it on the threads that call:\n"
          "'eager' at once, 'lazy' when somebody waits for it, 'random' some of it in each call, by the seed.\n\n"
          "Raises ValueError, RuntimeError (no thread can be started).");

  nb::class_<stream_object>(
      m, "SoftwareStream", nb::is_weak_referenceable(),
      "A stream: it runs the work that is put into it in order. A pool that has served it keeps it until\n"
      "release_stream().")
      .def(
          "__init__",
          [](stream_object* self, const device_object& device) {
            auto made = without_gil([&] {
              return std::make_shared<software_stream_object>(
                  software_stream_object{device.on, software_stream(device.on->device())});
            });
            new (self) stream_object{std::move(made)};
          },
          "device"_a, "Raises RuntimeError when no thread can be started.")
      .def_prop_ro(
          "handle",
          [](const stream_object& self) { return reinterpret_cast<std::uintptr_t>(self.of->stream.handle()); },
          "The number that names the stream while it lives.")
      .def(
          "enqueue",
          [](stream_object& self, const nb::callable& work) {
            if (exiting) raise(PyExc_RuntimeError, "enqueue(): the interpreter is exiting");
            python_work queued{nb::object(work)};
            without_gil([&] { self.of->stream.enqueue(std::move(queued)); });
          },
          "work"_a,
          "Queues a call without arguments. What it raises goes to sys.unraisablehook. It must not call anything of "
          "this\n"
          "stream, its device or a pool with streams of it.")
      .def(
          "synchronize", [](stream_object& self) { return without_gil([&] { return self.of->stream.synchronize(); }); },
          "Waits for all work that is in the stream now, without the GIL. False: refused, the stream captures.");

  nb::module_::import_("atexit").attr("register")(nb::cpp_function(finish_work));
}

}  // namespace orderly::python
