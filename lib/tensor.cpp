#include "orderly/tensor.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace orderly {
namespace {

constexpr std::uint64_t most_bytes = std::numeric_limits<std::int64_t>::max();

/// "(2, -1)". May throw std::bad_alloc, as every message may.
[[nodiscard]] std::string listed(std::span<const std::int64_t> values) {
  std::string text = "(";
  for (std::size_t i = 0; i < values.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  return text + ")";
}

template <class Text>
[[nodiscard]] bool refuse(std::string* why, const Text& text) {
  if (why != nullptr) *why = "orderly::tensor_layout: " + text();
  return false;
}

/// From splitmix64 (Steele, Lea, Flood, OOPSLA 2014): every bit of the value counts.
[[nodiscard]] constexpr std::uint64_t mixed(std::uint64_t value) noexcept {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

}  // namespace

tensor_layout::tensor_layout() noexcept : tensor_layout(unchecked{}) {
  static_cast<void>(set_shape({}, {}, nullptr));  // a scalar is never refused
  bytes_ = type_.bytes();
  finish();
}

tensor_layout::tensor_layout(std::span<const std::int64_t> shape, tensor_type type, tensor_order order)
    : tensor_layout(unchecked{}) {
  if (set_dense(shape, type, order, nullptr)) [[likely]] return;
  std::string why;
  static_cast<void>(set_dense(shape, type, order, &why));
  throw std::invalid_argument(why);
}

tensor_layout::tensor_layout(std::span<const std::int64_t> shape, std::span<const std::int64_t> strides, tensor_type type)
    : tensor_layout(unchecked{}) {
  std::string why;
  if (!set_strided(shape, strides, type, &why)) throw std::invalid_argument(why);
}

std::optional<tensor_layout> tensor_layout::make(std::span<const std::int64_t> shape, tensor_type type, tensor_order order,
                                                 std::string* why) noexcept {
  try {
    tensor_layout made{unchecked{}};
    if (made.set_dense(shape, type, order, why)) return made;
  } catch (const std::bad_alloc&) {  // the message
  }
  return std::nullopt;
}

std::optional<tensor_layout> tensor_layout::make(std::span<const std::int64_t> shape, std::span<const std::int64_t> strides,
                                                 tensor_type type, std::string* why) noexcept {
  try {
    tensor_layout made{unchecked{}};
    if (made.set_strided(shape, strides, type, why)) return made;
  } catch (const std::bad_alloc&) {  // the message
  }
  return std::nullopt;
}

tensor_layout::tensor_layout(const tensor_layout& other) noexcept : tensor_layout(unchecked{}) { copy(other); }

tensor_layout& tensor_layout::operator=(const tensor_layout& other) noexcept {
  if (this != &other) copy(other);
  return *this;
}

void tensor_layout::copy(const tensor_layout& other) noexcept {
  fingerprint_ = other.fingerprint_;
  bytes_ = other.bytes_;
  elements_ = other.elements_;
  type_ = other.type_;
  dimensions_ = other.dimensions_;
  std::copy_n(other.values_.begin(), 2 * std::size_t{dimensions_}, values_.begin());
}

bool tensor_layout::equals(const tensor_layout& other) const noexcept {
  if (type_ != other.type_ || dimensions_ != other.dimensions_) return false;
  const std::size_t count = 2 * std::size_t{dimensions_};
  for (std::size_t i = 0; i < count; ++i)  // of few: a call of memcmp() takes longer
    if (values_[i] != other.values_[i]) return false;
  return true;
}

/// Everything but the strides and the bytes. What does not throw, except where there is a message.
bool tensor_layout::set_shape(std::span<const std::int64_t> shape, tensor_type type, std::string* why) {
  if (shape.size() > most_dimensions)
    return refuse(why, [&] {
      return std::to_string(shape.size()) + " dimensions; at most " + std::to_string(most_dimensions) + " are possible";
    });
  if (type.bits == 0 || type.lanes == 0)
    return refuse(why, [&] {
      return "a type of " + std::to_string(type.bits) + " bits and " + std::to_string(type.lanes) + " lanes; neither may be 0";
    });
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) return refuse(why, [&] { return "the shape " + listed(shape) + " has a negative extent"; });
    empty = empty || extent == 0;
  }
  std::uint64_t elements = empty ? 0 : 1;
  for (const std::int64_t extent : shape)
    if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(extent), &elements)) elements = ~std::uint64_t{0};
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(elements, std::uint64_t{type.bytes()}, &bytes) || bytes > most_bytes)
    return refuse(why, [&] {
      return "the shape " + listed(shape) + " with elements of " + std::to_string(type.bytes()) +
             " bytes has more bytes than 2^63 - 1";
    });
  type_ = type;
  dimensions_ = static_cast<std::uint32_t>(shape.size());
  elements_ = elements;
  std::copy(shape.begin(), shape.end(), values_.begin());
  return true;
}

