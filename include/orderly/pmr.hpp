/// \file
/// std::pmr over a pool.
#pragma once

#include <cstddef>
#include <memory_resource>

#include "orderly/export.h"
#include "orderly/pool.hpp"

namespace orderly {

/// A std::pmr::memory_resource that allocates from a pool, which must outlive it.
/// Thread safety and progress: as the pool's. Two resources are equal when they share a pool.
class ORDERLY_API memory_resource final : public std::pmr::memory_resource {
 public:
  explicit memory_resource(pool& upstream) noexcept : pool_(&upstream) {}

  [[nodiscard]] pool& upstream() const noexcept { return *pool_; }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* pointer, std::size_t bytes, std::size_t alignment) override;
  [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

  pool* pool_;
};

}  // namespace orderly
