/// What is relied on, as NumPy's ndarraytypes.h and __multiarray_api.h have it since version 1.22, in 2.x too: the
/// layout of PyDataMem_Handler; a handler travels in a capsule named "mem_handler"; the functions that set and get the
/// one of the current context are numbers 304 and 305 of the table in the capsule _ARRAY_API. So the package is built
/// without NumPy.
///
/// Every array keeps the capsule of the handler that allocated it, and is freed by it.
#include "numpy.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "errors.hpp"
#include "hooks.hpp"
#include "memory.hpp"
#include "pools.hpp"

namespace orderly::python {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

struct data_allocator {
  void* context;
  void* (*malloc)(void* context, std::size_t bytes);
  void* (*calloc)(void* context, std::size_t count, std::size_t bytes);
  void* (*realloc)(void* context, void* block, std::size_t bytes);
  void (*free)(void* context, void* block, std::size_t bytes);
};

struct data_handler {
  char name[127];
  std::uint8_t version;
  data_allocator allocator;
};

constexpr const char* capsule_name = "mem_handler";

/// Serves from a pool. NumPy holds the GIL in its calls and does not expect others to run, so it is kept.
struct pool_handler {
  data_handler handler;
  std::shared_ptr<memory> of;

  [[nodiscard]] pool& plain() const noexcept { return *of->plain(); }
};

pool_handler& pool_of(void* context) noexcept { return *static_cast<pool_handler*>(context); }

void* pool_malloc(void* context, std::size_t bytes) {
  pool& from = pool_of(context).plain();
  if (void* const block = from.allocate_at_hand(bytes)) return block;
  return from.try_allocate(bytes);
}

void pool_free(void* context, void* block, std::size_t bytes) {
  if (block == nullptr) return;
  pool& to = pool_of(context).plain();
  if (to.deallocate_at_hand(block, bytes)) return;
  bad_free report;
  if (to.try_deallocate(block, bytes, &report) != error::none) pool_of(context).of->report(report);
}

void* pool_calloc(void* context, std::size_t count, std::size_t bytes) {
  std::size_t all = 0;
  if (__builtin_mul_overflow(count, bytes, &all)) return nullptr;
  void* const block = pool_malloc(context, all);
  if (block != nullptr) std::memset(block, 0, all);
  return block;
}

void* pool_realloc(void* context, void* block, std::size_t bytes) {
  if (block == nullptr) return pool_malloc(context, bytes);
  pool& from = pool_of(context).plain();
  const std::size_t length = from.block_size(block);
  if (length == from.rounded(bytes)) return block;
  void* const moved = pool_malloc(context, bytes);
  if (moved == nullptr) return nullptr;
  std::memcpy(moved, block, std::min(length, bytes));
  pool_free(context, block, 0);
  return moved;
}

/// Notes what the handler below it does.
struct recording_handler {
  data_handler handler;
  const data_handler* below;
  nb::object keeps;
  recorder_hook log;
};

recording_handler& recording_of(void* context) noexcept { return *static_cast<recording_handler*>(context); }

void* recorded(const recording_handler& by, void* block, std::size_t bytes) noexcept {
  by.log.allocated(block, bytes);
  return block;
}

void* recording_malloc(void* context, std::size_t bytes) {
  const recording_handler& by = recording_of(context);
  const data_allocator& below = by.below->allocator;
  return recorded(by, below.malloc(below.context, bytes), bytes);
}

void* recording_calloc(void* context, std::size_t count, std::size_t bytes) {
  const recording_handler& by = recording_of(context);
  const data_allocator& below = by.below->allocator;
  return recorded(by, below.calloc(below.context, count, bytes), count * bytes);
}

void* recording_realloc(void* context, void* block, std::size_t bytes) {
  const recording_handler& by = recording_of(context);
  const data_allocator& below = by.below->allocator;
  if (block != nullptr) by.log.freed(block);
  void* const moved = below.realloc(below.context, block, bytes);
  // What could not grow is where it was, and its size is not known here; NumPy gives such an array up.
  return recorded(by, moved, bytes);
}

void recording_free(void* context, void* block, std::size_t bytes) {
  const recording_handler& by = recording_of(context);
  const data_allocator& below = by.below->allocator;
  if (block != nullptr) by.log.freed(block);
  below.free(below.context, block, bytes);
}

using table_function = PyObject* (*)(PyObject*);
using table_getter = PyObject* (*)();

/// NumPy's table of functions. Raises ImportError.
void** functions() {
  const nb::module_ numpy = nb::module_::import_("numpy");
  const bool is_renamed =
      nb::cast<int>(numpy.attr("lib").attr("NumpyVersion")(numpy.attr("__version__")).attr("major")) >= 2;
  const nb::module_ core =
      nb::module_::import_(is_renamed ? "numpy._core._multiarray_umath" : "numpy.core._multiarray_umath");
  void** const table = static_cast<void**>(PyCapsule_GetPointer(core.attr("_ARRAY_API").ptr(), nullptr));
  if (table == nullptr) throw nb::python_error();
  constexpr std::size_t get_feature_version = 211;
  constexpr unsigned version_1_22 = 0xf;
  const auto feature = reinterpret_cast<unsigned (*)()>(table[get_feature_version]);
  if (feature() < version_1_22) raise(PyExc_ImportError, "NumPy is older than 1.22, and has no handlers of its memory");
  return table;
}

/// Returns what was there before.
nb::object set_handler(nb::handle capsule) {
  constexpr std::size_t set_in_context = 304;
  PyObject* const last =
      reinterpret_cast<table_function>(functions()[set_in_context])(capsule.is_none() ? nullptr : capsule.ptr());
  if (last == nullptr) throw nb::python_error();
  return nb::steal(last);
}

nb::object get_handler() {
  constexpr std::size_t get_in_context = 305;
  PyObject* const now = reinterpret_cast<table_getter>(functions()[get_in_context])();
  if (now == nullptr) throw nb::python_error();
  return nb::steal(now);
}

template <class Handler>
nb::object capsule_of(std::unique_ptr<Handler> handler) {
  PyObject* const capsule = PyCapsule_New(&handler->handler, capsule_name, [](PyObject* each) {
    delete static_cast<Handler*>(PyCapsule_GetContext(each));
  });
  if (capsule == nullptr) throw nb::python_error();
  PyCapsule_SetContext(capsule, handler.release());
  return nb::steal(capsule);
}

template <class Handler>
void set_up(Handler& handler, const char* name, const data_allocator& functions) {
  std::strncpy(handler.handler.name, name, sizeof handler.handler.name - 1);
  handler.handler.version = 1;
  handler.handler.allocator = functions;
  handler.handler.allocator.context = &handler;
}

nb::object make_pool_handler(nb::handle pool) {
  std::shared_ptr<memory> of = memory_of(pool);
  if (of->plain() == nullptr) raise(PyExc_ValueError, "the pool must be an open one in host memory without streams");
  of->hooked = true;
  auto made = std::make_unique<pool_handler>();
  made->of = std::move(of);
  set_up(*made, "orderly", {nullptr, pool_malloc, pool_calloc, pool_realloc, pool_free});
  return capsule_of(std::move(made));
}

nb::object make_recording_handler(nb::handle below) {
  const auto* const known = static_cast<const data_handler*>(PyCapsule_GetPointer(below.ptr(), capsule_name));
  if (known == nullptr) throw nb::python_error();
  auto made = std::make_unique<recording_handler>();
  made->below = known;
  made->keeps = nb::borrow(below);
  made->log = the_recorder_hook();
  set_up(*made, "orderly.record", {nullptr, recording_malloc, recording_calloc, recording_realloc, recording_free});
  return capsule_of(std::move(made));
}

}  // namespace

void bind_numpy(nb::module_& m) {
  m.def("_numpy_pool_handler", make_pool_handler, "pool"_a);
  m.def("_numpy_recording_handler", make_recording_handler, "below"_a);
  m.def("_numpy_set_handler", set_handler, nb::arg("capsule").none());
  m.def("_numpy_get_handler", get_handler);
}

}  // namespace orderly::python
