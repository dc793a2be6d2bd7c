/// \file
/// Work in a process of its own: allocators of a process share its heap and address space, and one may crash or be
/// killed for lack of memory. A child starts afresh and takes nothing down with it.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <type_traits>

namespace orderly::bench {

/// An array that children write and the parent reads.
template <class T>
  requires std::is_trivially_copyable_v<T>
class shared_array {
 public:
  explicit shared_array(std::size_t count) : count_(count) {
    void* const memory = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(memory);
    std::uninitialized_value_construct_n(data_, count);
  }
  shared_array(const shared_array&) = delete;
  shared_array& operator=(const shared_array&) = delete;
  ~shared_array() { munmap(data_, bytes()); }

  [[nodiscard]] std::span<T> values() const noexcept { return {data_, count_}; }

 private:
  [[nodiscard]] std::size_t bytes() const noexcept { return (count_ == 0 ? 1 : count_) * sizeof(T); }

  T* data_;
  std::size_t count_;
};

/// Runs `task` in a child and waits for it, calling `idle` a few times a second meanwhile. Returns why the task failed
/// (the message of its exception, or what ended the process); empty: it did not. The caller must be the only thread.
[[nodiscard]] std::string run_in_child(const std::function<void()>& task, const std::function<void()>& idle);

}  // namespace orderly::bench
