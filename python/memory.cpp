#include "memory.hpp"

#include <stdexcept>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "streams.hpp"
#include "tags.hpp"

namespace orderly::python {

namespace nb = nanobind;

namespace {

/// What was pending in this thread before, an exception that is being handled, say, is pending again afterwards.
class other_errors {
 public:
  other_errors() { PyErr_Fetch(&type_, &value_, &traceback_); }
  other_errors(const other_errors&) = delete;
  other_errors& operator=(const other_errors&) = delete;
  ~other_errors() { PyErr_Restore(type_, value_, traceback_); }

 private:
  PyObject *type_ = nullptr, *value_ = nullptr, *traceback_ = nullptr;
};

bool ask(const handlers& given, std::size_t bytes) {
  const bool is_python_thread = PyGILState_GetThisThreadState() != nullptr;
  const gil_section held;
  const nb::object handler = given.out_of_memory;
  if (!handler.is_valid()) return false;
  PyObject* const answer = PyObject_CallFunction(handler.ptr(), "n", static_cast<Py_ssize_t>(bytes));
  const int again = answer == nullptr ? -1 : PyObject_IsTrue(answer);
  Py_XDECREF(answer);
  if (again >= 0) return again != 0;
  if (is_python_thread) throw handler_raised();  // to whoever called allocate()
  PyErr_WriteUnraisable(handler.ptr());
  return false;
}

void tell(const handlers& given, const bad_free& report) {
  const gil_section held;
  const other_errors kept;
  const nb::object handler = given.bad_free;
  if (!handler.is_valid()) return on_bad_free::print(report);
  try {
    handler(exception_of(report));
  } catch (nb::python_error& raised) {
    raised.restore();
    PyErr_WriteUnraisable(handler.ptr());
  }
}

nb::dict dict_of(const statistics& s) {
  nb::dict d;
  d["requested"] = s.requested;
  d["allocated"] = s.allocated;
  d["cached"] = s.cached;
  d["committed"] = s.committed;
  d["peak_requested"] = s.peak_requested;
  d["peak_committed"] = s.peak_committed;
  d["capacity"] = s.capacity;
  d["limit"] = s.limit;
  d["allocations"] = s.allocations;
  d["frees"] = s.frees;
  d["failed"] = s.failed;
  d["bad_frees"] = s.bad_frees;
  d["passes"] = s.passes;
  return d;
}

}  // namespace

std::string place::name() const {
  if (type == nb::device::cpu::value) return "cpu";
  if (type == nb::device::cuda_host::value) return "cuda_host";
  return (type == nb::device::cuda_managed::value ? "cuda_managed:" : "cuda:") + std::to_string(id);
}

void handlers::install(const std::shared_ptr<handlers>& given, options& settings) {
  if (given->out_of_memory.is_valid())
    settings.on_out_of_memory = [given](std::size_t bytes) { return interpreter_lives() && ask(*given, bytes); };
  if (given->bad_free.is_valid())
    settings.on_bad_free = [given](const orderly::bad_free& report) {
      if (interpreter_lives())
        tell(*given, report);
      else
        on_bad_free::print(report);
    };
}

memory::memory(pool&& plain, place where, nb::object keeps)
    : keeps_(std::move(keeps)), plain_(std::move(plain)), where_(where) {}

memory::memory(stream_pool&& in_streams, std::shared_ptr<stream_driver> driver, place where, stream_handle idle)
    : driver_(std::move(driver)), streams_(std::move(in_streams)), where_(where), idle_(idle) {}

memory::~memory() {
  without_gil([this] {
    plain_.reset();
    if (streams_) finish();
    streams_.reset();
    kept_.clear();
    driver_.reset();
  });
}

/// The streams of another library may be gone by now, with their handles, so they are not asked.
void memory::finish(stream_pool& of) const noexcept {
  static_cast<void>(where_.is_cuda() ? driver_->synchronize_all() : of.synchronize());
}

void memory::close() {
  if (!is_open()) return;
  if (hooked)
    raise(PyExc_RuntimeError, "close(): the pool serves another library, which may have blocks of it at any time");
  if (sets != 0)
    raise(PyExc_RuntimeError, "close(): %zu RelocatableBlocks of the pool are alive; close or drop them first", sets);
  if (calls_ != 0) raise(PyExc_RuntimeError, "close(): another thread is inside a call of this pool");
  std::optional<pool> plain;
  std::optional<stream_pool> streams;
  plain.swap(plain_);
  streams.swap(streams_);
  without_gil([&] {
    plain.reset();
    if (streams) finish(*streams);
    streams.reset();
  });
  kept_.clear();
  kept_objects_.clear();
  keeps_.reset();
}

void memory::require_open() const {
  if (!is_open()) raise(PyExc_ValueError, "the pool is closed: %s", to_string(error::pool_gone));
}

void memory::keep(stream_handle stream, const std::shared_ptr<software_stream_object>& object) {
  kept_.try_emplace(stream, object);
}
void memory::keep(stream_handle stream, nb::handle object) {
  if (!kept_objects_.contains(stream)) kept_objects_.emplace(stream, nb::borrow(object));
}

void* memory::allocate_slowly(std::size_t bytes, std::size_t alignment, stream_handle stream) {
  require_open();
  const in_call running(*this);
  return without_gil([&] {
    if (plain_) return plain_->allocate(bytes, alignment);
    return stream == settled ? streams_->allocate_settled(bytes, alignment, idle_)
                             : streams_->allocate(bytes, alignment, stream);
  });
}

checked_block memory::allocate_checked(std::size_t bytes, std::size_t alignment, stream_handle stream) {
  require_open();
  if (streams_ && stream == settled) raise(PyExc_ValueError, "a block with a handle is for a stream; name it");
  const in_call running(*this);
  return without_gil([&] {
    return plain_ ? plain_->allocate_checked(bytes, alignment)
                  : streams_->allocate_checked(bytes, alignment, actual(stream));
  });
}

error memory::deallocate_slowly(void* pointer, std::size_t bytes, stream_handle stream, bad_free* report) {
  if (!is_open()) {
    if (pointer == nullptr) return error::none;
    if (report != nullptr) *report = {.code = error::pool_gone, .pointer = pointer, .bytes = bytes};
    return error::pool_gone;
  }
  const in_call running(*this);
  return without_gil([&] {
    return plain_ ? plain_->try_deallocate(pointer, bytes, report)
                  : streams_->try_deallocate(pointer, bytes, actual(stream), report);
  });
}

error memory::deallocate(const checked_block& block, std::size_t bytes, stream_handle stream, bad_free* report) {
  if (!is_open()) return deallocate_slowly(block.address, bytes, stream, report);
  const in_call running(*this);
  return without_gil([&] {
    return plain_ ? plain_->try_deallocate(block, bytes, report)
                  : streams_->try_deallocate(block, bytes, actual(stream), report);
  });
}

void memory::report(const bad_free& refused) const noexcept {
  if (asks != nullptr && interpreter_lives())
    tell(*asks, refused);
  else
    on_bad_free::print(refused);
}

error memory::record_stream(void* pointer, stream_handle stream) {
  require_open();
  if (!streams_) return error::none;  // no work but the host's
  const in_call running(*this);
  return without_gil([&] { return streams_->record_stream(pointer, stream); });
}

error memory::divide(void* pointer, std::size_t part_bytes, std::span<const std::uint32_t> live, stream_handle stream,
                     std::string& why) {
  require_open();
  if (!streams_) {
    why = "the pool has no streams, and divides no blocks";
    return error::invalid_argument;
  }
  const in_call running(*this);
  return without_gil([&] {
    return stream == settled ? streams_->divide_settled(pointer, part_bytes, live, &why)
                             : streams_->divide(pointer, part_bytes, live, stream, &why);
  });
}

error memory::begin_capture(stream_handle stream) {
  require_open();
  if (!streams_) return error::invalid_argument;
  const in_call running(*this);
  return without_gil([&] { return streams_->begin_capture(stream); });
}

error memory::end_capture(stream_handle stream) {
  require_open();
  if (!streams_) return error::invalid_argument;
  const in_call running(*this);
  return without_gil([&] { return streams_->end_capture(stream); });
}

bool memory::release_stream(stream_handle stream) {
  require_open();
  if (!streams_) return true;
  bool released = false;
  {
    const in_call running(*this);
    released = without_gil([&] { return streams_->release_stream(stream); });
  }
  kept_.erase(stream);
  // Out of the map first: its end may run anything.
  const auto object = kept_objects_.extract(stream);
  return released;
}

bool memory::synchronize() {
  require_open();
  if (!streams_) return true;
  const in_call running(*this);
  return without_gil([&] { return streams_->synchronize(); });
}

bool memory::stream_synchronize(stream_handle stream) {
  require_open();
  if (!streams_) return true;
  const in_call running(*this);
  return without_gil([&] { return streams_->stream_synchronize(actual(stream)); });
}

bool memory::order(stream_handle earlier, stream_handle later) {
  const in_call running(*this);
  return without_gil([&] {
    const event_handle event = driver_->record(earlier);
    if (event == nullptr) return false;
    const bool waits = driver_->wait(later, event);
    driver_->release(event);
    return waits;
  });
}

std::size_t memory::defragment() {
  require_open();
  const in_call running(*this);
  return without_gil([&] { return plain_ ? plain_->defragment() : streams_->defragment(); });
}

std::size_t memory::trim(std::size_t keep_bytes) {
  require_open();
  const in_call running(*this);
  return without_gil([&] { return plain_ ? plain_->trim(keep_bytes) : streams_->trim(keep_bytes); });
}

std::size_t memory::reserve(std::size_t bytes) {
  require_open();
  const in_call running(*this);
  return without_gil([&] { return plain_ ? plain_->reserve(bytes) : streams_->reserve(bytes); });
}

nb::dict memory::stats() const {
  require_open();
  if (plain_) return dict_of(plain_->stats());
  const stream_statistics s = streams_->stats();
  nb::dict d = dict_of(s.memory);
  d["streams"] = s.streams;
  d["held"] = s.held;
  d["events_recorded"] = s.events_recorded;
  d["waits"] = s.waits;
  d["queries"] = s.queries;
  return d;
}

nb::dict memory::snapshot() const {
  require_open();
  std::vector<block_info> blocks;
  {
    const in_call running(*this);
    const auto note = [&blocks](const block_info& block) { blocks.push_back(block); };
    without_gil([&] { plain_ ? plain_->for_each_block(note) : streams_->for_each_block(note); });
  }
  nb::list list;
  for (const block_info& block : blocks) {
    nb::dict d;
    d["address"] = reinterpret_cast<std::uintptr_t>(block.address);
    d["bytes"] = block.bytes;
    d["requested"] = block.requested;
    d["state"] = name_of(block.state);
    if (account_tags && block.state == block_state::live) d["tag"] = name_of(block.tag);
    list.append(d);
  }
  nb::dict all;
  all["device"] = where_.name();
  all["stats"] = stats();
  all["blocks"] = list;
  if (account_tags) all["tags"] = tags();
  return all;
}

nb::dict memory::tags() const {
  require_open();
  std::vector<tag_statistics> found;
  {
    const in_call running(*this);
    found = without_gil([&] { return plain_ ? plain_->tags() : streams_->tags(); });
  }
  nb::dict all;
  for (const tag_statistics& each : found) {
    nb::dict d;
    d["requested"] = each.requested;
    d["allocated"] = each.allocated;
    d["peak_requested"] = each.peak_requested;
    d["allocations"] = each.allocations;
    d["frees"] = each.frees;
    all[name_of(each.tag)] = d;
  }
  return all;
}

memory_report memory::report_for(std::size_t bytes) const {
  require_open();
  const in_call running(*this);
  return without_gil([&] { return plain_ ? plain_->report(bytes) : streams_->report(bytes); });
}

bool memory::owns(const void* pointer) const noexcept {
  return plain_ ? plain_->owns(pointer) : streams_ && streams_->owns(pointer);
}

std::size_t memory::block_size(const void* pointer) const noexcept {
  return plain_ ? plain_->block_size(pointer) : streams_ ? streams_->block_size(pointer) : 0;
}

std::size_t memory::granule() const noexcept { return plain_ ? plain_->granule() : streams_ ? streams_->granule() : 0; }

std::size_t memory::capacity() const noexcept {
  return plain_ ? plain_->capacity() : streams_ ? streams_->capacity() : 0;
}

}  // namespace orderly::python
