#include "relocation.hpp"

#include <cinttypes>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/optional.h>

#include "errors.hpp"
#include "memory.hpp"
#include "orderly/relocatable.hpp"
#include "orderly/relocatable_streams.hpp"
#include "pools.hpp"
#include "streams.hpp"

namespace orderly::python {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

/// A set of blocks of either kind of pool. It goes with the last of Python's object, of those that are pinned, and of the
/// calls that are under way.
///
/// Pre, for every member function and the destructor: the GIL is held. Those that may wait give it up meanwhile.
class block_set {
 public:
  explicit block_set(std::shared_ptr<memory> of) : of_(std::move(of)) {
    if (!of_->is_open()) raise(PyExc_ValueError, "the pool is closed");
    if (of_->plain() != nullptr)
      plain_.emplace(*of_->plain());
    else
      streams_.emplace(*of_->in_streams());
    ++of_->sets;
  }
  block_set(const block_set&) = delete;
  block_set& operator=(const block_set&) = delete;
  ~block_set() {
    without_gil([this] {
      if (streams_) of_->finish();
      plain_.reset();
      streams_.reset();
    });
    --of_->sets;
  }

  [[nodiscard]] memory& of() const noexcept { return *of_; }

  /// Where there are streams, one is named. Raises ValueError.
  [[nodiscard]] stream_handle in(nb::handle stream) const {
    const stream_handle named = stream_of(stream, *of_);
    if (streams_ && named == memory::settled) raise(PyExc_ValueError, "stream: name one; the pool has streams");
    return named;
  }

  [[nodiscard]] relocatable allocate(std::size_t bytes, stream_handle stream) {
    return of_->unlocked([&] { return plain_ ? plain_->allocate(bytes) : streams_->allocate(bytes, stream); });
  }
  [[nodiscard]] error deallocate(relocatable block, stream_handle stream) {
    return of_->unlocked([&] { return plain_ ? plain_->deallocate(block) : streams_->deallocate(block, stream); });
  }
  /// Null: refused, and why.
  [[nodiscard]] void* pin(relocatable block, stream_handle stream, error& why) {
    return of_->unlocked([&] {
      why = error::stale_handle;
      return plain_ ? plain_->pin(block) : streams_->pin(block, stream, &why);
    });
  }
  void unpin(relocatable block, stream_handle stream) {
    of_->unlocked([&] { plain_ ? plain_->unpin(block) : streams_->unpin(block, stream); });
  }
  [[nodiscard]] std::size_t size(relocatable block) const noexcept {
    return plain_ ? plain_->size(block) : streams_->size(block);
  }
  void begin(const relocation_limits& limits) {
    of_->unlocked([&] { plain_ ? plain_->begin(limits) : streams_->begin(limits); });
  }
  [[nodiscard]] std::vector<relocation> step(stream_handle stream) {
    return of_->unlocked([&] { return plain_ ? plain_->step() : streams_->step(stream); });
  }
  [[nodiscard]] bool last_step_failed() const noexcept {
    return plain_ ? plain_->last_step_failed() : streams_->last_step_failed();
  }
  [[nodiscard]] relocation_statistics end() {
    return of_->unlocked([&] { return plain_ ? plain_->end() : streams_->end(); });
  }

  std::size_t pinned = 0;  ///< objects of Python

 private:
  std::shared_ptr<memory> of_;
  std::optional<relocatable_blocks> plain_;
  std::optional<relocatable_stream_blocks> streams_;
};

/// What Python holds.
struct set_object {
  std::shared_ptr<block_set> of;
  /// A call keeps the set.
  [[nodiscard]] std::shared_ptr<block_set> open() const {
    if (of == nullptr) raise(PyExc_ValueError, "the blocks are closed");
    return of;
  }
};

/// One pin of a block, to the end of which nothing may use the memory.
class pinned_block {
 public:
  pinned_block(std::shared_ptr<block_set> of, relocatable block, void* address, std::size_t bytes, stream_handle stream)
      : of_(std::move(of)), block_(block), address_(address), bytes_(static_cast<Py_ssize_t>(bytes)), stream_(stream) {
    ++of_->pinned;
  }
  pinned_block(pinned_block&& other) noexcept = default;  // before anything uses it
  pinned_block& operator=(pinned_block&&) = delete;
  ~pinned_block() { release(); }

