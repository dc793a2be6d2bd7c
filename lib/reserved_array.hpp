/// \file
/// Tables that are as long as they might ever have to be, and cost what is touched of them.
#pragma once

#include <cstddef>
#include <type_traits>

namespace orderly::detail {

/// Reserves zeroed, page-aligned system memory that is committed on first touch. Null: refused.
[[nodiscard]] void* reserve_zeroed(std::size_t bytes) noexcept;
void release_zeroed(void* address, std::size_t bytes) noexcept;

/// Commits the pages of a range at once, where the system can (Linux 5.14): cheaper than a fault for each.
void touch_ahead(void* address, std::size_t bytes) noexcept;

/// `size` objects of T whose zero bytes are a valid initial value. The array never moves and is never unmapped before
/// its destruction, so an index that is out of date still names readable memory.
template <class T>
class reserved_array {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  reserved_array() = default;
  reserved_array(const reserved_array&) = delete;
  reserved_array& operator=(const reserved_array&) = delete;
  ~reserved_array() { release_zeroed(data_, size_ * sizeof(T)); }

  /// False: the system refused.
  [[nodiscard]] bool reserve(std::size_t size) noexcept {
    data_ = static_cast<T*>(reserve_zeroed(size * sizeof(T)));
    size_ = data_ == nullptr ? 0 : size;
    return data_ != nullptr || size == 0;
  }

  [[nodiscard]] T& operator[](std::size_t index) const noexcept { return data_[index]; }
  [[nodiscard]] T* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace orderly::detail
