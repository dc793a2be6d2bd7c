/// \file
/// Somebody who is told of each block of a pool in stream order: what watches a device's memory for accesses to what no
/// live block has, as compute-sanitizer does.
#pragma once

#include <cstddef>

#include "orderly/export.h"

namespace orderly {

/// Thread safety: the pool calls one function at a time. They must call neither the pool nor its driver.
///
/// Stream order: a block that is freed in a stream may still be used by work that is there already. So a pool that is
/// observed waits at each free until all work of the device is done, and only then tells that the block was taken back:
/// no access is reported that is right. What a graph may use again whenever it is launched, the pool does not take back
/// in this sense at all: a block that was allocated or freed while its stream captured stays allowed, and so does a
/// block whose device cannot be waited for. Those ranges may be handed out again, longer, as told.
class ORDERLY_API block_observer {
 public:
  block_observer() = default;
  block_observer(const block_observer&) = delete;
  block_observer& operator=(const block_observer&) = delete;
  virtual ~block_observer();

  /// Work may use these bytes from now on. They are none of those that it may use already.
  virtual void allowed(void* address, std::size_t bytes) noexcept = 0;

  /// Work must not use what was allowed at this address any more.
  virtual void forbidden(void* address) noexcept = 0;
};

}  // namespace orderly