bool tensor_layout::set_dense(std::span<const std::int64_t> shape, tensor_type type, tensor_order order,
                              std::string* why) {
  if (!set_shape(shape, type, why)) return false;
  bytes_ = elements_ * type.bytes();
  std::int64_t* const strides = values_.data() + dimensions_;
  std::int64_t stride = 1;  // where there are elements it cannot overflow: the next one is at most their number
  for (std::size_t i = 0; i < dimensions_; ++i) {
    const std::size_t at = order == tensor_order::row_major ? dimensions_ - 1 - i : i;
    strides[at] = stride;
    if (elements_ != 0) stride *= shape[at];
  }
  finish();
  return true;
}

bool tensor_layout::set_strided(std::span<const std::int64_t> shape, std::span<const std::int64_t> strides,
                                tensor_type type, std::string* why) {
  if (!set_shape(shape, type, why)) return false;
  if (strides.size() != shape.size())
    return refuse(why, [&] {
      return std::to_string(strides.size()) + " strides for " + std::to_string(shape.size()) + " extents";
    });
  std::array<std::uint8_t, most_dimensions> by_stride;  // the dimensions that have more than one element
  std::size_t count = 0;
  for (std::size_t i = 0; i < shape.size() && elements_ != 0; ++i) {
    if (shape[i] == 1) continue;
    if (strides[i] < 0)
      return refuse(why, [&] { return "the strides " + listed(strides) + " have a negative one"; });
    by_stride[count++] = static_cast<std::uint8_t>(i);
  }
  std::sort(by_stride.begin(), by_stride.begin() + static_cast<std::ptrdiff_t>(count),
            [&](std::uint8_t a, std::uint8_t b) { return strides[a] < strides[b]; });
  std::uint64_t spanned = 1;  // elements from the first one to the last one that the smaller strides reach
  bool fits = true;
  for (std::size_t i = 0; i < count && fits; ++i) {
    const std::size_t at = by_stride[i];
    const auto stride = static_cast<std::uint64_t>(strides[at]);
    if (stride < spanned)
      return refuse(why, [&] {
        return "in the shape " + listed(shape) + " the strides " + listed(strides) + " make elements overlap: " +
               std::to_string(stride) + " does not reach past " + std::to_string(spanned) + " elements";
      });
    std::uint64_t farther = 0;
    fits = !__builtin_mul_overflow(stride, static_cast<std::uint64_t>(shape[at] - 1), &farther) &&
           !__builtin_add_overflow(spanned, farther, &spanned);
  }
  std::uint64_t bytes = 0;
  if (elements_ != 0 &&
      (!fits || __builtin_mul_overflow(spanned, std::uint64_t{type.bytes()}, &bytes) || bytes > most_bytes))
    return refuse(why, [&] {
      return "the shape " + listed(shape) + " with the strides " + listed(strides) + " spans more bytes than 2^63 - 1";
    });
  bytes_ = bytes;
  std::copy(strides.begin(), strides.end(), values_.begin() + dimensions_);
  finish();
  return true;
}

void tensor_layout::finish() noexcept {
  std::uint64_t hash = mixed((std::uint64_t{type_.code} << 48 | std::uint64_t{type_.bits} << 32 |
                              std::uint64_t{type_.lanes} << 8 | dimensions_) + 0x9e3779b97f4a7c15);
  for (std::size_t i = 0; i < 2 * std::size_t{dimensions_}; ++i)
    hash = mixed(hash + 0x9e3779b97f4a7c15 + static_cast<std::uint64_t>(values_[i]));
  fingerprint_ = hash;
}

}  // namespace orderly
