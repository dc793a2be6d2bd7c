/// \file
/// The pools that are alive, for what must be asked of all of them: whose pointer is this, and is that pool still there.
/// Slow paths only; under mutexes.
#pragma once

#include <cstdint>

namespace orderly::detail {

class front;

/// What the registry needs of a pool.
class registered_pool {
 public:
  [[nodiscard]] std::uint64_t serial() const noexcept { return serial_; }
  [[nodiscard]] virtual bool contains(const void* pointer) const noexcept = 0;
  /// Before and after the process forks. In the child every other thread is gone, wherever it was.
  virtual void before_fork() noexcept = 0;
  virtual void after_fork(bool child) noexcept = 0;
  /// Takes a front back from a thread that is done with it. Several threads may do so at once.
  virtual void detach(front& of) noexcept = 0;

 protected:
  registered_pool() = default;
  ~registered_pool() = default;
  /// Throws std::bad_alloc.
  void enroll();
  /// From now on nobody finds the pool, and whoever has found it is done.
  void withdraw() noexcept;

 private:
  friend struct fork_handlers;
  friend void detach_if_alive(std::uint64_t serial, front& of) noexcept;

  std::uint64_t serial_ = 0;
  std::uint32_t pins_ = 0;  ///< threads that give a front back just now; guarded by the registry's list
};

/// True if a pool other than `self` serves the pointer.
[[nodiscard]] bool served_elsewhere(const void* pointer, const registered_pool* self) noexcept;

[[nodiscard]] bool is_alive(std::uint64_t serial) noexcept;

/// A number that is never given twice: of a pool, or of what must not be taken for one. From 1 on. Lock-free.
[[nodiscard]] std::uint64_t next_serial() noexcept;

/// Gives a front back if its pool is alive. The pool waits with its end meanwhile; no mutex of the registry's is held.
void detach_if_alive(std::uint64_t serial, front& of) noexcept;

}  // namespace orderly::detail
