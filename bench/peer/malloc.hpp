/// \file
/// The C library's malloc, or whatever replaces it in this process.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <string_view>

#include "peer/peer.hpp"

namespace orderly::bench {

class malloc_peer {
 public:
  static constexpr std::string_view name = "malloc";
  static constexpr bool arena = false;

  explicit malloc_peer(const arena_config&) noexcept {}

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept { return std::malloc(bytes); }
  void deallocate(void* pointer, std::size_t) noexcept { std::free(pointer); }
};

}  // namespace orderly::bench
