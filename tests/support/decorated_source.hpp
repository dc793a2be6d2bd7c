/// \file
/// A memory source that does what another one does, for tests that look at some of its calls, or change them.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "orderly/source.hpp"

namespace orderly::test {

/// A commit_together() is a commit() here. What it hands out is not said to be host memory, nor has it an observer.
class decorated_source : public memory_source {
 public:
  explicit decorated_source(std::unique_ptr<memory_source> inner = make_host_source()) : inner_(std::move(inner)) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return inner_->granularity(); }
  [[nodiscard]] std::size_t preferred_chunk() const noexcept override { return inner_->preferred_chunk(); }
  [[nodiscard]] std::size_t capacity() const noexcept override { return inner_->capacity(); }
  [[nodiscard]] bool is_virtual() const noexcept override { return inner_->is_virtual(); }
  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    return inner_->reserve(bytes, alignment);
  }
  void release(void* address, std::size_t bytes) noexcept override { inner_->release(address, bytes); }
  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override { return inner_->commit(address, bytes); }
  void why_refused(char* text, std::size_t bytes) const noexcept override { inner_->why_refused(text, bytes); }
  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    return inner_->decommit(address, bytes);
  }

 private:
  std::unique_ptr<memory_source> inner_;
};

}  // namespace orderly::test
