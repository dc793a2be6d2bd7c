/// \file
/// The pools that are alive, for what must be asked of all of them: whose pointer is this, and is that pool still there.
/// Slow paths only; one mutex.
#pragma once

#include <cstdint>

namespace orderly::detail {

class front;

/// What the registry needs of a pool.
class registered_pool {
 public:
  [[nodiscard]] std::uint64_t serial() const noexcept { return serial_; }
  [[nodiscard]] virtual bool contains(const void* pointer) const noexcept = 0;
  /// Takes a front back from a thread that is done with it.
  virtual void detach(front& of) noexcept = 0;

 protected:
  registered_pool() = default;
  ~registered_pool() = default;
  /// Throws std::bad_alloc.
  void enroll();
  void withdraw() noexcept;

 private:
  std::uint64_t serial_ = 0;
};

/// True if a pool other than `self` serves the pointer.
[[nodiscard]] bool served_elsewhere(const void* pointer, const registered_pool* self) noexcept;

[[nodiscard]] bool is_alive(std::uint64_t serial) noexcept;

/// Gives a front back if its pool is alive. The pool cannot die meanwhile.
void detach_if_alive(std::uint64_t serial, front& of) noexcept;

}  // namespace orderly::detail
