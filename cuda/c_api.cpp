/// \file
/// The C interface to pools of device memory. The handles are those of lib/c_api.cpp.
#include "orderly/orderly_cuda.h"

#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "c_api.hpp"
#include "orderly/cuda.hpp"
#include "orderly/stream_pool.hpp"
#include "runtime.hpp"

namespace {

using orderly::stream_pool;
using orderly::c_api::fail;
using orderly::detail::failure_watch;

constexpr std::size_t most_text = 512;

/// A failure with what CUDA said at the end of its message. `format` is that of printf.
template <class... Values>
int fail(orderly::error code, const failure_watch& watch, const char* format, Values... values) noexcept {
  char text[most_text];
  const int length = std::snprintf(text, sizeof text, format, values...);
  try {
    if (length > 0 && static_cast<std::size_t>(length) < sizeof text)
      std::snprintf(text + length, sizeof text - static_cast<std::size_t>(length), "%s", watch.text().c_str());
  } catch (const std::exception&) {  // no memory for what CUDA said
  }
  return fail(code, text);
}

std::unique_ptr<stream_pool> make_pool(int device, const orderly_options* given) {
  orderly::stream_options settings;
  if (given != nullptr) {
    settings.memory.capacity = given->capacity;
    settings.memory.granule = given->granule;
    settings.memory.chunk = given->chunk;
    settings.memory.limit = given->limit;
  }
  settings.memory.on_bad_free = orderly::on_bad_free::count;  // the caller gets the code
  auto source = orderly::make_cuda_device_source(device, settings.memory.capacity);
  auto driver = orderly::make_cuda_stream_driver(device);
  if (source == nullptr || driver == nullptr) return nullptr;
  return std::make_unique<stream_pool>(std::move(source), std::move(driver), settings);
}

std::unique_ptr<orderly::memory_source> make_source(int device, int kind, std::size_t capacity) {
  switch (kind) {
    case ORDERLY_CUDA_VIRTUAL:
      return orderly::make_cuda_virtual_source(device, {.bytes = capacity});
    case ORDERLY_CUDA_PINNED:
      return orderly::make_cuda_pinned_source(capacity);
    case ORDERLY_CUDA_MANAGED:
      return orderly::make_cuda_managed_source(device, capacity);
    default:
      return orderly::make_cuda_device_source(device, capacity);
  }
}

std::unique_ptr<stream_pool> make_pool_with(int device, int kind, const orderly_settings* given) {
  constexpr const char* function = "orderly_pool_create_cuda_with";
  std::size_t reserve = 0;
  orderly::stream_options settings = orderly::c_api::options_of(given, function, reserve);
  if (kind < ORDERLY_CUDA_DEVICE || kind > ORDERLY_CUDA_MANAGED)
    throw std::invalid_argument(std::string(function) + ": " + std::to_string(kind) + " is no kind of memory");
  settings.memory.on_bad_free = orderly::on_bad_free::count;  // the caller gets the code
  auto source = make_source(device, kind, settings.memory.capacity);
  auto driver = orderly::make_cuda_stream_driver(device);
  if (source == nullptr || driver == nullptr) return nullptr;
  auto made = std::make_unique<stream_pool>(std::move(source), std::move(driver), settings);
  if (reserve != 0) made->reserve(reserve);
  return made;
}

/// Gives what `make` makes a handle, or says why it cannot. `function`: of the C interface.
template <class Make>
int create(const char* function, int device, orderly_pool** pool, const Make& make) {
  if (pool == nullptr) {
    const failure_watch none;
    return fail(orderly::error::invalid_argument, none, "%s: pool is null", function);
  }
  *pool = nullptr;
  const failure_watch watch;
  try {
    std::unique_ptr<stream_pool> made = make();
    if (made == nullptr)
      return fail(
          orderly::error::source_failed, watch,
          "%s: there is no CUDA device %d here that has such memory: it is not among those that CUDA shows, or the "
          "driver is missing or older than the CUDA runtime",
          function, device);
    *pool = orderly::c_api::enter(std::move(made));
    if (*pool != nullptr) return ORDERLY_OK;
    return fail(orderly::error::out_of_memory, watch, "%s: 1024 pools exist already", function);
  } catch (const std::invalid_argument& e) {
    return fail(orderly::error::invalid_argument, e.what());
  } catch (const orderly::out_of_memory& e) {
    return fail(
        orderly::error::source_failed, watch,
        "%s: device %d does not give %zu bytes in one piece, or the host has no memory for the pool's own data; lower "
        "the capacity",
        function, device, e.requested());
  } catch (const std::exception& e) {
    return fail(orderly::error::source_failed, e.what());
  }
}

/// Runs an operation on the pool behind a handle. It gets the pool and a watch over what fails, and returns a code.
template <class Operation>
int with_streams(const orderly_pool* pool, const char* function, const Operation& operation) noexcept {
  stream_pool* found = nullptr;
  const int code = orderly::c_api::find(pool, function, found);
  const failure_watch watch;
  return code == ORDERLY_OK ? operation(*found, watch) : code;
}

}  // namespace

