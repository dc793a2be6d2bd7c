/// \file
/// A block of a pool as an array in row-major order, which NumPy, PyTorch, CuPy and others take as it lies.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>

#include <nanobind/nanobind.h>

#include "dtype.hpp"
#include "memory.hpp"
#include "orderly/tensor_cache.hpp"

namespace orderly::python {

/// A cache of tensors over a pool, which Python's cache and its tensors share.
///
/// Pre, for all that follows: the GIL is held.
class tensor_keeper {
 public:
  tensor_keeper(std::shared_ptr<memory> of, const tensor_options& settings);
  tensor_keeper(const tensor_keeper&) = delete;
  tensor_keeper& operator=(const tensor_keeper&) = delete;
  ~tensor_keeper();

  /// `stream`: memory::settled over a pool without streams.
  [[nodiscard]] orderly::tensor empty(const tensor_layout& layout, stream_handle stream);
  [[nodiscard]] error free(const orderly::tensor& of, bad_free* report);
  [[nodiscard]] error record_stream(const orderly::tensor& of, stream_handle stream);
  std::size_t trim(std::size_t keep_bytes);
  [[nodiscard]] tensor_statistics stats() const noexcept { return cache_->stats(); }
  [[nodiscard]] const std::shared_ptr<memory>& of() const noexcept { return of_; }

 private:
  std::shared_ptr<memory> of_;
  std::optional<tensor_cache> cache_;
};

class tensor {
 public:
  /// Lengths of the dimensions; of a few they lie in the object itself.
  class dimensions {
   public:
    explicit dimensions(std::size_t count) : count_(count) {
      if (count > few) many_ = std::make_unique<Py_ssize_t[]>(2 * count);
    }
    [[nodiscard]] std::size_t count() const noexcept { return count_; }
    /// `count` lengths, then as many strides.
    [[nodiscard]] Py_ssize_t* lengths() noexcept { return many_ ? many_.get() : in_place_.data(); }
    [[nodiscard]] const Py_ssize_t* lengths() const noexcept { return many_ ? many_.get() : in_place_.data(); }
    [[nodiscard]] Py_ssize_t* strides() noexcept { return lengths() + count_; }
    [[nodiscard]] const Py_ssize_t* strides() const noexcept { return lengths() + count_; }

   private:
    static constexpr std::size_t few = 4;
    std::size_t count_;
    std::array<Py_ssize_t, 2 * few> in_place_;
    std::unique_ptr<Py_ssize_t[]> many_;
  };

  /// An integer or several. Raises TypeError, ValueError.
  [[nodiscard]] static dimensions read_shape(nanobind::handle given);

  /// Raises ValueError, and what the pool raises. `keeper`: null, or a cache over the pool that the memory comes from.
  tensor(std::shared_ptr<memory> from, std::shared_ptr<tensor_keeper> keeper, dimensions&& shape,
         const element_type& type, stream_handle stream);
  tensor(tensor&& other) noexcept;
  tensor& operator=(tensor&&) = delete;
  ~tensor();

  /// Frees the block now. Raises BadFree if it is no live tensor of `of`, BufferError while others use its memory.
  void free(const memory& of);

  [[nodiscard]] bool is_live() const noexcept { return address_ != nullptr; }
  /// Raises ValueError where it was freed.
  void* address() const;
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] const dimensions& shape() const noexcept { return shape_; }
  [[nodiscard]] const element_type& type() const noexcept { return *type_; }
  [[nodiscard]] stream_handle stream() const noexcept { return stream_; }
  [[nodiscard]] memory& pool() const noexcept { return *from_; }
  /// Work in that stream uses it too.
  [[nodiscard]] error record_stream(stream_handle stream);

  /// Others that use its memory, and of whom it can be told when they are done.
  std::size_t exports = 0;

 private:
  [[nodiscard]] error give_back(bad_free* report);

  std::shared_ptr<memory> from_;
  std::shared_ptr<tensor_keeper> keeper_;
  tensor_handle handle_;  ///< of the keeper's
  void* address_ = nullptr;
  const void* freed_ = nullptr;  ///< where it was
  std::size_t bytes_ = 0;
  stream_handle stream_;
  const element_type* type_;
  dimensions shape_;
};

void bind_tensor(nanobind::module_& m);

}  // namespace orderly::python
