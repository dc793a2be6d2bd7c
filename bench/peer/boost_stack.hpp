/// \file
/// boost::lockfree::stack as a free list of one order: what a lock-free list alone can do.
#pragma once

#include <boost/lockfree/stack.hpp>
#include <cstddef>
#include <string_view>

#include "peer/address_range.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class boost_stack_peer {
 public:
  static constexpr std::string_view name = "boost-stack";
  static constexpr bool arena = false;
  static constexpr bool one_size = true;

  explicit boost_stack_peer(const arena_config&) : range_(blocks * block_bytes), free_(blocks) {
    for (std::size_t i = blocks; i-- > 0;) free_.bounded_push(range_.begin() + i * block_bytes);
  }

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept {
    std::byte* block = nullptr;
    return bytes <= block_bytes && free_.pop(block) ? block : nullptr;
  }
  void deallocate(void* pointer, std::size_t) noexcept { free_.bounded_push(static_cast<std::byte*>(pointer)); }

 private:
  static constexpr std::size_t block_bytes = 2048;
  static constexpr std::size_t blocks = 32768;

  address_range range_;
  boost::lockfree::stack<std::byte*> free_;
};

}  // namespace orderly::bench
