/// \file
/// Tensors as values: element type, device, layout, and the descriptor of one. What hands them out is
/// orderly/tensor_cache.hpp; what exchanges them with other libraries, orderly/dlpack.hpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

#include "orderly/export.h"
#include "orderly/stream.hpp"

namespace orderly {

/// What one element is, in DLPack's terms (DLDataType): a kind, the bits of one lane, and the lanes of a vector type.
/// One element takes whole bytes: (bits * lanes + 7) / 8 of them.
struct tensor_type {
  std::uint8_t code = 2;
  std::uint8_t bits = 32;
  std::uint16_t lanes = 1;

  [[nodiscard]] constexpr std::size_t bytes() const noexcept { return (std::size_t{bits} * lanes + 7) / 8; }
  [[nodiscard]] friend constexpr bool operator==(const tensor_type&, const tensor_type&) noexcept = default;
};

/// The usual types. Any other code is taken as it is: the cache gives it no meaning.
namespace tensor_types {
inline constexpr tensor_type int8{0, 8, 1};
inline constexpr tensor_type int16{0, 16, 1};
inline constexpr tensor_type int32{0, 32, 1};
inline constexpr tensor_type int64{0, 64, 1};
inline constexpr tensor_type uint8{1, 8, 1};
inline constexpr tensor_type uint16{1, 16, 1};
inline constexpr tensor_type uint32{1, 32, 1};
inline constexpr tensor_type uint64{1, 64, 1};
inline constexpr tensor_type float16{2, 16, 1};
inline constexpr tensor_type float32{2, 32, 1};
inline constexpr tensor_type float64{2, 64, 1};
inline constexpr tensor_type bfloat16{4, 16, 1};
inline constexpr tensor_type complex64{5, 64, 1};
inline constexpr tensor_type complex128{5, 128, 1};
inline constexpr tensor_type boolean{6, 8, 1};
}  // namespace tensor_types

/// Where the elements are, in DLPack's terms (DLDevice).
struct tensor_device {
  std::int32_t type = 1;  ///< 1: the host. 2: CUDA. 3: page-locked host memory of CUDA. 13: managed memory of CUDA
  std::int32_t id = 0;

  [[nodiscard]] friend constexpr bool operator==(const tensor_device&, const tensor_device&) noexcept = default;
};

enum class tensor_order : std::uint8_t {
  row_major,     ///< the last dimension is dense, as C and most frameworks have it
  column_major,  ///< the first one is, as Fortran and BLAS have it
};

/// Type, shape and strides, checked, with what follows from them. Immutable but for assignment. A program that asks for
/// the same tensors again and again keeps their layouts, and so checks and hashes nothing any more.
///
/// Shapes: up to most_dimensions extents, each 0 or more; none is a scalar. Sizes that do not fit into 63 bits are
/// refused. An extent of 0 makes a tensor without elements, of 0 bytes.
///
/// Strides: in elements, not bytes. Given ones must keep elements apart: with the dimensions of more than one element in
/// the order of their strides, each stride must reach past all that the smaller ones span. (Layouts in which elements
/// interleave without overlap fail that, too.) None is negative. Of a dimension of one element, and where there are no
/// elements, any will do. There may be gaps, which cost what they cost: bytes() counts from the first element to the end
/// of the farthest one.
///
/// Thread safety: a value; const functions may be called at once.
class ORDERLY_API tensor_layout {
 public:
  static constexpr std::size_t most_dimensions = 32;

  /// A scalar of float32.
  tensor_layout() noexcept;

  /// Dense. Throws std::invalid_argument: more dimensions than most_dimensions, a negative extent, a type of no bits or
  /// no lanes, more bytes than 2^63 - 1.
  tensor_layout(std::span<const std::int64_t> shape, tensor_type type, tensor_order order = tensor_order::row_major);
  tensor_layout(std::initializer_list<std::int64_t> shape, tensor_type type,
                tensor_order order = tensor_order::row_major)
      : tensor_layout(std::span(shape.begin(), shape.size()), type, order) {}

  /// With strides. Throws as above; also for strides that are another number than the extents, negative, or overlap.
  tensor_layout(std::span<const std::int64_t> shape, std::span<const std::int64_t> strides, tensor_type type);

