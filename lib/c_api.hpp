/// \file
/// What lies behind the handles of the C interface, for libraries that add kinds of pools to it.
///
/// Thread safety: as orderly.h. Progress: lock-free, but for enter(), and for what the pool itself does.
#pragma once

#include <cstddef>
#include <memory>

#include "orderly/error.hpp"
#include "orderly/export.h"
#include "orderly/orderly.h"
#include "orderly/stream.hpp"
#include "orderly/stream_pool.hpp"

namespace orderly::c_api {

/// Gives the pool a handle, which owns it from now on. Null: as many pools exist as there can be, and the pool is gone.
[[nodiscard]] ORDERLY_API orderly_pool* enter(std::unique_ptr<stream_pool> made) noexcept;

/// What a program of whichever version has set. `settings`: null for the defaults; `reserve` is what it asks for of
/// orderly_reserve. `function` is the caller's name, for the message. Throws std::invalid_argument.
[[nodiscard]] ORDERLY_API stream_options options_of(const orderly_settings* settings, const char* function,
                                                    std::size_t& reserve);

/// Finds the pool in stream order behind a handle. Else a code that fail() has been told: the pool is gone, or it is
/// one without streams. `function` is the caller's name, for the message.
[[nodiscard]] ORDERLY_API int find(const orderly_pool* handle, const char* function, stream_pool*& found) noexcept;

/// As orderly_allocate_aligned and orderly_deallocate, in a stream.
[[nodiscard]] ORDERLY_API void* allocate(stream_pool& in, std::size_t bytes, std::size_t alignment,
                                         stream_handle stream) noexcept;
[[nodiscard]] ORDERLY_API int deallocate(stream_pool& in, void* pointer, std::size_t bytes,
                                         stream_handle stream) noexcept;

/// Keeps the text for orderly_last_error. Returns the code.
ORDERLY_API int fail(error code, const char* text) noexcept;

}  // namespace orderly::c_api
