/// \file
/// What other libraries' allocators call, without the interpreter: a pool's functions, and the recorder's. Each is
/// handed over as addresses, so that a library which is compiled elsewhere needs no header of orderly's.
#pragma once

#include <cstddef>
#include <cstdint>

#include <nanobind/nanobind.h>

namespace orderly::python {

/// A pool in host memory for another library's allocator. For ever: its blocks may outlive everything else.
///
/// Thread safety: any thread, with the GIL or without. Progress: as the pool; the out-of-memory handler takes the GIL.
struct pool_hook {
  /// Null: refused.
  void* (*allocate)(void* context, std::size_t bytes) noexcept;
  /// `bytes` 0: unknown. False: it is no live block of the pool, and nothing has happened. Any other bad free is
  /// reported, and true.
  bool (*free)(void* context, void* block, std::size_t bytes) noexcept;
  void* context;
};

/// Notes allocations, in the order in which they happened, for a log.
struct recorder_hook {
  /// Behind the allocation. Null: it was refused.
  void (*allocated)(void* block, std::size_t bytes) noexcept;
  /// Before the free. A block whose allocation was not noted is passed over.
  void (*freed)(void* block) noexcept;
};

[[nodiscard]] recorder_hook the_recorder_hook() noexcept;

void bind_hooks(nanobind::module_& m);

}  // namespace orderly::python