  /// The same; nothing instead of an exception. `why`, if given, gets the message.
  [[nodiscard]] static std::optional<tensor_layout> make(std::span<const std::int64_t> shape, tensor_type type,
                                                         tensor_order order = tensor_order::row_major,
                                                         std::string* why = nullptr) noexcept;
  [[nodiscard]] static std::optional<tensor_layout> make(std::span<const std::int64_t> shape,
                                                         std::span<const std::int64_t> strides, tensor_type type,
                                                         std::string* why = nullptr) noexcept;

  tensor_layout(const tensor_layout& other) noexcept;
  tensor_layout& operator=(const tensor_layout& other) noexcept;

  [[nodiscard]] std::size_t dimensions() const noexcept { return dimensions_; }
  [[nodiscard]] std::span<const std::int64_t> shape() const noexcept { return {values_.data(), dimensions_}; }
  [[nodiscard]] std::span<const std::int64_t> strides() const noexcept {
    return {values_.data() + dimensions_, dimensions_};
  }
  [[nodiscard]] tensor_type type() const noexcept { return type_; }
  [[nodiscard]] std::size_t elements() const noexcept { return elements_; }
  /// Memory that a tensor of this layout needs, gaps included.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  /// Of type, shape and strides: equal layouts have equal ones, others hardly ever. Not stable across releases.
  [[nodiscard]] std::uint64_t fingerprint() const noexcept { return fingerprint_; }

  /// The same type, shape and strides.
  [[nodiscard]] friend bool operator==(const tensor_layout& a, const tensor_layout& b) noexcept {
    return a.fingerprint_ == b.fingerprint_ && a.equals(b);
  }

 private:
  struct unchecked {};
  explicit tensor_layout(unchecked) noexcept {}  // values_ stay as they are: what is used of them is set
  [[nodiscard]] bool equals(const tensor_layout& other) const noexcept;
  void copy(const tensor_layout& other) noexcept;
  [[nodiscard]] bool set_shape(std::span<const std::int64_t> shape, tensor_type type, std::string* why);
  [[nodiscard]] bool set_dense(std::span<const std::int64_t> shape, tensor_type type, tensor_order order,
                               std::string* why);
  [[nodiscard]] bool set_strided(std::span<const std::int64_t> shape, std::span<const std::int64_t> strides,
                                 tensor_type type, std::string* why);
  void finish() noexcept;

  std::uint64_t fingerprint_;
  std::size_t bytes_;
  std::size_t elements_;
  tensor_type type_;
  std::uint32_t dimensions_;
  std::array<std::int64_t, 2 * most_dimensions> values_;  ///< extents, then strides: as many as there are dimensions
};

/// Says which tensor is meant, and which of the times that its record was handed out. Plain values, which may be kept
/// after the free: 2^62 hand-outs of one record do not happen, so that no two have the same.
struct tensor_handle {
  std::uint64_t cache = 0;       ///< number of the cache, which no other cache of the process ever has; 0: no tensor
  std::uint64_t generation = 0;
  std::uint32_t record = 0;

  [[nodiscard]] friend constexpr bool operator==(const tensor_handle&, const tensor_handle&) noexcept = default;
};

/// A tensor: a plain value that describes it, and owns nothing. Copies name the same tensor.
///
/// The spans name the record of the tensor's cache. They are right until the tensor is freed; then they name the extents
/// of whatever tensor has the record next, and nothing once the cache is gone.
struct tensor {
  void* data = nullptr;  ///< of the first element. Null: no tensor, or one of 0 bytes
  std::span<const std::int64_t> shape;
  std::span<const std::int64_t> strides;  ///< in elements
  std::size_t bytes = 0;                  ///< tensor_layout::bytes()
  tensor_type type;
  tensor_device device;
  stream_handle stream = nullptr;  ///< it was allocated for; null where the pool has no streams
  tensor_handle handle;

  /// True: this names a tensor, freed by now or not.
  [[nodiscard]] explicit operator bool() const noexcept { return handle.cache != 0; }
};

}  // namespace orderly
