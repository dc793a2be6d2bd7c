/// \file
/// What a block_observer is told, and when. Observed pools trade speed for it: each call takes the mutex, and each free
/// waits for the device.
#pragma once

#include <cstddef>
#include <map>

#include "atomic.hpp"
#include "orderly/block_observer.hpp"

namespace orderly::detail {

/// All functions but the mutex: Pre: the mutex is held, from before the pool hands the block out or takes it back. Then
/// nobody else can have it meanwhile.
class observed_blocks {
 public:
  explicit observed_blocks(block_observer& by) noexcept : by_(by) {}

  /// Recursive: an out-of-memory handler frees and allocates inside of an allocation.
  recursive_mutex mutex;

  /// `kept`: a graph may use it whenever it is launched.
  void hand_out(void* block, std::size_t bytes, bool kept) noexcept;
  /// `settled`: no work uses the block, and none will.
  void take_back(void* block, bool settled) noexcept;

 private:
  using ranges = std::map<std::byte*, std::size_t>;

  block_observer& by_;
  ranges live_;
  ranges kept_;  ///< allowed for good; what is handed out there again belongs to it
};

}  // namespace orderly::detail
