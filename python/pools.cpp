#include "pools.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include "errors.hpp"
#include "memory.hpp"
#include "streams.hpp"
#include "tensor.hpp"
#ifdef ORDERLY_PYTHON_CUDA
#include "orderly/cuda.hpp"
#endif

namespace orderly::python {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

/// What Python holds. A tensor shares the memory, not this.
struct pool_object {
  std::shared_ptr<memory> of;
  std::shared_ptr<handlers> asks;
};
struct buddy_object : pool_object {};
struct memory_object : pool_object {};
struct cache_object : memory_object {
  nb::object pool;  ///< whose handlers serve here too
  std::shared_ptr<tensor_keeper> keeper;
};

// Handlers may lead back to the pool.
template <class Object>
int visit(PyObject* self, visitproc visit, void* arg) noexcept {
  Py_VISIT(Py_TYPE(self));
  if (!nb::inst_ready(self)) return 0;
  const Object* const pool = nb::inst_ptr<Object>(self);
  if constexpr (std::is_same_v<Object, cache_object>) Py_VISIT(pool->pool.ptr());
  if (pool->asks == nullptr) return 0;
  Py_VISIT(pool->asks->out_of_memory.ptr());
  Py_VISIT(pool->asks->bad_free.ptr());
  return 0;
}

void drop(pool_object& pool) noexcept {
  if (pool.asks == nullptr) return;
  nb::object out_of_memory = std::move(pool.asks->out_of_memory);
  nb::object bad_free = std::move(pool.asks->bad_free);
}

template <class Object>
int clear(PyObject* self) noexcept {
  if (!nb::inst_ready(self)) return 0;
  Object& pool = *nb::inst_ptr<Object>(self);
  drop(pool);
  if constexpr (std::is_same_v<Object, cache_object>) pool.pool.reset();
  return 0;
}

template <class Object>
PyType_Slot* slots() {
  static PyType_Slot all[] = {
      {Py_tp_traverse, reinterpret_cast<void*>(visit<Object>)},
      {Py_tp_clear, reinterpret_cast<void*>(clear<Object>)},
      {0, nullptr},
  };
  return all;
}

void* pointer(std::uintptr_t address) noexcept { return reinterpret_cast<void*>(address); }
std::uintptr_t number(const void* address) noexcept { return reinterpret_cast<std::uintptr_t>(address); }

struct given_options {
  std::size_t capacity, granule, chunk, limit, release_threshold, soft_limit;
  double slack;
  bool account_tags;
  nb::object on_out_of_memory, on_bad_free;
};

std::shared_ptr<handlers> handlers_of(const given_options& given, options& settings) {
  settings.capacity = given.capacity;
  settings.granule = given.granule;
  settings.chunk = given.chunk;
  settings.limit = given.limit;
  settings.release_threshold = given.release_threshold;
  settings.soft_limit = given.soft_limit;
  settings.slack = given.slack;
  settings.account_tags = given.account_tags;
  auto asks = std::make_shared<handlers>();
  for (const auto& [from, name, to] : {std::tuple{&given.on_out_of_memory, "on_out_of_memory", &asks->out_of_memory},
                                       std::tuple{&given.on_bad_free, "on_bad_free", &asks->bad_free}}) {
    if (from->is_none()) continue;
    if (PyCallable_Check(from->ptr()) == 0) raise(PyExc_TypeError, "%s is no function", name);
    *to = *from;
  }
  handlers::install(asks, settings);
  return asks;
}

/// Somebody's buffer as memory of a pool.
class buffer {
 public:
  explicit buffer(nb::handle of) {
    if (PyObject_GetBuffer(of.ptr(), &view_, PyBUF_CONTIG) != 0) throw nb::python_error();
  }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() { PyBuffer_Release(&view_); }
  [[nodiscard]] const Py_buffer& view() const noexcept { return view_; }