  void release() {
    if (of_ == nullptr) return;
    const std::shared_ptr<block_set> of = std::move(of_);
    --of->pinned;
    of->unpin(block_, stream_);
  }
  [[nodiscard]] bool is_pinned() const noexcept { return of_ != nullptr; }
  [[nodiscard]] void* address() const {
    if (of_ == nullptr) raise(PyExc_ValueError, "the block is not pinned any more");
    return address_;
  }
  [[nodiscard]] const memory& of() const noexcept { return of_->of(); }
  [[nodiscard]] relocatable block() const noexcept { return block_; }
  [[nodiscard]] Py_ssize_t& bytes() noexcept { return bytes_; }
  [[nodiscard]] stream_handle stream() const noexcept { return stream_; }

  std::size_t exports = 0;  ///< buffers over it

 private:
  std::shared_ptr<block_set> of_;
  relocatable block_;
  void* address_;
  Py_ssize_t bytes_;
  stream_handle stream_;
};

std::uint64_t number(relocatable block) noexcept { return static_cast<std::uint64_t>(block); }
std::uintptr_t number(const void* address) noexcept { return reinterpret_cast<std::uintptr_t>(address); }

[[noreturn]] void refuse(const char* call, std::uint64_t block, error code) {
  char text[160];
  const char* const advice = code == error::pinned         ? "release its PinnedBlock, and what uses that, first"
                             : code == error::stale_handle ? "it was freed, or is of other RelocatableBlocks"
                                                           : "see the stream";
  std::snprintf(text, sizeof text, "%s(%#" PRIx64 "): %s; %s", call, block, to_string(code), advice);
  if (code == error::out_of_memory) raise(PyExc_MemoryError, "%s", text);
  if (code == error::stream_failed) raise(PyExc_RuntimeError, "%s", text);
  if (code == error::invalid_argument) raise(PyExc_ValueError, "%s", text);
  raise_bad_free(code, text);
}

int get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
  pinned_block* const of = nb::inst_ptr<pinned_block>(self);
  view->obj = nullptr;
  if (!of->is_pinned() || !of->of().where().is_host()) {
    PyErr_SetString(PyExc_BufferError, of->is_pinned()
                                           ? "the block lies on a device; the buffer protocol is for host memory"
                                           : "the block is not pinned any more");
    return -1;
  }
  if (PyBuffer_FillInfo(view, self, of->address(), of->bytes(), 0, flags) != 0) return -1;
  ++of->exports;
  return 0;
}

void release_buffer(PyObject* self, Py_buffer*) noexcept { --nb::inst_ptr<pinned_block>(self)->exports; }

nb::dict cuda_array_interface(pinned_block& self) {
  const auto address = number(self.address());
  if (self.of().where().type == nb::device::cpu::value)
    raise(PyExc_AttributeError, "a block in host memory has no __cuda_array_interface__");
  nb::dict d;
  d["shape"] = nb::make_tuple(self.bytes());
  d["typestr"] = "|u1";
  d["data"] = nb::make_tuple(address, false);
  d["strides"] = nb::none();
  d["version"] = 3;
  const auto stream = number(self.stream());
  d["stream"] = stream == 0 ? 1 : stream;  // 0 is not allowed there; 1 is the same stream
  return d;
}

void release(pinned_block& self) {
  if (self.exports != 0)
    raise(PyExc_BufferError, "the block is in use by %zu other objects, arrays made of it, say; drop these first",
          self.exports);
  self.release();
}

