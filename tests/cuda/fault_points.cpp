// Every call of CUDA that orderly makes fails, one after the other, with errors of each kind; and every call from there
// on, as when a device is lost. Afterwards nothing is lost, the thread's state is as it was, and messages name the call
// and the error. Runs against the stand-in of software_cuda.cpp, and before the real runtime (faulty_cuda.cpp).
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "faults.hpp"
#include "orderly/cuda.hpp"
#include "orderly/cuda/torch.h"
#include "orderly/cuda_kernel.hpp"
#include "orderly/orderly_cuda.h"
#include "orderly/pool.hpp"
#include "orderly/relocatable_streams.hpp"
#include "orderly/stream_pool.hpp"
#include "support/process.hpp"
#ifdef ORDERLY_SOFTWARE_CUDA
#include "software_cuda.hpp"
#endif

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t capacity = 256 * kib;

/// The last one there is, so that it is not the current one if possible.
int device() {
  int count = 0;
  REQUIRE(cudaGetDeviceCount(&count) == cudaSuccess);
  return count - 1;
}

/// Pools stay, and what they have.
bool keeps_things = false;

/// A stream of the device.
class own_stream {
 public:
  own_stream() {
    REQUIRE(cudaSetDevice(device()) == cudaSuccess);
    REQUIRE(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess);
    REQUIRE(cudaSetDevice(0) == cudaSuccess);
  }
  own_stream(const own_stream&) = delete;
  own_stream& operator=(const own_stream&) = delete;
  ~own_stream() { CHECK(cudaStreamDestroy(stream_) == cudaSuccess); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// In the device's stream, also where that is one of its default streams, and the thread stays with its device.
void write(void* block, std::size_t bytes, cudaStream_t stream) {
  int before = 0;
  CHECK(cudaGetDevice(&before) == cudaSuccess);
  CHECK(cudaSetDevice(device()) == cudaSuccess);
  static_cast<void>(cudaMemsetAsync(block, 1, bytes, stream));
  CHECK(cudaSetDevice(before) == cudaSuccess);
}

/// What is done while a call fails, and how the thread was left.
struct scene {
  explicit scene(const fault& given) : planned(given) { set_fault(planned); }

  /// True if what was done must have left all in order, which is to be checked now: no call fails any more. False: there
  /// is a call yet to fail, or the device is lost.
  bool is_over() {
    if (planned.lasting || (planned.at != 0 && failed_function() == nullptr)) return false;
    heal();
    return true;
  }
  void heal() {
    if (healed) return;
    healed = true;
    function = failed_function() == nullptr ? "" : failed_function();
    last_error = cudaPeekAtLastError();
    set_fault({});
    CHECK(cudaGetDevice(&device_left) == cudaSuccess);
    CHECK(cudaThreadExchangeStreamCaptureMode(&mode_left) == cudaSuccess);
    cudaStreamCaptureMode unused = mode_left;
    CHECK(cudaThreadExchangeStreamCaptureMode(&unused) == cudaSuccess);
  }

  /// Runs what may be refused. If the fault comes in it and it is refused, `text()` must say so: which call, which error.
  /// Where all later calls fail too, it may be one of those.
  template <class Operation, class Text>
  bool did(const Operation& operation, const Text& text) {
    const bool came_before = failed_function() != nullptr;
    if (operation()) return true;
    if (came_before || failed_function() == nullptr || planned.error == cudaErrorNotReady) return false;  // no failure
    const std::string said = text();
    INFO(std::string(failed_function()), " fails, and it says: ", said);
    CHECK((planned.lasting || said.find(failed_function()) != std::string::npos));
    CHECK(said.find(cudaGetErrorName(planned.error)) != std::string::npos);
    return false;
  }
  template <class Operation>
  bool did(const Operation& operation) {
    return did(operation, [] { return cuda_failure(); });
  }
  /// The same for what may throw. The pool itself knows no CUDA, and running out of memory may have any cause.
  template <class Operation>
  bool attempt(const Operation& operation) {
    std::string said;
    const auto tried = [&] {
      try {
        operation();
        return true;
      } catch (const out_of_memory&) {
        said = cuda_failure();
      } catch (const std::exception& e) {
        const std::string text = e.what();
        said = text.starts_with("orderly::stream_pool") ? cuda_failure() : text;
      }
      return false;
    };
    return did(tried, [&] { return said; });
  }

  fault planned;
  bool healed = false;
  std::string function;  ///< that failed; empty: none
  cudaError_t last_error = cudaSuccess;
  int device_left = -1;
  cudaStreamCaptureMode mode_left = cudaStreamCaptureModeGlobal;
};

/// Blocks that are to be freed, whatever fails.
class ledger {
 public:
  ledger(stream_pool& of, scene& in) : of_(of), in_(in) {}

  void* allocate(std::size_t bytes, stream_handle stream) {
    void* block = nullptr;
    if (in_.did([&] { return (block = of_.try_allocate(bytes, stream)) != nullptr; })) enter(block, bytes, stream);
    return block;
  }
  void enter(void* block, std::size_t bytes, stream_handle stream) {
    live_.push_back({block, bytes, stream});
    write(block, bytes, static_cast<cudaStream_t>(stream));
  }
  /// In the streams they came from. Those whose free is refused stay.
  void free_all() {
    std::erase_if(live_, [&](const entry& each) {
      return of_.try_deallocate(each.block, each.bytes, each.stream) == error::none;
    });
  }
  [[nodiscard]] bool empty() const { return live_.empty(); }
  /// It is not here any more.
  void forget(void* block) {
    std::erase_if(live_, [&](const entry& each) { return each.block == block; });
  }

 private:
  struct entry {
    void* block;
    std::size_t bytes;
    stream_handle stream;
  };
  stream_pool& of_;
  scene& in_;
  std::vector<entry> live_;
};

/// All memory is everybody's, and in one piece.
void check_idle(stream_pool& pool, stream_handle stream) {
  CHECK(pool.synchronize());
  pool.defragment();
  CHECK(pool.synchronize());
  const stream_statistics stats = pool.stats();
  CHECK(stats.memory.requested == 0);
  CHECK(stats.memory.allocated == 0);
  CHECK(stats.memory.cached == 0);
  CHECK(stats.memory.allocations == stats.memory.frees);
  CHECK(stats.memory.bad_frees == 0);
  CHECK(stats.held == 0);
  std::size_t live = 0;
  pool.for_each_block([&](const block_info& block) { live += block.state != block_state::free; });
  CHECK(live == 0);
  void* const whole = pool.try_allocate(pool.largest_divisible(), stream);
  CHECK(whole != nullptr);
  CHECK(pool.try_deallocate(whole, pool.largest_divisible(), stream) == error::none);
}

std::unique_ptr<memory_source> make_source(std::size_t kind) {
  if (kind == 0) return make_cuda_device_source(device(), capacity);
  return kind == 1 ? make_cuda_pinned_source(capacity) : make_cuda_managed_source(device(), capacity);
}

/// A pool of each kind of memory, in each mode: blocks go from stream to stream, outside of streams, into parts and
/// graphs.
void use_pool(scene& in, std::size_t kind, bool safe_mode, bool watch_captures) {
  const own_stream first;
  const own_stream second;
  stream_options settings;
  settings.memory.on_bad_free = on_bad_free::count;
  settings.safe_mode = safe_mode;
  settings.watch_captures = watch_captures;
  const int on = device();
  std::unique_ptr<memory_source> source;
  std::shared_ptr<stream_driver> driver;
  std::shared_ptr<void> idle;
  if (!in.did([&] { return (source = make_source(kind)) != nullptr; })) return;
  if (!in.did([&] { return (driver = make_cuda_stream_driver(on)) != nullptr; })) return;
  if (!in.did([&] { return (idle = make_cuda_stream(on)) != nullptr; })) return;
  std::optional<stream_pool> made;
  if (!in.attempt([&] { made.emplace(std::move(source), std::move(driver), settings); })) return;
  stream_pool& pool = *made;
  ledger blocks(pool, in);
  const std::array<stream_handle, 4> streams = {first.get(), second.get(), nullptr, cudaStreamPerThread};
  for (stream_handle const stream : streams) {
    void* const block = blocks.allocate(capacity, stream);
    if (block != nullptr) in.did([&] { return pool.record_stream(block, first.get()) == error::none; });
    blocks.free_all();
  }
  void* outside = nullptr;
  if (in.attempt([&] { outside = pool.allocate_settled(capacity, 256, idle.get()); }))
    blocks.enter(outside, capacity, idle.get());
  blocks.free_all();

  if (void* const whole = blocks.allocate(64 * kib, second.get())) {
    const std::uint32_t live = 0b1010;
    if (in.did([&] { return pool.divide(whole, 16 * kib, &live, 1, second.get()) == error::none; })) {
      blocks.forget(whole);
      for (const std::size_t part : {1U, 3U})
        blocks.enter(static_cast<std::byte*>(whole) + part * 16 * kib, 16 * kib, second.get());
    }
  }
  blocks.free_all();

  static_cast<void>(pool.synchronize());
  cudaGraph_t graph = nullptr;
  const bool begun = in.did([&] { return pool.begin_capture(first.get()) == error::none; });
  REQUIRE(cudaStreamBeginCapture(first.get(), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  blocks.allocate(4 * kib, first.get());
  blocks.free_all();
  blocks.allocate(8 * kib, first.get());
  if (begun) in.did([&] { return pool.end_capture(first.get()) == error::none; });
  REQUIRE(cudaStreamEndCapture(first.get(), &graph) == cudaSuccess);
  blocks.free_all();
  blocks.allocate(capacity / 2, second.get());
  REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  blocks.free_all();

  in.did([&] { return pool.release_stream(second.get()); });
  in.did([&] { return pool.stream_synchronize(first.get()); });
  in.did([&] { return pool.synchronize(); });
  pool.trim();
  pool.defragment();
  if (!in.is_over()) return;
  blocks.free_all();
  CHECK(blocks.empty());
  check_idle(pool, second.get());
}

/// Memory without a pool, also where the device says how much.
void use_sources(scene& in) {
  for (std::size_t kind = 0; kind < 3; ++kind) {
    std::unique_ptr<memory_source> source;
    if (!in.did([&] { return (source = make_source(kind)) != nullptr; })) return;
    for (const std::size_t alignment : {std::size_t{256}, capacity * 8}) {
      void* range = nullptr;
      if (in.did([&] { return (range = source->reserve(capacity, alignment)) != nullptr; }))
        source->release(range, capacity);
    }
  }
  in.did([on = device()] { return make_cuda_device_source(on) != nullptr; });
}

/// Memory that comes and goes: in units, in larger pieces, and in part.
void use_virtual_memory(scene& in) {
  constexpr std::size_t unit = std::size_t{2} << 20;
  const int on = device();
  std::unique_ptr<memory_source> source;
  if (!in.did([&] { return (source = make_cuda_virtual_source(on, {.bytes = 40 * unit})) != nullptr; })) return;
  std::optional<pool> made;
  options settings;
  settings.on_bad_free = on_bad_free::count;
  if (!in.attempt([&] { made.emplace(std::move(source), settings); })) return;
  pool& tested = *made;
  std::vector<void*> blocks;
  for (int round = 0; round < 2; ++round) {
    for (const std::size_t bytes : {unit / 2, 3 * unit, 24 * unit, 18 * unit}) {
      void* block = nullptr;
      if (!in.did([&] { return (block = tested.try_allocate(bytes)) != nullptr; })) continue;
      blocks.push_back(block);
      if (bytes < 10 * unit) continue;
      CHECK(tested.try_deallocate(blocks.back()) == error::none);  // so the next one shrinks its slot, or moves
      blocks.pop_back();
    }
    for (void* const block : blocks) CHECK(tested.try_deallocate(block) == error::none);
    blocks.clear();
    tested.trim();
  }
  if (!in.is_over()) return;
  tested.trim();
  CHECK(tested.stats().allocated == 0);
  CHECK(tested.stats().committed == 0);
  void* const whole = tested.try_allocate(40 * unit);  // all that there is
  CHECK(whole != nullptr);
  CHECK(tested.try_deallocate(whole) == error::none);
}

/// Leases and rings, on their ways home.
void use_kernels(scene& in) {
  const own_stream first;
  const own_stream second;
  stream_options settings;
  settings.memory.on_bad_free = on_bad_free::count;
  const int on = device();
  std::unique_ptr<memory_source> source;
  std::shared_ptr<stream_driver> driver;
  if (!in.did([&] { return (source = make_cuda_device_source(on, capacity)) != nullptr; })) return;
  if (!in.did([&] { return (driver = make_cuda_stream_driver(on)) != nullptr; })) return;
  std::optional<stream_pool> made;
  if (!in.attempt([&] { made.emplace(std::move(source), std::move(driver), settings); })) return;
  std::optional<kernel_handoff> by;
  if (in.attempt([&] { by.emplace(*made, on, 64 * kib); })) {
    std::optional<kernel_lease> lease;
    if (in.attempt([&] { lease.emplace(*by, 1024, 64, first.get()); })) {
      in.did([&] { return lease->give_back(first.get()); });
      in.did([&] { return lease->wait(); });
    }
    std::optional<kernel_ring> ring;
    if (in.attempt([&] { ring.emplace(*by, 256, 100, second.get(), 10); })) {
      in.did([&] { return ring->turn(second.get()); });
      in.did([&] { return ring->give_back(second.get()); });
      static_cast<void>(ring->collect());
    }
    // Given back by their ends.
    in.attempt([&] { lease.emplace(*by, 256, 16, second.get()); });
    in.attempt([&] { ring.emplace(*by, 256, 16, first.get()); });
    lease.reset();
    ring.reset();
    static_cast<void>(by->collect());
  }
  if (!in.is_over()) return;
  if (by) {
    static_cast<void>(by->collect());
    CHECK(cudaStreamSynchronize(first.get()) == cudaSuccess);
    CHECK(cudaStreamSynchronize(second.get()) == cudaSuccess);
    CHECK(by->collect() == 0);
    by.reset();
  }
  check_idle(*made, first.get());
}

/// Blocks that move from stream to stream, and streams that end.
void use_relocation(scene& in, bool safe_mode) {
  const own_stream first;
  const own_stream second;
  constexpr std::size_t unit = 2048 * kib;  // what devices recommend
  constexpr std::size_t bytes = unit / 4;
  stream_options settings;
  settings.memory.on_bad_free = on_bad_free::count;
  settings.safe_mode = safe_mode;
  const int on = device();
  std::unique_ptr<memory_source> source;
  std::shared_ptr<stream_driver> driver;
  if (!in.did([&] { return (source = make_cuda_virtual_source(on, {.bytes = 4 * unit, .unit = unit})) != nullptr; })) return;
  if (!in.did([&] { return (driver = make_cuda_stream_driver(on)) != nullptr; })) return;
  std::optional<stream_pool> made;
  if (!in.attempt([&] { made.emplace(std::move(source), std::move(driver), settings); })) return;
  std::optional<relocatable_stream_blocks> blocks(std::in_place, *made);
  std::vector<relocatable> live;
  const auto free_all = [&] {
    std::erase_if(live, [&](relocatable each) { return blocks->deallocate(each, first.get()) == error::none; });
  };
  // All work is in one stream, so that the program has nothing to order.
  const auto use = [&](relocatable block, cudaStream_t stream) {
    void* address = nullptr;
    if (!in.did([&] { return (address = blocks->pin(block, stream)) != nullptr; })) return;
    if (stream == first.get()) write(address, bytes, stream);
    blocks->unpin(block, stream);
  };
  const auto step = [&](cudaStream_t stream) {
    in.attempt([&] {
      bool failed = true;
      try {
        static_cast<void>(blocks->step(stream));
        failed = blocks->last_step_failed();
      } catch (const std::invalid_argument&) {  // it may capture
      }
      if (failed) throw std::runtime_error("orderly::stream_pool: a step failed");
    });
  };
  for (int i = 0; i < 16; ++i) {
    relocatable block = relocatable::none;
    if (in.did([&] { return (block = blocks->try_allocate(bytes, first.get())) != relocatable::none; })) live.push_back(block);
  }
  for (std::size_t i = live.size(); i-- > 0;) {
    if (i % 4 == 0 || !in.did([&] { return blocks->deallocate(live[i], first.get()) == error::none; })) continue;
    live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
  }
  in.did([&] { return made->synchronize(); });
  for (const relocatable each : live) use(each, first.get());
  blocks->begin({.moves = 2});
  step(second.get());
  for (const relocatable each : live) use(each, first.get());
  in.did([&] { return made->release_stream(second.get()); });
  step(first.get());
  for (const relocatable each : live) use(each, second.get());  // another stream by now, for the pool
  for (const relocatable each : live) use(each, first.get());
  const std::size_t moves = blocks->end().moves;
  if (in.planned.at == 0) CHECK(moves > 0);  // else nothing of a move is tried at all
  if (!in.is_over()) {
    blocks.reset();
    return;
  }
  CHECK(made->synchronize());
  for (const relocatable each : live) use(each, first.get());
  free_all();
  CHECK(live.empty());
  CHECK(made->synchronize());
  blocks.reset();
  CHECK(made->synchronize());
  made->trim();
  CHECK(made->stats().memory.allocated == 0);
  CHECK(made->stats().memory.committed == 0);
  CHECK(made->stats().memory.bad_frees == 0);
}

/// The C interface. Every failure has its text.
void use_c(scene& in) {
  const own_stream first;
  const own_stream second;
  const auto did = [&](const auto& operation) { return in.did(operation, [] { return orderly_last_error(); }); };
  const auto works = [&](const auto& operation) { return did([&] { return operation() == ORDERLY_OK; }); };
  const orderly_options options = {capacity, 0, 0, 0};
  orderly_pool* pool = nullptr;
  if (!works([&, on = device()] { return orderly_pool_create_cuda(on, &options, &pool); })) return;
  std::vector<std::pair<void*, cudaStream_t>> left;
  for (cudaStream_t const stream : {first.get(), second.get(), cudaStream_t{}}) {
    void* block = nullptr;
    if (!did([&] { return (block = orderly_allocate_async(pool, capacity, stream)) != nullptr; })) continue;
    works([&] { return orderly_record_stream(pool, block, first.get()); });
    if (!works([&] { return orderly_deallocate_async(pool, block, capacity, stream); })) left.emplace_back(block, stream);
  }
  cudaGraph_t graph = nullptr;
  const bool begun = works([&] { return orderly_begin_capture(pool, first.get()); });
  REQUIRE(cudaStreamBeginCapture(first.get(), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  void* inside = nullptr;
  if (did([&] { return (inside = orderly_allocate_async(pool, 4 * kib, first.get())) != nullptr; }))
    left.emplace_back(inside, first.get());
  if (begun) works([&] { return orderly_end_capture(pool, first.get()); });
  REQUIRE(cudaStreamEndCapture(first.get(), &graph) == cudaSuccess);
  REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  works([&] { return orderly_release_stream(pool, second.get()); });
  works([&] { return orderly_stream_synchronize(pool, first.get()); });
  works([&] { return orderly_synchronize(pool); });
  if (in.is_over()) {
    for (const auto& [block, stream] : left) CHECK(orderly_deallocate_async(pool, block, 0, stream) == ORDERLY_OK);
    CHECK(orderly_synchronize(pool) == ORDERLY_OK);
    orderly_stats stats;
    CHECK(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
    CHECK(stats.allocated == 0);
    void* const whole = orderly_allocate_async(pool, capacity, second.get());
    CHECK(whole != nullptr);
    CHECK(orderly_deallocate_async(pool, whole, capacity, second.get()) == ORDERLY_OK);
    CHECK(orderly_synchronize(pool) == ORDERLY_OK);
  }
  orderly_pool_destroy(pool);
}

/// What PyTorch calls. A device's pool is made by the first call that can, and stays, as do the streams.
void use_torch(scene& in, int on) {
  static own_stream& first = *new own_stream;
  static own_stream& second = *new own_stream;
  std::vector<std::pair<void*, cudaStream_t>> left;
  for (cudaStream_t const stream : {first.get(), second.get()}) {
    void* block = nullptr;
    in.attempt([&] { block = orderly_torch_alloc(capacity / 2, on, stream); });
    const captured_stderr printed;
    if (block == nullptr) block = orderly_torch_try_alloc(capacity / 2, on, stream);
    if (block == nullptr) continue;
    const std::size_t before = printed.text().size();
    const auto records = [&] {
      orderly_torch_record_stream(block, first.get());
      return printed.text().size() == before;
    };
    in.did(records, [&] { return printed.text(); });
    std::size_t size = 0;
    CHECK(orderly_torch_base_alloc(block, &size) != nullptr);
    orderly_torch_memory_fraction(1, on);
    orderly_torch_free(block, capacity / 2, on, stream);
    if (printed.text().find("bad free") != std::string::npos) left.emplace_back(block, stream);
    orderly_torch_reset();
  }
  // The pool stays, so the device must come back even if it was lost. A stream whose captures could not be told keeps
  // what it got until its next call.
  if (!in.is_over()) in.heal();
  for (cudaStream_t const stream : {first.get(), second.get()})
    orderly_torch_free(orderly_torch_try_alloc(256, on, stream), 256, on, stream);
  for (const auto& [block, stream] : left) orderly_torch_free(block, capacity / 2, on, stream);
  orderly_torch_reset();
  void* const whole = orderly_torch_try_alloc(capacity, on, first.get());
  CHECK(whole != nullptr);
  orderly_torch_free(whole, capacity, on, first.get());
  orderly_torch_reset();
}

using work = std::function<void(scene&)>;

/// Calls that put back what a thread had set. Where CUDA refuses that, it stays.
bool restores(const std::string& function) {
  return function == "cudaSetDevice" || function.ends_with("ThreadExchangeStreamCaptureMode");
}

/// One run. Returns the function that failed; empty: the work has fewer calls.
std::string run_with(const fault& planned, const work& body) {
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  scene in(planned);
  body(in);
  in.heal();
  INFO("call ", planned.at, " fails, ", in.function);
  // An error of orderly's own is gone; the device's is left for the program to see, or a later one in its place. The
  // driver's functions leave none.
  const bool is_the_devices = planned.error == cudaErrorIllegalAddress && in.function.starts_with("cuda");
  // After a failed look for those the runtime's serve, whose own errors, which go, take this one along. A lost device tells it
  // again with each call; a healthy one behind the interposer does not.
  const bool comes_again = in.function == "cudaGetDriverEntryPoint";
  if (is_the_devices && !comes_again) CHECK(in.last_error != cudaSuccess);
  if (!is_the_devices && !planned.lasting) CHECK(in.last_error == cudaSuccess);
  if (!planned.lasting && !restores(in.function)) {
    CHECK(in.device_left == 0);
    CHECK(in.mode_left == cudaStreamCaptureModeGlobal);
  }
  cudaStreamCaptureMode global = cudaStreamCaptureModeGlobal;
  CHECK(cudaThreadExchangeStreamCaptureMode(&global) == cudaSuccess);
  for (const cuda_thing kind : {cuda_thing::block, cuda_thing::event, cuda_thing::graph_object, cuda_thing::mapping,
                                cuda_thing::piece, cuda_thing::range, cuda_thing::stream}) {
    if (keeps_things) continue;
    CAPTURE(to_string(kind));
    CHECK(things_left(kind) == 0);
  }
  return in.function;
}

struct failure_kind {
  cudaError_t error;
  bool lasting;
};
constexpr failure_kind kinds_of_failures[] = {
    {cudaErrorMemoryAllocation, false},
    {cudaErrorInvalidValue, false},
    {cudaErrorNotReady, false},
    {cudaErrorStreamCaptureInvalidated, false},
    {cudaErrorIllegalAddress, false},
    {cudaErrorIllegalAddress, true},
};

void tell(const char* what, std::uint64_t points) {
  std::printf("%s: %llu points failed\n", what, static_cast<unsigned long long>(points));
  CHECK(points > 0);
}

/// Each call of the work fails, until a run has no call left to fail.
std::uint64_t each_point_of(const failure_kind& kind, const work& body) {
  for (std::uint64_t at = 1;; ++at) {
    CAPTURE(at);
    INFO(std::string(cudaGetErrorName(kind.error)));
    CAPTURE(kind.lasting);
    if (run_with({at, kind.error, kind.lasting}, body).empty()) return at - 1;
  }
}

void each_point(const char* what, const work& body) {
  std::uint64_t points = 0;
  for (const failure_kind& kind : kinds_of_failures) {
#ifdef ORDERLY_SOFTWARE_CUDA
    restart_software_cuda(software_schedule::lazy);
#endif
    run_with({}, body);
    points += each_point_of(kind, body);
  }
  tell(what, points);
}

}  // namespace

TEST_CASE("sources") { each_point("sources", use_sources); }

TEST_CASE("pools of each kind of memory, in each mode") {
  for (std::size_t kind = 0; kind < 3; ++kind) {
    for (const bool safe_mode : {false, true}) {
      for (const bool watch_captures : {false, true}) {
        if (kind != 0 && (safe_mode || watch_captures)) continue;
        CAPTURE(kind);
        CAPTURE(safe_mode);
        CAPTURE(watch_captures);
        const std::string what = "pool " + std::to_string(kind) + (safe_mode ? ", safe mode" : "") +
                                 (watch_captures ? ", captures watched" : "");
        each_point(what.c_str(), [=](scene& in) { use_pool(in, kind, safe_mode, watch_captures); });
      }
    }
  }
}

TEST_CASE("virtual memory") { each_point("virtual memory", use_virtual_memory); }

TEST_CASE("leases and rings") { each_point("leases and rings", use_kernels); }

TEST_CASE("blocks that move") {
  each_point("blocks that move", [](scene& in) { use_relocation(in, false); });
  each_point("blocks that move, safe mode", [](scene& in) { use_relocation(in, true); });
}

TEST_CASE("the C interface") { each_point("the C interface", use_c); }

/// Last, since the pools stay.
TEST_CASE("PyTorch's functions") {
  setenv("ORDERLY_TORCH_CAPACITY", std::to_string(capacity).c_str(), 1);
  keeps_things = true;
  int on = device();
#ifdef ORDERLY_SOFTWARE_CUDA
  restart_software_cuda(software_schedule::lazy);
  stand_in.devices = 100;  // each kind of failure meets a device without a pool
#endif
  std::uint64_t points = 0;
  for (const failure_kind& kind : kinds_of_failures) {
    points += each_point_of(kind, [&](scene& in) { use_torch(in, on); });
#ifdef ORDERLY_SOFTWARE_CUDA
    ++on;
#endif
  }
  tell("PyTorch's functions", points);
}