 private:
  Py_buffer view_;
};

std::shared_ptr<memory> make_plain(const options& settings, nb::handle lies_in) {
  nb::object keeps;
  std::unique_ptr<memory_source> source;
  if (lies_in.is_none()) {
    source = make_host_source();
  } else {
    auto held = std::make_unique<buffer>(lies_in);
    source = make_fixed_buffer_source(held->view().buf, static_cast<std::size_t>(held->view().len));
    if (source == nullptr) raise(PyExc_ValueError, "buffer: it is empty");
    keeps = nb::capsule(held.release(), [](void* each) noexcept { delete static_cast<buffer*>(each); });
  }
  auto made = without_gil([&] { return std::optional<pool>(std::in_place, std::move(source), settings); });
  return std::make_shared<memory>(std::move(*made), place{}, std::move(keeps));
}

/// In host memory, in order of software streams. Blocks of no stream are those of a stream without work.
std::shared_ptr<memory> make_in_software(const std::shared_ptr<software>& on, const stream_options& settings) {
  auto idle = std::make_shared<software_stream_object>(software_stream_object{on, software_stream(on->device())});
  auto driver = on->device().driver();
  auto made =
      without_gil([&] { return std::optional<stream_pool>(std::in_place, make_host_source(), driver, settings); });
  const stream_handle handle = idle->stream.handle();
  auto of = std::make_shared<memory>(std::move(*made), std::move(driver), place{}, handle);
  of->keep(handle, idle);
  return of;
}

struct device_name {
  std::string kind;
  int number;
};

/// "cpu", "cuda", "cuda:1", or an object that is written so.
device_name read_device(nb::handle given) {
  const std::string text = nb::cast<std::string>(nb::str(given));
  const std::size_t colon = text.find(':');
  device_name name{text.substr(0, colon), 0};
  const std::string digits = colon == std::string::npos ? "0" : text.substr(colon + 1);
  const bool is_number =
      !digits.empty() && digits.size() < 4 && digits.find_first_not_of("0123456789") == std::string::npos;
  if ((name.kind != "cpu" && name.kind != "cuda") || !is_number)
    raise(PyExc_ValueError, "device '%s': give 'cpu', 'cuda' or 'cuda:N'", text.c_str());
  name.number = std::stoi(digits);
  return name;
}

std::shared_ptr<memory> make_cuda([[maybe_unused]] int device, [[maybe_unused]] const std::string& kind,
                                  [[maybe_unused]] const stream_options& settings) {
#ifdef ORDERLY_PYTHON_CUDA
  place where{nb::device::cuda::value, device};
  auto [source, driver] = without_gil([&] {
    std::unique_ptr<memory_source> found;
    const std::size_t bytes = settings.memory.capacity;
    if (kind == "virtual")
      found = make_cuda_virtual_source(device, {.bytes = bytes});
    else if (kind == "device")
      found = make_cuda_device_source(device, bytes);
    else if (kind == "pinned")
      found = make_cuda_pinned_source(bytes);
    else if (kind == "managed")
      found = make_cuda_managed_source(device, bytes);
    return std::pair{std::move(found), make_cuda_stream_driver(device)};
  });
  if (kind == "pinned") where = {nb::device::cuda_host::value, 0};
  if (kind == "managed") where.type = nb::device::cuda_managed::value;
  if (kind != "virtual" && kind != "device" && kind != "pinned" && kind != "managed")
    raise(PyExc_ValueError, "kind '%s': give 'virtual', 'device', 'pinned' or 'managed'", kind.c_str());
  if (source == nullptr || driver == nullptr)
    raise(PyExc_RuntimeError, "device cuda:%d: CUDA, the device or that kind of its memory is missing%s%s", device,
          cuda_failure().empty() ? "" : "; ", cuda_failure().c_str());
  auto made =
      without_gil([&] { return std::optional<stream_pool>(std::in_place, std::move(source), driver, settings); });
  return std::make_shared<memory>(std::move(*made), std::move(driver), where, nullptr);
#else
  raise(PyExc_RuntimeError,
        "device cuda:%d: this build of orderly has no CUDA; with the toolkit, "
        "pip install . --config-settings=setup-args=-Dcuda=enabled",
        device);
#endif
}

std::shared_ptr<memory> make_memory(nb::handle device, nb::handle streams, const std::string& kind,
                                    const stream_options& settings) {
  const device_name name = read_device(device);
  if (name.kind == "cuda") {
    if (!streams.is_none()) raise(PyExc_ValueError, "streams: a CUDA device has its own");
    return make_cuda(name.number, kind, settings);
  }
  if (streams.is_none()) return make_plain(settings.memory, nb::none());
  const device_object* on = nullptr;
  if (!nb::try_cast(streams, on)) raise(PyExc_TypeError, "streams: give a SoftwareDevice or None");
  return make_in_software(on->on, settings);
}

void require(error code, const char* what, const memory& of) {
  if (code == error::none) return;
  if (code == error::out_of_memory) throw out_of_memory(0, 0, of.capacity());
  raise(PyExc_ValueError, "%s: %s", what, to_string(code));
}

void free_raw(memory& of, std::uintptr_t address, std::size_t bytes, stream_handle stream) {
  bad_free report;
  if (of.deallocate(pointer(address), bytes, stream, &report) != error::none) raise(report);
}

void free_checked(memory& of, std::uintptr_t address, std::uint64_t generation, std::size_t bytes,
                  stream_handle stream) {
  bad_free report;
  if (of.deallocate(checked_block{pointer(address), generation}, bytes, stream, &report) != error::none) raise(report);
}

/// The parts' addresses, in the order in which they were named.
nb::list divide(const memory_object& self, std::uintptr_t address, std::size_t part_bytes, nb::handle live,
                nb::handle stream) {
  const stream_handle in = stream_of(stream, *self.of);
  const std::size_t parts = part_bytes == 0 ? 0 : self.of->block_size(pointer(address)) / part_bytes;
  std::vector<std::uint32_t> words((parts + 31) / 32);
  nb::list found;
  for (const nb::handle each : nb::iter(live)) {
    const Py_ssize_t number = PyNumber_AsSsize_t(each.ptr(), PyExc_ValueError);
    if (number == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
    if (parts == 0) break;                               // the pool tells why
    const auto part = static_cast<std::size_t>(number);  // one below 0 becomes a large one
    if (part >= parts) raise(PyExc_ValueError, "live: part %zd; the block has %zu", number, parts);
    words[part / 32] |= std::uint32_t{1} << part % 32;
    found.append(address + part * part_bytes);
  }
  std::string why;
  const error code = self.of->divide(pointer(address), part_bytes, words, in, why);
  if (code >= error::double_free) raise(bad_free{.code = code, .pointer = pointer(address), .bytes = part_bytes});
  if (code != error::none)
    raise(code == error::out_of_memory ? PyExc_MemoryError : PyExc_ValueError, "divide: %s",
          why.empty() ? to_string(code) : why.c_str());
  return found;
}

/// The address that an array of somebody else's shows. 0: it shows none.
std::uintptr_t address_of(nb::handle array) {
  for (const char* const name : {"__array_interface__", "__cuda_array_interface__"}) {
    const nb::object interface = nb::getattr(array, name, nb::none());
    if (!interface.is_none()) return nb::cast<std::uintptr_t>(interface["data"][0]);
  }
  if (nb::hasattr(array, "data_ptr")) return nb::cast<std::uintptr_t>(array.attr("data_ptr")());
  return 0;
}

void free_tensor(const memory_object& self, nb::handle given) {
  tensor* of = nullptr;
  if (nb::try_cast(given, of) && of != nullptr) return of->free(*self.of);
  const std::uintptr_t address = address_of(given);
  if (address == 0)
    raise(PyExc_TypeError, "free_tensor: %s is no tensor", nb::cast<std::string>(nb::repr(given.type())).c_str());
  if (self.of->owns(pointer(address)))
    raise(PyExc_TypeError, "free_tensor: that is an array made of a tensor of this pool; drop it, and free the tensor");
  raise(bad_free{.code = error::foreign_pointer, .pointer = pointer(address)});
}

tensor make_tensor(const memory_object& self, std::shared_ptr<tensor_keeper> keeper, nb::handle shape, nb::handle dtype,
                   nb::handle device, nb::handle stream) {
  const element_type& type = element_type_of(dtype);
  if (!device.is_none()) {
    const device_name name = read_device(device);
    const place where = self.of->where();
    const bool is_here =
        name.kind == "cpu" ? where.is_host() : where.is_cuda() && !where.is_host() && where.id == name.number;
    if (!is_here) raise(PyExc_ValueError, "device: the pool is on %s", where.name().c_str());
  }
  const stream_handle in =
      stream.is_none() && self.of->plain() != nullptr ? memory::settled : stream_of(stream, *self.of);
  return tensor(self.of, std::move(keeper), tensor::read_shape(shape), type, in);
}

tensor empty(const memory_object& self, nb::handle shape, nb::handle dtype, nb::handle device, nb::handle stream) {
  return make_tensor(self, nullptr, shape, dtype, device, stream);
}

tensor empty_kept(const cache_object& self, nb::handle shape, nb::handle dtype, nb::handle device, nb::handle stream) {
  return make_tensor(self, self.keeper, shape, dtype, device, stream);
}

stream_handle in(const memory_object& self, nb::handle stream) { return stream_of(stream, *self.of); }

/// What all pools have.
template <class Object>
void bind_common(nb::class_<Object>& c) {
  c.def(
       "owns", [](const Object& self, std::uintptr_t address) { return self.of->owns(pointer(address)); }, "address"_a,
       "True if the address lies in a live block of this pool.")
      .def(
          "block_size",
          [](const Object& self, std::uintptr_t address) { return self.of->block_size(pointer(address)); }, "address"_a,
          "Usable bytes of the live block that starts there; 0 if none does.")
      .def(
          "defragment", [](Object& self) { return self.of->defragment(); },
          "A coalescing pass: takes back what caches hold and merges free neighbours. Returns the bytes that came "
          "back\n"
          "from caches.")
      .def(
          "trim", [](Object& self, std::size_t keep_bytes) { return self.of->trim(keep_bytes); }, "keep_bytes"_a = 0,
          "Gives free memory back to the system until at most `keep_bytes` are committed. Returns the bytes given "
          "back.")
      .def(
          "reserve", [](Object& self, std::size_t bytes) { return self.of->reserve(bytes); }, "bytes"_a,
          "Commits memory ahead, and keeps it until trim(). Returns the bytes committed.")
      .def(
          "stats", [](const Object& self) { return self.of->stats(); }, nb::sig("def stats(self) -> dict[str, int]"),
          "Counters; sizes in bytes. `requested` and `allocated` over live blocks, `cached`, `committed`, "
          "`peak_requested`,\n"
          "`peak_committed`, `capacity`, `limit`; numbers of `allocations`, `frees`, `failed` allocations, `bad_frees` "
          "and\n"
          "`passes`. With streams also `streams` known, bytes `held` by them, `events_recorded`, `waits`, `queries`.")
      .def(
          "snapshot", [](const Object& self) { return self.of->snapshot(); },
          nb::sig("def snapshot(self) -> dict[str, typing.Any]"),
          "`device`, `stats`, and `blocks` in address order, free and cached ones too: each with `address`, `bytes`,\n"
          "`requested` bytes (0 unless live) and `state`: `live`, `cached`, `free`. With account_tags also `tags`, as "
          "by\n"
          "tags(), and the `tag` of each live block.")
      .def(
          "tags", [](const Object& self) { return self.of->tags(); },
          nb::sig("def tags(self) -> dict[str, dict[str, int]]"),
          "What each tag that was ever used here holds, by name, the one with most first: bytes `requested`,\n"
          "`allocated`, `peak_requested`; numbers of `allocations` and `frees`. Empty unless account_tags.")
      .def(
          "report", [](const Object& self, std::size_t bytes) { return self.of->report_for(bytes); }, "bytes"_a = 0,
          "Where the memory is, and what would make room for a request of `bytes`; str() of it is the text. Inside of\n"
          "on_out_of_memory: of the request that it was called for, with what was tried. Looks at each block.")
      .def_prop_ro(
          "granule", [](const Object& self) { return self.of->granule(); }, "Smallest block, in bytes.")
      .def_prop_ro(
          "capacity", [](const Object& self) { return self.of->capacity(); }, "Most bytes ever managed.")
      .def_prop_ro(
          "device", [](const Object& self) { return self.of->where().name(); }, "Where the memory is.")
      .def(
          "__reduce_ex__",
          [](const Object&, nb::handle) {
            raise(PyExc_TypeError,
                  "a pool of orderly can be neither pickled nor copied: its memory is this process's; make one "
                  "in each process");
          },
          nb::sig("def __reduce_ex__(self, protocol: typing.SupportsIndex) -> str | tuple[typing.Any, ...]"),
          "Raises TypeError.");
}

constexpr const char* options_text =
    "Sizes in bytes; 0: the default.\n\n"
    "capacity: most memory ever managed; the machine's, by default. granule: smallest block, a power of two (256).\n"
    "chunk: unit in which memory is committed, a power of two (64 KiB on the host). limit: most memory committed.\n"
    "release_threshold: committed bytes up to which nothing is given back by itself. soft_limit: above which idle\n"
    "memory is given back before more is committed. slack: free memory kept, as a fraction of the peak.\n"
    "account_tags: keep account of what each orderly.tag holds; each call then costs a few times as much.\n\n"
    "on_out_of_memory(bytes) -> bool: called before an allocation is refused; true: try again. What it raises leaves\n"
    "the allocation. on_bad_free(error: BadFree): called for refused frees that cannot raise, those of the garbage\n"
    "collector; a line on stderr by default.\n\n"
    "Raises ValueError (an option out of range), OutOfMemory (the system refused).";

void bind_buddy(nb::module_& m) {
  nb::class_<buddy_object> c(
      m, "BuddyAllocator", nb::type_slots(slots<buddy_object>()), nb::is_weak_referenceable(),
      "Raw blocks of host memory, by address: for those who wrap memory themselves, through ctypes or an\n"
      "extension. For arrays take a MemoryPool.\n\n"
      "Any number of threads may use one at once; allocating and freeing take no lock, and give up the GIL\n"
      "only where they may wait. Blocks are not freed by the garbage collector; the pool releases all of\n"
      "them when it goes.");
  c.def(
       "__init__",
       [](buddy_object* self, std::size_t capacity, std::size_t granule, std::size_t chunk, std::size_t limit,
          std::size_t release_threshold, std::size_t soft_limit, double slack, bool account_tags,
          nb::object on_out_of_memory, nb::object on_bad_free, nb::handle buffer) {
         options settings;
         auto asks = handlers_of({capacity, granule, chunk, limit, release_threshold, soft_limit, slack, account_tags,
                                  std::move(on_out_of_memory), std::move(on_bad_free)},
                                 settings);
         auto of = make_plain(settings, buffer);
         of->asks = asks;
         of->account_tags = account_tags;
         new (self) buddy_object{{std::move(of), std::move(asks)}};
       },
       "capacity"_a = 0, nb::kw_only(), "granule"_a = 0, "chunk"_a = 0, "limit"_a = 0, "release_threshold"_a = 0,
       "soft_limit"_a = 0, "slack"_a = 0.2, "account_tags"_a = false, "on_out_of_memory"_a = nb::none(),
       "on_bad_free"_a = nb::none(), "buffer"_a = nb::none(),
       (std::string(options_text) +
        "\n\nbuffer: writable memory to serve in place of the system's, aligned to the granule.")
           .c_str())
      .def(
          "allocate",
          [](buddy_object& self, std::size_t bytes, std::size_t alignment) {
            return number(self.of->allocate(bytes, alignment, nullptr));
          },
          "bytes"_a, "alignment"_a = 1,
          "Address of a block of at least `bytes` bytes, aligned to `alignment` (a power of two up to the chunk) and "
          "to the\n"
          "granule. Raises OutOfMemory, ValueError, and what on_out_of_memory raises.")
      .def(
          "free",
          [](buddy_object& self, std::uintptr_t address, std::size_t bytes) {
            free_raw(*self.of, address, bytes, nullptr);
          },
          "address"_a, "bytes"_a = 0,
          "Frees a block, by any thread. bytes: as allocated, or 0: unknown. 0 as the address is ignored. Raises "
          "BadFree, and\n"
          "then nothing has changed.")
      .def(
          "allocate_checked",
          [](buddy_object& self, std::size_t bytes, std::size_t alignment) {
            const checked_block block = self.of->allocate_checked(bytes, alignment, nullptr);
            return std::pair{number(block.address), block.generation};
          },
          "bytes"_a, "alignment"_a = 1,
          "Address and generation: a handle. Of any number of frees of one handle exactly one succeeds, also after "
          "the\n"
          "block was handed out again.")
      .def(
          "free_checked",
          [](buddy_object& self, std::uintptr_t address, std::uint64_t generation, std::size_t bytes) {
            free_checked(*self.of, address, generation, bytes, nullptr);
          },
          "address"_a, "generation"_a, "bytes"_a = 0, "Frees a block by its handle. Raises BadFree.")
      .def(
          "rounded",
          [](const buddy_object& self, std::size_t bytes) {
            return self.of->plain() == nullptr ? 0 : self.of->plain()->rounded(bytes);
          },
          "bytes"_a, "Length of the block that a request gets; 0 if it is above the capacity.")
      .def_prop_ro(
          "chunk", [](const buddy_object& self) { return self.of->plain() == nullptr ? 0 : self.of->plain()->chunk(); },
          "Unit of committed memory, in bytes.")
      .def_prop_ro(
          "limit", [](const buddy_object& self) { return self.of->plain() == nullptr ? 0 : self.of->plain()->limit(); },
          "Most bytes committed.")
      .def(
          "close", [](buddy_object& self) { self.of->close(); },
          "Releases the pool now, with all its blocks. Frees after it raise BadFree, allocations ValueError. Raises\n"
          "RuntimeError while another thread is inside a call.");
  bind_common(c);
}

void bind_memory(nb::module_& m) {
  nb::class_<memory_object> c(
      m, "MemoryPool", nb::type_slots(slots<memory_object>()), nb::is_weak_referenceable(),
      "Tensors on a device, and raw blocks, in stream order: what is freed in a stream serves the same\n"
      "stream at once, others when its work is done or behind an event. On the host there are no streams\n"
      "unless a SoftwareDevice is given.\n\n"
      "Any number of threads may use one at once; allocating and freeing take no lock, and give up the GIL\n"
      "only where they may wait. The memory goes with the last of the pool and its tensors.");
  c.def(
       "__init__",
       [](memory_object* self, nb::handle device, std::size_t capacity, nb::handle streams, const std::string& kind,
          std::size_t granule, std::size_t chunk, std::size_t limit, std::size_t release_threshold,
          std::size_t soft_limit, std::optional<double> slack, bool account_tags, nb::object on_out_of_memory,
          nb::object on_bad_free, bool safe_mode, bool watch_captures, bool wait_before_refusing,
          std::size_t seal_bytes) {
         stream_options settings;
         const bool is_plain = streams.is_none() && read_device(device).kind == "cpu";
         const double usual = is_plain ? options{}.slack : settings.memory.slack;
         auto asks = handlers_of({capacity, granule, chunk, limit, release_threshold, soft_limit, slack.value_or(usual),
                                  account_tags, std::move(on_out_of_memory), std::move(on_bad_free)},
                                 settings.memory);
         settings.safe_mode = safe_mode;
         settings.watch_captures = watch_captures;
         settings.wait_before_refusing = wait_before_refusing;
         settings.seal_bytes = seal_bytes;
         auto of = make_memory(device, streams, kind, settings);
         of->asks = asks;
         of->account_tags = account_tags;
         new (self) memory_object{{std::move(of), std::move(asks)}};
       },
       "device"_a = "cpu", "capacity"_a = 0, nb::kw_only(), "streams"_a = nb::none(), "kind"_a = "virtual",
       "granule"_a = 0, "chunk"_a = 0, "limit"_a = 0, "release_threshold"_a = 0, "soft_limit"_a = 0,
       "slack"_a = nb::none(), "account_tags"_a = false, "on_out_of_memory"_a = nb::none(),
       "on_bad_free"_a = nb::none(), "safe_mode"_a = false, "watch_captures"_a = false,
       "wait_before_refusing"_a = false, "seal_bytes"_a = 0,
       (std::string(
            "device: 'cpu', 'cuda' or 'cuda:N'. streams: a SoftwareDevice for software streams in host memory.\n"
            "kind, with CUDA: 'virtual' memory that grows and shrinks, 'device' in one piece, 'pinned' or "
            "'managed'.\n") +
        options_text +
        "\n\nsafe_mode: streams may be destroyed without release_stream(), for an event at each free. watch_captures: "
        "each\n"
        "call asks whether its stream captures. wait_before_refusing: wait for streams before an allocation is "
        "refused.\n"
        "seal_bytes: freed in a stream and covered by no event, above which one is recorded (64 MiB).\n\n"
        "Raises RuntimeError if there is no such device.")
           .c_str())
      .def("empty", empty, nb::arg("shape").none(), nb::arg("dtype").none() = "float32", "device"_a = nb::none(),
           "stream"_a = nb::none(),
           nb::sig("def empty(self, shape: int | collections.abc.Iterable[int], dtype: typing.Any = 'float32', device: "
                   "typing.Any = None, stream: typing.Any = None) -> Tensor"),
           "A tensor with undefined contents, for work that enters the stream from now on.\n\n"
           "shape: an integer or several. dtype: a name as \"float32\", or a type of NumPy, PyTorch, CuPy or Python. "
           "device:\n"
           "the pool's. stream: a SoftwareStream, a cudaStream_t as an integer, or a stream of PyTorch, CuPy or CUDA\n"
           "Python; None: on CUDA the default stream, on the host none.\n\n"
           "Raises OutOfMemory, TypeError, ValueError, and what on_out_of_memory raises.")
      .def("free_tensor", free_tensor, nb::arg("tensor").none(),
           nb::sig("def free_tensor(self, tensor: typing.Any) -> None"),
           "Frees a tensor's block now, in the tensor's stream. Raises BadFree: the tensor was freed (`double_free`), "
           "is\n"
           "another pool's (`wrong_pool`), or no pool's (`foreign_pointer`). BufferError: others use its memory.")
      .def(
          "allocate",
          [](memory_object& self, std::size_t bytes, std::size_t alignment, nb::handle stream) {
            return number(self.of->allocate(bytes, alignment, in(self, stream)));
          },
          "bytes"_a, "alignment"_a = 1, "stream"_a = nb::none(),
          "Address of a raw block of at least `bytes` bytes, aligned to `alignment` (a power of two up to the chunk). "
          "It is\n"
          "not freed by the garbage collector. Raises as empty().")
      .def(
          "free",
          [](memory_object& self, std::uintptr_t address, std::size_t bytes, nb::handle stream) {
            free_raw(*self.of, address, bytes, in(self, stream));
          },
          "address"_a, "bytes"_a = 0, "stream"_a = nb::none(),
          "Frees a raw block: work that is in the stream now may still use it. bytes: as allocated, or 0: unknown. "
          "Raises\n"
          "BadFree, and then nothing has changed.")
      .def(
          "allocate_checked",
          [](memory_object& self, std::size_t bytes, std::size_t alignment, nb::handle stream) {
            const checked_block block = self.of->allocate_checked(bytes, alignment, in(self, stream));
            return std::pair{number(block.address), block.generation};
          },
          "bytes"_a, "alignment"_a = 1, "stream"_a = nb::none(),
          "As BuddyAllocator.allocate_checked(). On the host with streams, `stream` must be given.")
      .def(
          "free_checked",
          [](memory_object& self, std::uintptr_t address, std::uint64_t generation, std::size_t bytes,
             nb::handle stream) { free_checked(*self.of, address, generation, bytes, in(self, stream)); },
          "address"_a, "generation"_a, "bytes"_a = 0, "stream"_a = nb::none(),
          "Frees a raw block by its handle. Raises BadFree.")
      .def(
          "divide", divide, "address"_a, "part_bytes"_a, "live"_a, "stream"_a = nb::none(),
          nb::sig("def divide(self, address: int, part_bytes: int, live: collections.abc.Iterable[int], stream: "
                  "typing.Any = None) -> list[int]"),
          "Divides a raw block of a pool with streams into parts of `part_bytes`, a power of two from the granule up.\n"
          "The parts whose numbers are in `live` are blocks of their own from now on, which anybody frees; the rest "
          "is\n"
          "freed in the stream. The block must have been allocated with a power of two of bytes. Returns the "
          "addresses\n"
          "of the live parts. Raises BadFree (no live block), ValueError, MemoryError, and then nothing has changed.")
      .def(
          "record_stream",
          [](memory_object& self, nb::handle what, nb::handle stream) {
            tensor* of = nullptr;
            if (nb::try_cast(what, of) && of != nullptr && &of->pool() != self.of.get())
              raise(bad_free{.code = error::wrong_pool, .pointer = of->address(), .bytes = of->bytes()});
            void* const address = of != nullptr ? of->address() : pointer(nb::cast<std::uintptr_t>(what));
            const stream_handle handle = in(self, stream);
            const error code = of != nullptr ? of->record_stream(handle) : self.of->record_stream(address, handle);
            if (code >= error::double_free) raise(bad_free{.code = code, .pointer = address});
            require(code, "record_stream", *self.of);
          },
          "block"_a, nb::arg("stream").none(),
          "Work in `stream` uses the tensor, or the block at that address, too: freed, it stays out of use until the "
          "work\n"
          "that is in the stream then is done as well. Raises BadFree, ValueError.")
      .def(
          "release_stream",
          [](memory_object& self, nb::handle stream) { return self.of->release_stream(in(self, stream)); },
          nb::arg("stream").none(),
          "The pool forgets the stream, which may be destroyed then: until now it has kept the object that was given as\n"
          "a stream, and a stream that was given as an integer had to live. Another thread must not be inside a call for "
          "it.\n"
          "False: no event could be recorded, and what was freed in it stays out of use until synchronize().")
      .def(
          "begin_capture",
          [](memory_object& self, nb::handle stream) {
            require(self.of->begin_capture(in(self, stream)), "begin_capture", *self.of);
          },
          nb::arg("stream").none(),
          "What is allocated in the stream from now on belongs to the graph that it captures, or is about to capture.\n"
          "Raises ValueError: not a stream, or begun already.")
      .def(
          "end_capture",
          [](memory_object& self, nb::handle stream) {
            require(self.of->end_capture(in(self, stream)), "end_capture", *self.of);
          },
          nb::arg("stream").none(),
          "Before the capture ends. Raises ValueError: it was not begun, or the capture is over.")
      .def(
          "synchronize", [](memory_object& self) { return self.of->synchronize(); },
          "Waits, without the GIL, until all work is done that may use blocks freed so far; then they are "
          "everybody's.\n"
          "False: that cannot be told of all streams.")
      .def(
          "stream_synchronize",
          [](memory_object& self, nb::handle stream) { return self.of->stream_synchronize(in(self, stream)); },
          nb::arg("stream").none(), "The same for one stream.")
      .def(
          "close",
          [](memory_object& self) {
            if (self.of->is_open() && self.of->tensors != 0)
              raise(PyExc_RuntimeError,
                    "close(): %zu tensors of the pool are alive; drop them, or leave it to the garbage collector",
                    self.of->tensors);
            self.of->close();
          },
          "Releases the pool now, with all raw blocks, after waiting for its streams. Raises RuntimeError while "
          "tensors of\n"
          "it are alive, or another thread is inside a call.");
  bind_common(c);
}

void bind_cache(nb::module_& m) {
  nb::class_<cache_object, memory_object>(
      m, "TensorCache", nb::type_slots(slots<cache_object>()), nb::is_weak_referenceable(),
      "A pool's tensors, kept when they are freed for whoever asks for their like: of the same shape and type, or of "
      "memory\n"
      "that is at most an eighth larger, in the same stream. A hit costs the same whatever the size. What is kept "
      "stays within\n"
      "a limit, and is the pool's again before an allocation of anybody's is refused.\n\n"
      "Everything that is not about tensors is the pool's itself: raw blocks, synchronize(), defragment().")
      .def(
          "__init__",
          [](cache_object* self, nb::object pool, std::size_t limit, std::size_t alignment, double waste,
             std::size_t tensors) {
            std::shared_ptr<memory> of = memory_of(pool);
            const place where = of->where();
            auto keeper = std::make_shared<tensor_keeper>(of, tensor_options{.limit = limit,
                                                                             .alignment = alignment,
                                                                             .waste = waste,
                                                                             .tensors = tensors,
                                                                             .device = {where.type, where.id}});
            new (self) cache_object{{{std::move(of), nullptr}}, std::move(pool), std::move(keeper)};
          },
          "pool"_a, nb::kw_only(), "limit"_a = 0, "alignment"_a = 0, "waste"_a = 0.125, "tensors"_a = 0,
          nb::sig("def __init__(self, pool: MemoryPool | BuddyAllocator, *, limit: int = 0, alignment: int = 0, waste: "
                  "float = "
                  "0.125, tensors: int = 0) -> None"),
          "limit: bytes of all tensors, live and kept, above which kept ones are given up; 0: half of the pool's "
          "limit.\n"
          "alignment: of each tensor, in bytes, a power of two; 0: 256. waste: how much larger than needed a tensor's "
          "memory\n"
          "may be, as a fraction, at most 0.125. tensors: most at once, live and kept; 0: 262144.\n\n"
          "Raises ValueError, MemoryError.")
      .def("empty", empty_kept, nb::arg("shape").none(), nb::arg("dtype").none() = "float32", "device"_a = nb::none(),
           "stream"_a = nb::none(),
           nb::sig("def empty(self, shape: int | collections.abc.Iterable[int], dtype: typing.Any = 'float32', device: "
                   "typing.Any = None, stream: typing.Any = None) -> Tensor"),
           "As MemoryPool.empty(): a kept tensor, or a new one of the pool's.")
      .def(
          "trim",
          [](cache_object& self, std::size_t keep_bytes) {
            const std::size_t kept = self.keeper->trim(keep_bytes);
            static_cast<void>(self.of->trim(keep_bytes));
            return kept;
          },
          "keep_bytes"_a = 0,
          "Gives up kept tensors until at most `keep_bytes` are kept, and the pool's free memory as its trim() does. "
          "Returns\n"
          "the bytes of the tensors given up.")
      .def(
          "stats",
          [](const cache_object& self) {
            nb::dict d = self.of->stats();
            const tensor_statistics s = self.keeper->stats();
            d["hits"] = s.hits;
            d["compatible"] = s.compatible;
            d["misses"] = s.misses;
            d["evictions"] = s.evictions;
            d["kept"] = s.kept;
            d["kept_tensors"] = s.kept_tensors;
            d["live_tensors"] = s.live_tensors;
            d["cache_limit"] = s.limit;
            return d;
          },
          nb::sig("def stats(self) -> dict[str, int]"),
          "The pool's, for which kept tensors are live, and: `hits`, of these `compatible`, `misses`, `evictions`; "
          "bytes\n"
          "`kept`, `kept_tensors`, `live_tensors`, `cache_limit` in bytes.");
}

}  // namespace

std::shared_ptr<memory> memory_of(nb::handle pool) {
  buddy_object* buddy = nullptr;
  memory_object* object = nullptr;
  if (nb::try_cast(pool, buddy) && buddy != nullptr) return buddy->of;
  if (nb::try_cast(pool, object) && object != nullptr) return object->of;
  raise(PyExc_TypeError, "give a MemoryPool or a BuddyAllocator");
}

void bind_pools(nb::module_& m) {
  bind_buddy(m);
  bind_memory(m);
  bind_cache(m);
}

}  // namespace orderly::python
