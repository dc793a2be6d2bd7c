/// \file
/// A range of memory and the blocks in it, in the words of NVTX's memory extension, for compute-sanitizer: the range is a
/// heap of a sub-allocator, each block a region of it. Without a tool in the process each call is a comparison.
#pragma once

#include <cstddef>

#include "orderly/block_observer.hpp"

namespace orderly::detail {

/// True: the environment asks for it (ORDERLY_CUDA_REGIONS is 1).
[[nodiscard]] bool regions_are_asked_for() noexcept;

class regions final : public block_observer {
 public:
  /// Between these two nothing of the range may be used but what is allowed. Pre: the CUDA runtime is initialised.
  void begin(void* address, std::size_t bytes) noexcept;
  void end() noexcept;

  void allowed(void* address, std::size_t bytes) noexcept override;
  void forbidden(void* address) noexcept override;

 private:
  void* heap_ = nullptr;  ///< an nvtxMemHeapHandle_t; null: no tool is there
};

}  // namespace orderly::detail
