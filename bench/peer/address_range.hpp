/// \file
/// A range of private memory for a peer's arena or tables. Pages exist once they are touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace orderly::bench {

class address_range {
 public:
  explicit address_range(std::size_t bytes)
      : begin_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
        bytes_(bytes) {
    if (begin_ == MAP_FAILED) throw std::bad_alloc();
  }
  address_range(const address_range&) = delete;
  address_range& operator=(const address_range&) = delete;
  ~address_range() { munmap(begin_, bytes_); }

  [[nodiscard]] std::byte* begin() const noexcept { return static_cast<std::byte*>(begin_); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

 private:
  void* begin_;
  std::size_t bytes_;
};

}  // namespace orderly::bench
