#include "orderly/source.hpp"

#include <cstdint>

namespace orderly {
namespace {

class fixed_buffer_source final : public memory_source {
 public:
  fixed_buffer_source(void* buffer, std::size_t bytes) noexcept : buffer_(buffer), bytes_(bytes) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return 1; }
  [[nodiscard]] std::size_t capacity() const noexcept override { return bytes_; }
  [[nodiscard]] bool is_virtual() const noexcept override { return false; }
  [[nodiscard]] bool is_host_memory() const noexcept override { return true; }

  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    const bool aligned = (reinterpret_cast<std::uintptr_t>(buffer_) & (alignment - 1)) == 0;
    if (reserved_ || bytes > bytes_ || !aligned) return nullptr;
    reserved_ = true;
    return buffer_;
  }
  void release(void*, std::size_t) noexcept override { reserved_ = false; }

  [[nodiscard]] bool commit(void*, std::size_t) noexcept override { return true; }
  [[nodiscard]] bool decommit(void*, std::size_t) noexcept override { return false; }

 private:
  void* buffer_;
  std::size_t bytes_;
  bool reserved_ = false;
};

}  // namespace

std::unique_ptr<memory_source> make_fixed_buffer_source(void* buffer, std::size_t bytes) {
  return std::make_unique<fixed_buffer_source>(buffer, bytes);
}

}  // namespace orderly
