#include "orderly/pmr.hpp"

namespace orderly {

void* memory_resource::do_allocate(std::size_t bytes, std::size_t alignment) {
  return pool_->allocate(bytes, alignment);
}

void memory_resource::do_deallocate(void* pointer, std::size_t bytes, std::size_t) {
  // A request of no bytes got a block of one.
  pool_->deallocate(pointer, bytes == 0 ? 1 : bytes);
}

bool memory_resource::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
  const auto* const same = dynamic_cast<const memory_resource*>(&other);
  return same != nullptr && same->pool_ == pool_;
}

}  // namespace orderly
