/// \file
/// The pool of the C++ standard library, thread-safe variant.
#pragma once

#include <cstddef>
#include <memory_resource>
#include <new>
#include <string_view>

#include "peer/peer.hpp"

namespace orderly::bench {

class pmr_pool_peer {
 public:
  static constexpr std::string_view name = "pmr-pool";
  static constexpr bool arena = false;

  explicit pmr_pool_peer(const arena_config&) {}

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept {
    try {
      return resource_.allocate(bytes);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }
  void deallocate(void* pointer, std::size_t bytes) noexcept { resource_.deallocate(pointer, bytes); }

 private:
  /// Its default pools small blocks only and passes the others on to operator new.
  std::pmr::synchronized_pool_resource resource_{
      std::pmr::pool_options{.max_blocks_per_chunk = 0, .largest_required_pool_block = std::size_t{1} << 20}};
};

}  // namespace orderly::bench
