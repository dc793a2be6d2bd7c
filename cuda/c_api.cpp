/// \file
/// The C interface to pools of device memory. The handles are those of lib/c_api.cpp.
#include "orderly/orderly_cuda.h"

#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>

#include "c_api.hpp"
#include "orderly/cuda.hpp"
#include "orderly/stream_pool.hpp"
#include "runtime.hpp"

namespace {

using orderly::c_api::fail;

constexpr std::size_t most_text = 256;

int fail_without_device(int device) noexcept {
  char text[most_text];
  std::snprintf(
      text, sizeof text,
      "orderly_pool_create_cuda: there is no CUDA device %d here: it is not among those that CUDA shows, or the "
      "driver is missing or older than the CUDA runtime",
      device);
  return fail(orderly::error::source_failed, text);
}

int fail_without_memory(int device, const orderly::out_of_memory& refused) noexcept {
  char text[most_text];
  std::snprintf(
      text, sizeof text,
      "orderly_pool_create_cuda: device %d does not give %zu bytes in one piece, or the host has no memory for the "
      "pool's own data; lower the capacity",
      device, refused.requested());
  return fail(orderly::error::source_failed, text);
}

std::unique_ptr<orderly::stream_pool> make_pool(int device, const orderly_options* given) {
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
  return std::make_unique<orderly::stream_pool>(std::move(source), std::move(driver), settings);
}

/// Runs an operation on the pool behind a handle. It returns a code.
template <class Operation>
int with_streams(const orderly_pool* pool, const char* function, const Operation& operation) noexcept {
  orderly::stream_pool* found = nullptr;
  const int code = orderly::c_api::find(pool, function, found);
  return code == ORDERLY_OK ? operation(*found) : code;
}

}  // namespace

extern "C" {

int orderly_pool_create_cuda(int device, const orderly_options* options, orderly_pool** pool) {
  if (pool == nullptr) return fail(orderly::error::invalid_argument, "orderly_pool_create_cuda: pool is null");
  *pool = nullptr;
  try {
    auto made = make_pool(device, options);
    if (made == nullptr) return fail_without_device(device);
    *pool = orderly::c_api::enter(std::move(made));
    if (*pool != nullptr) return ORDERLY_OK;
    return fail(orderly::error::out_of_memory, "orderly_pool_create_cuda: 1024 pools exist already");
  } catch (const std::invalid_argument& e) {
    return fail(orderly::error::invalid_argument, e.what());
  } catch (const orderly::out_of_memory& e) {
    return fail_without_memory(device, e);
  } catch (const std::exception& e) {
    return fail(orderly::error::source_failed, e.what());
  }
}

void* orderly_allocate_async(orderly_pool* pool, size_t bytes, void* stream) {
  orderly::stream_pool* found = nullptr;
  if (orderly::c_api::find(pool, "orderly_allocate_async", found) != ORDERLY_OK) return nullptr;
  return orderly::c_api::allocate(*found, bytes, 1, stream);
}

int orderly_deallocate_async(orderly_pool* pool, void* pointer, size_t bytes, void* stream) {
  if (pointer == nullptr) return ORDERLY_OK;
  return with_streams(pool, "orderly_deallocate_async",
                      [=](orderly::stream_pool& of) { return orderly::c_api::deallocate(of, pointer, bytes, stream); });
}

int orderly_record_stream(orderly_pool* pool, void* pointer, void* stream) {
  return with_streams(pool, "orderly_record_stream", [=](orderly::stream_pool& of) {
    const orderly::error code = of.record_stream(pointer, stream);
    if (code == orderly::error::none) return int{ORDERLY_OK};
    char text[most_text];
    std::snprintf(text, sizeof text, "orderly_record_stream: block %p, stream %p: %s", pointer, stream,
                  orderly::to_string(code));
    return fail(code, text);
  });
}

int orderly_release_stream(orderly_pool* pool, void* stream) {
  return with_streams(pool, "orderly_release_stream", [=](orderly::stream_pool& of) {
    if (of.release_stream(stream)) return int{ORDERLY_OK};
    char text[most_text];
    std::snprintf(text, sizeof text,
                  "orderly_release_stream: no event can be recorded in stream %p: it captures, or its device has failed; "
                  "what was freed in it stays out of use until orderly_synchronize",
                  stream);
    return fail(orderly::error::stream_failed, text);
  });
}

int orderly_begin_capture(orderly_pool* pool, void* stream) {
  return with_streams(pool, "orderly_begin_capture", [=](orderly::stream_pool& of) {
    const orderly::error code = of.begin_capture(stream);
    if (code == orderly::error::none) return int{ORDERLY_OK};
    char text[most_text];
    std::snprintf(text, sizeof text, "orderly_begin_capture: stream %p: %s; it is no stream, or was begun already", stream,
                  orderly::to_string(code));
    return fail(code, text);
  });
}

int orderly_end_capture(orderly_pool* pool, void* stream) {
  return with_streams(pool, "orderly_end_capture", [=](orderly::stream_pool& of) {
    const orderly::error code = of.end_capture(stream);
    if (code == orderly::error::none) return int{ORDERLY_OK};
    char text[most_text];
    std::snprintf(text, sizeof text,
                  "orderly_end_capture: stream %p: %s; no capture was begun, or it was over before a block was allocated "
                  "inside it: call this before the capture ends",
                  stream, orderly::to_string(code));
    return fail(code, text);
  });
}

int orderly_synchronize(orderly_pool* pool) {
  return with_streams(pool, "orderly_synchronize", [](orderly::stream_pool& of) {
    if (of.synchronize()) return int{ORDERLY_OK};
    return fail(orderly::error::stream_failed,
                "orderly_synchronize: a stream cannot be waited for: its device has failed, or it captures");
  });
}

int orderly_stream_synchronize(orderly_pool* pool, void* stream) {
  return with_streams(pool, "orderly_stream_synchronize", [=](orderly::stream_pool& of) {
    if (of.stream_synchronize(stream)) return int{ORDERLY_OK};
    char text[most_text];
    std::snprintf(
        text, sizeof text,
        "orderly_stream_synchronize: stream %p cannot be waited for: its device has failed, it captures, or it "
        "is no stream",
        stream);
    return fail(orderly::error::stream_failed, text);
  });
}

}  // extern "C"