extern "C" {

int orderly_pool_create_cuda(int device, const orderly_options* options, orderly_pool** pool) {
  return create("orderly_pool_create_cuda", device, pool, [&] { return make_pool(device, options); });
}

int orderly_pool_create_cuda_with(int device, int kind, const orderly_settings* settings, orderly_pool** pool) {
  return create("orderly_pool_create_cuda_with", device, pool, [&] { return make_pool_with(device, kind, settings); });
}

void* orderly_allocate_async(orderly_pool* pool, size_t bytes, void* stream) {
  stream_pool* found = nullptr;
  if (orderly::c_api::find(pool, "orderly_allocate_async", found) != ORDERLY_OK) return nullptr;
  const failure_watch watch;
  void* const block = orderly::c_api::allocate(*found, bytes, 1, stream);
  if (block == nullptr) {
    char before[most_text];
    std::snprintf(before, sizeof before, "%s", orderly_last_error());
    fail(orderly::error::out_of_memory, watch, "%s", before);
  }
  return block;
}

int orderly_deallocate_async(orderly_pool* pool, void* pointer, size_t bytes, void* stream) {
  if (pointer == nullptr) return ORDERLY_OK;
  stream_pool* found = nullptr;
  const int code = orderly::c_api::find(pool, "orderly_deallocate_async", found);
  return code == ORDERLY_OK ? orderly::c_api::deallocate(*found, pointer, bytes, stream) : code;
}

int orderly_record_stream(orderly_pool* pool, void* pointer, void* stream) {
  return with_streams(pool, "orderly_record_stream", [=](stream_pool& of, const failure_watch& watch) {
    const orderly::error code = of.record_stream(pointer, stream);
    if (code == orderly::error::none) return int{ORDERLY_OK};
    return fail(code, watch, "orderly_record_stream: block %p, stream %p: %s", pointer, stream,
                orderly::to_string(code));
  });
}

int orderly_release_stream(orderly_pool* pool, void* stream) {
  return with_streams(pool, "orderly_release_stream", [=](stream_pool& of, const failure_watch& watch) {
    if (of.release_stream(stream)) return int{ORDERLY_OK};
    return fail(orderly::error::stream_failed, watch,
                "orderly_release_stream: no event can be recorded in stream %p: it captures, or its device has failed; "
                "what was freed in it stays out of use until orderly_synchronize",
                stream);
  });
}

int orderly_begin_capture(orderly_pool* pool, void* stream) {
  return with_streams(pool, "orderly_begin_capture", [=](stream_pool& of, const failure_watch& watch) {
    const orderly::error code = of.begin_capture(stream);
    if (code == orderly::error::none) return int{ORDERLY_OK};
    return fail(code, watch, "orderly_begin_capture: stream %p: %s; it is no stream, or was begun already", stream,
                orderly::to_string(code));
  });
}

int orderly_end_capture(orderly_pool* pool, void* stream) {
  return with_streams(pool, "orderly_end_capture", [=](stream_pool& of, const failure_watch& watch) {
    const orderly::error code = of.end_capture(stream);
    if (code == orderly::error::none) return int{ORDERLY_OK};
    return fail(code, watch,
                "orderly_end_capture: stream %p: %s; no capture was begun, or it was over before a block was allocated "
                "inside it: call this before the capture ends",
                stream, orderly::to_string(code));
  });
}

int orderly_synchronize(orderly_pool* pool) {
  return with_streams(pool, "orderly_synchronize", [](stream_pool& of, const failure_watch& watch) {
    if (of.synchronize()) return int{ORDERLY_OK};
    return fail(orderly::error::stream_failed, watch,
                "%s",
                "orderly_synchronize: a stream cannot be waited for: its device has failed, or it captures");
  });
}

int orderly_stream_synchronize(orderly_pool* pool, void* stream) {
  return with_streams(pool, "orderly_stream_synchronize", [=](stream_pool& of, const failure_watch& watch) {
    if (of.stream_synchronize(stream)) return int{ORDERLY_OK};
    return fail(orderly::error::stream_failed, watch,
                "orderly_stream_synchronize: stream %p cannot be waited for: its device has failed, it captures, or it "
                "is no stream",
                stream);
  });
}

}  // extern "C"