pinned_block pin(const set_object& self, std::uint64_t block, nb::handle stream) {
  std::shared_ptr<block_set> of = self.open();
  const stream_handle in = of->in(stream);
  const auto handle = static_cast<relocatable>(block);
  error why = error::none;
  void* const address = of->pin(handle, in, why);
  if (address == nullptr) refuse("pin", block, why);
  const std::size_t bytes = of->size(handle);  // pinned, so that it is there
  return {std::move(of), handle, address, bytes, in};
}

nb::list step(const set_object& self, nb::handle stream) {
  const std::shared_ptr<block_set> of = self.open();
  const std::vector<relocation> moves = of->step(of->in(stream));
  if (moves.empty() && of->last_step_failed())
    raise(PyExc_RuntimeError, "step(): the copies could not be put into the stream; does it capture?");
  nb::list all;
  for (const relocation& each : moves) {
    nb::dict d;
    d["block"] = number(each.block);
    d["from"] = number(each.from);
    d["to"] = number(each.to);
    d["bytes"] = each.bytes;
    all.append(d);
  }
  return all;
}

nb::dict end(const set_object& self) {
  const relocation_statistics done = self.open()->end();
  nb::dict d;
  d["moves"] = done.moves;
  d["bytes"] = done.bytes;
  d["skipped"] = done.skipped;
  d["planned"] = done.planned;
  d["chunks"] = done.chunks;
  return d;
}

void bind_pinned(nb::module_& m) {
  static PyType_Slot slots[] = {
      {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
      {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
      {0, nullptr},
  };
  nb::class_<pinned_block>(
      m, "PinnedBlock", nb::type_slots(slots), nb::is_weak_referenceable(),
      "A block of RelocatableBlocks that does not move: bytes, by the buffer protocol in host memory, by\n"
      "__cuda_array_interface__ on a device. The block is pinned until this object is gone, with all that was made of\n"
      "it (numpy.asarray(pinned), memoryview(pinned)); or until release(), or the end of a `with` block.")
      .def_prop_ro(
          "address", [](const pinned_block& self) { return number(self.address()); },
          "Raises ValueError if it was released.")
      .def_prop_ro(
          "block", [](const pinned_block& self) { return number(self.block()); }, "The block's handle.")
      .def_prop_ro(
          "nbytes", [](pinned_block& self) { return self.bytes(); }, "Bytes as asked for.")
      .def_prop_ro("is_pinned", &pinned_block::is_pinned, "False: it was released.")
      .def_prop_ro(
          "__cuda_array_interface__", cuda_array_interface,
          nb::for_getter(nb::sig("def __cuda_array_interface__(self) -> dict[str, typing.Any]")),
          "For CuPy, Numba and others. What they make of it keeps this object, but release() does not see it.\n"
          "Raises AttributeError in host memory, ValueError if it was released.")
      .def(
          "release", release,
          "Ends the pin now; work in the stream of pin() may still use the block. Raises BufferError while others use\n"
          "the memory. Again: does nothing.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); }, nb::sig("def __enter__(self) -> PinnedBlock"))
      .def(
          "__exit__", [](pinned_block& self, nb::args) { release(self); },
          nb::sig("def __exit__(self, *error: typing.Any) -> None"), "As release().");
}

}  // namespace

void bind_relocation(nb::module_& m) {
  bind_pinned(m);
  nb::class_<set_object>(m, "RelocatableBlocks", nb::is_weak_referenceable(),
                         "Blocks of a pool that it may move to where they leave whole chunks free. A program holds "
                         "handles, integers, and\n"
                         "an address only while it has a block pinned::\n\n"
                         "    blocks = orderly.RelocatableBlocks(pool)\n"
                         "    mesh = blocks.allocate(1_500_000)\n"
                         "    with blocks.pin(mesh) as memory:\n"
                         "        memoryview(memory)[:] = data\n\n"
                         "    blocks.begin(bytes=64 << 20)  # copied in each step, at most\n"
                         "    while blocks.step():\n"
                         "        render()\n"
                         "    print(blocks.end()['chunks'], 'chunks came free')\n\n"
                         "In a pool with streams, `stream` is given: allocate(), pin() and free() are for work that "
                         "enters it from now on,\n"
                         "step() puts the copies into it, and no thread waits for a stream. Any number of threads may "
                         "call at once; begin(),\n"
                         "step() and end() exclude each other. Blocks are not freed by the garbage collector; all of "
                         "them are with the set,\n"
                         "which goes with the last PinnedBlock of it. The pool cannot be closed before.")
      .def(
          "__init__",
          [](set_object* self, nb::handle pool) {
            new (self) set_object{std::make_shared<block_set>(memory_of(pool))};
          },
          "pool"_a, nb::sig("def __init__(self, pool: MemoryPool | BuddyAllocator) -> None"),
          "Raises TypeError, ValueError (the pool is closed), MemoryError.")
      .def(
          "allocate",
          [](const set_object& self, std::size_t bytes, nb::handle stream) {
            const std::shared_ptr<block_set> of = self.open();
            return number(of->allocate(bytes, of->in(stream)));
          },
          "bytes"_a, "stream"_a = nb::none(),
          "Handle of a block of at least `bytes` bytes, not pinned. Raises OutOfMemory, ValueError, and what\n"
          "on_out_of_memory raises.")
      .def(
          "free",
          [](const set_object& self, std::uint64_t block, nb::handle stream) {
            const std::shared_ptr<block_set> of = self.open();
            const error code = of->deallocate(static_cast<relocatable>(block), of->in(stream));
            if (code != error::none) refuse("free", block, code);
          },
          "block"_a, "stream"_a = nb::none(),
          "Frees a block. Raises BadFree: `stale_handle` if the handle names no block, `pinned` while it is; and then\n"
          "nothing has happened.")
      .def("pin", pin, "block"_a, "stream"_a = nb::none(),
           "The block where it lies, and stays until the PinnedBlock goes. Waits while a step copies it. Raises "
           "BadFree\n"
           "(`stale_handle`: the handle names no block), and for a stream ValueError, RuntimeError.")
      .def(
          "size",
          [](const set_object& self, std::uint64_t block) {
            return self.open()->size(static_cast<relocatable>(block));
          },
          "block"_a, "Bytes as asked for; 0 if the handle names no block.")
      .def(
          "begin",
          [](const set_object& self, std::optional<std::size_t> bytes, std::optional<std::size_t> moves) {
            self.open()->begin({.bytes = bytes.value_or(SIZE_MAX), .moves = moves.value_or(SIZE_MAX)});
          },
          "bytes"_a = nb::none(), "moves"_a = nb::none(),
          "Plans which chunks are emptied into which, of those all of whose blocks are of this set and not pinned "
          "now;\n"
          "ends a run that is under way. bytes, moves: most in a step; None: no bound. Runs a pass of the pool.")
      .def(
          "step", step, "stream"_a = nb::none(),
          nb::sig("def step(self, stream: typing.Any = None) -> list[dict[str, int]]"),
          "Moves blocks, as many as the limits allow, without the GIL. The moves made, with `block`, `from`, `to` and\n"
          "`bytes`; empty: there is no more to do. Raises RuntimeError if the copies could not be made.")
      .def("end", end, nb::sig("def end(self) -> dict[str, int]"),
           "Ends a run, finished or not: numbers of `moves`, `bytes` copied, blocks `skipped`, chunks `planned` to be\n"
           "emptied, and `chunks` of these that hold no block now.")
      .def(
          "close",
          [](set_object& self) {
            if (self.of == nullptr) return;
            if (self.of->pinned != 0)
              raise(PyExc_BufferError, "close(): %zu blocks are pinned; release them first", self.of->pinned);
            self.of.reset();
          },
          "Frees all blocks, after waiting for the pool's streams. Raises BufferError while any is pinned.");
}

}  // namespace orderly::python
